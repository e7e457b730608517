"""Preparing: the outputs stay, the opset rises, and what would keep a layer in float is folded away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autoq.errors import ModelError
from autoq.model.fold import GROWTH_LIMIT
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from tests.models import Net, distance, lowered, run, run_optimized


def feeds_of(model: onnx.ModelProto, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    return {
        value.name: rng.standard_normal([d.dim_value or rows for d in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in model.graph.input
    }


def same_outputs(model: onnx.ModelProto, tolerance: float = 2e-6) -> onnx.ModelProto:
    """Prepares ``model``, and checks that its inputs, outputs and values are as before."""
    prepared = prepare(model).model
    onnx.checker.check_model(prepared, full_check=True)
    feeds = feeds_of(model)
    before, after = run(model, feeds), run(prepared, feeds)
    assert list(before) == list(after)
    for name, values in before.items():
        assert distance(after[name], values) < tolerance, name
    assert [value.name for value in prepared.graph.input] == [value.name for value in model.graph.input]
    return prepared


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23])
def test_opsets(opset: int) -> None:
    """Operators whose form changed on the way: axes as inputs, Split's outputs, Pad, Resize, LayerNormalization."""
    net = Net()
    y = net.conv(net.input("rows", 4, 8, 8), 4, 8)
    c = net.constant(np.abs(net.rng.standard_normal(8)).astype(np.float32))
    y = net.add("Relu", net.add("BatchNormalization", y, c, c, c, c))
    halves = net.add("Split", y, net.ints(4, 4), outputs=2, axis=1)
    y = net.add("Pad", net.add("Concat", *halves[::-1], axis=1), net.ints(0, 0, 1, 0, 0, 0, 0, 1))
    y = net.add("Resize", y, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    y = net.add("AveragePool", net.add("MaxPool", y, kernel_shape=[2, 2]), kernel_shape=[3, 3], strides=[3, 3])
    y = net.add("Softmax", net.add("Squeeze", net.add("Unsqueeze", y, net.ints(0)), net.ints(0)), axis=1)
    axes = {"axes": [2, 3]} if opset < 18 else {}
    means = net.add("ReduceMean", y, *(() if axes else (net.ints(2, 3),)), keepdims=0, **axes)
    out = net.add("Gemm", means, net.weight(8, 5), net.weight(5))
    prepared = same_outputs(net.model(out, opset=opset, ir_version=10 if opset > 18 else 8))
    assert prepared.opset_import[0].version == max(opset, 21)
    assert prepared.ir_version >= 10
    assert "BatchNormalization" not in operators(prepared)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded(op: str, bias: bool) -> None:
    net = Net()
    shape = (12, 6) if op == "Gemm" else (6, 12, 3, 3)
    channels = shape[1] if op != "Conv" else shape[0]
    x = net.input("rows", 12) if op == "Gemm" else net.input("rows", shape[0] if op == "ConvTranspose" else 12, 6, 6)
    parameters = [net.weight(*shape), *([net.weight(channels)] if bias else [])]
    y = net.add(op, x, *parameters)
    statistics = [
        1 + net.rng.random(channels),
        net.rng.random(channels),
        net.rng.random(channels),
        1 + net.rng.random(channels),
    ]
    y = net.add("BatchNormalization", y, *(net.constant(values.astype(np.float32)) for values in statistics))
    assert operators(same_outputs(net.model(net.add("Relu", y)), 1e-5)) == {op: 1, "Relu": 1}


def test_batch_norm_after_a_shared_weight_stays() -> None:
    """Folding it would change the other user of the weight."""
    net = Net()
    x, weight = net.input("rows", 4, 6, 6), net.weight(4, 4, 3, 3)
    c = net.constant(np.full(4, 2, np.float32))
    first = net.add("BatchNormalization", net.add("Conv", x, weight), c, c, c, c)
    prepared = same_outputs(net.model(first, net.add("Conv", net.add("Relu", x), weight)))
    assert operators(prepared)["BatchNormalization"] == 1
    assert [layer.tied_to is None for layer in read_layers(Graph(prepared))] == [True, False]


def test_constants() -> None:
    """Constant nodes, transposed and computed weights, and defaults of inputs are initializers afterwards."""
    net = Net()
    x = net.input("rows", 6)
    nested = net.add("Constant", value=onnx.numpy_helper.from_array(net.rng.standard_normal((5, 6)).astype(np.float32)))
    y = net.add("MatMul", x, net.add("Transpose", nested, perm=[1, 0]))
    y = net.add("MatMul", y, net.add("Mul", net.weight(5, 4, name="w"), net.constant(np.float32(2))))
    model = net.model(net.add("Identity", y))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5, 4]))
    feeds = {"x": np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)}
    prepared = prepare(model).model
    assert operators(prepared) == {"MatMul": 2}
    assert [value.name for value in prepared.graph.input] == ["x"]
    assert [layer.weight_shape for layer in read_layers(Graph(prepared))] == [(6, 5), (5, 4)]
    for found, expected in zip(run(prepared, feeds).values(), run(model, feeds).values(), strict=True):
        assert distance(found, expected) < 1e-6


