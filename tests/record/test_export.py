from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autoq.core.identity import sha256_hex
from autoq.core.objectives import Constraints
from autoq.errors import RunError
from autoq.record.export import export_point, infer_script
from autoq.record.front import read_front
from autoq.record.manifest import activation_scales, read_manifest
from tests.small_job import environment, shared_run, small_disk


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory) / "run"


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["knee", "best", "fastest", "smallest"])
def test_the_scored_file_its_manifest_and_a_script(run: Path, tmp_path: Path, how: str) -> None:
    point = export_point(run, how, tmp_path / "out")
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"model.onnx", "manifest.json", "health.json", "infer.py"}
    data = files["model.onnx"].read_bytes()
    assert data == (run / point.model_path).read_bytes()
    assert (sha256_hex(data), len(data)) == (point.sha256, point.size_bytes)
    manifest = read_manifest(tmp_path / "out")
    record = json.loads((run / "run.json").read_text())
    front = read_front(run / "front.json")
    assert {layer["layer"]: layer["scheme"] for layer in manifest["layers"]} == point.policy.to_text()
    assert manifest["source"]["sha256"] == record["model_sha256"]
    assert manifest["source"]["file"] == "small.onnx"
    assert (manifest["metric"]["search"], manifest["metric"]["final"]) == (point.metric.search, point.metric.final)
    assert manifest["metric"]["float32"] == {"search": 1.0, "final": front.baseline.metric.final}
    assert manifest["latency"]["ratio_to_float32"] == point.latency.ratio  # type: ignore[union-attr]
    assert manifest["profile"] == "any-cpu"
    assert manifest["versions"]["onnxruntime"]
    assert manifest["job"]["name"] == "small"
    quantized = [n for n in onnx.load(files["model.onnx"]).graph.node if n.op_type == "QuantizeLinear"]
    assert len(manifest["scales"]) == len({node.output[0] for node in quantized})


def test_the_script_runs_beside_the_model_from_anywhere(run: Path, tmp_path: Path) -> None:
    export_point(run, "best", tmp_path / "out")
    moved = (tmp_path / "out").rename(tmp_path / "moved elsewhere")
    script = moved / "infer.py"
    assert len(script.read_text().splitlines()) <= 14
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd="/", env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("y float32 (1, 10) ")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8])
def test_the_script_feeds_every_input_its_type_and_shape(tmp_path: Path, kind: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["a'b"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("a'b", kind, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "infer.py").write_text(infer_script(model.SerializeToString()))
    done = subprocess.run([sys.executable, str(tmp_path / "infer.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("y float32 (1, 3)")


def test_an_earlier_export_is_replaced_and_other_things_are_not(run: Path, tmp_path: Path) -> None:
    smallest = export_point(run, "smallest", tmp_path / "out")
    best = export_point(run, "best", tmp_path / "out")
    assert smallest.id != best.id
    assert read_manifest(tmp_path / "out")["id"] == best.id
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for taken in ("mine", "file"):
        with pytest.raises(RunError, match=f"{taken} exists and holds no exported model; give another --out"):
            export_point(run, "best", tmp_path / taken)
    with pytest.raises(RunError, match=r"cannot be made: Not a directory"):
        export_point(run, "best", tmp_path / "file" / "below")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_model_that_was_changed_or_lost_is_not_exported(own_run: Path, tmp_path: Path) -> None:
    front = read_front(own_run / "front.json")
    first, second = front.points[0], front.points[1]
    with (own_run / first.model_path).open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(RunError, match=f"{first.id}.onnx is not the file that was scored"):
        export_point(own_run, first.id, tmp_path / "out")
    (own_run / second.model_path).unlink()
    with pytest.raises(RunError, match=f"the model of point {second.id} cannot be read: .*No such file"):
        export_point(own_run, second.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "nothing"}, "'nothing' is no point of this front"),
        (
            {"how": "knee", "bounds": Constraints(max_latency_ratio=1e-6)},
            "no point of the front keeps --max-latency-ratio",
        ),
    ],
)
def test_no_such_point(run: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        export_point(run, out=tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("layers"), r"run\.json is damaged: layers is missing"),
        (lambda record: record["layers"].pop(), r"run\.json is damaged: layers .*another model"),
        (lambda record: record.update(version=7), r"run\.json was written by another version"),
    ],
)
def test_a_damaged_run_folder(own_run: Path, tmp_path: Path, change: Any, message: str) -> None:
    record = json.loads((own_run / "run.json").read_text())
    change(record)
    (own_run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=message):
        export_point(own_run, "best", tmp_path / "out")


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"front\.json cannot be read: No such file.*is this the folder of a search"):
        export_point(tmp_path, "best", tmp_path / "out")


def test_a_full_disk(run: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=8) as disk:
        with pytest.raises(RunError, match=r"cannot be written: No space left"):
            export_point(run, "best", disk / "out")
        # No half file under a name that a reader would trust.
        assert not (disk / "out" / "model.onnx").exists() or not (disk / "out" / "manifest.json").exists()


def test_what_was_quantized_before_is_no_scale_of_ours() -> None:
    """A model may come with QuantizeLinear nodes of its own: without a zero point, or one scale a channel."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [0.5])
    many = helper.make_tensor("many", TensorProto.FLOAT, [3], [0.5, 0.25, 1.0])
    zeros = helper.make_tensor("zeros", TensorProto.UINT8, [3], [0, 0, 0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one"], ["q"]),
        helper.make_node("QuantizeLinear", ["x", "many", "zeros"], ["r"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", 3]) for name in ("q", "r")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])], outputs, [one, many, zeros]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    assert activation_scales(model.SerializeToString()) == {}


def test_scales_are_the_files_own(run: Path, tmp_path: Path) -> None:
    front = read_front(run / "front.json")
    integer = [p for p in front.points if any(s.activation for _, s in p.policy.items_)]
    if not integer:
        pytest.skip("no point of this front has 8-bit activations")
    export_point(run, integer[0].id, tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = read_manifest(tmp_path / "out")["scales"]
    assert scales
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found = scales[node.output[0].removesuffix("::q")]
            assert np.float32(found["scale"]) == values[node.input[1]]
            assert (found["zero_point"], found["dtype"]) == (int(values[node.input[2]]), "uint8")
