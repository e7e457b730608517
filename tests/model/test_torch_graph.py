"""Graphs in PyTorch, against ONNX Runtime operator by operator and on whole models, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from autoq.model.graph import Graph
from autoq.model.source import read_model
from autoq.model.torch_graph import TorchGraph, UnsupportedOperator, nodes_between, one_thread, supports
from autoq.model.torch_ops import OPERATORS
from tests.models import Net, distance, lowered, run, run_unfused

Build = Callable[[Net], str | tuple[str, ...]]


def scalar(net: Net, value: float) -> str:
    return net.constant(np.float32(value))


def rank4(net: Net, channels: int = 4, height: int = 7, width: int = 6) -> str:
    return net.input("n", channels, height, width)


def unary(op: str, **attributes: Any) -> Build:
    return lambda net: net.add(op, rank4(net), **attributes)


def positive(op: str) -> Build:
    return lambda net: net.add(op, net.add("Add", net.add("Abs", rank4(net)), scalar(net, 0.1)))


def binary(op: str) -> Build:
    return lambda net: net.add(op, rank4(net), net.weight(4, 1, 6))


def to_float(net: Net, tensor: str) -> str:
    return str(net.add("Cast", tensor, to=TensorProto.FLOAT))


def compare(op: str) -> Build:
    return lambda net: to_float(net, net.add(op, rank4(net), net.weight(4, 1, 6)))


def logic(op: str) -> Build:
    def build(net: Net) -> str:
        x = rank4(net)
        return to_float(net, net.add(op, net.add("Greater", x, scalar(net, 0)), net.add("Less", x, scalar(net, 0.5))))

    return build


def reduced(op: str, *axes: int, **attributes: Any) -> Build:
    return lambda net: net.add(op, rank4(net), *([net.ints(*axes)] if axes else []), **attributes)


def pool(op: str, kernel: int = 3, **attributes: Any) -> Build:
    return lambda net: net.add(op, rank4(net), kernel_shape=[kernel, kernel], **attributes)


def resize(factor: float = 2.0, mode: str = "nearest", **attributes: Any) -> Build:
    def build(net: Net) -> str:
        scales = net.constant(np.array([1, 1, factor, factor], np.float32))
        return str(net.add("Resize", rank4(net), "", scales, mode=mode, **attributes))

    return build


def resized_to(height: int, width: int, **attributes: Any) -> Build:
    return lambda net: net.add("Resize", rank4(net), "", "", net.ints(height, width), axes=[2, 3], **attributes)


def sliced(*lists: tuple[int, ...]) -> Build:
    return lambda net: net.add("Slice", rank4(net), *(net.ints(*values) for values in lists))


def padded(mode: str, *pads: int, axes: tuple[int, ...] = ()) -> Build:
    def build(net: Net) -> str:
        more = [scalar(net, 0.5), net.ints(*axes)] if axes else [scalar(net, 0.5)]
        return str(net.add("Pad", rank4(net), net.ints(*pads), *more, mode=mode))

    return build


def convolved(*weight: int, bias: bool = True, op: str = "Conv", **attributes: Any) -> Build:
    def build(net: Net) -> str:
        x = net.input("n", *{3: (4, 9), 4: (4, 9, 8), 5: (4, 5, 6, 4)}[len(weight)])
        channels = weight[1] * attributes.get("group", 1) if op == "ConvTranspose" else weight[0]
        more = [net.constant(net.rng.standard_normal(channels).astype(np.float32))] if bias else []
        return str(net.add(op, x, net.weight(*weight), *more, **attributes))

    return build


def normalized(op: str, *parameters: int, **attributes: Any) -> Build:
    def build(net: Net) -> str:
        given = [net.weight(size) for size in parameters]
        given[3:] = [net.constant(np.abs(net.rng.standard_normal(size)).astype(np.float32)) for size in parameters[3:]]
        return str(net.add(op, rank4(net), *given, **attributes))

    return build


def shapes(net: Net) -> str:
    x = rank4(net)
    rows = net.add("Slice", net.add("Shape", x), net.ints(0), net.ints(1))
    grown = net.add("Expand", net.weight(1, 3), net.add("Concat", rows, net.ints(3), axis=0))
    filled = net.add(
        "ConstantOfShape", net.add("Shape", grown), value=onnx.numpy_helper.from_array(np.ones(1, np.float32))
    )
    steps = net.add("Range", net.constant(np.int64(0)), net.constant(np.int64(3)), net.constant(np.int64(1)))
    added = net.add("Add", grown, net.add("Mul", filled, to_float(net, steps)))
    return str(net.add("Div", added, to_float(net, net.add("Div", net.ints(7), net.ints(2)))))


def gathered(net: Net) -> str:
    picked = net.add("Gather", rank4(net), net.constant(np.array([[0, -1], [2, 2]])), axis=1)
    index = np.random.default_rng(0).integers(-6, 6, (3, 2, 2, 7, 5))
    return str(net.add("GatherElements", picked, net.constant(index), axis=4))


def split(net: Net, sizes: bool) -> tuple[str, ...]:
    x = rank4(net)
    if sizes:
        return tuple(net.add("Split", x, net.ints(3, 1, 3), outputs=3, axis=2))
    return tuple(net.add("Split", x, outputs=3, axis=2, num_outputs=3))


def squeezed(net: Net) -> str:
    x = net.add("Unsqueeze", rank4(net), net.ints(-1, 1))
    return str(net.add("Squeeze", net.add("Squeeze", x, net.ints(1)), net.ints(-1)))


def triangle(net: Net) -> str:
    return str(net.add("Add", net.add("Trilu", rank4(net), upper=0), net.add("Trilu", "x", net.constant(np.int64(2)))))


def quantized(signed: bool, per_channel: bool) -> Build:
    def build(net: Net) -> str:
        kind = np.int8 if signed else np.uint8
        scale = np.array([0.01, 0.02, 0.013, 0.05] if per_channel else 0.0123, np.float32)
        zero = np.full(scale.shape, 3 if signed else 117, kind)
        pair = net.constant(scale), net.constant(zero)
        q = net.add("QuantizeLinear", rank4(net), *pair, axis=1)
        return str(net.add("DequantizeLinear", q, *pair, axis=1))

    return build


UNARY = ("Abs", "Ceil", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity")
UNARY += ("LeakyRelu", "Mish", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh")

CASES: dict[str, Build] = {
    **{op: unary(op) for op in UNARY},
    "Gelu tanh": unary("Gelu", approximate="tanh"),
    "Elu 0.5": unary("Elu", alpha=0.5),
    "HardSigmoid of MobileNet": unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "LeakyRelu 0": unary("LeakyRelu", alpha=0.0),
    **{op: positive(op) for op in ("Log", "Sqrt", "Reciprocal")},
    **{op: binary(op) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "PRelu")},
    **{op: compare(op) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    **{op: logic(op) for op in ("And", "Or")},
    "Not": lambda net: to_float(net, net.add("Not", net.add("Greater", rank4(net), scalar(net, 0)))),
    "Max of three": lambda net: net.add("Max", rank4(net), net.weight(4, 1, 1), net.weight(6)),
    "Pow 2": lambda net: net.add("Pow", rank4(net), scalar(net, 2)),
    "Pow tensor": lambda net: net.add("Pow", net.add("Abs", rank4(net)), net.constant(np.full((4, 1, 1), 1.5, "f"))),
    "Clip": lambda net: net.add("Clip", rank4(net), scalar(net, -0.2), scalar(net, 0.7)),
    "Clip below": lambda net: net.add("Clip", rank4(net), "", scalar(net, 0.7)),
    "CastLike": lambda net: to_float(net, net.add("CastLike", rank4(net), net.ints(1))),
    "Where": lambda net: net.add("Where", net.add("Greater", rank4(net), scalar(net, 0)), net.weight(4, 1, 1), "x"),
    **{f"Softmax {axis}": unary("Softmax", axis=axis) for axis in (-1, 1)},
    "LogSoftmax": unary("LogSoftmax", axis=1),
    "LayerNormalization": normalized("LayerNormalization", 6, 6, epsilon=1e-3),
    "LayerNormalization of two axes": lambda net: net.add("LayerNormalization", rank4(net), net.weight(7, 6), axis=2),
    "BatchNormalization": normalized("BatchNormalization", 4, 4, 4, 4),
    "InstanceNormalization": normalized("InstanceNormalization", 4, 4),
    "GroupNormalization": normalized("GroupNormalization", 4, 4, num_groups=2),
    **{op: reduced(op, 2, 3) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")},
    "ReduceMean of all": reduced("ReduceMean", keepdims=0),
    "ReduceSum of none": reduced("ReduceSum", noop_with_empty_axes=1),
    "ReduceSumSquare": reduced("ReduceSumSquare", -1, keepdims=0),
    "MatMul": lambda net: net.add("MatMul", rank4(net), net.weight(6, 5)),
    "MatMul of activations": lambda net: net.add("MatMul", rank4(net), net.add("Transpose", "x", perm=[0, 1, 3, 2])),
    "Gemm": lambda net: net.add("Gemm", net.input("n", 5), net.weight(5, 3), net.weight(3)),
    "Gemm transposed, scaled": lambda net: net.add(
        "Gemm", net.input(5, 4), net.weight(3, 5), net.weight(4, 1), transA=1, transB=1, alpha=0.5, beta=2.0
    ),
    "Einsum": lambda net: net.add("Einsum", rank4(net), net.weight(6, 5), equation="nchw,wk->nhck"),
    "Transpose": unary("Transpose", perm=[2, 0, 3, 1]),
    "Transpose all": unary("Transpose"),
    "Reshape": lambda net: net.add("Reshape", rank4(net), net.ints(0, 2, -1)),
    **{f"Flatten {axis}": unary("Flatten", axis=axis) for axis in (0, 2, -1)},
    "Squeeze and Unsqueeze": squeezed,
    "Slice": sliced((1, 0), (-1, 100), (2, 3), (1, 2)),
    "Slice backwards": sliced((-1, 4), (-100, 1), (2, 3), (-2, -1)),
    "Slice without axes": sliced((0, 1), (2, 3)),
    "Split": lambda net: split(net, sizes=True),
    "Split unevenly": lambda net: split(net, sizes=False),
    "Concat": lambda net: net.add("Concat", rank4(net), "x", net.add("Relu", "x"), axis=-3),
    "Gather and GatherElements": gathered,
    "GatherND": lambda net: net.add("GatherND", rank4(net), net.constant(np.array([[[0, 3, -1]], [[2, 0, 4]]]))),
    "GatherND of batches": lambda net: net.add(
        "GatherND", net.input(2, 4, 5), net.constant(np.array([[[3], [0]], [[-4], [2]]])), batch_dims=1
    ),
    "Tile": lambda net: net.add("Tile", rank4(net), net.ints(1, 2, 1, 3)),
    "Shape, Range and the like": shapes,
    "Trilu": triangle,
    "CumSum": lambda net: net.add("CumSum", rank4(net), net.constant(np.int64(2))),
    "Pad": padded("constant", 0, 1, 2, 0, 0, 0, 1, 3),
    "Pad crops": padded("constant", 0, 0, -1, 0, 0, 0, 1, -2),
    "Pad some axes": padded("constant", 1, 2, axes=(-2,)),
    **{f"Pad {mode}": padded(mode, 0, 0, 2, 1, 0, 0, 3, 2) for mode in ("reflect", "edge", "wrap")},
    "Conv": convolved(6, 4, 3, 3),
    "Conv strided, padded unevenly": convolved(6, 4, 3, 3, strides=[2, 1], pads=[1, 0, 2, 1], bias=False),
    "Conv grouped, dilated": convolved(8, 2, 3, 2, group=2, dilations=[2, 1], pads=[1, 1, 1, 1]),
    "Conv depthwise": convolved(4, 1, 3, 3, group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv SAME_LOWER": convolved(4, 4, 2, 3, auto_pad="SAME_LOWER", strides=[2, 3]),
    "Conv 1-D": convolved(3, 4, 3, auto_pad="VALID"),
    "Conv 3-D": convolved(3, 4, 3, 3, 2, pads=[1] * 6),
    "ConvTranspose": convolved(4, 3, 3, 3, op="ConvTranspose"),
    "ConvTranspose strided": convolved(
        4, 2, 3, 2, op="ConvTranspose", group=2, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]
    ),
    "ConvTranspose 1-D": convolved(4, 3, 3, op="ConvTranspose", dilations=[2], bias=False),
    "MaxPool": pool("MaxPool"),
    "MaxPool padded": pool("MaxPool", strides=[2, 2], pads=[1, 0, 1, 1]),
    "MaxPool ceil": pool("MaxPool", 2, strides=[3, 4], ceil_mode=1, pads=[1, 1, 0, 0]),
    "MaxPool dilated": pool("MaxPool", 2, dilations=[2, 2]),
    "MaxPool SAME": pool("MaxPool", auto_pad="SAME_LOWER", strides=[2, 2]),
    "AveragePool": pool("AveragePool", strides=[2, 2]),
    "AveragePool padded": pool("AveragePool", pads=[1, 1, 0, 1]),
    "AveragePool counts padding": pool("AveragePool", pads=[1, 1, 0, 1], count_include_pad=1),
    "AveragePool ceil": pool("AveragePool", 2, strides=[2, 4], ceil_mode=1, pads=[1, 0, 1, 1], count_include_pad=1),
    "GlobalAveragePool": unary("GlobalAveragePool"),
    "GlobalMaxPool": unary("GlobalMaxPool"),
    "Resize": resize(),
    "Resize asymmetric": resize(coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize by 1.6": resize(1.6, nearest_mode="ceil"),
    "Resize down": resize(0.6, coordinate_transformation_mode="align_corners", nearest_mode="round_prefer_ceil"),
    "Resize to sizes": resized_to(9, 13, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize linear": resize(mode="linear"),
    "Resize linear, aligned": resize(1.7, mode="linear", coordinate_transformation_mode="align_corners"),
    "Resize linear to sizes": resized_to(5, 1, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    **{f"DepthToSpace {mode}": unary("DepthToSpace", blocksize=2, mode=mode) for mode in ("DCR", "CRD")},
    "SpaceToDepth": lambda net: net.add("SpaceToDepth", rank4(net, 3, 6, 4), blocksize=2),
    "Q/DQ": quantized(signed=False, per_channel=False),
    "Q/DQ signed, per channel": quantized(signed=True, per_channel=True),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    """Values as ONNX Runtime's, on seeded normal input."""
    net = Net()
    outputs = CASES[name](net)
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    shape = [d.dim_value or 3 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = run_unfused(model.SerializeToString(), {"x": x})
    found = TorchGraph(Graph(model))({"x": torch.from_numpy(x)})
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert found[key].dtype == torch.float32
        assert distance(found[key].numpy(), values) < 2e-6


def test_every_operator_is_tested() -> None:
    tested: set[str] = set()
    for build in CASES.values():
        net = Net()
        build(net)
        tested |= {node.op_type for node in net.nodes}
    # Of opset 23 and later, which the Net does not write by default; see below.
    assert sorted(set(OPERATORS) - tested) == ["RMSNormalization", "Swish"]


@pytest.mark.parametrize(("op", "opset"), [("RMSNormalization", 23), ("Swish", 24)])
def test_operators_of_later_opsets(op: str, opset: int) -> None:
    """Against the operator's definition in ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    net = Net()
    y = net.add(
        op,
        rank4(net),
        *([net.weight(7, 6)] if op == "RMSNormalization" else []),
        **{"axis": 2} if opset == 23 else {"alpha": 1.5},
    )
    model = net.model(y, opset=opset)
    x = np.random.default_rng(1).standard_normal((2, 4, 7, 6)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    found = TorchGraph(Graph(model))({"x": torch.from_numpy(x)})[y]
    assert distance(found.numpy(), expected) < 2e-6


def test_rounding_of_ties_is_onnx_s() -> None:
    """Half to even, before the zero point is added; the gradient is 1 inside the range and 0 outside."""
    net = Net()
    pair = net.constant(np.float32(1)), net.constant(np.uint8(3))
    model = net.model(net.add("DequantizeLinear", net.add("QuantizeLinear", net.input(5), *pair), *pair))
    x = torch.tensor([-10.0, -0.5, 0.5, 1.5, 300.0], requires_grad=True)
    (y,) = TorchGraph(Graph(model))({"x": x}).values()
    assert y.tolist() == [-3, 0, 0, 2, 252] == run(model, {"x": x.detach().numpy()}).popitem()[1].tolist()
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("name", ["cifar10/resnet20.onnx", "sts/minilm.onnx"])
def test_whole_model(bench: Path, name: str) -> None:
    path = bench / name
    if not path.is_file():
        pytest.skip(f"no {name} in the benchmark data")
    graph = read_model(path).graph
    with np.load(path.parent / "val.npz") as data:
        if "cifar10" in name:
            x = data["x"][:8].astype(np.float32) / 64 - 2
            feeds = {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
        else:
            feeds = {value: data[value][:4].astype(np.int64) for value in ("input_ids", "attention_mask")}
    expected = run(graph.model, feeds)
    with torch.no_grad():
        found = TorchGraph(graph)({key: torch.from_numpy(values) for key, values in feeds.items()})
    for key, values in expected.items():
        assert distance(found[key].numpy(), values) < 1e-5


def residual_net() -> tuple[Net, onnx.ModelProto, dict[str, str]]:
    """x -> conv -> relu -> (conv -> relu -> conv) + shortcut -> relu, with the names of the tensors between."""
    net = Net()
    first = net.add("Relu", net.conv(net.input("n", 3, 6, 6), 3, 4))
    inner = net.add("Relu", net.conv(first, 4, 4))
    total = net.add("Relu", net.add("Add", net.conv(inner, 4, 4), first))
    return net, net.model(total), {"first": first, "inner": inner, "total": total}


def test_part_between_tensors() -> None:
    _, model, at = residual_net()
    graph = Graph(model)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32))
    whole = TorchGraph(graph, outputs=[at["first"], at["inner"], at["total"]])({"x": x})
    part = TorchGraph(graph, [at["first"]], [at["total"]])
    assert [node.op_type for node in part.nodes] == ["Conv", "Relu", "Conv", "Add", "Relu"]
    assert len(part.constants) == 4
    assert torch.equal(part({at["first"]: whole[at["first"]]})[at["total"]], whole[at["total"]])
    assert part.nodes == nodes_between(graph, [at["first"]], [at["total"]])


def test_what_is_missing_is_named() -> None:
    _, model, at = residual_net()
    with pytest.raises(UnsupportedOperator, match=f"{at['total']} depend on 'x', which is not given"):
        TorchGraph(Graph(model), [at["inner"]], [at["total"]])


def test_gradients_and_replaced_operands() -> None:
    """The derivative of a loss by a layer's weight and bias is what finite differences say."""
    _, model, at = residual_net()
    graph = Graph(model)
    part = TorchGraph(graph)
    layer = next(node for node in graph.model.graph.node if node.output[0] in graph.producer[at["inner"]].input)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)).double()
    weight = part.constants[layer.input[1]].double().requires_grad_()
    bias = part.constants[layer.input[2]].double().requires_grad_()
    part.constants = {name: value.double() for name, value in part.constants.items()}

    def loss(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return part({"x": x}, operands={(layer.name, 1): w, (layer.name, 2): b})[at["total"]].square().mean()

    assert torch.autograd.gradcheck(loss, (weight, bias))


def test_hooks() -> None:
    """A tensor's hook is seen by all of its readers, an operand's by one."""
    _, model, at = residual_net()
    graph = Graph(model)
    part = TorchGraph(graph)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32))
    plain = part({"x": x})[at["total"]]
    assert torch.equal(part({"x": x}, hooks={"x": lambda t: t * 2})[at["total"]], part({"x": 2 * x})[at["total"]])
    zero = torch.zeros_like
    add = next(node for node in graph.model.graph.node if node.op_type == "Add")
    cut = part({"x": x}, operand_hooks={(add.name, 1): zero})[at["total"]]
    inner = part({"x": x}, operand_hooks={(add.name, 0): zero})[at["total"]]
    assert not torch.equal(cut, plain)
    torch.testing.assert_close(inner, TorchGraph(graph, outputs=[at["first"]])({"x": x})[at["first"]])
    assert not part({"x": x}, hooks={at["total"]: zero})[at["total"]].any()


