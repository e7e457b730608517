"""Where Q/DQ pairs stand: what runs on integers between two convolutions, and what every reader of a tensor sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.graph import Graph
from autoq.model.operators import CARRY, INTEGER, UNSIGNED, absorbed_activation
from autoq.model.placement import Placer
from tests.models import Lowered, Net, check, distance, lowered, run_optimized, run_unfused

U8, S8 = "w8a8@minmax", "w8a8-s8@minmax"

Middle = Callable[[Net, str], str]


def _pads(net: Net, *values: int) -> str:
    return net.ints(0, 0, *values[:2], 0, 0, *values[2:])


def _scales(net: Net) -> str:
    return net.constant(np.array([1, 1, 2, 2], np.float32))


# What stands between two convolutions (8 channels, 8x8), by operator; every form of an operator that its table admits.
CARRIED: dict[str, dict[str, Middle]] = {
    "DepthToSpace": {"": lambda n, y: n.add("DepthToSpace", y, blocksize=2)},
    "Expand": {
        "": lambda n, y: n.add("Expand", n.add("Slice", y, n.ints(0), n.ints(1), n.ints(2)), n.ints(1, 8, 4, 8))
    },
    "Flatten": {"": lambda n, y: n.add("Reshape", n.add("Flatten", y), n.ints(-1, 8, 8, 8))},
    "Gather": {"": lambda n, y: n.add("Gather", y, n.ints(3, 1, 2), axis=1)},
    "MaxPool": {
        "": lambda n, y: n.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]),
        "padded": lambda n, y: n.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        "dilated, ceiling": lambda n, y: n.add(
            "MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], dilations=[2, 2], ceil_mode=1
        ),
        "same": lambda n, y: n.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        "before a Relu": lambda n, y: n.add("Relu", n.add("MaxPool", n.conv(y, 8, 8), kernel_shape=[2, 2])),
    },
    "Pad": {
        "": lambda n, y: n.add("Pad", y, n.ints(0, 2, 0, 1, 0, 2, 1, 0)),
        "zero": lambda n, y: n.add("Pad", y, n.ints(0, 2, 0, 1, 0, 2, 1, 0), n.constant(np.float32(0))),
        "axes": lambda n, y: n.add("Pad", y, n.ints(1, 2, 0, 1), "", n.ints(-3, 3)),
        "reflect": lambda n, y: n.add("Pad", y, _pads(n, 1, 1, 1, 2), mode="reflect"),
        "edge": lambda n, y: n.add("Pad", y, _pads(n, 1, 1, 1, 2), mode="edge"),
        "wrap": lambda n, y: n.add("Pad", y, _pads(n, 1, 1, 1, 2), mode="wrap"),
    },
    "Reshape": {
        "": lambda n, y: n.add("Reshape", y, n.ints(0, 4, 16, 8)),
        "computed": lambda n, y: n.add(
            "Reshape", y, n.add("Concat", n.add("Shape", y, start=0, end=2), n.ints(4, -1), axis=0)
        ),
    },
    "Resize": {
        "": lambda n, y: n.add("Resize", y, "", _scales(n), mode="nearest"),
        "sizes": lambda n, y: n.add("Resize", y, "", "", n.ints(3, 8, 12, 5), mode="nearest"),
        "asymmetric": lambda n, y: n.add(
            "Resize", y, "", _scales(n), coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        ),
    },
    "Slice": {
        "": lambda n, y: n.add("Slice", y, n.ints(0), n.ints(4), n.ints(1)),
        "steps": lambda n, y: n.add("Slice", y, n.ints(0, 0), n.ints(100, 100), n.ints(2, 3), n.ints(2, 2)),
    },
    "SpaceToDepth": {"": lambda n, y: n.add("SpaceToDepth", y, blocksize=2)},
    "Split": {"": lambda n, y: n.add("Split", y, n.ints(3, 5), outputs=2, axis=1)[1]},
    "Squeeze": {"": lambda n, y: n.add("Squeeze", n.add("Unsqueeze", y, n.ints(1)), n.ints(1))},
    "Tile": {"": lambda n, y: n.add("Tile", y, n.ints(1, 2, 1, 1))},
    "Transpose": {
        "": lambda n, y: n.add("Transpose", y, perm=[0, 1, 3, 2]),
        "NHWC": lambda n, y: n.add("Transpose", y, perm=[0, 3, 2, 1]),
    },
    "Unsqueeze": {
        "chain": lambda n, y: n.add(
            "Squeeze",
            n.add(
                "Transpose",
                n.add("Unsqueeze", n.add("MaxPool", y, kernel_shape=[2, 2]), n.ints(0)),
                perm=[0, 1, 2, 4, 3],
            ),
            n.ints(0),
        )
    },
}


def _clipped(n: Net, y: str) -> str:
    return str(n.add("Clip", y, n.constant(np.float32(0)), n.constant(np.float32(3))))


def _gated(n: Net, y: str) -> str:
    return str(n.add("Mul", y, n.add("Sigmoid", n.add("GlobalAveragePool", y))))


def _excited(n: Net, y: str) -> str:
    """Squeeze-excite as MobileNetV3 has it."""
    inner = n.add("Relu", n.conv(n.add("GlobalAveragePool", y), 8, 4, 1))
    return str(n.add("Mul", y, n.add("HardSigmoid", n.conv(inner, 4, 8, 1), alpha=1 / 6)))


def _of_its_own(n: Net, y: str, op: str, *bounds: float) -> str:
    """An activation of a tensor that others read too."""
    hidden = n.conv(y, 8, 8)
    return str(n.add("Add", n.add(op, hidden, *(n.constant(np.float32(b)) for b in bounds)), hidden))


COMPUTED: dict[str, dict[str, Middle]] = {
    "Add": {
        "residual": lambda n, y: n.add("Add", n.conv(y, 8, 8), y),
        "with Relu": lambda n, y: n.add("Relu", n.add("Add", n.conv(y, 8, 8), y)),
        "with Clip": lambda n, y: _clipped(n, n.add("Add", n.conv(y, 8, 8), y)),
        "to itself": lambda n, y: n.add("Add", y, y),
        "broadcast": lambda n, y: n.add("Add", y, n.add("GlobalAveragePool", y)),
        "chain": lambda n, y: n.add(
            "Add", n.add("Add", n.conv(y, 8, 8), y), n.add("Slice", n.add("Add", y, y), n.ints(0), n.ints(8), n.ints(1))
        ),
    },
    "AveragePool": {
        "": lambda n, y: n.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2]),
        "padded": lambda n, y: n.add("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        "ceiling": lambda n, y: n.add("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    },
    "Clip": {
        "to both sides": lambda n, y: n.add("Clip", n.conv(y, 8, 8), *(n.constant(np.float32(b)) for b in (-1, 2))),
        "of its own": lambda n, y: _of_its_own(n, y, "Clip", 0.0, 1.5),
        "open below": lambda n, y: n.add("Clip", n.conv(y, 8, 8), "", n.constant(np.float32(1))),
    },
    "Concat": {
        "": lambda n, y: n.add("Concat", n.add("Relu", n.conv(y, 8, 8)), y, axis=1),
        "of slices": lambda n, y: n.add("Concat", *n.add("Split", y, n.ints(3, 5), outputs=2, axis=1)[::-1], axis=1),
    },
    "GlobalAveragePool": {"": lambda n, y: n.add("GlobalAveragePool", y)},
    "HardSigmoid": {
        "": lambda n, y: n.add("HardSigmoid", n.conv(y, 8, 8)),
        "gate": _excited,
        "of its own": lambda n, y: _of_its_own(n, y, "HardSigmoid"),
        "steep": lambda n, y: n.add("HardSigmoid", n.conv(y, 8, 8), alpha=2.0, beta=0.0),
        "of a slice": lambda n, y: n.add("HardSigmoid", n.add("Slice", y, n.ints(0), n.ints(4), n.ints(1))),
    },
    "HardSwish": {
        "": lambda n, y: n.add("HardSwish", n.conv(y, 8, 8)),
        "of its own": lambda n, y: _of_its_own(n, y, "HardSwish"),
        "of a sum": lambda n, y: n.add("HardSwish", n.add("Add", n.conv(y, 8, 8), y)),
        "of a slice": lambda n, y: n.add("HardSwish", n.add("Slice", y, n.ints(0), n.ints(4), n.ints(1))),
    },
    "LeakyRelu": {"": lambda n, y: n.add("LeakyRelu", y, alpha=0.1)},
    "Mul": {
        "": lambda n, y: n.add("Mul", n.conv(y, 8, 8), y),
        "gate": _gated,
        "SiLU": lambda n, y: n.add("Mul", c := n.conv(y, 8, 8), n.add("Sigmoid", c)),
    },
    "Relu": {
        "of its own": lambda n, y: _of_its_own(n, y, "Relu"),
        "of a slice": lambda n, y: n.add("Relu", n.add("Slice", n.conv(y, 8, 8), n.ints(0), n.ints(4), n.ints(1))),
        "before a pool": lambda n, y: n.add("MaxPool", _of_its_own(n, y, "Relu"), kernel_shape=[2, 2]),
    },
    "Sigmoid": {"": lambda n, y: n.add("Sigmoid", n.add("Add", n.conv(y, 8, 8), y))},
}  # fmt: skip

FORMS = [(op, form) for table in (CARRIED, COMPUTED) for op, forms in table.items() for form in forms]


def _between(middle: Middle) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    net = Net(seed=3)
    first = net.add("Relu", net.conv(net.input("rows", 4, 8, 8), 4, 8))
    y = middle(net, first)
    channels = _channels(net, y)
    net.outputs = [net.add("Relu", net.conv(y, channels, 6))]
    model = net.model(*net.outputs)
    return model, {"x": np.random.default_rng(5).standard_normal((3, 4, 8, 8)).astype(np.float32)}


def _channels(net: Net, tensor: str) -> int:
    shapes = onnx.shape_inference.infer_shapes(net.model(tensor), data_prop=True).graph.output[0]
    return int(shapes.type.tensor_type.shape.dim[1].dim_value)


def _agrees(subject: Lowered, candidate: bytes, *, bound: float = 0.05) -> Counter[str]:
    """The candidate means the same with and without fusion, and comes near float; gives back what ran."""
    check(candidate)
    outputs, _, counts = run_optimized(candidate, subject.feeds)
    unfused, exact = run_unfused(candidate, subject.feeds), subject.float32()
    assert outputs.keys() == exact.keys()
    for name, output in outputs.items():
        # Fused kernels may round ties the other way, each by one step, and a step may grow through later layers.
        assert distance(output, unfused[name]) < 0.03, name
        assert np.mean(~np.isclose(output, unfused[name], atol=1e-6)) < 0.1, name
        assert distance(output, exact[name]) < bound, name
    return counts


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_unsigned_between_convolutions(op: str, form: str) -> None:
    """Everything between the model's input and its output runs on integers."""
    model, feeds = _between({**CARRIED, **COMPUTED}[op][form])
    subject = lowered(model, [U8], feeds)
    counts = _agrees(subject, subject.build(U8))
    assert counts["QLinearConv"] == len(subject.layers)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (1, 1), counts


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_signed_between_convolutions(op: str, form: str) -> None:
    """On x86, ONNX Runtime runs signed pairs on integers where one reader takes each tensor; else they stay correct."""
    model, feeds = _between({**CARRIED, **COMPUTED}[op][form])
    subject = lowered(model, [S8], feeds)
    counts = _agrees(subject, subject.build(S8), bound=0.08)
    readers = Placer(subject.graph, subject.layers).place(subject.policy(S8)).quantized
    shared = any(len(subject.graph.consumers.get(name, ())) > 1 for name in readers if name != "x")
    if shared or op == "Split" or op in UNSIGNED:
        return
    assert counts["QLinearConv"] == len(subject.layers), counts
    # Pad is not among the operators around which the runtime takes pairs away.
    left = 2 if op in ("Pad", "SpaceToDepth") or (op, form) == ("Reshape", "computed") else 1
    assert counts["QuantizeLinear"] == left, counts


