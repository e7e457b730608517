"""Verification of real exports, and of exports that were tampered with so that one check alone can tell."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import autoq
from autoq.core.identity import sha256_hex
from autoq.errors import DataError, RunError
from autoq.numerics.packing import pack_indices
from autoq.record.export import export_point
from autoq.record.manifest import layer_record, read_manifest
from autoq.record.verify import LayerCheck, Verification, verify
from tests.models import Net, lowered
from tests.small_job import QUIET_SEARCH, one_policy_space, tracking_uri, write_job

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)

POLICY = {"conv1": "w8a8@minmax", "conv2": "w4a8-gptq@minmax", "fc1": "w2-gptq", "fc2": "float16"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a policy that has every form: integer, 4-bit integer, weight-only, float16."""
    folder = tmp_path_factory.mktemp("verify")
    job = write_job(folder, tracking_uri(tmp_path_factory), space="one.yaml", budget={"trials": 1})
    (folder / "one.yaml").write_text(yaml.safe_dump(one_policy_space(POLICY)))
    result = autoq.search(job, out=folder / "run", ray="off")
    assert [point.policy.to_text() for point in result.front.points] == [POLICY]
    return result.export("best", folder / "export")


def test_products_with_kernels_of_their_own(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ranges found at run time, and blocks: verified like any other, and told from what they are not."""
    policy = {"conv1": "w4-kmeans", "conv2": "w8a8@minmax", "fc1": "w4a8-gptq@dynamic", "fc2": "w4-b32-asym-gptq"}
    job = write_job(tmp_path, tracking_uri(tmp_path_factory), space="one.yaml", budget={"trials": 1})
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(one_policy_space(policy)))
    export = autoq.search(job, out=tmp_path / "run", ray="off").export("best", tmp_path / "export")
    found = verify(export)
    assert found.ok, found
    assert [layer.executed.precision for layer in found.layers] == ["float32", "int8", "int8", "blocks"]
    for wrong, problem in (
        ({"fc1": "w4-b32-gptq"}, "weights in blocks, runs in DynamicQuantizeMatMul"),
        ({"fc2": "w4-gptq"}, "asked for w4-gptq, runs in MatMulNBits"),
        ({"fc2": "w4a8@dynamic"}, "asked for 8-bit activations, runs in MatMulNBits"),
        ({"fc2": "w2-b32"}, "MatMulNBits has other bits or blocks"),
        ({"fc2": "w4-b64"}, "MatMulNBits has other bits or blocks"),
        ({"conv1": "w4"}, "asked for 4-bit weights, the file holds UINT4"),
    ):
        told = {**policy, **wrong}
        rewrite(export, lambda manifest, told=told: [r.update(scheme=told[r["layer"]]) for r in manifest["layers"]])
        (bad,) = [layer for layer in verify(export, metric=False).layers if layer.problem]
        assert problem in bad.problem


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "export")
    return tmp_path / "export"


def statuses(found: Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def tamper(folder: Path, change: Callable[[onnx.ModelProto], None], *, honest_hash: bool = True) -> None:
    """Changes the model, and (``honest_hash``) writes its new hash into the manifest."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    change(model)
    data = model.SerializeToString()
    path.write_bytes(data)
    if honest_hash:
        rewrite(folder, lambda manifest: manifest["model"].update(sha256=sha256_hex(data)))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def maker_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def tensor_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def constant_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A constant that is stored as it is, or as float16 and a Cast."""
    stored = next((node.input[0] for node in model.graph.node if name in node.output), name)
    return numpy_helper.to_array(tensor_of(model, stored)).astype(np.float32)


def weight_chain(model: onnx.ModelProto, layer: str) -> list[onnx.NodeProto]:
    """The nodes between a layer and its stored weight, the nearest first."""
    made = {name: node for node in model.graph.node for name in node.output}
    name, chain = node_of(model, layer).input[1], []
    while name in made:
        chain.append(made[name])
        name = made[name].input[0]
    return chain


def test_an_honest_export_passes_every_check(exported: Path) -> None:
    found = verify(exported)
    assert found.ok
    assert statuses(found) == dict.fromkeys(
        ["hash", "load", "scales", "precision", "metric, search split", "metric, final split"], "ok"
    )
    runs = {layer.layer: (layer.asked, layer.executed.precision, layer.problem) for layer in found.layers}
    assert runs == {
        "conv1": ("w8a8@minmax", "int8", ""),
        "conv2": ("w4a8-gptq@minmax", "int8", ""),
        "fc1": ("w2-gptq", "float32", ""),
        "fc2": ("float16", "float32", ""),
    }
    assert not any(layer.executed.runtime_conversion for layer in found.layers)


def test_the_exported_file_is_the_scored_one_byte_for_byte(exported: Path) -> None:
    run = exported.parent / "run"
    front = json.loads((run / "front.json").read_text())
    (point,) = front["points"]
    data = (exported / "model.onnx").read_bytes()
    assert data == (run / point["model_path"]).read_bytes()
    trial = json.loads((run / "trials.jsonl").read_text())
    assert sha256_hex(data) == point["sha256"] == trial["sha256"] == read_manifest(exported)["model"]["sha256"]
    assert len(data) == point["size_bytes"]


def test_a_flipped_byte_of_a_weight_is_caught_by_the_hash(copy: Path) -> None:
    path = copy / "model.onnx"
    data = bytearray(path.read_bytes())
    weight = bytes(tensor_of(onnx.load(path), weight_chain(onnx.load(path), "conv2")[-1].input[0]).raw_data)
    data[data.index(weight) + 5] ^= 1
    path.write_bytes(data)
    found = verify(copy, metric=False)
    assert statuses(found) == {
        "hash": "failed", "load": "ok", "scales": "ok", "precision": "ok", "metric": "skipped"
    }  # fmt: skip
    assert "the model was changed" in found.checks[0].found


def test_4_bit_weights_without_the_cast_run_in_float_and_are_caught(copy: Path) -> None:
    def remove_cast(model: onnx.ModelProto) -> None:
        dequantize, cast = weight_chain(model, "conv2")
        assert (dequantize.op_type, cast.op_type) == ("DequantizeLinear", "Cast")
        dequantize.input[0] = cast.input[0]
        if len(dequantize.input) > 2:  # a zero point must be of the weight's type
            del dequantize.input[2]
        model.graph.node.remove(cast)

    tamper(copy, remove_cast)
    found = verify(copy, metric=False)
    assert statuses(found)["precision"] == "failed"
    assert {name for name, status in statuses(found).items() if status == "failed"} == {"precision"}
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert wrong.layer == "conv2"
    assert wrong.problem.startswith("asked for 8-bit activations, runs in ")
    assert wrong.executed.precision == "float32"
    assert wrong.executed.runtime_conversion == "DequantizeLinear"


def test_an_integer_layer_without_its_output_pair_runs_in_float_and_is_caught(copy: Path) -> None:
    def remove_conv_output(model: onnx.ModelProto) -> None:
        conv = node_of(model, "conv1")
        name = conv.output[0]
        after = next(node for node in model.graph.node if node.input and node.input[0] == name)
        if after.op_type == "Relu":
            name = after.output[0]
            after = next(node for node in model.graph.node if node.input and node.input[0] == name)
        assert after.op_type == "QuantizeLinear"
        dequantize = next(node for node in model.graph.node if node.input and node.input[0] == after.output[0])
        for node in model.graph.node:
            for index, read in enumerate(node.input):
                if read == dequantize.output[0]:
                    node.input[index] = name
        model.graph.node.remove(after)
        model.graph.node.remove(dequantize)
        # The integer carry operators, were there any, would have nothing to read.
        assert not any(after.output[0] in node.input for node in model.graph.node)

    tamper(copy, remove_conv_output)
    rewrite(
        copy,
        lambda manifest: manifest.update(
            # Its scale has gone from the file, too; the manifest is made to agree, so that precision alone can tell.
            scales=_scales_of(copy)
        ),
    )
    found = verify(copy, metric=False)
    assert {name for name, status in statuses(found).items() if status == "failed"} == {"precision"}
    wrong = {layer.layer: layer for layer in found.layers if layer.problem}
    assert "conv1" in wrong
    assert wrong["conv1"].executed.precision == "float32"


def _scales_of(folder: Path) -> dict[str, Any]:
    from autoq.record.manifest import activation_scales

    return activation_scales((folder / "model.onnx").read_bytes())


def test_a_changed_activation_scale_is_caught(copy: Path) -> None:
    names: list[str] = []

    def change(model: onnx.ModelProto) -> None:
        quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        tensor = tensor_of(model, quantize.input[1])
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((value * np.float32(1 + 2**-20)).astype(np.float32), tensor.name))
        names.append(quantize.output[0].removesuffix("::q"))

    tamper(copy, change)
    found = verify(copy, metric=False)
    assert {name for name, status in statuses(found).items() if status == "failed"} == {"scales"}
    check = next(check for check in found.checks if check.name == "scales")
    assert names[0] in check.found


def test_weights_beyond_their_bits_are_caught(copy: Path) -> None:
    def ask(manifest: dict[str, Any]) -> None:
        (layer,) = [layer for layer in manifest["layers"] if layer["layer"] == "conv1"]
        layer["scheme"] = re.sub("w[0-9]a8", f"w{bits}a8", layer["scheme"])

    for bits in (3, 7):
        rewrite(copy, ask)
        (wrong,) = [layer for layer in verify(copy, metric=False).layers if layer.problem]
        assert wrong.layer == "conv1"
        said = rf"asked for {bits}-bit weights, the file's go from -?\d+ to -?\d+"
        assert re.fullmatch(said, wrong.problem)

    def halve(model: onnx.ModelProto) -> None:
        (dequantize,) = weight_chain(model, "conv1")
        stored = tensor_of(model, dequantize.input[0])
        stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored) // 2, stored.name))

    tamper(copy, halve)
    assert not any(layer.problem for layer in verify(copy, metric=False).layers)


def test_weights_at_other_bits_than_asked_for_are_caught(copy: Path) -> None:
    def widen(model: onnx.ModelProto) -> None:
        dequantize, cast = weight_chain(model, "conv2")
        packed = tensor_of(model, cast.input[0])
        assert packed.data_type == TensorProto.INT4
        values = numpy_helper.to_array(packed).astype(np.int8)
        packed.CopyFrom(numpy_helper.from_array(values, packed.name))
        dequantize.input[0] = cast.input[0]
        model.graph.node.remove(cast)

    tamper(copy, widen)
    found = verify(copy)
    # The same numbers: metric, kernels and scales are as before, the file is only larger.
    assert {name for name, status in statuses(found).items() if status == "failed"} == {"precision"}
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert (wrong.layer, wrong.problem) == ("conv2", "asked for 4-bit weights, the file holds INT8")


def test_codebooks_are_told_from_integers(copy: Path) -> None:
    """The same weights as indices into the integers: a sound file, but only of a scheme with a codebook."""

    def encode(model: onnx.ModelProto) -> None:
        cast = weight_chain(model, "fc1")[-1]
        stored = tensor_of(model, cast.input[0])
        indices = (numpy_helper.to_array(stored).astype(np.int8) + 2).astype(np.uint8)
        stored.raw_data, stored.data_type = pack_indices(indices, 2), TensorProto.UINT2
        model.graph.initializer.append(numpy_helper.from_array(np.arange(-2, 2, dtype=np.int8), "w3::book"))
        where = helper.make_node("Cast", [stored.name], ["w3::i32"], "widen", to=TensorProto.INT32)
        gather = helper.make_node("Gather", ["w3::book", "w3::i32"], ["w3::i8"], "codebook", axis=0)
        cast.input[0] = "w3::i8"
        for node in (gather, where):
            model.graph.node.insert(0, node)

    tamper(copy, encode)
    (wrong,) = [layer for layer in verify(copy, metric=False).layers if layer.problem]
    assert (wrong.layer, wrong.problem) == ("fc1", "asked for 2-bit weights, the file holds UINT2")
    rewrite(copy, lambda manifest: manifest["layers"][2].update(scheme="w2-kmeans"))
    assert verify(copy).ok
    rewrite(copy, lambda manifest: manifest["layers"][2].update(scheme="w4-kmeans"))
    (wrong,) = [layer for layer in verify(copy, metric=False).layers if layer.problem]
    assert wrong.problem == "asked for 4-bit indices into a codebook, the file holds UINT2"


def test_tables_of_codes(copy: Path) -> None:
    net = Net()
    ids = net.input("rows", name="ids", kind=TensorProto.INT64)
    y = net.add("Gather", net.weight(1100, 8, name="embed.weight"), ids)
    subject = lowered(net.model(y), ["w2-pq"], {"ids": np.arange(9)})
    data = subject.build("w2-pq")
    (copy / "model.onnx").write_bytes(data)

    def asked(scheme: str) -> LayerCheck:
        record = {**layer_record(subject.layers[0], (y,)), "scheme": scheme}
        rewrite(copy, lambda manifest: manifest.update(layers=[record], scales={}))
        rewrite(copy, lambda manifest: manifest["model"].update(sha256=sha256_hex(data)))
        (layer,) = verify(copy, metric=False).layers
        return layer

    good = asked("w2-pq")
    assert (good.problem, good.executed.kernel, good.executed.runtime_conversion) == ("", "Gather", "")
    assert asked("w4-pq").problem == "asked for w4-pq, the file holds UINT8 with 4 columns to a code"
    assert asked("w2").problem == "asked for 2-bit weights, the file holds UINT8"
    assert asked("float32").problem == "asked for float32 weights, the file holds UINT8"


def test_a_layer_that_reads_another_ones_weight_is_caught(copy: Path) -> None:
    def swap(model: onnx.ModelProto) -> None:
        stored = weight_chain(model, "conv2")[-1]
        copied = onnx.TensorProto()
        copied.CopyFrom(tensor_of(model, stored.input[0]))
        copied.name = "of another layer::w"
        model.graph.initializer.append(copied)
        stored.input[0] = copied.name

    tamper(copy, swap)
    found = verify(copy, metric=False)
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert wrong.problem == "reads the weight 'of another layer::w', not its own"


def test_float_weights_where_integers_were_asked_for_are_caught(copy: Path) -> None:
    def restore(model: onnx.ModelProto) -> None:
        layer = node_of(model, "fc1")
        chain = weight_chain(model, "fc1")
        stored = chain[-1].input[0]
        values = numpy_helper.to_array(tensor_of(model, stored)).astype(np.float32)
        scale = constant_of(model, chain[0].input[1])
        model.graph.initializer.append(numpy_helper.from_array(values * scale, "w3"))
        layer.input[1] = "w3"
        for node in chain:
            model.graph.node.remove(node)

    tamper(copy, restore)
    found = verify(copy, metric=False)
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert (wrong.layer, wrong.problem) == ("fc1", "asked for 2-bit weights, the file holds FLOAT")


def test_weights_that_are_unpacked_at_every_inference_are_caught(copy: Path) -> None:
    def unfold(model: onnx.ModelProto) -> None:
        layer = node_of(model, "fc1")
        chain = weight_chain(model, "fc1")
        flat = constant_of(model, chain[0].input[1]).reshape(-1)
        model.graph.initializer.append(numpy_helper.from_array(flat, "w3::flat"))
        stored = tensor_of(model, chain[-1].input[0])
        unpacked = numpy_helper.to_array(stored).astype(np.int8)
        stored.CopyFrom(numpy_helper.from_array(unpacked, stored.name))
        target = layer.input[1]
        for node in chain:
            model.graph.node.remove(node)
        # The form that ONNX Runtime does not fold.
        unpack = helper.make_node("DequantizeLinear", [stored.name, "w3::flat"], [target], name="unpack", axis=0)
        model.graph.node.insert(list(model.graph.node).index(layer), unpack)

    tamper(copy, unfold)
    rewrite(copy, lambda manifest: manifest["layers"][2].update(scheme="w8"))  # so that the bits agree
    found = verify(copy, metric=False)
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert (wrong.layer, wrong.problem) == (
        "fc1",
        "its weight passes through DequantizeLinear at every inference",
    )


def test_a_metric_that_is_off_by_the_last_digit_is_caught(copy: Path) -> None:
    rewrite(
        copy,
        lambda manifest: manifest["metric"].update(search=float(np.nextafter(manifest["metric"]["search"], 2.0))),
    )
    found = verify(copy)
    assert {name for name, status in statuses(found).items() if status == "failed"} == {"metric, search split"}
    assert not found.ok


def test_an_integer_kernel_where_float_was_asked_for_is_caught(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["layers"][0].update(scheme="w8"))
    found = verify(copy, metric=False)
    (wrong,) = [layer for layer in found.layers if layer.problem]
    assert (wrong.layer, wrong.problem) == ("conv1", "asked for float activations, runs in QLinearConv")


def test_a_model_that_does_not_load_fails_the_load_check_alone(copy: Path) -> None:
    tamper(copy, lambda model: model.graph.node[0].input.append("nothing makes this"))
    found = verify(copy)
    assert statuses(found) == {"hash": "ok", "load": "failed"}
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    assert statuses(verify(copy)) == {"hash": "failed", "load": "failed"}


def test_data_that_has_moved_is_found_with_a_job_file_or_left_out(copy: Path, exported: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    job = write_job(elsewhere)
    rewrite(copy, lambda manifest: manifest.update(base_dir=str(tmp_path / "gone")))
    with pytest.raises(DataError, match=r"gone/data\.npz.*--job, or leave the metric out with --no-metric"):
        verify(copy)
    assert verify(copy, job=str(job)).ok
    assert statuses(verify(copy, metric=False))["metric"] == "skipped"


# Manifests ------------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no exported model: it has no manifest\.json; make one with `autoq export`"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "has version 99; this autoq reads up to 1"),
        (lambda m: m.pop("version"), "is no manifest of autoq"),
        (lambda m: m.pop("layers"), "layers is missing"),
        (lambda m: m.update(layers={}), "layers is an object and must be a list"),
        (lambda m: m["layers"][0].pop("node"), r"layers\[0\].node is missing"),
        (lambda m: m["layers"][1].update(scheme="w5"), r"layers\[1\].scheme is 'w5' and must name a scheme"),
        (lambda m: m.update(model="model.onnx"), "model is 'model.onnx' and must be an object"),
        (lambda m: m["model"].update(file="../../etc/passwd"), "must be the name of a file beside the manifest"),
        (lambda m: m["metric"].update(search="0.5"), "metric.search is '0.5' and must be a finite number"),
        (lambda m: m.update(job=[]), "job is a list and must be an object"),
    ],
)
def test_a_damaged_manifest_names_the_field(copy: Path, change: Any, message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(RunError, match=message):
        verify(copy, metric=False)


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "\x00"])
def test_a_manifest_that_is_no_document(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json is"):
        verify(copy)


def test_a_missing_model_is_named(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    with pytest.raises(RunError, match=r"model\.onnx cannot be read: No such file"):
        verify(copy)


def test_export_again_from_the_same_run(exported: Path, tmp_path: Path) -> None:
    export_point(exported.parent / "run", "smallest", tmp_path / "again")
    assert verify(tmp_path / "again").ok