def test_a_weight_of_two_layers_is_replaced_in_one() -> None:
    net = Net()
    weight = net.weight(4, 4)
    y = net.add("MatMul", net.add("MatMul", net.input("n", 4), weight), weight)
    graph = Graph(net.model(y))
    second = graph.model.graph.node[1]
    found = TorchGraph(graph)({"x": torch.ones(1, 4)}, operands={(second.name, 1): torch.eye(4)})[y]
    torch.testing.assert_close(found, torch.ones(1, 4) @ TorchGraph(graph).constants[weight])


@pytest.mark.parametrize("scheme", ["float16", "w4", "w8a8@minmax", "w4a8@minmax"])
def test_candidates_can_be_computed_too(scheme: str) -> None:
    """The file that ships, with its Q/DQ pairs, is a graph like any other."""
    _, model, _ = residual_net()
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    candidate = lowered(model, [scheme], {"x": x}).build(scheme)
    expected = run_unfused(candidate, {"x": x})
    found = TorchGraph(Graph(onnx.load_from_string(candidate)))({"x": torch.from_numpy(x)})
    for name, values in expected.items():
        assert distance(found[name].detach().numpy(), values) < 1e-5


def refused(name: str) -> onnx.ModelProto:
    net = Net()
    if name == "operator":
        return net.model(net.add("Det", net.input(3, 3)))
    if name == "domain":
        return net.model(net.add("Relu", net.input(3, 3), domain="mine"))
    if name == "attribute":
        return net.model(net.add("AveragePool", net.input(1, 2, 8, 8), kernel_shape=[2, 2], dilations=[2, 2]))
    if name == "rank":
        return net.model(net.add("Conv", net.input(1, 2, 4, 4, 4, 4), net.weight(2, 2, 1, 1, 1, 1)))
    return net.model(net.add("Relu", net.input(3, 3)), opset=12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("operator", "Det is not known in PyTorch"),
        ("domain", "mine.Relu is not known"),
        ("attribute", "'AveragePool_.*': AveragePool with dilations"),
        ("rank", "a Conv with 4 spatial dimensions"),
        ("opset", "opset 12 is older than 13"),
    ],
)
def test_refusals(name: str, message: str) -> None:
    with pytest.raises(UnsupportedOperator, match=message):
        TorchGraph(Graph(refused(name)))({"x": torch.zeros(1, 2, 4, 4, 4, 4)})


def test_supports() -> None:
    graph = Graph(residual_net()[1])
    assert all(supports(node) for node in graph.model.graph.node)
    assert not supports(refused("operator").graph.node[0])


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