def test_every_operator_of_the_tables_is_tested() -> None:
    # The Conv that picks is written by a form: tests/model/test_forms.py.
    assert (CARRIED.keys() | {"Conv"}, COMPUTED.keys()) == (CARRY.keys(), INTEGER.keys())


# What has no integer kernel, or would change its meaning on integers: it stays float, between pairs.
FLOAT: dict[str, Middle] = {
    "another function": lambda n, y: n.add("Tanh", y),
    "average of scattered pixels": lambda n, y: n.add("AveragePool", y, kernel_shape=[2, 2], dilations=[2, 2]),
    "a constant added": lambda n, y: n.add("Add", y, n.constant(np.float32(1))),
    "padding that is not zero": lambda n, y: n.add("Pad", y, _pads(n, 1, 1, 1, 1), n.constant(np.float32(9))),
    "padding of unknown value": lambda n, y: n.add("Pad", y, _pads(n, 1, 1, 1, 1), n.add("ReduceMax", y, keepdims=0)),
    "linear interpolation": lambda n, y: n.add("Resize", y, "", _scales(n), mode="linear"),
    "a filled frame": lambda n, y: n.add(
        "Resize", y, n.constant(np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5], np.float32)), _scales(n),
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0,
    ),
    "a pool that tells where": lambda n, y: n.add(
        "Add", *((p := n.add("MaxPool", y, kernel_shape=[2, 2], outputs=2))[0], n.add("Cast", p[1], to=1))
    ),
    "a clip from above zero": lambda n, y: n.add("Clip", y, n.constant(np.float32(0.5)), n.constant(np.float32(1))),
    "a constant expanded": lambda n, y: n.add(
        "Expand", n.constant(np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 8, 1, 1)), n.add("Shape", y)
    ),
    "looked up in a constant": lambda n, y: n.add(
        "Gather", n.weight(8, 8, 6, 6), n.add("Reshape", n.add("ArgMax", y, axis=1), n.ints(-1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT)
@pytest.mark.parametrize("scheme", [U8, S8])
def test_what_stays_float(name: str, scheme: str) -> None:
    model, feeds = _between(FLOAT[name])
    subject = lowered(model, [scheme], feeds)
    candidate = subject.build(scheme)
    check(candidate)
    _, _, counts = run_optimized(candidate, feeds)
    assert counts["QLinearConv"] == 2
    assert counts["QuantizeLinear"] >= 2, "its input leaves the integers, and its output enters them again"
    if name not in ("a pool that tells where", "looked up in a constant"):  # where a tie decides, a step decides
        _agrees(subject, candidate)


def _two_layers(net: Net) -> tuple[str, str]:
    hidden = net.add("Relu", net.conv(net.input("rows", 4, 8, 8), 4, 8))
    return hidden, net.add("Relu", net.conv(hidden, 8, 8))


def _feeds(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("scheme", [U8, S8])
def test_tensor_read_by_integer_and_float_layers(scheme: str) -> None:
    net = Net()
    hidden = net.add("Tanh", net.input("rows", 4, 8, 8))
    net.outputs = [net.conv(hidden, 4, 8), net.conv(hidden, 4, 8), net.add("Exp", hidden)]
    subject = lowered(net.model(*net.outputs), [scheme], _feeds(x=(2, 4, 8, 8)))
    first, second = subject.layers
    candidate = subject.build(subject.canonical({first.name: Scheme.parse(scheme), second.name: FLOAT32}))
    _agrees(subject, candidate)
    outputs, exact = run_optimized(candidate, subject.feeds)[0], subject.float32()
    for name in net.outputs[1:]:  # a float tensor stays float for its float readers
        np.testing.assert_allclose(outputs[name], exact[name], atol=1e-6)
    assert distance(outputs[net.outputs[0]], exact[net.outputs[0]]) > 1e-4, "the integer layer does not read integers"


@pytest.mark.parametrize("scheme", [U8, S8])
def test_outputs_that_are_quantized_or_carried_keep_their_names(scheme: str) -> None:
    net = Net()
    hidden, last = _two_layers(net)
    turned = net.add("Transpose", hidden, perm=[0, 2, 3, 1])
    net.outputs = [hidden, turned, last]
    subject = lowered(net.model(*net.outputs), [scheme], _feeds(x=(2, 4, 8, 8)))
    _agrees(subject, subject.build(scheme))


@pytest.mark.parametrize("scheme", [U8, S8])
def test_input_read_by_several(scheme: str) -> None:
    net = Net()
    x = net.input("rows", 4, 8, 8)
    cut = net.add("Slice", x, net.ints(0), net.ints(2), net.ints(1))
    net.outputs = [net.conv(x, 4, 4), net.conv(cut, 2, 4), net.add("Add", x, x), cut]
    subject = lowered(net.model(*net.outputs), [scheme], _feeds(x=(2, 4, 8, 8)))
    _agrees(subject, subject.build(scheme))


def test_several_inputs_and_outputs_and_a_fixed_batch() -> None:
    net = Net()
    left = net.add("Relu", net.conv(net.input(2, 3, 6, 6, name="left"), 3, 4))
    right = net.add("Relu", net.conv(net.input(2, 3, 6, 6, name="right"), 3, 4))
    both = net.add("Concat", left, right, axis=1)
    net.outputs = [net.conv(both, 8, 2), net.add("Flatten", both)]
    subject = lowered(net.model(*net.outputs), [U8, "w2a8-gptq@mse"], _feeds(left=(2, 3, 6, 6), right=(2, 3, 6, 6)))
    counts = _agrees(subject, subject.build(U8))
    assert (counts["QLinearConv"], counts["QLinearConcat"], counts["QuantizeLinear"]) == (3, 1, 2)
    shapes = [v.type.tensor_type.shape for v in check(subject.build("w2a8-gptq@mse")).graph.input]
    assert [[d.dim_value for d in shape.dim] for shape in shapes] == [[2, 3, 6, 6]] * 2


def _branches(net: Net, hidden: str, condition: str) -> str:
    """An If whose branches read ``hidden`` from outside, and a Loop that adds it."""

    def body(op: str, output: str, name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [hidden], [output], f"{name}_node")], name, [], [value])

    chosen = net.add(
        "If", condition, then_branch=body("Exp", "then_out", "then"), else_branch=body("Neg", "else_out", "else")
    )
    steps = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"], "keep"),
            helper.make_node("Add", ["sum", hidden], ["more"], "plus"),
        ],
        "steps",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    looped = net.add("Loop", net.constant(np.int64(3)), net.constant(np.bool_(True)), chosen, body=steps)
    return str(net.add("Reshape", looped, net.ints(0, -1)))


