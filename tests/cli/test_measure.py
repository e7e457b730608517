"""``autoq measure`` on files, an exported folder and a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from autoq.errors import RunError
from autoq.model.source import read_model
from autoq.record.measurable import _check_reference
from autoq.runtime.base import InputSpec
from autoq.runtime.sheet import random_feeds
from tests.cli.calls import call
from tests.small_job import shared_run, small_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory)


def test_a_point_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(
        capsys, "measure", folder / "run", "--point", "smallest", "--batch", "4", "--threads", "1,1",
        "--sessions", "1,2", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["fed"] == "the job's data"
    own, base = found["size_bytes"]
    assert own == Path(found["model"]).stat().st_size and base == (folder / "small.onnx").stat().st_size
    assert 0 < found["zipped_bytes"][0] < own and 0 < found["zipped_bytes"][1] <= 1.01 * base
    assert [row["latency"]["batch"] for row in found["settings"]] == [4]
    for row in found["settings"]:
        low, high = row["latency"]["ratio_ci95"]
        assert low <= row["latency"]["ratio_to_float32"] <= high
        assert row["samples_per_s"][0] == pytest.approx(1e3 * row["latency"]["batch"] / row["latency"]["median_ms"])
        assert row["slower"] == (low > 1)
        assert [each["sessions"] for each in row["parallel"]] == [1, 2]
        for each in row["parallel"]:
            assert each["ratio_ci95"][0] < each["ratio_to_float32"] < each["ratio_ci95"][1]
            assert each["samples_per_s"][1] > 0.2 * row["samples_per_s"][1]
        assert min(row["load_ms"]) > 0 and row["latency"]["conditions"]["sittings"] >= 2


def test_a_file_beside_another_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(small_model().SerializeToString())
    done = call(capsys, "measure", model, "--against", model, "--threads", "1", "--sessions", "2")
    assert done.code == 0, done.err
    assert "Sessions at once" in done.out and "1 thread, 2 sessions at once" in done.err
    assert "m.onnx beside m.onnx (onnxruntime, fed random values)" in done.out
    assert "1.000 of it" in done.out and "samples/s" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}"], "say which with --against"),
        (["{file}", "--against", "absent.onnx"], "there is no absent.onnx"),
        (["{file}", "--against", "{file}", "--point", "knee"], "a point is chosen of a run folder"),
        (["{file}", "--against", "{file}", "--batch", "8"], "takes batches of 2 rows alone, not of 8"),
        (["{file}", "--against", "{file}", "--batch", "one"], "is no list of numbers"),
        (["{file}", "--against", "{file}", "--batch", "2", "--threads", "2048"], "each from 1 to 1024"),
        (["{file}", "--against", "{file}", "--sessions", "0"], "each from 1 to 256"),
        (["{file}", "--against", "{file}", "--sessions", "1,1000000"], "each from 1 to 256"),
        (["{file}", "--against", "{file}", "--sessions", ""], "is no list of numbers"),
        (["{folder}"], "front.json"),
    ],
)
def test_what_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = tmp_path / "two.onnx"
    model.write_bytes(small_model(batch=2).SerializeToString())
    filled = [each.format(file=model, folder=tmp_path) for each in arguments]
    done = call(capsys, "measure", *filled)
    assert done.code == 2 and message in done.err.replace("\n", " "), done.err


def test_random_feeds() -> None:
    specs = (
        InputSpec(name="x", dtype=np.dtype("float32"), shape=(None, 3, None)),
        InputSpec(name="ids", dtype=np.dtype("int64"), shape=(2, 4)),
        InputSpec(name="scalar", dtype=np.dtype("float32"), shape=()),
    )
    feeds = random_feeds(specs, 5, 7)
    assert {name: array.shape for name, array in feeds.items()} == {"x": (5, 3, 7), "ids": (2, 4), "scalar": ()}
    assert feeds["x"].dtype == np.float32 and set(feeds["ids"].flat) <= {0, 1}


def test_external_data_is_part_of_what_was_searched(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    searched = read_model(path).sha256
    _check_reference(path, searched, None)
    (tmp_path / "weights.bin").write_bytes(bytes((tmp_path / "weights.bin").stat().st_size))
    with pytest.raises(RunError, match=r"m\.onnx is not the model that was searched"):
        _check_reference(path, searched, None)
