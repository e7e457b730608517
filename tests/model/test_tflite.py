"""Every operator on TFLite, in 8 and in 16 bits, against ONNX Runtime running the candidate as it is written.

The candidates of one operator are written by hand, on grids that the float result fills; the oracle has every
optimization off, so that each QuantizeLinear and DequantizeLinear rounds by itself, and the rest is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autoq.core.scheme import Scheme
from autoq.errors import AutoqError, TrialError
from tests.models import Lowered, Net, lowered, run, run_optimized, run_unfused

pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")

from autoq.model.tflite import to_tflite
from autoq.model.tflite_file import Grid
from autoq.runtime.litert import LiteRt, Session

KINDS = {"8 bits": "uint8", "8 bits, signed": "int8", "16 bits": "int16"}
IMAGE = (4, 8, 6)


class Quantized(Net):
    """A network whose pairs are written by hand. ``kind`` is the integers' type."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def pair(self, x: str, low: float, high: float, kind: str = "") -> str:
        """``x`` behind a pair whose grid reaches from ``low`` to ``high``; 8 bits are asymmetric."""
        kind = kind or self.kind
        limits = np.iinfo(kind)
        if kind == "int16":
            scale, zero = max(-low, high) / limits.max, 0
        else:
            low, high = min(low, 0.0), max(high, 0.0)
            scale = (high - low) / (int(limits.max) - int(limits.min))
            zero = round(limits.min - low / scale)
        parameters = self.constant(np.float32(scale)), self.constant(np.asarray(zero, kind))
        integers = self.add("QuantizeLinear", x, *parameters)
        return str(self.add("DequantizeLinear", integers, *parameters))

    def stored(self, *shape: int, axis: int | None = 0, limit: int = 127) -> str:
        """int8 weights within ``limit``, with a scale for each index along ``axis``."""
        values = self.rng.integers(-limit, limit, shape, endpoint=True).astype(np.int8)
        size = [] if axis is None else [shape[axis]]
        scale = (self.rng.uniform(0.5, 2, size) / (limit * 4)).astype(np.float32)
        names = self.constant(values), self.constant(scale), self.constant(np.zeros(size, np.int8))
        return str(self.add("DequantizeLinear", *names, **({} if axis is None else {"axis": axis})))

    def bias(self, size: int) -> str:
        return self.constant(self.rng.standard_normal(size).astype(np.float32))

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, np.float32))


def _conv(
    weight: tuple[int, ...], act: str = "", *, bias: bool = True, axis: int | None = 0, limit: int = 127, **at: Any
) -> Callable[[Quantized, str], str]:
    def build(net: Quantized, x: str) -> str:
        parameters = [net.stored(*weight, axis=axis, limit=limit), *([net.bias(weight[0])] if bias else [])]
        return _activated(net, net.add("Conv", x, *parameters, **at), act)

    return build


