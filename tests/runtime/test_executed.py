"""Which kernel runs, read from what ONNX Runtime really made of real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.errors import TrialError
from autoq.model.lower import Lowering
from autoq.pipeline.start import layer_records
from autoq.runtime.executed import Executed, LayerNames, executed_kernels
from autoq.search.groundwork import lay_groundwork
from autoq.setting import read_setting
from autoq.spec.job import load_job
from tests.small_job import LAYERS, small_model, write_job


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lowering, list[LayerNames], Path]:
    folder = tmp_path_factory.mktemp("executed")
    setting = read_setting(load_job(write_job(folder, space="full")))
    lowering = lay_groundwork(setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=None)
    names = [
        LayerNames(layer=r["layer"], node=r["node"], weight=r["weight"], outputs=tuple(r["outputs"]))
        for r in layer_records(setting.model, (), False)
    ]
    return lowering, names, folder


def run(built: tuple[Lowering, list[LayerNames], Path], policy: dict[str, str]) -> dict[str, Executed]:
    lowering, names, folder = built
    path = folder / "candidate.onnx"
    path.write_bytes(lowering.build(lowering.canonical(Policy.from_text(policy))))
    return {found.layer: found for found in executed_kernels(path, names)}


@pytest.mark.parametrize("scheme", ["w8a8@minmax", "w4a8-gptq@mse", "w2a8-gptq@mse", "w8a8-tensor@minmax"])
def test_integer_layers_run_on_integers(built: tuple[Lowering, list[LayerNames], Path], scheme: str) -> None:
    found = run(built, dict.fromkeys(LAYERS, scheme))
    assert {layer: executed.precision for layer, executed in found.items()} == dict.fromkeys(LAYERS, "int8")
    assert {executed.kernel for executed in found.values()} <= {
        "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"
    }  # fmt: skip
    assert not any(executed.runtime_conversion for executed in found.values())


@pytest.mark.parametrize("scheme", ["w8a8@dynamic", "w4a8-gptq@dynamic", "w4-b32-asym-gptq", "w8-b128", "w2-b64"])
def test_products_with_kernels_of_their_own(built: tuple[Lowering, list[LayerNames], Path], scheme: str) -> None:
    found = run(built, {"conv1": "float32", "conv2": "w8a8@minmax", "fc1": scheme, "fc2": scheme})
    kernel, precision = ("DynamicQuantizeMatMul", "int8") if "a8" in scheme else ("MatMulNBits", "blocks")
    assert [found[layer].precision for layer in LAYERS] == ["float32", "int8", precision, precision]
    assert found["fc1"].kernel == found["fc2"].kernel == kernel
    assert not any(executed.runtime_conversion for executed in found.values())


@pytest.mark.parametrize("scheme", ["float32", "float16", "w8", "w4-gptq", "w2-gptq", "w8-tensor"])
def test_float_layers_run_in_float_and_their_weights_are_unpacked_once(
    built: tuple[Lowering, list[LayerNames], Path], scheme: str
) -> None:
    found = run(built, dict.fromkeys(LAYERS, scheme))
    assert {layer: executed.precision for layer, executed in found.items()} == dict.fromkeys(LAYERS, "float32")
    assert {executed.kernel for executed in found.values()} <= {
        "Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"
    }  # fmt: skip
    assert not any(executed.runtime_conversion for executed in found.values())


def test_every_layer_of_a_mixed_policy_is_told_apart(built: tuple[Lowering, list[LayerNames], Path]) -> None:
    for integer in LAYERS:
        found = run(built, {layer: "w8a8@minmax" if layer == integer else "w4-gptq" for layer in LAYERS})
        assert {layer for layer, executed in found.items() if executed.precision == "int8"} == {integer}


def test_the_float_model_as_it_came(tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(small_model().SerializeToString())
    outputs = {"conv1": ("c1", "r1"), "conv2": ("c2", "s", "r2"), "fc1": ("g", "r3"), "fc2": ("m",)}
    names = [
        LayerNames(layer=layer, node=layer, weight=f"w{i}", outputs=outputs[layer])
        for i, layer in enumerate(LAYERS, start=1)
    ]
    found = executed_kernels(tmp_path / "small.onnx", names)
    assert [executed.precision for executed in found] == ["float32"] * 4
    assert all(executed.kernel for executed in found)


def conv_model(after: list[onnx.NodeProto], *, op: str = "Conv", group: int = 1, spatial: int = 2) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    channels = 16
    weight = rng.normal(size=(channels, channels // group, *[3] * spatial)).astype(np.float32)
    nodes = [helper.make_node(op, ["x", "w"], ["c"], name="layer", group=group, pads=[1] * (2 * spatial)), *after]
    shape = ["N", channels, *[8] * spatial]
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [numpy_helper.from_array(np.float32(value), name) for name, value in (("lo", 0.0), ("hi", 6.0))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "after",
    [
        [],
        [helper.make_node("Relu", ["c"], ["a"], name="act")],
        [helper.make_node("LeakyRelu", ["c"], ["a"], name="act", alpha=0.1)],
        [helper.make_node("Clip", ["c", "lo", "hi"], ["a"], name="act")],
        [helper.make_node("Sigmoid", ["c"], ["a"], name="act")],
        [helper.make_node("Tanh", ["c"], ["a"], name="act")],
        [helper.make_node("HardSigmoid", ["c"], ["a"], name="act")],
    ],
    ids=lambda nodes: nodes[0].op_type if nodes else "nothing",
)
@pytest.mark.parametrize("kind", ["plain", "depthwise", "1-D", "transposed"])
def test_a_convolution_is_found_whatever_is_fused_into_it(
    tmp_path: Path, after: list[onnx.NodeProto], kind: str
) -> None:
    options = {
        "plain": {},
        "depthwise": {"group": 16},
        "1-D": {"spatial": 1},
        "transposed": {"op": "ConvTranspose"},
    }[kind]
    path = tmp_path / "conv.onnx"
    path.write_bytes(conv_model(after, **options).SerializeToString())  # type: ignore[arg-type]
    names = LayerNames(layer="layer", node="layer", weight="w", outputs=("c", "a"))
    (found,) = executed_kernels(path, [names])
    assert (found.precision, found.runtime_conversion) == ("float32", "")
    assert found.kernel in ("Conv", "FusedConv", "ConvTranspose")


def test_a_weight_that_is_dequantized_at_every_inference_is_seen(tmp_path: Path) -> None:
    model = conv_model([])
    values = np.random.default_rng(0).integers(-7, 8, (16, 16, 3, 3)).astype(np.int8)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        [numpy_helper.from_array(values, "w::w"), numpy_helper.from_array(np.full(16, 0.1, np.float32), "w::s")]
    )
    model.graph.node[0].input[1] = "w::dq"
    unpack = helper.make_node("DequantizeLinear", ["w::w", "w::s"], ["w::dq"], name="unpack", axis=0)
    model.graph.node.insert(0, unpack)
    path = tmp_path / "conv.onnx"
    path.write_bytes(model.SerializeToString())
    names = LayerNames(layer="layer", node="layer", weight="w", outputs=("c",))
    (found,) = executed_kernels(path, [names])
    assert (found.precision, found.runtime_conversion) == ("float32", "DequantizeLinear")


def test_a_layer_that_is_not_there_has_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "conv.onnx"
    path.write_bytes(conv_model([]).SerializeToString())
    (found,) = executed_kernels(path, [LayerNames(layer="x", node="missing", weight="none", outputs=("nothing",))])
    assert (found.kernel, found.precision) == ("", "")


def test_a_file_that_the_runtime_rejects(tmp_path: Path) -> None:
    path = tmp_path / "conv.onnx"
    path.write_bytes(conv_model([]).SerializeToString()[:-40])
    with pytest.raises(TrialError, match="ONNX Runtime rejects the model"):
        executed_kernels(path, [])