def test_constants_that_would_bloat_the_file_are_not_folded() -> None:
    net = Net()
    big = net.add("Expand", net.constant(np.ones((1, 1), np.float32)), net.ints(2000, 4))
    zeros = net.add("ConstantOfShape", net.ints(10**6, 10**6))  # four terabytes, if somebody tried
    y = net.add("MatMul", net.input("rows", 4), net.weight(4, 4))
    model = net.model(net.add("Add", y, net.add("ReduceMax", big, net.ints(0), keepdims=1)), net.add("Shape", zeros))
    prepared = prepare(model)
    assert prepared.notes == ()
    assert prepared.model.ByteSize() < 4 * GROWTH_LIMIT


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("bias", [(5,), (1, 5), (), (3, 5)])
def test_matmul_and_bias_become_a_gemm(bias: tuple[int, ...], swapped: bool) -> None:
    net = Net()
    pair = [
        net.add("MatMul", net.input("rows", 6), net.weight(6, 5)),
        net.weight(*bias) if bias else net.constant(np.float32(2)),
    ]
    prepared = same_outputs(net.model(net.add("Add", *(pair[::-1] if swapped else pair))))
    assert operators(prepared) == ({"Gemm": 1} if bias in ((5,), (1, 5)) else {"MatMul": 1, "Add": 1})


def test_matmul_and_bias_of_three_dimensions_stay() -> None:
    net = Net()
    y = net.add("Add", net.add("MatMul", net.input("rows", 4, 6), net.weight(6, 5)), net.weight(5))
    assert operators(same_outputs(net.model(y))) == {"MatMul": 1, "Add": 1}


def test_relu_goes_before_a_pool() -> None:
    net = Net()
    y = net.add("MaxPool", net.conv(net.input("rows", 3, 6, 6), 3, 4), kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    prepared = same_outputs(net.model(net.add("Relu", y)), 1e-12)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Relu", "MaxPool"]


def _c(net: Net, value: float) -> str:
    return net.constant(np.float32(value))


def _line(net: Net, y: str, top: float = 6) -> str:
    return str(net.add("Clip", net.add("Add", _c(net, 3), y), _c(net, 0), _c(net, top)))


SPELLED_OUT: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "divided": (lambda n, y: n.add("Div", _line(n, y), _c(n, 6)), "HardSigmoid"),
    "times a sixth": (lambda n, y: n.add("Mul", _c(n, 1 / 6), _line(n, y)), "HardSigmoid"),
    "gated, then divided": (lambda n, y: n.add("Div", n.add("Mul", _line(n, y), y), _c(n, 6)), "HardSwish"),
    "divided, then gated": (lambda n, y: n.add("Mul", y, n.add("Div", _line(n, y), _c(n, 6))), "HardSwish"),
    "gated by its name": (lambda n, y: n.add("Mul", n.add("HardSigmoid", y, alpha=1 / 6), y), "HardSwish"),
    "another top": (lambda n, y: n.add("Div", _line(n, y, 5), _c(n, 6)), "Div"),
    "another slope": (lambda n, y: n.add("Mul", y, n.add("HardSigmoid", y)), "HardSigmoid"),
}


@pytest.mark.parametrize("form", SPELLED_OUT)
def test_hard_activations_get_their_names(form: str) -> None:
    net = Net()
    y = net.conv(net.input("rows", 3, 6, 6), 3, 4)
    build, expected = SPELLED_OUT[form]
    counts = operators(same_outputs(net.model(net.conv(build(net, y), 4, 4))))
    assert counts[expected] == 1
    if expected == "HardSwish":
        assert counts == {"Conv": 2, "HardSwish": 1}


@pytest.mark.parametrize(("axes", "keepdims", "pool"), [((2, 3), 1, True), ((-1, -2), 0, True), ((3,), 1, False)])
def test_a_mean_over_the_image_is_a_pool(axes: tuple[int, ...], keepdims: int, pool: bool) -> None:
    net = Net()
    y = net.conv(net.input("rows", 3, 6, 6), 3, 4)
    counts = operators(same_outputs(net.model(net.add("ReduceMean", y, net.ints(*axes), keepdims=keepdims))))
    assert counts["GlobalAveragePool" if pool else "ReduceMean"] == 1
    assert sum(counts.values()) == (3 if pool and not keepdims else 2)


def test_functions_are_inlined_in_their_own_opset() -> None:
    """The function is written for opset 13, where ReduceMean has its axes as an attribute."""
    function = helper.make_function(
        "mine",
        "Pooled",
        ["a", "w"],
        ["c"],
        [
            helper.make_node("ReduceMean", ["a"], ["b"], "mean", axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["b", "w"], ["c"], "product"),
        ],
        [helper.make_opsetid("", 13)],
    )
    net = Net()
    y = net.add("Pooled", net.conv(net.input("rows", 3, 6, 6), 3, 4), net.weight(4, 2), domain="mine")
    model = net.model(net.add("Reshape", y, net.ints(0, 2)), opset=17, ir_version=8, functions=[function])
    prepared = prepare(model)
    assert prepared.notes == () and not prepared.model.functions
    assert [layer.op_type for layer in read_layers(Graph(prepared.model))] == ["Conv", "MatMul"]
    feeds = feeds_of(model)
    for found, expected in zip(run(prepared.model, feeds).values(), run(model, feeds).values(), strict=True):
        assert distance(found, expected) < 1e-6


