from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from autoq.errors import RunError
from autoq.record.run_folder import RunFolder, free_name, writable

IDENTITY: dict[str, Any] = {
    "model": "a" * 64,
    "space": {"schemes": ["float32", "w8"], "rules": [{"match": "*"}]},
    "hardware": {"ops": {"Conv": {"allow": ["w8"]}}, "match": {"arch": []}},
    "objectives": ["metric", "size"],
    "seed": 0,
}


def start(path: Path) -> None:
    with RunFolder(path).open(resume=False) as folder:
        folder.write({"identity": IDENTITY})
        folder.trials.write_text("{}\n")


def test_a_new_folder_is_made_and_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    start(path)
    assert (path / "models").is_dir()
    with RunFolder(path).open(resume=True) as folder:
        assert folder.read() == {"version": 1, "identity": IDENTITY}
    with pytest.raises(RunError, match="already holds a search; continue it with --resume, or give another --out"):
        RunFolder(path).open(resume=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match="holds no search to resume; leave --resume out"):
            RunFolder(path).open(resume=True)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="a folder with other things in it"):
        RunFolder(tmp_path).open(resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_search_without_a_trial_gives_way_to_a_new_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").open(resume=False) as folder:
        folder.write({"identity": IDENTITY})
        folder.study.write_text("of other objectives")
    with RunFolder(tmp_path / "run").open(resume=True) as folder:
        assert folder.study.exists()
    with RunFolder(tmp_path / "run").open(resume=False) as folder:
        assert not folder.study.exists()
        folder.write({"identity": {}})
        assert folder.read()["identity"] == {}


@pytest.mark.parametrize("below", ["", "run", "a/b"])
def test_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot be written: .*; give another --out"):
        RunFolder(tmp_path / "file" / below).open(resume=False)


def test_a_search_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "a" / "b").open(resume=False):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    # A folder that was there stays.
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "mine").open(resume=False):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    start(tmp_path / "mine")


def test_a_search_that_began_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "run").open(resume=False) as folder:
        folder.write({"identity": IDENTITY})
        raise ZeroDivisionError
    assert (tmp_path / "run" / "run.json").exists()


def _hold(path: Path, opened: Any, done: Any) -> None:
    with RunFolder(path).open(resume=True):
        opened.set()
        done.wait(30)


def test_a_second_search_is_kept_out_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    start(tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    opened, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", opened, done))
    process.start()
    try:
        assert opened.wait(60)
        with pytest.raises(RunError, match=r"another search is running in .*; wait for it, or give another --out"):
            RunFolder(tmp_path / "run").open(resume=True)
    finally:
        process.kill()
        process.join()
    RunFolder(tmp_path / "run").open(resume=True).__exit__()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run folder: it has no run.json"),
        ("", r"run\.json is damaged: it is not JSON"),
        ('{"version": 1, "a"', r"run\.json is damaged: it is not JSON"),
        ("[]", "was written by another version of autoq"),
        ('{"version": 2}', "was written by another version of autoq; this one reads version 1"),
    ],
)
def test_a_damaged_record(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        RunFolder(tmp_path).read()


def differing(**changes: Any) -> str:
    with pytest.raises(RunError, match="holds the search of another job and cannot be resumed") as raised:
        RunFolder(Path("run")).check_identity(IDENTITY, IDENTITY | changes)
    return str(raised.value)


def test_the_same_identity_passes() -> None:
    RunFolder(Path("run")).check_identity(IDENTITY, dict(IDENTITY))
    # A field that this version no longer looks at does not matter.
    RunFolder(Path("run")).check_identity(IDENTITY | {"old": 1}, IDENTITY)


def test_differences_are_named_where_they_are() -> None:
    assert "seed was 0, is 1. Give another --out" in differing(seed=1)
    assert f"model was {'a' * 12}, is {'b' * 12}" in differing(model="b" * 64)
    assert 'objectives was ["metric", "size"], is ["metric"]' in differing(objectives=["metric"])
    changed = {"schemes": ["float32", "w4"], "rules": [{"match": "*"}]}
    assert "space.schemes[1] was w8, is w4" in differing(space=changed)
    assert "space.rules[0].match was *, is conv*" in differing(
        space={"schemes": ["float32", "w8"], "rules": [{"match": "conv*"}]}
    )
    deeper = {"ops": {"Conv": {"allow": ["w8"]}, "Gemm": {}}, "match": {"arch": []}}
    assert "hardware.ops.Gemm was not given, is {}" in differing(hardware=deeper)
    both = differing(seed=4, model="c" * 64)
    assert "model was" in both and "; seed was 0, is 4" in both
    # Whatever differs, the message stays readable.
    assert len(differing(space={"schemes": [f"w{i}" for i in range(10_000)]})) < 300


def test_a_field_that_was_not_recorded_yet_differs() -> None:
    assert "sampler was not given, is tpe" in differing(sampler="tpe")


def test_free_name_counts_on(tmp_path: Path) -> None:
    assert free_name(tmp_path, "x") == tmp_path / "x"
    (tmp_path / "x").mkdir()
    (tmp_path / "x-2").write_text("")
    assert free_name(tmp_path, "x") == tmp_path / "x-3"


def test_writable(tmp_path: Path) -> None:
    assert writable(tmp_path)
    assert writable(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("")
    assert not writable(tmp_path / "file")
    assert not writable(tmp_path / "file" / "below")
    if os.getuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert not writable(tmp_path / "closed" / "run")
