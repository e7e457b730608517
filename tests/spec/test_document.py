"""Reading YAML strictly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoq.errors import JobError
from autoq.spec.document import MAX_BYTES, check_bounds, read_mapping


def read(tmp_path: Path, text: str | bytes) -> dict[object, object]:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_mapping(path, "job file")


def test_anchors_merges_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    text = "\ufeffbase: &b {x: 1, y: 2}\nuses: {<<: *b, y: 3}\nalso: *b\n"
    assert read(tmp_path, text) == {"base": {"x": 1, "y": 2}, "uses": {"x": 1, "y": 3}, "also": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3, column 1: .*key 'a' is given twice"),
        ("data: {x: 1, x: 2}\n", "key 'x' is given twice"),
        ("base: &b {x: 1}\nuses: {<<: *b, y: 1, y: 2}\n", "key 'y' is given twice"),
        ("a: [1, 2\n", "line 2, column 1: not valid YAML"),
        ("a: {b: 1\n- c", "not valid YAML"),
        ("- 1\n- 2\n", "is a mapping of fields .* not a list"),
        ("just text", "not a str"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("a: 1\n---\nb: 2\n", "not valid YAML.*single document"),
        ("a: !!python/object:os.system {}\n", "not valid YAML.*constructor"),
        ("a: !!bool maybe\n", "cannot be read"),
        ("a: 2001-99-99\n", "cannot be read"),
        ("a: !!float ''\n", "cannot be read"),
        ("a: !!timestamp x\n", "cannot be read"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("? [a, b]\n: 1\n", "not valid YAML.*unhashable"),
        ("a: \x07\n", "not valid YAML.*special characters"),
        ("a: " + "[" * 2000, "nested too deeply|nested more than"),
        ("a: &a [*a]\n", "nested more than"),
        (b"\x80\x02}q\x00.", "not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "binary file"),
        ("a: " + "x" * MAX_BYTES, "larger than 256 KiB"),
        ("a: &a {x: 1}\nb: {<<: [" + ", ".join(["*a"] * 17) + "]}\n", "merges more than 16"),
    ],
)
def test_what_is_no_mapping_is_refused_with_its_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "file.yaml") in str(caught.value)


def test_nested_aliases_cannot_grow_without_bound(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(JobError, match="more than 50000 values"):
        read(tmp_path, "\n".join(lines))


def test_nested_merges_cannot_grow_without_bound(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 16)}]}}" for n in range(1, 12)]
    with pytest.raises(JobError, match="more than 50000 keys"):
        read(tmp_path, "\n".join(lines))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such job file"):
        read_mapping(tmp_path / "none.yaml", "job file")
    with pytest.raises(JobError, match="is a folder"):
        read_mapping(tmp_path, "job file")
    with pytest.raises(JobError, match="is no path"):
        read_mapping(Path("a\0b"), "job file")
    with pytest.raises(JobError, match="cannot be read: File name too long"):
        read_mapping(tmp_path / ("x" * 300), "job file")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(JobError, match="not a regular file"):
        read_mapping(tmp_path / "pipe", "job file")


def test_bounds_of_mappings_from_python() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(JobError, match="job: values nested more than 40 deep"):
        check_bounds({"a": loop}, "job")
    check_bounds({"a": [[1, 2], {"b": (3, 4)}]}, "job")
