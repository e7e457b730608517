"""A profile of an NPU on the real command line: candidates in TFLite, scored on LiteRT, estimated by Vela."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from autoq.core.result import Estimate
from autoq.record.front import read_front
from autoq.record.verify import verify
from autoq.search.store import TrialLog
from tests.cli.calls import call
from tests.small_job import QUIET_SEARCH, small_data, small_model, write_job

pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")
pytest.importorskip("ethosu", reason="the extra [npu] is not installed")

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job for an Ethos-U55, its model without the Sub at the end."""
    folder = tmp_path_factory.mktemp("npu")
    objectives = ["metric", "latency", "size", "peak_memory"]
    path = write_job(folder, f"sqlite:///{folder}/mlflow.db", hardware="npu-ethos-u55-256", objectives=objectives,
                     constraints={"max_metric_drop": 0.5}, budget={"trials": 6})  # fmt: skip
    model = small_model()
    matmul, shift = model.graph.node[-2:]
    matmul.output[0] = shift.output[0]
    del model.graph.node[-1]
    (folder / "small.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "data.npz", **small_data(model))  # type: ignore[arg-type]
    return path


def test_search_export_verify_and_run(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "export"
    done = call(capsys, "search", job, "--out", run, "--ray", "off", "--quiet")
    assert done.code == 0, done.err
    assert (run / "reference.tflite").exists()
    front = read_front(run / "front.json")
    assert front.points
    for point in front.points:
        latency = point.latency
        assert isinstance(latency, Estimate) and latency.by.startswith("Vela ") and latency.by.endswith("ethos-u55-256")
        assert latency.reference == "w8a8@minmax" and latency.figures["host_cycles"] == 0
        # In flash lies what Vela packed, not the file that LiteRT reads.
        assert point.size_bytes == latency.figures["flash_bytes"] < (run / point.model_path).stat().st_size
        assert point.peak_memory_bytes == latency.figures["sram_bytes"] > 0
        assert all(scheme.activation is not None for _, scheme in point.policy.items_)
    trials = TrialLog(run / "trials.jsonl").read()
    cycles = {trial.origin: trial.latency.figures["cycles"] for trial in trials if isinstance(trial.latency, Estimate)}
    assert cycles["seed:w4a8-gptq@minmax"] < cycles["seed:w8a8@minmax"]
    assert "est." in call(capsys, "front", run).out
    assert call(capsys, "export", run, "--select", "knee", "--out", out).code == 0
    found = verify(out)
    assert found.ok and {check.name for check in found.checks if check.status == "ok"} >= {
        "load",
        "metric, final split",
    }
    assert set(json.loads((out / "manifest.json").read_text())["also"]) == {"model_vela.tflite"}
    ran = subprocess.run([sys.executable, out / "infer.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "(1, 10)" in ran.stdout, ran.stderr


def test_an_operator_that_has_no_form_ends_the_job_before_the_search(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, by the name of its node."""
    model = onnx.load(job.parent / "small.onnx")
    model.graph.node[-1].output[0] = "m"
    model.graph.node.append(onnx.helper.make_node("Sub", ["m", "b4"], ["y"], name="shift"))
    onnx.save(model, job.parent / "sub.onnx")
    values = yaml.safe_load(job.read_text()) | {"model": {"path": "sub.onnx"}}
    (job.parent / "sub.yaml").write_text(yaml.safe_dump(values))
    done = call(capsys, "search", job.parent / "sub.yaml", "--out", tmp_path / "run", "--ray", "off", "--quiet")
    assert done.code == 2
    assert "profile 'npu-ethos-u55-256' cannot hold this model" in done.err and "'shift' (Sub)" in done.err
    assert not TrialLog(tmp_path / "run" / "trials.jsonl").read()


def test_an_accelerator_that_is_none(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    profile = yaml.safe_load((root / "hardware_profiles" / "npu-ethos-u55-256.yaml").read_text())
    profile["measure"]["options"]["npu"] = "ethos-u56"
    (job.parent / "u56.yaml").write_text(yaml.safe_dump(profile))
    values = yaml.safe_load(job.read_text()) | {"hardware": "u56.yaml"}
    (job.parent / "u56_job.yaml").write_text(yaml.safe_dump(values))
    done = call(capsys, "search", job.parent / "u56_job.yaml", "--out", tmp_path / "run", "--ray", "off", "--quiet")
    assert done.code == 2 and "'ethos-u56' here; known: ethos-u55-128" in done.err
