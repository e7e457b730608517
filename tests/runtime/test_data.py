"""Data splits: what comes out, bit for bit, and every file that the job cannot use."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.errors import DataError
from autoq.runtime.data import InputSpec, Split, load_split
from autoq.spec.job import Job, load_job

IMAGE = {"from": "x", "layout": "NHWC->NCHW", "scale": 255, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 5, 4, 3)).astype(np.uint8)
Y = RNG.integers(0, 10, 20).astype(np.uint8)


def spec(dtype: str = "float32", *shape: int | None, name: str = "input") -> InputSpec:
    return InputSpec(name=name, dtype=np.dtype(dtype), shape=shape or (None, 3, 5, 4))


def a_job(folder: Path, **data: Any) -> Job:
    section = {
        "calibration": {"path": "d.npz"},
        "search": {"path": "d.npz", "limit": 10},
        "final": {"path": "d.npz", "slice": [10, None]},
        "inputs": {"input": IMAGE},
        "target": "y",
    } | data
    return load_job(
        {
            "version": 1,
            "name": "n",
            "model": {"path": "m.onnx"},
            "data": {key: value for key, value in section.items() if value is not ...},
            "metric": {"function": "m.py:f"},
            "hardware": "h",
        },
        folder,
    )


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def reference(x: np.ndarray) -> np.ndarray:
    """The line a user would write, as docs/job-files.md has it."""
    scaled = (x.astype("f4") / 255 - np.array(IMAGE["mean"], "f4")) / np.array(IMAGE["std"], "f4")
    return scaled.transpose(0, 3, 1, 2)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fails(folder: Path, said: str, which: Any = "search", specs: Any = None, **data: Any) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_split(a_job(folder, **data), which, specs or [spec()])
    assert f"data.{which}" in str(caught.value) or "data.inputs" in str(caught.value)


# --- what comes out


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_the_users_own_line_bit_for_bit(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "d.npz", x=X, y=Y)
    job = a_job(tmp_path)
    for which, rows in (("calibration", slice(0, 20)), ("search", slice(0, 10)), ("final", slice(10, 20))):
        split = load_split(job, which, [spec()])  # type: ignore[arg-type]
        assert same_bits(split.inputs["input"], reference(X[rows]))
        assert split.targets is not None and same_bits(split.targets, Y[rows])
        array = split.inputs["input"]
        assert array.flags.c_contiguous and not array.flags.writeable and not split.targets.flags.writeable
        assert split.rows == len(X[rows])


def test_cifar_bit_for_bit(bench: Path) -> None:
    job = a_job(
        bench / "cifar10",
        calibration={"path": "train.npz", "limit": 64},
        search={"path": "val.npz", "slice": [1000, 1100]},
        final={"path": "val.npz", "slice": [3900, None]},
        inputs={
            "input": {
                "from": "x", "layout": "NHWC->NCHW", "scale": 255,
                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            }
        },
    )  # fmt: skip
    x = np.load(bench / "cifar10" / "val.npz")["x"][1000:1100]
    mean, std = np.array((0.485, 0.456, 0.406), "f4"), np.array((0.229, 0.224, 0.225), "f4")
    expected = ((x.astype("f4") / 255 - mean) / std).transpose(0, 3, 1, 2)
    split = load_split(job, "search", [spec("float32", None, 3, 32, 32)])
    assert same_bits(split.inputs["input"], expected)
    assert load_split(job, "final", [spec("float32", None, 3, 32, 32)]).rows == 100


def test_sentence_pairs(bench: Path) -> None:
    inputs = {name: {"from": name, "dtype": "int64"} for name in ("input_ids", "attention_mask")}
    job = a_job(
        bench / "sts",
        calibration={"path": "calibration.npz", "limit": 32},
        search={"path": "val.npz", "slice": [2, 66]},
        final={"path": "test.npz"},
        inputs=inputs,
        target="score",
        group=2,
    )
    specs = [spec("int64", None, None, name=name) for name in inputs]
    split = load_split(job, "search", specs)
    source = np.load(bench / "sts" / "val.npz")
    for name in inputs:
        assert same_bits(split.inputs[name], source[name][2:66].astype("i8"))
    assert (split.rows, split.group) == (64, 2)
    # Without ``inputs``, arrays are found by the model inputs' names and made of its dtypes.
    unmapped = load_split(a_job(bench / "sts", **{**job.to_dict()["data"], "inputs": None}), "search", specs)
    assert unmapped.fingerprint == split.fingerprint


def test_no_more_rows_than_asked_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path, x=np.zeros((100_000, 5, 4, 3), np.uint8), y=np.zeros(100_000, np.uint8))  # 6 MB
    available = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    assert load_split(a_job(tmp_path), "search", [spec()]).rows == 10
    fails(tmp_path, "needs 0.0 GiB and 0.0 GiB are available; take fewer rows", "final")


def test_fortran_order_big_endian_and_float64(tmp_path: Path) -> None:
    x = np.asfortranarray(X.astype(">f8"))
    npz(tmp_path, x=x, y=Y.astype(">i4"))
    split = load_split(a_job(tmp_path), "final", [spec()])
    assert same_bits(split.inputs["input"], reference(X.astype("f8")[10:]))
    assert split.targets is not None and split.targets.dtype.isnative and split.targets.tolist() == Y[10:].tolist()


def test_mean_and_std_along_the_axis_called_c(tmp_path: Path) -> None:
    x = np.ascontiguousarray(X.transpose(0, 3, 1, 2))
    npz(tmp_path, x=x, y=Y)
    split = load_split(a_job(tmp_path, inputs={"input": {**IMAGE, "layout": "NCHW->NCHW"}}), "search", [spec()])
    assert same_bits(split.inputs["input"], np.ascontiguousarray(reference(X[:10])))
    unsaid = {"input": {**IMAGE, "layout": None}}
    fails(tmp_path, "mean has 3 numbers for an axis of 4 .*say which axis is C", inputs=unsaid)


def test_a_single_mean_and_no_layout(tmp_path: Path) -> None:
    npz(tmp_path, x=X, y=Y)
    how = {"from": "x", "scale": 16, "mean": 0.3, "std": [0.4]}
    split = load_split(a_job(tmp_path, inputs={"input": how}), "search", [spec("float32", None, 5, 4, 3)])
    assert same_bits(split.inputs["input"], (X[:10].astype("f4") / 16 - np.float32(0.3)) / np.float32(0.4))


def test_the_calibration_split_may_lack_labels(tmp_path: Path) -> None:
    npz(tmp_path, x=X)
    assert load_split(a_job(tmp_path), "calibration", [spec()]).targets is None
    fails(tmp_path, "no array 'y' .for target.; it has x", "search")
    assert load_split(a_job(tmp_path, target=...), "search", [spec()]).targets is None


def test_batches_and_take(tmp_path: Path) -> None:
    npz(tmp_path, x=X, y=Y)
    split = load_split(a_job(tmp_path, group=2), "calibration", [spec()])
    batches = list(split.batches(7))
    assert [len(batch["input"]) for batch in batches] == [7, 7, 6]
    assert same_bits(np.concatenate([batch["input"] for batch in batches]), split.inputs["input"])
    assert all(np.shares_memory(batch["input"], split.inputs["input"]) for batch in batches)
    part = split.take(slice(4, 10))
    assert part.targets is not None and part.targets.tolist() == Y[4:10].tolist() and part.rows == 6
    for wrong in (slice(1, 5), slice(0, 3), slice(0, 0), slice(0, 4, 2)):
        with pytest.raises(DataError, match="not a run of whole groups of 2"):
            split.take(wrong)


def test_the_fingerprint_is_of_all_that_is_fed(tmp_path: Path) -> None:
    def split(**changes: Any) -> Split:
        inputs = {"a": np.arange(4, dtype=np.int32), "b": np.zeros((4, 2), np.float32)}
        return Split(**({"inputs": inputs, "targets": np.arange(4), "group": 1} | changes))

    base = split()
    assert base.fingerprint == split().fingerprint == split(inputs=dict(reversed(base.inputs.items()))).fingerprint
    others = [
        split(group=2),
        split(targets=None),
        split(targets=np.arange(4)[::-1]),
        split(inputs={**base.inputs, "a": base.inputs["a"].view(np.float32)}),
        split(inputs={**base.inputs, "b": base.inputs["b"].reshape(4, 2, 1)}),
        split(inputs={"a": base.inputs["a"], "c": base.inputs["b"]}),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 7


# --- dtypes


@pytest.mark.parametrize(
    ("data", "dtype", "how", "expected"),
    [
        (np.array([[1.0], [2.0]]), "int64", {}, [[1], [2]]),  # whole numbers in floats lose nothing
        (np.array([[1.7], [-2.7]]), "int32", {"dtype": "int32"}, [[1], [-2]]),  # asked for: fractions are cut off
        (np.array([[0], [255]], np.uint8), "int8", None, "values are from 0 to 255"),
        (np.array([[0], [2]]), "bool", None, "the model takes bool .0 to 1., and the values are from 0 to 2"),
        (np.array([[0], [1]]), "bool", {}, [[False], [True]]),
        (np.array([[1.5], [2.0]]), "int64", None, "row 0: the value is 1.5 .*fraction.*dtype: int64"),
        (np.array([[1.0], [2.0**63]]), "int64", None, "values are from 0 to 9223372036854775808"),
        (np.array([[1], [2**63]], np.uint64), "int64", None, "values are from 0 to 9223372036854775808"),
        (np.array([[1.0], [70000.0]]), "float16", None, r"\(as float16\), row 1: the value is inf"),
        (np.array([[1.0], [1e300]]), "float32", None, "row 1: the value is inf"),
        (np.array([["a"], ["b"]]), "float32", None, "the data is of type <U1, not numbers"),
        (np.array([[1j], [2]]), "float32", None, "of type complex128, not numbers"),
        (np.array([[1], [2]], "M8[s]"), "float32", None, "not numbers"),
    ],
)
def test_dtypes(tmp_path: Path, data: np.ndarray, dtype: str, how: dict[str, Any] | None, expected: Any) -> None:
    npz(tmp_path, x=data, y=[0, 1])
    section = {"inputs": {"input": {"from": "x", **(how or {})}}, "final": {"function": "f.py:g"}}
    specs = [spec(dtype, None, 1)]
    if isinstance(expected, str):
        fails(tmp_path, expected, specs=specs, **section)
    else:
        split = load_split(a_job(tmp_path, **section), "search", specs)
        assert same_bits(split.inputs["input"], np.array(expected, dtype))


def test_the_dtype_hint_must_be_the_models(tmp_path: Path) -> None:
    npz(tmp_path, x=X, y=Y)
    inputs = {"input": {**IMAGE, "dtype": "int64"}}
    fails(tmp_path, "dtype: int64 is asked for, and the model takes float32", inputs=inputs)


# --- data that cannot be used


def test_keys(tmp_path: Path) -> None:
    npz(tmp_path, images=X, y=Y)
    fails(tmp_path, "has no array 'x' .for input 'input'.; it has images, y")
    fails(tmp_path, "did you mean 'images'", inputs={"input": {**IMAGE, "from": "image"}})
    fails(tmp_path, "the model has no input 'inptu'; did you mean 'input'", inputs={"inptu": IMAGE})
    fails(tmp_path, "nothing feeds the model's mask", specs=[spec(), spec("int64", None, name="mask")])


def test_rows(tmp_path: Path) -> None:
    npz(tmp_path, x=X, y=Y[:19])
    fails(tmp_path, "differ in rows: x has 20, y has 19")
    npz(tmp_path, x=X, y=Y, z=3)
    fails(tmp_path, r"slice \[10, 21\] goes beyond the 20 rows", "final", final={"path": "d.npz", "slice": [10, 21]})
    fails(tmp_path, r"slice \[20, None\] goes beyond", "final", final={"path": "d.npz", "slice": [20, None]})
    fails(tmp_path, "1 rows are too few; at least 2", "final", final={"path": "d.npz", "slice": [19, None]})
    fails(tmp_path, "at least 4 are needed", group=4, search={"path": "d.npz", "limit": 3})
    fails(tmp_path, "rows 0 to 10 cut a group: data.group is 4", group=4)
    fails(tmp_path, "rows 10 to 18 cut a group", "final", group=4, final={"path": "d.npz", "slice": [10, 18]})
    fails(tmp_path, "array 'z' is a single number", target="z")
    assert load_split(a_job(tmp_path, calibration={"path": "d.npz", "limit": 1}), "calibration", [spec()]).rows == 1
    assert load_split(a_job(tmp_path, calibration={"path": "d.npz", "limit": 99}), "calibration", [spec()]).rows == 20
    npz(tmp_path, x=X[:0], y=Y[:0])
    fails(tmp_path, "0 rows are too few", "calibration")


@pytest.mark.parametrize(
    ("shape", "expected", "layout", "said"),
    [
        (
            (20, 5, 4, 3),
            (None, 3, 5, 4),
            None,
            r"expects \[rows, 3, 5, 4\], and the data is \[rows, 5, 4, 3\]; layout: NHWC->NCHW",
        ),
        ((20, 3, 5, 4), (None, 5, 4, 3), None, "layout: NCHW->NHWC would fit"),
        ((20, 5, 4, 3), (None, 5, 4, 3), "NHWC->NCHW", "after layout NHWC->NCHW"),
        ((20, 5, 4), (None, 3, 5, 4), "NHWC->NCHW", "is of 4 axes, and the data has 3"),
        ((20, 5, 4), (None, 3, 5, 4), None, r"the data is \[rows, 5, 4\]$"),
        ((20, 7), (None, None, 3), None, r"expects \[rows, any, 3\]"),
        ((20,), (), None, "takes a single number"),
    ],
)
def test_shapes(tmp_path: Path, shape: Any, expected: Any, layout: str | None, said: str) -> None:
    npz(tmp_path, x=np.zeros(shape, np.uint8), y=Y)
    specs = [InputSpec(name="input", dtype=np.dtype("f4"), shape=expected)]
    fails(tmp_path, said, specs=specs, inputs={"input": {"from": "x", "layout": layout}})


def test_values_that_are_not_finite_name_their_row_in_the_file(tmp_path: Path) -> None:
    x = X.astype("f4")
    x[13, 2, 1, 0] = np.nan
    x[14, 2, 1, 0] = np.inf
    npz(tmp_path, x=x, y=Y)
    fails(tmp_path, r"input 'input', row 13: the value is nan after preprocessing \(2 such values", "final")
    y = Y.astype("f8")
    y[12] = np.nan
    npz(tmp_path, x=X, y=y)
    fails(tmp_path, "target 'y', row 12: the value is not finite", "final")
    npz(tmp_path, x=X, y=Y)
    fails(tmp_path, "row 0: the value is inf", inputs={"input": {**IMAGE, "std": 1e-50}})


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "exploded")
    npz(tmp_path, x=np.array([bomb] * 20, dtype=object), y=Y)
    fails(tmp_path, "array 'x' holds Python objects .a pickle.")
    (tmp_path / "d.npz").write_bytes(pickle.dumps(bomb))
    fails(tmp_path, "is no .npz file")
    assert not bomb.path.exists()
    npz(tmp_path, x=np.zeros(20, [("a", "f4"), ("b", "i4")]), y=Y)
    fails(tmp_path, "array 'x' is of type .*plain array")


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    fails(tmp_path, "d.npz: no such file")
    (tmp_path / "d.npz").mkdir()
    fails(tmp_path, "is a folder")
    (tmp_path / "d.npz").rmdir()
    (tmp_path / "d.npz").write_text("hello")
    fails(tmp_path, "is no .npz file, or a truncated one")
    np.save(tmp_path / "one.npy", X)
    fails(tmp_path, "is no .npz file", search={"path": "one.npy"})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", "not an array")
        file.writestr("readme.txt", "hello")
    fails(tmp_path, "has no array 'y'.*it has x")
    fails(tmp_path, "array 'x' cannot be read", target=...)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = npz(tmp_path, x=X, y=Y).read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "d.npz").write_bytes(whole[:size])
        fails(tmp_path, "is no .npz file, or a truncated one")


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_refused_or_still_right(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    (np.savez_compressed if data.draw(st.booleans()) else np.savez)(buffer, x=X, y=Y)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "d.npz").write_bytes(raw)
    try:
        split = load_split(a_job(folder), "final", [spec()])
    except DataError as error:
        assert "data.final" in str(error)
    else:  # the damage was outside what is read: dates, names in the local header, …
        assert same_bits(split.inputs["input"], reference(X[10:]))
        assert split.targets is not None and split.targets.tolist() == Y[10:].tolist()


def _member(shape: tuple[int, ...], data: bytes, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (_member((10**15, 5, 4, 3), b"x" * 100), "is damaged: shape .* is 60000000000000000 bytes"),
        (_member((20, 5, 4, 3), b"x" * 100), "is 1200 bytes, and there are 100"),
        (_member((20, -1), b""), "is damaged"),
        (_member((20, 5, 4, 3), b"", "'|O'"), "holds Python objects"),
        (_member((20, 5, 4, 3), b"", "'|S0'"), "is of type"),
        (_member((20, 5, 4, 3), b"", "__import__('os')"), "cannot be read"),
        (b"\x93NUMPY\x01\x00\x04\x00((((", "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read|version"),
        (b"", "cannot be read"),
    ],
)
def test_headers_that_lie(tmp_path: Path, member: bytes, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("x.npy", member)
    fails(tmp_path, said, target=...)


def test_a_zip_bomb_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20  # small on disk, 64 MiB unpacked, on a "machine" of 32 MiB
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", _member((2, size // 2), bytes(size)))
    assert (tmp_path / "d.npz").stat().st_size < 100_000
    available = psutil.virtual_memory()._replace(available=32 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    fails(tmp_path, "needs 0.1 GiB and 0.0 GiB are available", target=...)


# --- data functions


def function(folder: Path, body: str) -> dict[str, Any]:
    (folder / "helper_of_data.py").write_text("ROWS = 6\n")
    (folder / "make.py").write_text(
        f"import numpy as np\nimport helper_of_data\n\ndef make():\n    {body}\n\nVALUE = 3\n"
    )
    return {"search": {"function": "make.py:make"}, "inputs": None, "target": "y"}


def test_a_function_gives_arrays(tmp_path: Path) -> None:
    section = function(tmp_path, "n = helper_of_data.ROWS; return {'input': np.ones((n, 2)), 'y': list(range(n))}")
    split = load_split(a_job(tmp_path, **section), "search", [spec("float32", None, 2)])
    assert same_bits(split.inputs["input"], np.ones((6, 2), np.float32))
    assert split.targets is not None and split.targets.tolist() == [0, 1, 2, 3, 4, 5]
    section["search"]["slice"] = [2, 4]
    assert load_split(a_job(tmp_path, **section), "search", [spec("float32", None, 2)]).rows == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'input': np.ones((4, 2)), 'z': [1]}", "make.py:make has no array 'y'"),
        ("return [1, 2]", "returned a list; it must return a dict of arrays"),
        ("return {'input': np.ones((4, 2)), 'y': [1, [2, 3]]}", "array 'y' raised ValueError"),
        ("return {'input': np.ones((4, 2)), 'y': [None] * 4}", "array 'y' holds Python objects"),
        ("raise KeyError('where')", r"make.py:make raised KeyError: 'where' \(make.py, line 5\)"),
        ("raise SystemExit(0)", "raised SystemExit: 0"),
        ("import nothing_of_that_name", "raised ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("return {'input': np.full((4, 2), np.nan), 'y': range(4)}", "row 0: the value is nan"),
        ("return {'input': np.ones((4, 2)), 'y': range(3)}", "differ in rows"),
    ],
)
def test_functions_that_fail(tmp_path: Path, body: str, said: str) -> None:
    fails(tmp_path, said, specs=[spec("float32", None, 2)], **function(tmp_path, body))


def test_functions_that_are_not_there(tmp_path: Path) -> None:
    function(tmp_path, "return {}")
    for name, said in (
        ("none.py:make", "none.py: no such file"),
        ("make.py:mke", "make.py has no 'mke'; it has make"),
        ("make.py:VALUE", "'VALUE' in .*make.py is a int, not a function"),
    ):
        fails(tmp_path, said, search={"function": name})
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    fails(tmp_path, r"raised SyntaxError: .*\(bad.py, line 2\)", search={"function": "bad.py:f"})
    (tmp_path / "bad.py").write_text("x = 1\nx / 0\n")
    fails(tmp_path, r"raised ZeroDivisionError: .*\(bad.py, line 2\)", search={"function": "bad.py:f"})