@pytest.mark.parametrize("scheme", [U8, S8, "w4-gptq", "float16"])
def test_bodies_that_read_tensors_from_outside(scheme: str) -> None:
    net = Net()
    hidden, last = _two_layers(net)
    net.inputs.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    net.outputs = [_branches(net, hidden, "which"), last]
    feeds = {**_feeds(x=(2, 4, 8, 8)), "which": np.array(False)}
    subject = lowered(net.model(*net.outputs), [scheme], feeds)
    assert hidden in subject.graph.captured
    _agrees(subject, subject.build(scheme), bound=0.2)


def test_shape_of_an_integer_tensor_costs_no_dequantization() -> None:
    model, feeds = _between(CARRIED["Reshape"]["computed"])
    subject = lowered(model, [U8], feeds)
    nodes = {node.op_type: node for node in onnx.load_from_string(subject.build(U8)).graph.node}
    assert nodes["Shape"].input[0].endswith("::q")


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("scheme", [U8, S8])
def test_sum_beside_an_integer_matmul(rows: int | None, scheme: str) -> None:
    """The runtime would make a float Gemm of a 2-D MatMul and an Add whose other side is no bias."""
    net = Net()
    x = net.input(rows, 12)
    net.outputs = [net.add("Add", x, net.add("MatMul", x, net.weight(12, 12)))]
    subject = lowered(net.model(*net.outputs), [scheme, "w8"], _feeds(x=(4, 12)))
    counts = _agrees(subject, subject.build(scheme))
    assert counts["MatMulIntegerToFloat"] == 1 and not counts["DequantizeLinear"]
    assert "Sum" not in {node.op_type for node in onnx.load_from_string(subject.build("w8")).graph.node}


