"""The contract of lowering, for every kind of layer under every family of schemes.

A candidate loads in stock ONNX Runtime, passes ONNX's checker, runs in the kernel that its scheme promises, and
computes what the scheme means: convolutions and matrix products here are brute force in float64, over the integers
where the runtime computes on integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.model.graph import attribute
from autoq.numerics.affine import half, quantize
from tests.models import Lowered, Net, check, distance, lowered, run_optimized

WEIGHT_ONLY = [f"w{bits}{g}{r}" for bits in (8, 4, 2) for g in ("", "-tensor") for r in ("", "-gptq")]
INTEGER = [
    f"w{bits}a8{sign}{granularity}{rounding}@{calibration}"
    for bits, sign, granularity, (rounding, calibration) in itertools.product(
        (8, 4, 2), ("", "-s8"), ("", "-tensor"), (("", "minmax"), ("-gptq", "percentile99.9"))
    )
]
IN_BYTES = [
    "w7a8@minmax",
    "w7a8-s8-tensor-gptq@percentile99.9",
    "w6a8@minmax",
    "w5a8-s8-gptq@minmax",
    "w3a8-tensor@mse",
]
BOOKS = [
    "w4-kmeans",
    "w2-kmeans",
    "w2-tensor-kmeans",
    "w4a8-kmeans@minmax",
    "w4a8-s8-tensor-kmeans@minmax",
    "w2a8-kmeans@mse",
]
SCHEMES = ["float32", "float16", *WEIGHT_ONLY, *INTEGER, *IN_BYTES, *BOOKS]

# Where the exact quotient is this close to a half, the last place of float32 decides which way an integer kernel
# rounds: ONNX says "round half to even" of a real number, and leaves open in which precision the factor of the two
# input scales and the output scale is computed.
NEAR_TIE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model with one layer, and the kernels that may run it in float and on integers (none: it cannot)."""

    model: Callable[[Net], str]
    shape: tuple[int, ...]
    floats: frozenset[str] = frozenset({"Conv", "FusedConv"})
    integers: frozenset[str] = frozenset({"QLinearConv"})
    dynamic: tuple[int | None, ...] = field(default=())


def _conv(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    act: str = "Relu",
    *,
    bias: bool = True,
    bn: bool = False,
    **at: Any,
) -> Kind:
    def build(net: Net) -> str:
        parameters = [net.weight(*weight)]
        if bias:
            parameters.append(net.constant(net.rng.standard_normal(weight[0]).astype(np.float32)))
        y = net.add("Conv", "x", *parameters, **at)
        if bn:
            c = weight[0]
            values = [
                1 + net.rng.random(c),
                net.rng.standard_normal(c),
                net.rng.standard_normal(c),
                1 + net.rng.random(c),
            ]
            y = net.add("BatchNormalization", y, *(net.constant(v.astype(np.float32)) for v in values))
        return _activate(net, y, act)

    return Kind(model=build, shape=shape)


def _conv_transpose(shape: tuple[int, ...], weight: tuple[int, ...], **at: Any) -> Kind:
    def build(net: Net) -> str:
        bias = net.rng.standard_normal(weight[1] * at.get("group", 1)).astype(np.float32)
        return str(net.add("ConvTranspose", "x", net.weight(*weight), net.constant(bias), **at))

    return Kind(model=build, shape=shape, floats=frozenset({"ConvTranspose"}), integers=frozenset())


def _gemm(
    weight: tuple[int, ...],
    act: str = "",
    bias: tuple[int, ...] | None = None,
    rows: int = 5,
    integer: bool = True,
    **at: Any,
) -> Kind:
    k = weight[1] if at.get("transB") else weight[0]

    def build(net: Net) -> str:
        parameters = [net.weight(*weight)]
        if bias is not None:
            parameters.append(net.constant(net.rng.standard_normal(bias).astype(np.float32)))
        return _activate(net, net.add("Gemm", "x", *parameters, **at), act)

    kernels = frozenset({"QGemm"}) if integer else frozenset[str]()
    shape = (k, rows) if at.get("transA") else (rows, k)
    return Kind(model=build, shape=shape, floats=frozenset({"Gemm", "FusedGemm"}), integers=kernels)


