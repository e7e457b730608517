"""Every command on good input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from autoq.record.choice import select
from autoq.record.figures import drop_of
from autoq.record.front import read_front, write_front
from tests.cli.calls import Done, assert_one_message, call
from tests.small_job import LAYERS, autoq, environment, shared_run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory)


def assert_good(done: Done) -> None:
    assert (done.code, done.err) == (0, "")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "--version")
    assert_good(done)
    assert done.out.startswith("autoq, version 0.")
    for command in ("", "search", "front", "export", "verify", "layers", "doctor"):
        done = call(capsys, *([command] if command else []), "--help")
        assert_good(done)
        assert done.out.startswith("Usage: autoq")


def test_help_loads_no_heavy_library() -> None:
    heavy = ("torch", "mlflow", "ray", "optuna", "sklearn", "onnxruntime", "matplotlib", "pandas")
    code = (
        "import sys; from autoq.cli import main; main(['--help']); "
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.endswith("LOADED []\n")


def test_front_as_a_table_and_a_sentence(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "front", shared / "run")
    assert_good(done)
    front = read_front(shared / "run" / "front.json")
    assert all(point.id in done.out for point in front.points)
    assert f"small: {len(front.points)} points (final split)" in done.out
    assert "of the size of float32" in done.out
    assert "KB zipped (float32" in done.out and "loads in" in done.out
    for dropped in front.dropped:
        assert f"dropped {dropped.point.id}: on the final split," in done.out


def test_front_as_json_is_the_file(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "front", shared / "run", "--json")
    assert_good(done)
    assert done.out == (shared / "run" / "front.json").read_text()
    document = json.loads(done.out)
    assert document["version"] == 1
    assert {"id", "policy", "metric", "latency", "size_bytes", "peak_memory_bytes", "weight_bits_mean", "model_path",
            "sha256"} <= document["points"][0].keys()  # fmt: skip
    assert set(document["points"][0]["policy"]) == set(LAYERS)


def test_what_if_is_answered_from_the_front_alone_and_changes_nothing(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "front.json").write_bytes((shared / "run" / "front.json").read_bytes())
    front = read_front(tmp_path / "front.json")
    best = select(front, "best")
    drop = drop_of(front, best)
    done = call(capsys, "front", tmp_path, "--select", "best", "--max-drop", f"{drop + 1e-6}")
    assert_good(done)
    assert f"1 of {len(front.points)} points" in done.out
    assert f"Chosen: {best.id}, the best accuracy, of 1 point that keeps the bounds" in done.out
    done = call(capsys, "front", tmp_path, "--weights", "size=1", "--max-size-ratio", "0.9", "--max-memory-ratio", "50")
    assert_good(done)
    assert "Chosen: " in done.out and "peak memory" in done.out
    done = call(capsys, "front", tmp_path, "--weights", "size=1,metric=0", "--json")
    assert_good(done)
    document = json.loads(done.out)
    assert document["chosen"]["id"] == select(front, weights={"size": 1}).id
    assert [point["id"] for point in document["points"]] == [point.id for point in front.points]
    assert [path.name for path in tmp_path.iterdir()] == ["front.json"]
    assert (tmp_path / "front.json").read_bytes() == (shared / "run" / "front.json").read_bytes()


@pytest.mark.parametrize("command", ["front", "export"])
def test_what_no_point_keeps_is_one_message_with_the_nearest_miss(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = ["--out", str(tmp_path / "x")] if command == "export" else []
    done = call(capsys, command, shared / "run", "--max-size-ratio", "0.01", *out)
    smallest = min(read_front(shared / "run" / "front.json").points, key=lambda point: point.size_bytes)
    assert_one_message(done, rf"--max-size-ratio 0\.01 \(the nearest, {smallest.id}, has the size ratio .* too much\)")
    for arguments, message in [
        (["--weights", "metric=0"], "all weights are 0: give at least one of metric, size"),
        (["--weights", "speed=1"], "'speed' is no objective of this front"),
        (["--weights", "metric"], "'metric' is no weight; write objective=number"),
        (["--weights", "metric=1", "--select", "best"], "leave out either them or 'best'"),
    ]:
        assert_one_message(call(capsys, command, shared / "run", *arguments, *out), message)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_front_says_what_binds(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    why = "max_size_ratio binds: no trial keeps max_size_ratio 0.01 (the nearest, ab, has the size ratio 0.1)"
    front = replace(read_front(shared / "run" / "front.json"), points=(), why_empty=why)
    write_front(front, tmp_path / "front.json")
    done = call(capsys, "front", tmp_path)
    assert done.code == 2 and "float32" in done.out
    assert "max_size_ratio binds" in done.err and done.err.count("autoq: ") == 1
    for more in (["front", tmp_path, "--max-drop", "1"], ["export", tmp_path, "--out", tmp_path / "x"]):
        assert_one_message(call(capsys, *more), "the front of 'small' is empty: .*max_size_ratio binds")
    assert call(capsys, "front", tmp_path, "--json").code == 0


def test_front_loads_no_heavy_library(shared: Path) -> None:
    """Not even NumPy: it answers in the time that Python and click take to start."""
    heavy = ("numpy", "onnx", "onnxruntime", "pydantic", "yaml", "sklearn", "optuna", "mlflow", "matplotlib")
    code = (
        f"import sys; from autoq.cli import main; main(['front', {str(shared / 'run')!r}, '--max-drop', '1']); "
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.endswith("LOADED []\n"), done.stdout[-300:]


def test_export_then_verify(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "export", shared / "run", "--select", "smallest", "--max-drop", "0.5", "--out", tmp_path / "x")
    assert_good(done)
    assert f"autoq verify {tmp_path}/x" in done.out
    done = call(capsys, "verify", tmp_path / "x")
    assert_good(done)
    assert "metric, final split: accuracy" in done.out
    assert "failed" not in done.out
    assert all(layer in done.out for layer in LAYERS)
    done = call(capsys, "verify", tmp_path / "x", "--no-metric")
    assert_good(done)
    assert "skipped" in done.out
    # A byte more, and it is another file: not bad input but a failed proof.
    with (tmp_path / "x" / "model.onnx").open("ab") as file:
        file.write(b"\x42\x00")
    done = call(capsys, "verify", tmp_path / "x", "--no-metric")
    assert (done.code, done.err) == (1, "")
    assert "failed   hash: SHA-256 is" in done.out


def test_layers_for_people_and_for_programs(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "layers", shared / "small.onnx", "--hardware", shared / "cpu.yaml")
    assert_good(done)
    assert "4 layers" in done.out and all(layer in done.out for layer in LAYERS)
    done = call(capsys, "layers", shared / "small.onnx", "--json", "--space", "int8", "--hardware", shared / "cpu.yaml")
    assert_good(done)
    found = json.loads(done.out)
    assert [entry["layer"] for entry in found] == list(LAYERS)
    assert found[0]["op"] == "Conv" and found[0]["weight_shape"] == [16, 3, 3, 3]
    assert "w8a8@minmax" in found[0]["schemes"]


def test_layers_says_what_a_profile_puts_in_the_place_of_what(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("layers", shared / "small.onnx", "--hardware", "cpu-x86-avx2-onnxruntime", "--space", "int8")
    done = call(capsys, *command)
    assert_good(done)
    assert "what the space calls w8a8 is w7a8" in done.out
    done = call(capsys, *command, "--json")
    assert_good(done)
    (conv, *_) = json.loads(done.out)
    assert "w7a8@minmax" in conv["schemes"] and "w8a8@minmax" not in conv["schemes"]
    assert conv["replaced"]["w8a8@minmax"] == "w7a8@minmax"


def test_a_search_without_an_out_folder_makes_a_new_one_in_runs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # A search that cannot begin leaves the name free for the next.
    for _ in range(2):
        done = call(capsys, "search", shared / "job.yaml", "--ray", "off", "--quiet", "--tracking-uri", "nonsense://x")
        assert done.code == 2
        assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_output_to_a_pipe_that_is_closed_early(shared: Path) -> None:
    command = f"{sys.executable} -m autoq front {shared / 'run'} --json | head -c 10"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_doctor(tmp_path: Path) -> None:
    done = autoq("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("Ray: works", "MLflow: works", "current folder: works", "onnxruntime ", "profile cpu-x86-onnxruntime"):
        assert name in done.stdout
    assert "Traceback" not in done.stderr


def test_the_package_runs_as_a_module() -> None:
    done = autoq("--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_tensor_of_external_data_is_read(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(shared / "small.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists()
    done = call(capsys, "layers", tmp_path / "m.onnx", "--hardware", shared / "cpu.yaml")
    assert_good(done)
    assert np.fromfile(tmp_path / "m.data", np.uint8).size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage"),
        (["serch"], "No such command 'serch'"),
        (["search"], "Missing argument 'JOB'"),
        (["search", "job.yaml", "--trials", "0"], "--trials"),
        (["search", "job.yaml", "--trials", "many"], "--trials"),
        (["search", "job.yaml", "--seed", "-1"], "--seed"),
        (["search", "job.yaml", "--workers", "-1"], "--workers"),
        (["search", "job.yaml", "--resume"], "--resume continues the search in a folder: say which with --out"),
        (["search", "job.yaml", "--nonsense"], "--nonsense"),
        (["export", "run"], "--out"),
        (["export", "run", "--out", "x", "--max-drop", "-1"], "--max-drop"),
        (["export", "run", "--out", "x", "--max-latency-ratio", "0"], "--max-latency-ratio"),
        (["verify"], "Missing argument 'DIR'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    done = call(capsys, *arguments)
    assert done.code == 2
    assert message in done.err + done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["front", "export", "verify"])
def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    more = ["--out", str(tmp_path / "out")] if command == "export" else []
    for name in ("missing", "file", "empty"):
        assert_one_message(call(capsys, command, tmp_path / name, *more), r"cannot be read|is no exported model")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"front\.json is damaged"),
        (b'{"version": 1}', r"front\.json is damaged: metric is missing"),
        (b'{"version": 9}', r"has version 9; this autoq reads up to 1"),
        (b"\xff\xfe\x00", r"front\.json is damaged"),
    ],
)
def test_a_damaged_front(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    (tmp_path / "front.json").write_bytes(content)
    assert_one_message(call(capsys, "front", tmp_path), message)


def test_an_unknown_point_lists_the_known_ones(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "export", shared / "run", "--select", "zzz", "--out", tmp_path / "x")
    assert_one_message(done, "'zzz' is no point of this front; choose knee, best, fastest, smallest or an id: ")
    assert os.listdir(tmp_path) == []