@pytest.mark.parametrize("scheme", [U8, S8])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("activation", ["Relu", "Clip", "Clip to both sides", "Tanh"])
def test_integer_product_before_a_float_activation(op: str, activation: str, scheme: str) -> None:
    """Where no pair follows a Relu or Clip, the runtime would run the product before it in float."""
    net = Net()
    y = net.add(op, net.input("rows", 12), net.weight(12, 12))
    if activation.startswith("Clip"):
        low = -0.2 if activation != "Clip" else 0.0
        y = net.add("Clip", y, net.constant(np.float32(low)), net.constant(np.float32(0.5)))
    else:
        y = net.add(activation, y)
    subject = lowered(net.model(net.add("Exp", y)), [scheme], _feeds(x=(5, 12)))
    counts = _agrees(subject, subject.build(scheme))
    assert counts["QGemm"] + counts["MatMulIntegerToFloat"] == 1 and not counts["DequantizeLinear"]


@pytest.mark.parametrize("scheme", ["float32", "float16", "w8", "w4-gptq"])
@pytest.mark.parametrize("activation", ["", "Relu", "Tanh"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_float_layer_between_integer_layers(op: str, activation: str, scheme: str) -> None:
    """The runtime would quantize its weights by itself, to 8 bits with one scale, whatever the policy says."""
    net = Net()
    if op in ("Conv", "ConvTranspose"):
        shape: tuple[int, ...] = (3, 4, 6, 6)
        first = net.add("Relu", net.conv(net.input("rows", 4, 6, 6), 4, 8))
        parameters = (net.weight(8, 8, 3, 3), net.constant(np.ones(8, np.float32)))
        middle = net.add(op, net.add("MaxPool", first, kernel_shape=[2, 2]), *parameters)
        last = net.conv(net.add(activation, middle) if activation else middle, 8, 4)
    else:
        shape = (3, 12)
        first = net.add(op, net.input("rows", 12), net.weight(12, 12))
        middle = net.add(op, first, net.weight(12, 12))
        last = net.add(op, net.add(activation, middle) if activation else middle, net.weight(12, 4))
    gentle = "w4" if op == "ConvTranspose" and scheme == "w4-gptq" else scheme
    subject = lowered(net.model(last), [U8, gentle], _feeds(x=shape))
    names = [layer.name for layer in subject.layers]
    policy = subject.canonical(dict(zip(names, map(Scheme.parse, (U8, gentle, U8)), strict=True)))
    counts = _agrees(subject, subject.build(policy), bound=0.3 if gentle.startswith("w4") else 0.05)
    integer = counts["QLinearConv"] + counts["QGemm"] + counts["QLinearMatMul"] + counts["MatMulIntegerToFloat"]
    floats = sum(counts[kernel] for kernel in ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"))
    assert (integer, floats) == (2, 1), counts
    at_most = 2 if op in ("Conv", "ConvTranspose") else 1
    assert counts["DequantizeLinear"] <= at_most, "a weight is dequantized at every run"


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_float_product_and_bias_between_integer_layers(rows: int | None, dimensions: int) -> None:
    """The runtime joins them to a Gemm, and would quantize that."""
    net = Net()
    first = net.add("Relu", net.conv(net.input(rows, 4, 6, 6), 4, 4))
    y = net.add("Reshape", first, net.ints(*([0, -1] if dimensions == 2 else [0, 12, 12])))
    y = net.add("Add", net.add("MatMul", y, net.weight(144 if dimensions == 2 else 12, 12)), net.weight(12))
    last = net.add("MatMul", net.add("Relu", y), net.weight(12, 4))
    subject = lowered(net.model(last), [U8, "w8"], _feeds(x=(3, 4, 6, 6)))
    names = [layer.name for layer in subject.layers]
    policy = subject.canonical(dict(zip(names, map(Scheme.parse, (U8, "w8", U8)), strict=True)))
    counts = _agrees(subject, subject.build(policy))
    assert (
        counts["QLinearConv"]
        == counts["MatMulIntegerToFloat"]
        == counts["Gemm"] + counts["FusedGemm"] + counts["MatMul"]
        == 1
    )


def test_chains_of_products_pass_integers_on() -> None:
    net = Net()
    y = net.input("rows", 12)
    for _ in range(2):
        y = net.add("Relu", net.add("Gemm", y, net.weight(12, 12), net.weight(12)))
    y = net.add("MatMul", net.add("MatMul", y, net.weight(12, 12)), net.weight(12, 12))
    subject = lowered(net.model(y), [U8], _feeds(x=(5, 12)))
    counts = _agrees(subject, subject.build(U8))
    assert (counts["QGemm"], counts["QLinearMatMul"], counts["MatMulIntegerToFloat"]) == (2, 1, 1)
    assert (counts["QuantizeLinear"], counts["Relu"]) == (1, 0)


def test_canonical() -> None:
    net = Net()
    x = net.input("rows", 4, 8, 8)
    shared = net.weight(4, 4, 3, 3, name="shared.weight")
    y = net.add("Conv", net.add("Slice", x, net.ints(0), net.ints(8), net.ints(2)), shared)
    z = net.add("Conv", x, shared)
    net.outputs = [y, net.conv(net.add("Relu", z), 4, 4)]
    graph = Graph(net.model(*net.outputs))
    from autoq.model.layers import read_layers

    layers = read_layers(graph)
    placer = Placer(graph, layers)
    assert [layer.tied_to for layer in layers] == [None, "shared", None]
    names = [layer.name for layer in layers]
    parse = Scheme.parse
    given = dict(zip(names, map(parse, ("w4a8@mse", "float32", "w8a8-s8@entropy")), strict=True))
    policy = placer.canonical(Policy.of(given))
    # The tied layer follows; both read x, which has one calibration; one file has one sign.
    assert [str(scheme) for scheme in policy.values()] == ["w4a8@mse", "w4a8@mse", "w8a8@entropy"]
    assert placer.canonical(policy) == policy


def _two_convolutions(between: str) -> Lowered:
    net = Net()
    first = net.add(between, net.conv(net.input("rows", 4, 8, 8), 4, 4))
    y = net.conv(net.add("MaxPool", first, kernel_shape=[2, 2]), 4, 4)
    return lowered(net.model(y), ["w8a8@minmax", "w8a8-s8@minmax", "w8a16@minmax"], _feeds(x=(5, 4, 8, 8)))


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (("w8a16@minmax", "w8a16@minmax"), ["int16", "int16", "int16"]),
        (("w8a16@minmax", "w8a8@minmax"), ["int16", "uint8", "uint8"]),
        (("w8a8@minmax", "w8a16@minmax"), ["uint8", "int16", "int16"]),
        # The sign of a file is that of its bytes.
        (("w8a16@minmax", "w8a8-s8@minmax"), ["int16", "int8", "int8"]),
    ],
)
def test_a_layer_reads_its_own_width_and_writes_its_readers(given: tuple[str, str], types: list[str]) -> None:
    subject = _two_convolutions("Relu")
    names = [layer.name for layer in subject.layers]
    policy = subject.canonical(dict(zip(names, map(Scheme.parse, given), strict=True)))
    assert tuple(map(str, policy.values())) == given
    placement = subject.lowering.placer.place(policy)
    assert [spec.dtype for spec in placement.quantized.values()] == types
    model = check(subject.build(policy))
    zeros = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    kinds = {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in model.graph.initializer}
    assert {kinds[name] for name in zeros} == set(types)


def test_a_hard_sigmoid_is_coded_in_bytes() -> None:
    subject = _two_convolutions("HardSigmoid")
    placement = subject.lowering.placer.place(subject.policy("w8a16@minmax"))
    assert [spec.dtype for spec in placement.quantized.values()] == ["int16", "uint8", "int16"]


def test_many_additions_are_placed_at_once() -> None:
    """Doubling chains: every way through the graph, of which there are 2**40, must not be walked."""
    net = Net()
    y = net.conv(net.input("rows", 2, 4, 4), 2, 2)
    for _ in range(40):
        y = net.add("Mul", net.add("Add", y, y), y)
    graph = Graph(net.model(net.conv(y, 2, 2)))
    from autoq.model.layers import read_layers

    assert len(Placer(graph, read_layers(graph)).tensors_to_calibrate()) == 83


def test_operators_that_resnet_runs(bench) -> None:  # type: ignore[no-untyped-def]
    with np.load(bench / "cifar10" / "train.npz") as data:
        x = data["x"][:32].astype(np.float32).transpose(0, 3, 1, 2) / 128 - 1
    subject = lowered(
        onnx.load(bench / "cifar10" / "resnet20.onnx"), [U8, "w2a8@mse"], {"input": np.ascontiguousarray(x)}
    )
    expected = {"QuantizeLinear": 1, "Transpose": 2, "QLinearConv": 19, "QLinearAdd": 9, "Slice": 4, "Pad": 2}
    expected |= {"QLinearAveragePool": 1, "Reshape": 1, "QGemm": 1}
    for scheme in (U8, "w2a8@mse"):
        assert run_optimized(subject.build(scheme), subject.feeds)[2] == expected


def test_activations_that_a_pair_absorbs() -> None:
    """A Relu, and a Clip from zero with constant bounds, where nobody else reads what comes before."""
    net = Net()
    x, zero = net.input("rows", 4), net.constant(np.float32(0))
    top, low = net.constant(np.float32(6)), net.constant(np.float32(-1))
    convs = [net.add("MatMul", x, net.weight(4, 4)) for _ in range(8)]
    outputs = [
        net.add("Relu", convs[0]),
        net.add("Clip", convs[1], zero, top),
        net.add("Clip", convs[2], zero),
        net.add("Clip", convs[3], low, top),
        net.add("Clip", convs[4], "", top),
        net.add("Clip", convs[5], zero, net.add("ReduceMax", x, keepdims=0)),
        net.add("Add", net.add("Relu", convs[6]), convs[6]),
        net.add("Relu", convs[7]),
    ]
    graph = Graph(net.model(*outputs, convs[7]))
    absorbed = [absorbed_activation(graph, tensor) for tensor in convs]
    assert [node is not None for node in absorbed] == [True] * 3 + [False] * 5