def test_operators_of_unknown_domains_survive() -> None:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 3, 6, 6), 3, 4))
    y = net.add("Twirl", y, domain="nobody.knows", angle=3)
    model = net.model(net.conv(y, 4, 2), opset=17, ir_version=8)
    prepared = prepare(model)
    graph = Graph(prepared.model)
    assert [layer.op_type for layer in read_layers(graph)] == ["Conv", "Conv"]
    assert [node.op_type for node in graph.model.graph.node] == ["Conv", "Relu", "Twirl", "Conv"]
    assert {entry.domain for entry in prepared.model.opset_import} >= {"nobody.knows"}


def test_what_cannot_be_upgraded_keeps_its_opset_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no adapter\nfor Conv")

    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4), opset=15, ir_version=8)
    monkeypatch.setattr("onnx.version_converter.convert_version", fails)
    monkeypatch.setattr("onnxscript.version_converter.convert_version", fails)
    prepared = prepare(model)
    assert prepared.opset == 15
    assert len(prepared.notes) == 1 and "no adapter" in prepared.notes[0] and "\n" not in prepared.notes[0]


def test_a_step_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise IndexError("in the middle")

    monkeypatch.setattr("onnxscript.rewriter.rewrite", fails)
    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4))
    prepared = prepare(model)
    assert ["batch norms" in note and "in the middle" in note for note in prepared.notes] == [True]
    assert len(read_layers(Graph(prepared.model))) == 1


def test_a_quantized_model_is_told(tmp_path: Any) -> None:
    """One layer comes quantized, the other does not: the first stays as it is, the second is a layer like any other."""
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 3, 6, 6), 3, 4))
    once = lowered(net.model(net.conv(y, 4, 4)), ["w8a8@minmax", "w4"], {"x": np.ones((2, 3, 6, 6), np.float32)})
    first, second = once.layers
    half = once.canonical(
        {first.name: once.policy("w8a8@minmax")[first.name], second.name: once.policy("float32")[second.name]}
    )
    model = onnx.load_from_string(once.build(half))
    prepared = prepare(model)
    assert len(prepared.notes) == 1 and "quantized" in prepared.notes[0]
    twice = lowered(
        model, ["w8a8@minmax", "w4"], {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    )
    assert len(twice.layers) == 1
    for scheme in ("w8a8@minmax", "w4"):
        candidate = twice.build(scheme)  # its names are not those of the model it came from
        outputs, _, counts = run_optimized(candidate, twice.feeds)
        (found,), (expected,) = outputs.values(), twice.float32().values()
        assert distance(found, expected) < 0.2
        assert counts["QLinearConv"] == (2 if "a8" in scheme else 1)


def test_a_wholly_quantized_model_is_refused() -> None:
    net = Net()
    once = lowered(
        net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4)), ["w8a8@minmax"], {"x": np.ones((2, 3, 6, 6), np.float32)}
    )
    with pytest.raises(ModelError, match="quantized already"):
        read_layers(Graph(prepare(onnx.load_from_string(once.build("w8a8@minmax"))).model))


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (np.float64, "double")])
def test_other_floats_are_refused_with_a_word_on_what_to_do(dtype: type, name: str) -> None:
    net = Net()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    y = net.add("MatMul", net.input("rows", 6, kind=kind), net.constant(np.ones((6, 4), dtype)))
    with pytest.raises(ModelError, match=f"{name}.*float32"):
        read_layers(Graph(prepare(net.model(y)).model))


def test_a_model_without_layers() -> None:
    net = Net()
    with pytest.raises(ModelError, match="nothing to quantize"):
        read_layers(Graph(prepare(net.model(net.add("Relu", net.input("rows", 3)))).model))


def test_weights_that_are_inputs_are_no_layers() -> None:
    net = Net()
    x, weight = net.input("rows", 6), net.input(6, 4, name="weight")
    model = net.model(net.add("MatMul", net.add("MatMul", x, weight), net.weight(4, 2)))
    (layer,) = read_layers(Graph(prepare(model).model))
    assert layer.weight_shape == (4, 2)


def test_metadata_of_users_reaches_candidates() -> None:
    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4))
    onnx.helper.set_model_props(model, {"names": "cat,dog", "pkg.torch.export": "internal"})
    subject = lowered(model, ["w8"], {"x": np.ones((2, 3, 6, 6), np.float32)})
    built = onnx.load_from_string(subject.build("w8"))
    assert {entry.key: entry.value for entry in built.metadata_props} == {"names": "cat,dog"}
