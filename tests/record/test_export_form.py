"""A point written anew for TensorRT: scored again, marked, verified; and points that have no such form."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import yaml

import autoq
from autoq.core.identity import sha256_hex
from autoq.errors import RunError
from autoq.record.export import export_choice, export_point
from autoq.record.manifest import MANIFEST_FILE, read_manifest
from autoq.record.verify import verify
from tests.small_job import QUIET_SEARCH, one_policy_space, tracking_uri, write_job

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)

SIGNED = "w8a8-s8@minmax"


def searched(folder: Path, policy: dict[str, str], uri: str) -> Path:
    """The run of a search with one policy."""
    job = write_job(folder, uri, space="one.yaml", budget={"trials": 1})
    (folder / "one.yaml").write_text(yaml.safe_dump(one_policy_space(policy)))
    return autoq.search(job, out=folder / "run", ray="off").path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"conv1": SIGNED, "conv2": SIGNED, "fc1": SIGNED, "fc2": "float32"}
    return searched(tmp_path_factory.mktemp("form"), policy, tracking_uri(tmp_path_factory))


def test_it_is_scored_again_and_marked(run: Path, tmp_path: Path) -> None:
    point = export_choice(run, tmp_path / "out", "best", form="tensorrt").point
    data = (tmp_path / "out" / "model.onnx").read_bytes()
    manifest = read_manifest(tmp_path / "out")
    assert manifest["model"]["form"] == "tensorrt"
    assert manifest["model"]["sha256"] == sha256_hex(data) != point.sha256 == manifest["model"]["made_from"]
    assert manifest["model"]["size_bytes"] == len(data)
    assert "ONNX Runtime on the CPU" in manifest["metric"]["scored_on"]
    assert manifest["metric"]["search"] == pytest.approx(point.metric.search, abs=0.02)
    assert (manifest["latency"], manifest["peak_memory_bytes"], manifest["metric"]["final_ci95"]) == (None, None, None)
    graph = onnx.load_from_string(data).graph
    assert "Cast" not in {node.op_type for node in graph.node}
    found = verify(tmp_path / "out")
    assert found.ok, found
    assert "explicit quantization" in {check.name for check in found.checks}


def test_a_file_that_breaks_a_rule_is_found(run: Path, tmp_path: Path) -> None:
    export_choice(run, tmp_path, "best", form="tensorrt")
    model = onnx.load(tmp_path / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.attribute)
    del node.attribute[:]
    onnx.save(model, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    manifest["model"]["sha256"] = sha256_hex(data)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    found = {check.name: check for check in verify(tmp_path, metric=False).checks}
    assert found["explicit quantization"].status == "failed"
    assert "write the attribute axis out" in found["explicit quantization"].found


def test_a_point_without_that_form(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = dict.fromkeys(["conv1", "conv2", "fc1"], "w8a8@minmax") | {"fc2": "float32"}
    run = searched(tmp_path, policy, tracking_uri(tmp_path_factory))
    point = export_point(run, "best", tmp_path / "plain")
    with pytest.raises(RunError, match=rf"point {point.id} has no form tensorrt: .*'-s8'"):
        export_choice(run, tmp_path / "out", "best", form="tensorrt")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunError, match=r"'tensort'; did you mean 'tensorrt'"):
        export_choice(run, tmp_path / "out", "best", form="tensort")