def _matmul(
    shape: tuple[int, ...], weight: tuple[int, ...], act: str = "", *, bias: bool = False, left: bool = False
) -> Kind:
    def build(net: Net) -> str:
        w = net.weight(*weight)
        y = net.add("MatMul", *((w, "x") if left else ("x", w)))
        if bias:
            y = net.add("Add", net.constant(net.rng.standard_normal(weight[-1]).astype(np.float32)), y)
        return _activate(net, y, act)

    whole = len(weight) == 2 and not left
    kernels = frozenset({"MatMulIntegerToFloat", "QGemm"}) if whole else frozenset[str]()
    return Kind(model=build, shape=shape, floats=frozenset({"MatMul", "Gemm", "FusedGemm"}), integers=kernels)


def _activate(net: Net, y: str, act: str) -> str:
    if act == "Clip":
        return str(net.add("Clip", y, net.constant(np.float32(0)), net.constant(np.float32(1.5))))
    return str(net.add(act, y)) if act else y


KINDS = {
    "conv 1-D": _conv((3, 4, 13), (6, 4, 3), pads=[1, 0]),
    "conv 2-D": _conv((2, 4, 7, 6), (6, 4, 3, 3), pads=[1, 1, 1, 1]),
    "conv 3-D": _conv((2, 3, 4, 5, 4), (5, 3, 2, 3, 2), pads=[1, 1, 1, 0, 0, 0]),
    "conv 1x1": _conv((2, 4, 5, 5), (6, 4, 1, 1)),
    "conv without bias": _conv((2, 4, 7, 6), (6, 4, 3, 3), bias=False),
    "conv without activation": _conv((2, 4, 7, 6), (6, 4, 3, 3), act=""),
    "conv with clip": _conv((2, 4, 7, 6), (6, 4, 3, 3), act="Clip"),
    "conv with another activation": _conv((2, 4, 7, 6), (6, 4, 3, 3), act="Tanh"),
    "conv strided, dilated": _conv((2, 4, 9, 8), (6, 4, 3, 3), strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 1]),
    "conv same upper": _conv((2, 4, 8, 7), (6, 4, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": _conv((2, 4, 8, 7), (6, 4, 4, 3), auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv valid": _conv((2, 4, 8, 7), (6, 4, 3, 3), auto_pad="VALID"),
    "conv grouped": _conv((2, 6, 6, 6), (8, 3, 3, 3), group=2, pads=[1, 1, 1, 1]),
    "conv depthwise": _conv((2, 6, 6, 6), (6, 1, 3, 3), group=6, pads=[1, 1, 1, 1]),
    "conv depthwise 1-D": _conv((2, 6, 9), (6, 1, 3), group=6, pads=[1, 1]),
    "conv depthwise, multiplied": _conv((2, 3, 6, 6), (6, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),
    "conv of one input channel": _conv((2, 1, 6, 6), (5, 1, 3, 3)),
    "conv of one output channel": _conv((2, 4, 6, 6), (1, 4, 3, 3)),
    "conv with batch norm": _conv((2, 4, 6, 6), (6, 4, 3, 3), bn=True),
    "conv with batch norm, no bias": _conv((2, 4, 6, 6), (6, 4, 3, 3), bn=True, bias=False),
    "conv transpose": _conv_transpose((2, 4, 4, 3), (4, 3, 2, 3), strides=[2, 1], pads=[0, 1, 1, 0]),
    "conv transpose, grouped": _conv_transpose((2, 4, 4, 4), (4, 3, 2, 2), strides=[2, 2], group=2),
    "gemm": _gemm((9, 6), bias=(6,)),
    "gemm transposed": _gemm((6, 9), bias=(6,), transB=1),
    "gemm without bias": _gemm((6, 9), transB=1),
    "gemm with relu": _gemm((6, 9), act="Relu", bias=(6,), transB=1),
    "gemm, bias of one value": _gemm((9, 6), bias=()),
    "gemm, bias of one row": _gemm((9, 6), bias=(1, 6)),
    "gemm, bias of several rows": _gemm((9, 6), bias=(5, 6), integer=False),
    "gemm scaled": _gemm((9, 6), bias=(6,), integer=False, alpha=0.5, beta=2.0),
    "gemm of a transposed input": _gemm((9, 6), bias=(6,), integer=False, transA=1),
    "matmul 2-D": _matmul((5, 9), (9, 6)),
    "matmul 2-D with bias": _matmul((5, 9), (9, 6), act="Relu", bias=True),
    "matmul 3-D": _matmul((2, 5, 9), (9, 6)),
    "matmul 3-D with bias": _matmul((2, 5, 9), (9, 6), act="Relu", bias=True),
    "matmul 3-D with bias, all sizes fixed": _matmul((2, 5, 9), (9, 6), act="Relu", bias=True),
    "matmul 2-D with bias, all sizes fixed": _matmul((5, 9), (9, 6), bias=True),
    "conv, all sizes fixed": _conv((2, 4, 7, 6), (6, 4, 3, 3)),
    "gemm, all sizes fixed": _gemm((9, 6), act="Relu", bias=(6,)),
    "matmul 4-D, one column": _matmul((2, 3, 4, 9), (9, 1)),
    "matmul, weight on the left": _matmul((2, 9, 5), (6, 9), left=True),
    "matmul, 3-D weight": _matmul((4, 5, 9), (4, 9, 6)),
}


@pytest.mark.parametrize("name", KINDS)
def test_contract(name: str) -> None:
    kind = KINDS[name]
    net = Net(seed=len(name))
    fixed = "fixed" in name or "several rows" in name
    net.input(*(kind.shape if fixed else ("rows", *kind.shape[1:])))
    model = net.model(kind.model(net))
    feeds = {"x": np.random.default_rng(7).standard_normal(kind.shape).astype(np.float32)}
    # GPTQ for layers it is not defined for is a matter of candidates, not of lowering.
    gptq = not name.startswith(("conv transpose", "matmul, "))
    subject = lowered(model, [scheme for scheme in SCHEMES if gptq or "gptq" not in scheme], feeds)
    (layer,) = subject.layers
    assert bool(layer.integer_problem) == (not kind.integers)
    for text in SCHEMES:
        scheme = Scheme.parse(text)
        if (scheme.activation and layer.integer_problem) or ("gptq" in text and not gptq):
            continue
        candidate = subject.build(text)
        parsed = check(candidate)
        outputs, graph, counts = run_optimized(candidate, feeds)
        (output,) = outputs.values()
        expected, scale = meaning(subject, layer, scheme)
        if scale is not None:
            _same_integers(output, expected, scale, f"{name}, {text}")
        else:
            assert distance(output, expected) < 2e-6, f"{name}, {text}"
        _kernels(kind, scheme, graph, f"{name}, {text}")
        assert _stored_bits(parsed, layer) == (scheme.weight.stored_bits if scheme.weight else 32)
        versions = {entry.version for entry in parsed.opset_import}
        assert (versions, parsed.ir_version) == (({25}, 13) if scheme.weight_bits == 2 else ({21}, 10))
        if scheme.activation and layer.op_type == "Conv":
            assert counts["QuantizeLinear"] == 1, f"{text}: only the input is quantized by itself"


def meaning(subject: Lowered, layer: Layer, scheme: Scheme) -> tuple[np.ndarray, float | None]:
    """What the model computes under ``scheme``, float64; and the scale of the integers, where its output is such."""
    graph = subject.graph
    weight = graph.constant(layer.weight)
    bias = graph.constant(layer.bias) if layer.bias else None
    if bias is not None and scheme.weight is not None and (scheme.activation is None or layer.op_type == "Conv"):
        bias = half(bias)
    assert weight is not None
    x = subject.feeds["x"].astype(np.float64)
    node = graph.nodes[layer.node]
    if scheme.activation is None:
        if scheme.weight_bits == 16:
            weight = weight.astype(np.float16)
        elif scheme.weight is not None:
            weight = subject.lowering.bank[layer.name, scheme.weight].dequantize()
        return _activation(graph, layer, _product(node, x, weight.astype(np.float64), bias)), None
    entry = subject.lowering.bank[layer.name, scheme.weight]
    in_scale, in_zero = subject.lowering.affines[layer.input, scheme.activation]
    low, high = (-128, 127) if scheme.activation.signed else (0, 255)
    steps = quantize(x, in_scale, in_zero, low, high).astype(np.float64) - in_zero
    weight_scale = entry.scale.astype(np.float64).reshape(-1)
    channels = layer.channels
    bias_steps = None
    if bias is not None:
        unit = (np.float32(in_scale) * entry.scale).astype(np.float32)
        bias_steps = np.rint(np.broadcast_to(bias.reshape(-1), channels).astype(np.float64) / unit)
    products = _product(node, steps, entry.values.astype(np.float64), bias_steps)
    along = [1] * products.ndim
    along[1 if layer.op_type == "Conv" else -1] = -1
    value = products * (float(in_scale) * np.broadcast_to(weight_scale, channels).reshape(along))
    if layer.op_type != "Conv":
        return _activation(graph, layer, value), None
    stored = subject.lowering.placer.stored(node)
    if stored != layer.output:
        value = _activation(graph, layer, value)
    scale, zero = subject.lowering.affines[stored, scheme.activation]
    integers = quantize_exactly(value, float(scale), zero, low, high)
    if stored == layer.output and graph.consumers.get(stored):
        return _activation(graph, layer, (np.clip(np.rint(integers), low, high) - zero) * float(scale)), None
    return integers - zero, float(scale)


def quantize_exactly(value: np.ndarray, scale: float, zero: int, low: int, high: int) -> np.ndarray:
    """Quotients, clipped but not rounded, so that ties can be seen."""
    return np.clip(value / scale + zero, low, high)


def _same_integers(output: np.ndarray, quotients: np.ndarray, scale: float, what: str) -> None:
    """Every output is the integer that the quotient rounds to; at a near tie it may be the other neighbour."""
    found = output.astype(np.float64) / scale
    assert np.abs(found - np.rint(found)).max() < 1e-3, f"{what}: outputs are no multiples of the scale"
    wrong = np.rint(found) != np.rint(quotients)
    ties = np.abs(quotients - np.floor(quotients) - 0.5) < NEAR_TIE
    assert not (wrong & ~ties).any(), f"{what}: {int((wrong & ~ties).sum())} of {wrong.size} integers differ"
    assert np.abs(np.rint(found) - quotients).max() <= 0.5 + NEAR_TIE, what


def _activation(graph: Any, layer: Layer, y: np.ndarray) -> np.ndarray:
    """What follows the layer, up to the output."""
    for reader, _ in graph.consumers.get(layer.output, []):
        if reader.op_type == "Relu":
            return np.maximum(y, 0)
        if reader.op_type == "Clip":
            return np.clip(y, 0, 1.5)
        if reader.op_type == "Tanh":
            return np.tanh(y)
        if reader.op_type == "Add":
            bias = next(graph.constant(name) for name in reader.input if name in graph.initializers)
            y = y + bias.astype(np.float64)
            return np.maximum(y, 0)
    return y


def _product(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The node's arithmetic by brute force, float64."""
    if node.op_type == "MatMul":
        return np.matmul(x, weight) if node.input[0] == "x" else np.matmul(weight, x)
    if node.op_type == "Gemm":
        x = x.T if attribute(node, "transA", 0) else x
        y = attribute(node, "alpha", 1.0) * (x @ (weight.T if attribute(node, "transB", 0) else weight))
        return y if bias is None else y + attribute(node, "beta", 1.0) * bias
    y = (_conv_transposed if node.op_type == "ConvTranspose" else _convolved)(node, x, weight)
    return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))


def _geometry(node: onnx.NodeProto, spatial: int) -> tuple[list[int], list[int], list[int], int]:
    ones = [1] * spatial
    return (
        list(attribute(node, "strides", ones)),
        list(attribute(node, "dilations", ones)),
        list(attribute(node, "pads", [0] * 2 * spatial)),
        int(attribute(node, "group", 1)),
    )


def _convolved(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    size, kernel = x.shape[2:], weight.shape[2:]
    n = len(size)
    strides, dilations, pads, groups = _geometry(node, n)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if attribute(node, "auto_pad", "NOTSET").startswith("SAME"):
        totals = [max((-(-size[i] // strides[i]) - 1) * strides[i] + extent[i] - size[i], 0) for i in range(n)]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = [*less, *more] if attribute(node, "auto_pad") == "SAME_UPPER" else [*more, *less]
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + n]) for i in range(n))])
    out = [(x.shape[2 + i] - extent[i]) // strides[i] + 1 for i in range(n)]
    y = np.zeros((len(x), len(weight), *out))
    per_out, per_in = len(weight) // groups, weight.shape[1]
    for where in np.ndindex(*out):
        window = x[
            (..., *(slice(p * s, p * s + e, d) for p, s, e, d in zip(where, strides, extent, dilations, strict=True)))
        ]
        for g in range(groups):
            patch = window[:, g * per_in : (g + 1) * per_in].reshape(len(x), -1)
            rows = weight[g * per_out : (g + 1) * per_out].reshape(per_out, -1)
            y[(slice(None), slice(g * per_out, (g + 1) * per_out), *where)] = patch @ rows.T
    return y


def _conv_transposed(node: onnx.NodeProto, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    n = x.ndim - 2
    strides, _, pads, groups = _geometry(node, n)
    full = [(x.shape[2 + i] - 1) * strides[i] + weight.shape[2 + i] for i in range(n)]
    per_in, per_out = len(weight) // groups, weight.shape[1]
    y = np.zeros((len(x), per_out * groups, *full))
    for where in np.ndindex(*x.shape[2:]):
        place = tuple(slice(p * s, p * s + k) for p, s, k in zip(where, strides, weight.shape[2:], strict=True))
        for g in range(groups):
            values = x[(slice(None), slice(g * per_in, (g + 1) * per_in), *where)]
            spread = np.tensordot(values, weight[g * per_in : (g + 1) * per_in], 1)
            y[(slice(None), slice(g * per_out, (g + 1) * per_out), *place)] += spread
    return y[(..., *(slice(pads[i], full[i] - pads[i + n]) for i in range(n)))]


def _kernels(kind: Kind, scheme: Scheme, graph: onnx.GraphProto, what: str) -> None:
    """The layer runs in an expected kernel, and nothing turns its weight into another at run time."""
    everything = KERNELS
    ran = {node.op_type for node in graph.node} & everything
    expected = kind.integers if scheme.activation else kind.floats
    assert ran and ran <= expected, f"{what} ran in {ran}, not {set(expected)}"
    stored = {tensor.name for tensor in graph.initializer}
    at_run_time = [
        node.op_type for node in graph.node if node.input and all(name in stored for name in node.input if name)
    ]
    assert not at_run_time, f"{what}: {at_run_time} on constants at every run"


KERNELS = frozenset().union(*(kind.floats | kind.integers for kind in KINDS.values()))


def _stored_bits(model: onnx.ModelProto, layer: Layer) -> int:
    """The bits of the stored weight, from the type of the initializer that has its shape."""
    bits = {"FLOAT": 32, "FLOAT16": 16, "INT8": 8, "INT4": 4, "INT2": 2, "UINT4": 4, "UINT2": 2}
    kinds = [t.data_type for t in model.graph.initializer if t.name.startswith(layer.weight) and len(t.dims) > 1]
    stored = [bits[onnx.TensorProto.DataType.Name(kind)] for kind in kinds]
    return min(stored)