def _activated(net: Quantized, y: str, act: str) -> str:
    if act == "Clip":
        return str(net.add("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(6))))
    return str(net.add(act, y)) if act else y


def _second(net: Quantized, *shape: int) -> str:
    return net.pair(net.input("N", *shape, name="second"), -2.0, 3.5)


def _gemm(*, turned: bool, act: str = "") -> Callable[[Quantized, str], str]:
    def build(net: Quantized, x: str) -> str:
        flat = net.add("Flatten", x)
        weight = net.stored(5, 192) if turned else net.stored(192, 5, axis=1)
        return _activated(net, net.add("Gemm", flat, weight, net.bias(5), transB=int(turned)), act)

    return build


def _row(op: str, weights: Sequence[Any] = (), **at: Any) -> Callable[[Quantized, str], str]:
    """An operator of a sequence."""

    def build(net: Quantized, x: str) -> str:
        row = net.add("Reshape", x, net.ints(0, 4, 48))
        return str(net.add(op, row, *[net.bias(s) if isinstance(s, int) else net.stored(*s) for s in weights], **at))

    return build


def _matmul(net: Quantized, x: str) -> str:
    tokens = net.add("Reshape", x, net.ints(0, 32, 6))
    return str(net.add("Add", net.add("MatMul", tokens, net.stored(6, 7, axis=1)), net.bias(7)))


OPERATORS: dict[str, Callable[[Quantized, str], str]] = {
    "Conv": _conv((5, 4, 3, 3), "Relu", pads=[1, 1, 1, 1]),
    "Conv of 4 bits": _conv((5, 4, 3, 3), "Relu", pads=[1, 1, 1, 1], limit=7),
    "Conv of 2 bits": _conv((5, 4, 3, 3), pads=[1, 1, 1, 1], limit=1),
    "Conv 1x1, without bias": _conv((5, 4, 1, 1), bias=False),
    "Conv, one scale": _conv((5, 4, 3, 3), axis=None),
    "Conv strided": _conv((5, 4, 3, 3), "Clip", pads=[1, 1, 1, 1], strides=[2, 2]),
    "Conv, padding that is not SAME": _conv((5, 4, 3, 2), pads=[2, 0, 1, 1]),
    "Conv same lower": _conv((5, 4, 4, 3), auto_pad="SAME_LOWER", strides=[2, 1]),
    "Conv dilated": _conv((5, 4, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    "Conv grouped": _conv((6, 2, 3, 3), "Relu", pads=[1, 1, 1, 1], group=2),
    "Conv depthwise": _conv((4, 1, 3, 3), "Clip", pads=[1, 1, 1, 1], group=4),
    "Conv depthwise, twice the channels": _conv((8, 1, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=4),
    "Conv of a sequence": _row("Conv", [(5, 4, 3), 5], pads=[1, 1]),
    "Conv of a sequence, depthwise": _row("Conv", [(8, 1, 5), 8], pads=[2, 1], strides=[2], dilations=[2], group=4),
    "Conv of a sequence, same": _row("Conv", [(5, 4, 4)], auto_pad="SAME_UPPER", strides=[3]),
    "MaxPool of a sequence": _row("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 0]),
    "AveragePool of a sequence": _row("AveragePool", kernel_shape=[4], strides=[4]),
    "AveragePool of a padded sequence": _row("AveragePool", kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    "GlobalAveragePool of a sequence": _row("GlobalAveragePool"),
    "Gemm": _gemm(turned=True),
    "Gemm, transposed": _gemm(turned=False, act="Relu"),
    "MatMul and Add": _matmul,
    "Add": lambda net, x: net.add("Add", x, _second(net, *IMAGE)),
    "Add and Relu": lambda net, x: net.add("Relu", net.add("Add", x, _second(net, *IMAGE))),
    "Add to every pixel": lambda net, x: net.add("Add", _second(net, 4, 1, 1), x),
    "Mul": lambda net, x: net.add("Mul", x, _second(net, *IMAGE)),
    "Mul by a gate": lambda net, x: net.add("Mul", x, _second(net, 4, 1, 1)),
    "Concat of channels": lambda net, x: net.add("Concat", x, _second(net, 3, 8, 6), axis=1),
    "Concat of columns": lambda net, x: net.add("Concat", x, _second(net, 4, 8, 2), axis=-1),
    "AveragePool": lambda net, x: net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool of the padded": lambda net, x: net.add(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "AveragePool beside the padding": lambda net, x: net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool of all": lambda net, x: net.add("AveragePool", x, kernel_shape=[8, 6]),
    "GlobalAveragePool": lambda net, x: net.add("GlobalAveragePool", x),
    "MaxPool": lambda net, x: net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "MaxPool, rounded up": lambda net, x: net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "Pad": lambda net, x: net.add("Pad", x, net.ints(0, 1, 2, 0, 0, 2, 1, 3)),
    "Pad with one": lambda net, x: net.add("Pad", x, net.ints(1, 0, 2, 1), net.constant(np.float32(1)), net.ints(2, 3)),
    "Pad as a mirror": lambda net, x: net.add("Pad", x, net.ints(0, 0, 2, 1, 0, 0, 1, 1), mode="reflect"),
    "Slice": lambda net, x: net.add("Slice", x, net.ints(0, 1), net.ints(99, -1), net.ints(2, 3), net.ints(2, 1)),
    "Split": lambda net, x: net.add("Add", *net.add("Split", x, axis=1, outputs=2, num_outputs=2)),
    "Reshape": lambda net, x: net.add("Reshape", x, net.ints(0, 2, 2, 48)),
    "Reshape of a Shape": lambda net, x: net.add(
        "Reshape", x, net.add("Concat", net.add("Shape", x, start=0, end=1), net.ints(-1), axis=0)
    ),
    "Squeeze": lambda net, x: net.add(
        "Squeeze", net.add("MaxPool", x, kernel_shape=[8, 6]), net.ints(2, 3)
    ),
    "Unsqueeze": lambda net, x: net.add("Unsqueeze", net.add("Reshape", x, net.ints(0, 192)), net.ints(1)),
    "Transpose": lambda net, x: net.add("Transpose", x, perm=[0, 2, 3, 1]),
    "Transpose back and forth": lambda net, x: net.add(
        "Transpose",
        net.pair(net.add("Add", *[net.add("Transpose", x, perm=[0, 3, 1, 2])] * 2), -6.0, 8.0),
        perm=[0, 2, 3, 1],
    ),
    "Relu": lambda net, x: net.add("Relu", x),
    "Relu6": lambda net, x: _activated(net, x, "Clip"),
    "LeakyRelu": lambda net, x: net.add("LeakyRelu", x, alpha=0.1),
    "HardSwish": lambda net, x: net.add("HardSwish", x),
    "Sigmoid": lambda net, x: net.add("Sigmoid", x),
    "Softmax of channels": lambda net, x: net.add("Softmax", x, axis=1),
    "Softmax of columns": lambda net, x: net.add("Softmax", x, axis=-1),
    "Resize to the nearest": lambda net, x: net.add("Resize", x, "", net.floats(1, 1, 2, 2), mode="nearest"),
    "Resize, asymmetric": lambda net, x: net.add(
        "Resize", x, "", "", net.ints(1, 4, 12, 9), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "Resize linearly": lambda net, x: net.add("Resize", x, "", net.floats(1, 1, 2, 2), mode="linear"),
    "Resize linearly, corners aligned": lambda net, x: net.add(
        "Resize", x, "", "", net.ints(1, 4, 15, 11), mode="linear", coordinate_transformation_mode="align_corners"
    ),
}  # fmt: skip


def candidate_of(
    build: Callable[[Quantized, str], str], kind: str, reads: str = "", writes: str = ""
) -> tuple[bytes, dict[str, np.ndarray]]:
    """One operator between pairs, the last over the range that its float result has; and data for it."""
    net = Quantized(kind)
    x = net.pair(net.input("N", *IMAGE), -3.0, 4.0, reads)
    y = build(net, x)
    rows = 3
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:] for value in net.inputs}
    feeds = {name: net.rng.uniform(-3.5, 4.5, (rows, *size)).astype(np.float32) for name, size in sizes.items()}
    one = [
        run_unfused(net.model(y).SerializeToString(), {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(rows)
    ]
    found = np.concatenate([each[y] for each in one])
    z = net.pair(y, float(found.min()), float(found.max()), writes)
    return net.model(z).SerializeToString(), feeds


def on_litert(candidate: bytes, feeds: Mapping[str, np.ndarray]) -> tuple[Session, dict[str, np.ndarray]]:
    runtime = LiteRt()
    session = runtime.open(to_tflite(candidate))
    return session, runtime.run(session, feeds, 1)


def by_rows(candidate: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The oracle: one row after the other, as TFLite has them."""
    rows = len(next(iter(feeds.values())))
    found = [run_unfused(candidate, {name: x[row : row + 1] for name, x in feeds.items()}) for row in range(rows)]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def steps(candidate: bytes, feeds: Mapping[str, np.ndarray]) -> float:
    """The largest difference between LiteRT and ONNX Runtime, in steps of the output's grid."""
    session, found = on_litert(candidate, feeds)
    expected = by_rows(candidate, feeds)
    worst = 0.0
    for port in session.outputs:
        assert found[port.name].shape == expected[port.name].shape
        worst = max(worst, float(np.abs(found[port.name] - expected[port.name]).max()) / port.scale)
    return worst


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("operator", list(OPERATORS))
def test_operator(operator: str, kind: str) -> None:
    candidate, feeds = candidate_of(OPERATORS[operator], KINDS[kind])
    # TFLite's Softmax of 16 bits looks its exponentials up in a table.
    allowed = 3.01 if operator.startswith("Softmax") and kind == "16 bits" else 1.01
    assert steps(candidate, feeds) <= allowed


@pytest.mark.parametrize(("reads", "writes"), [("uint8", "int16"), ("int16", "uint8")])
@pytest.mark.parametrize("operator", ["Conv", "Gemm", "Add", "Mul", "Concat of channels", "GlobalAveragePool", "Relu"])
def test_operator_between_widths(operator: str, reads: str, writes: str) -> None:
    candidate, feeds = candidate_of(OPERATORS[operator], "uint8", reads, writes)
    assert steps(candidate, feeds) <= 1.01


ALIKE = ("w8a8@minmax", "w6a8@minmax", "w5a8@minmax", "w4a8@minmax", "w4a8-kmeans@minmax", "w3a8@minmax")


def _activations(net: Net) -> str:
    y = net.add("HardSwish", net.conv(net.input("N", 3, 12, 10), 3, 8))
    gate = net.add("Relu", net.conv(net.add("GlobalAveragePool", y), 8, 4, 1))
    gate = net.add("HardSigmoid", net.conv(gate, 4, 8, 1), alpha=1 / 6, beta=0.5)
    y = net.conv(net.add("Mul", y, gate), 8, 8, group=8)
    return str(net.add("Gemm", net.add("Flatten", net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])),
                       net.weight(240, 5, scale=0.05)))  # fmt: skip


@pytest.fixture(scope="module")
def mobile() -> Lowered:
    """HardSwish, HardSigmoid and a flattened image, as autoq lowers them."""
    net = Net()
    y = _activations(net)
    x = np.random.default_rng(1).standard_normal((64, 3, 12, 10)).astype(np.float32)
    schemes = [*ALIKE, "w8", "w8a16@minmax", "w4a16@percentile99.9"]
    return lowered(net.model(y), schemes, {"x": x}, integer_products=True)


@pytest.mark.parametrize("scheme", ALIKE)
def test_a_candidate(mobile: Lowered, scheme: str) -> None:
    """Six layers and twelve roundings on the way, and all come out alike."""
    candidate = mobile.build(scheme)
    session, found = on_litert(candidate, mobile.feeds)
    expected = run(candidate, mobile.feeds)
    (port,) = session.outputs
    assert np.array_equal(found[port.name], expected[port.name])
    assert to_tflite(candidate) == to_tflite(candidate)


@pytest.mark.parametrize("scheme", ["w8a16@minmax", "w4a16@percentile99.9"])
def test_a_candidate_of_16_bits(mobile: Lowered, scheme: str) -> None:
    """Kernels of 16 bits round in other places than float32 does; all of it stays below one step of 8 bits."""
    candidate = mobile.build(scheme)
    session, found = on_litert(candidate, mobile.feeds)
    expected = run(candidate, mobile.feeds)
    (port,) = session.outputs
    span = float(np.ptp(expected[port.name]))
    assert float(np.abs(found[port.name] - expected[port.name]).max()) < span / 255
    details = session.interpreter.get_tensor_details()
    kinds = {np.dtype(each["dtype"]).name for each in details}
    assert {"int16", "int64"} <= kinds and not kinds & {"float32", "float16"}


def test_16_bits_keep_more_than_8(mobile: Lowered) -> None:
    """With the same weights, against activations that are not rounded at all."""
    exact = next(iter(run(mobile.build("w8"), mobile.feeds).values()))
    errors = {}
    for scheme in ("w8a8@minmax", "w8a16@minmax"):
        (found,) = on_litert(mobile.build(scheme), mobile.feeds)[1].values()
        errors[scheme] = float(np.square(found - exact).mean())
    assert errors["w8a16@minmax"] < errors["w8a8@minmax"] / 20


def test_candidates_of_two_widths(mobile: Lowered) -> None:
    """Any mix of 8 and 16 bits is written, and runs as the candidate says."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        choice = rng.choice(["w8a8@minmax", "w8a16@minmax"], len(mobile.layers))
        given = {layer.name: Scheme.parse(str(scheme)) for layer, scheme in zip(mobile.layers, choice, strict=True)}
        candidate = mobile.build(mobile.canonical(given))
        (found,) = on_litert(candidate, mobile.feeds)[1].values()
        (expected,) = run(candidate, mobile.feeds).values()
        assert float(np.abs(found - expected).max()) < 0.04 * float(np.ptp(expected)), choice


def test_a_bias_before_a_hard_sigmoid_is_as_many_steps_as_in_onnx_runtime() -> None:
    """Large beside its steps, so that a rounding of its own would go the other way in some of a thousand channels."""
    net = Net()
    y = net.add("Conv", net.input("N", 4, 4, 4), net.weight(1000, 4, 1, 1), net.constant(
        net.rng.uniform(10, 20, 1000).astype(np.float32)))  # fmt: skip
    model = net.model(net.add("HardSigmoid", y, alpha=1 / 6, beta=0.5))
    x = np.random.default_rng(0).uniform(0, 0.1, (8, 4, 4, 4)).astype(np.float32)
    candidate = lowered(model, ["w3a8@minmax"], {"x": x}, integer_products=True).build("w3a8@minmax")
    _, graph, _ = run_optimized(candidate, {"x": x})
    (conv,) = (node for node in graph.node if node.op_type == "QLinearConv")
    (expected,) = (numpy_helper.to_array(each) for each in graph.initializer if each.name == conv.input[8])
    interpreter = LiteRt().open(to_tflite(candidate)).interpreter
    (operator,) = (each for each in interpreter._get_ops_details() if each["op_name"] == "CONV_2D")
    assert np.median(np.abs(expected)) > 50_000
    assert np.array_equal(interpreter.get_tensor(operator["inputs"][2]), expected)


def test_all_is_on_integers(mobile: Lowered) -> None:
    """A flattened image turns its product's weights, not itself; HardSigmoid costs nothing; nothing is a float."""
    session = LiteRt().open(to_tflite(mobile.build("w8a8@minmax")))
    codes = [each["op_name"] for each in session.interpreter._get_ops_details()]
    wanted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MEAN", "MUL", "RESHAPE"}
    assert set(codes) - {"DELEGATE"} == wanted
    assert codes.count("MUL") == 2  # of HardSwish and of the gate; the HardSigmoid is in its layer's scales
    assert codes.count("DEPTHWISE_CONV_2D") == 2  # the layer, and the gate of the HardSwish
    kinds = {np.dtype(each["dtype"]).name for each in session.interpreter.get_tensor_details()}
    assert kinds == {"int8", "int32"}


REFUSED: dict[str, tuple[Callable[[Quantized, str], str], str]] = {
    "another operator": (lambda net, x: net.add("Tanh", x), "Tanh.* has no TFLite form"),
    "another dimension": (
        lambda net, x: net.add("Conv", net.add("Unsqueeze", x, net.ints(2)), net.stored(5, 4, 1, 3, 3)),
        "Conv.*3 spatial axes",
    ),
    "float weights": (lambda net, x: net.conv(x, 4, 5), "Conv.*w8a8"),
    "a cubic Resize": (lambda net, x: net.add("Resize", x, "", net.floats(1, 1, 2, 2), mode="cubic"), "Resize.*cubic"),
    "a slice backwards": (
        lambda net, x: net.add("Slice", x, net.ints(-1), net.ints(-9), net.ints(2), net.ints(-1)), "backwards",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused(case: str) -> None:
    build, message = REFUSED[case]
    candidate, _ = candidate_of(build, "uint8")
    with pytest.raises(TrialError, match=message) as caught:
        to_tflite(candidate)
    assert caught.value.reason == "build"


def test_floats_are_refused(mobile: Lowered) -> None:
    with pytest.raises(AutoqError, match="8-bit activations"):
        to_tflite(mobile.build("float32"))
    with pytest.raises(AutoqError, match="8-bit activations"):
        to_tflite(mobile.build("w8"))
    net = Net()
    y = _activations(net)
    floats = lowered(net.model(y), ["w8a8@minmax"], mobile.feeds)
    with pytest.raises(TrialError, match="integer_products"):
        to_tflite(floats.build("w8a8@minmax"))


def test_an_open_dimension_is_refused() -> None:
    net = Quantized("uint8")
    y = net.add("Relu", net.pair(net.input("N", 4, "H", "W"), -1, 1))
    with pytest.raises(TrialError, match="open dimensions besides the batch"):
        to_tflite(net.model(net.pair(y, 0, 1)).SerializeToString())


def test_grids_in_16_bits() -> None:
    grid = Grid(bits=8, scale=0.5, zero_point=-100)
    assert (grid.low, grid.high) == (-14.0, 113.5)
    numbers = (np.arange(-128, 128) - grid.zero_point) * grid.scale / grid.fine().scale
    assert np.array_equal(numbers, numbers.astype(np.int16))
    assert grid.fine().low <= grid.low and grid.fine().high >= grid.high


def test_resnet20(bench: Path) -> None:
    """A mixed candidate of the real network: the very same logits."""
    model = onnx.load(bench / "cifar10" / "resnet20.onnx")
    with np.load(bench / "cifar10" / "train.npz") as data:
        pixels = data["x"][:128].astype(np.float32) / 255
    x = ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32).transpose(0, 3, 1, 2).copy()
    subject = lowered(model, ["w8a8@minmax", "w4a8@minmax", "w3a8@minmax"], {"input": x}, integer_products=True)
    names = [layer.name for layer in subject.layers]
    uniform = [subject.policy(scheme) for scheme in ("w8a8@minmax", "w4a8@minmax", "w3a8@minmax")]
    mixed = {name: dict(uniform[index % 3])[name] for index, name in enumerate(names)}
    candidate = subject.lowering.build(subject.canonical(mixed))
    _, found = on_litert(candidate, {"input": x})
    assert np.array_equal(found["logits"], run(candidate, {"input": x})["logits"])
