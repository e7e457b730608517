"""A search whose metric, latency and export are OpenVINO's, from the command line to the proof."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoq.record.front import read_front
from autoq.record.manifest import read_manifest
from autoq.record.verify import verify
from tests.cli.calls import ran
from tests.small_job import QUIET_SEARCH, environment, own_store, write_job

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs autoq[openvino]"),
    pytest.mark.filterwarnings(*QUIET_SEARCH),
]


def write_openvino_job(folder: Path, **changes: object) -> Path:
    job = write_job(folder, own_store(folder), budget={"trials": 5}, **changes)
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    (folder / "space.yaml").write_text(
        yaml.safe_dump({"version": 1, "name": "s", "schemes": ["float32", "w8a8@minmax"]})
    )
    profile |= {"name": "any-openvino", "runtime": {"name": "openvino", "options": {"precision": "f32"}}}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    return job


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folder, and the folder with its fastest point."""
    folder = tmp_path_factory.mktemp("openvino")
    job = write_openvino_job(folder, objectives=["metric", "size"])
    done = ran("search", job, "--out", folder / "run", "--ray", "off", "--quiet")
    assert done.code == 0, done.err
    done = ran("export", folder / "run", "--select", "smallest", "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "run", folder / "out"


def test_every_trial_ran(exported: tuple[Path, Path]) -> None:
    folder, _ = exported
    front = read_front(folder / "front.json")
    assert front.points and front.trials_failed == 0
    record = json.loads((folder / "run.json").read_text())
    assert record["runtime"] == {"name": "openvino", "options": {"precision": "f32"}}


def test_its_proof(exported: tuple[Path, Path]) -> None:
    _, out = exported
    assert {path.name for path in out.iterdir()} >= {"model.onnx", "model.xml", "model.bin", "infer.py"}
    found = verify(out)
    assert found.ok, found
    by_name = {check.name: check for check in found.checks}
    for split in ("search", "final"):  # the same figure, to the last bit, from the ONNX file and from the IR
        ir, onnx = by_name[f"metric, {split} split, model.xml"], by_name[f"metric, {split} split"]
        assert (ir.status, ir.found) == ("ok", onnx.found)
    assert by_name["load"].found == "OpenVINO loads it"
    asked = [layer for layer in found.layers if "a8" in layer.asked]
    assert asked and all(layer.executed.precision == "int8" for layer in asked)


def test_its_script(exported: tuple[Path, Path]) -> None:
    _, out = exported
    command = [sys.executable, str(out / "infer.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment(CI="1"), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("y float32 (1, 10) ")


def test_a_changed_ir_is_found(exported: tuple[Path, Path]) -> None:
    _, out = exported
    whole = (out / "model.bin").read_bytes()
    (out / "model.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 255]))
    try:
        found = verify(out, metric=False)
    finally:
        (out / "model.bin").write_bytes(whole)
    assert [check.name for check in found.checks if check.status == "failed"] == ["hash, model.bin"]
    assert set(read_manifest(out)["also"]) == {"model.xml", "model.bin"}


def test_without_the_extra_the_command_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there
    job = write_openvino_job(tmp_path / "job")
    done = ran("search", job, "--out", tmp_path / "run", "--ray", "off", "--quiet")
    assert done.code == 2
    assert "pip install 'autoq[openvino]'" in " ".join(done.err.split())
    assert "Traceback" not in done.err
