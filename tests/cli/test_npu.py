"""A profile of an NPU on the real command line: candidates in TFLite, scored on LiteRT, estimated by Vela."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from autoq.core.identity import sha256_hex
from autoq.core.result import Estimate
from autoq.record.front import read_front
from autoq.record.verify import verify
from autoq.search.store import TrialLog
from tests.cli.calls import call
from tests.small_job import QUIET_SEARCH, own_store, write_npu_job

pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")
pytest.importorskip("ethosu", reason="the extra [npu] is not installed")

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job for an Ethos-U55, its model without the Sub at the end."""
    folder = tmp_path_factory.mktemp("npu")
    objectives = ["metric", "latency", "size", "peak_memory"]
    return write_npu_job(folder, own_store(folder), hardware="npu-ethos-u55-256", objectives=objectives,
                         constraints={"max_metric_drop": 0.5}, budget={"trials": 6})  # fmt: skip


@pytest.mark.parametrize("profile", ["npu-ethos-u55-256", "npu-generic-int8"])
def test_16_bits_beside_8(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str) -> None:
    """Searched, shipped and proved: layers that write for one of 16 bits compute in 16 as well."""
    space = {"version": 1, "name": "widths", "schemes": ["w8a8@minmax", "w8a16@minmax"], "seeds": ["w8a16@minmax"]}
    (job.parent / "widths.yaml").write_text(yaml.safe_dump(space))
    changed = yaml.safe_load(job.read_text()) | {"hardware": profile, "space": "widths.yaml", "budget": {"trials": 4}}
    (job.parent / "widths-job.yaml").write_text(yaml.safe_dump(changed))
    run, out = tmp_path / "run", tmp_path / "export"
    done = call(capsys, "search", job.parent / "widths-job.yaml", "--out", run, "--ray", "off", "--quiet")
    assert done.code == 0, done.err
    trials = TrialLog(run / "trials.jsonl").read()
    times = {trial.origin: trial.latency.ratio for trial in trials if isinstance(trial.latency, Estimate)}
    assert times["seed:w8a16@minmax"] > min(times.values())
    assert call(capsys, "export", run, "--select", "best", "--out", out).code == 0
    found = verify(out)
    assert found.ok, found


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
        "precision",
        "metric, final split",
    }
    codes = [(layer.layer, layer.executed.kernel.split()[0], layer.executed.precision) for layer in found.layers]
    products, convs = "FULLY_CONNECTED", "CONV_2D"
    kinds = [("conv1", convs), ("conv2", convs), ("fc1", products), ("fc2", products)]
    assert codes == [(*kind, "int8") for kind in kinds]
    assert "4 of 4 layers run in the precision asked for" in call(capsys, "verify", out, "--no-metric").out
    refuse_what_is_not_as_asked(out)
    assert set(json.loads((out / "manifest.json").read_text())["also"]) == {"model_vela.tflite"}
    ran = subprocess.run([sys.executable, out / "infer.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "(1, 10)" in ran.stdout, ran.stderr


def refuse_what_is_not_as_asked(out: Path) -> None:
    """Other values, scales, zero points or types than the manifest's schemes have; ``out`` is as it was afterwards."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    kept = {name: (out / name).read_bytes() for name in ("model.tflite", "manifest.json")}

    def problems(change: Callable[[Any], object], scheme: str = "w8a8@minmax") -> list[str]:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(kept["model.tflite"], 0))
        graph = model.subgraphs[0]
        tensor = next(each for each in graph.tensors if each.name == b"w3")
        change((model, graph, tensor))
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        (out / "model.tflite").write_bytes(bytes(builder.Output()))
        manifest = json.loads(kept["manifest.json"])
        manifest["model"]["sha256"] = sha256_hex((out / "model.tflite").read_bytes())
        manifest["layers"][2]["scheme"] = scheme
        (out / "manifest.json").write_text(json.dumps(manifest))
        found = verify(out, metric=False)
        assert {check.name: check.status for check in found.checks}["precision"] == ("ok" if found.ok else "failed")
        return [layer.problem for layer in found.layers if layer.problem]

    def weights(values: list[int]) -> Callable[[Any], None]:
        def change(given: Any) -> None:
            model, _, tensor = given
            data = np.resize(np.array(values, np.int8), len(model.buffers[tensor.buffer].data))
            model.buffers[tensor.buffer].data = data.view(np.uint8)

        return change

    assert problems(weights([-127, 127])) == []
    assert problems(weights([-8, 7]), "w4a8-gptq@mse") == []
    assert problems(weights([-8, 8]), "w4a8-gptq@mse") == ["asked for 4-bit weights, the file's go from -8 to 8"]
    assert problems(weights([-65, 64]), "w7a8@mse") == ["asked for 7-bit weights, the file's go from -65 to 64"]
    assert problems(weights(list(range(0, 96, 6))), "w4a8-kmeans@mse") == []
    assert problems(weights(list(range(17))), "w4a8-kmeans@mse") == ["asked for 16 values, the file's weights have 17"]
    (scales,) = problems(lambda given: None, "w8a8-tensor@mse")
    assert scales.startswith("asked for one scale, the file has ")
    (floats,) = problems(lambda given: None, "w8")
    assert floats.startswith("asked for float activations, runs in FULLY_CONNECTED")
    (absent,) = problems(lambda given: setattr(given[2], "name", b"another"))
    assert absent == "asked for 8-bit activations, runs in no kernel that could be found"
    for name, data in kept.items():
        (out / name).write_bytes(data)


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
    assert done.code == 2 and "'ethos-u56' here; did you mean" in done.err and "known: ethos-u55-128" in done.err
