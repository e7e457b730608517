"""Mean inputs of layers from the model itself, without running data through it.

Nagel et al. 2019, section 4.2.1: behind a batch norm a channel is normal with the mean beta and the deviation gamma,
and an activation function's mean follows from that. Where a file has no batch norms left, their folded weights still
tell: a layer's output has the mean ``W E[x] + b``, and about the variance ``W^2 Var[x]``, as if its inputs were
independent. Both are followed from the model's inputs, whose moments the calibration rows give, to every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from scipy.special import erf, expit

from autoq.core.layer import Layer
from autoq.model.graph import Graph, attribute
from autoq.model.operators import clip_bounds
from autoq.numerics.normal import Array, moments_of

ANALYTIC_VERSION = 1
"""Part of the address of what is computed from these means: raise it when they change."""

Moments = tuple[Array, Array]
"""Mean and variance of each channel."""

_SAME = frozenset(["AveragePool", "Dropout", "GlobalAveragePool", "Identity", "Resize"])
_FUNCTIONS: dict[str, Callable[[onnx.NodeProto], Callable[[Array], Array]]] = {
    "Elu": lambda node: _elu(float(attribute(node, "alpha", 1.0))),
    "Gelu": lambda node: lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "HardSigmoid": lambda node: _hard_sigmoid(node),
    "HardSwish": lambda node: lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda node: _leaky(float(attribute(node, "alpha", 0.01))),
    "Relu": lambda node: lambda x: np.maximum(x, 0.0),
    "Sigmoid": lambda node: lambda x: expit(x),
    "Tanh": lambda node: np.tanh,
}


def input_moments(values: np.ndarray) -> Moments | None:
    """Of a model input ``[rows, channels, ...]``, or ``None`` where it holds no floats in channels."""
    if values.dtype.kind != "f" or values.ndim < 2:
        return None
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    return values.mean(axis=axes, dtype=np.float64), values.var(axis=axes, dtype=np.float64)


def analytic_means(graph: Graph, layers: Sequence[Layer], inputs: Mapping[str, Moments]) -> dict[str, np.ndarray]:
    """The mean input ``[groups, K]`` of each layer for which it follows; a layer that is missing has an input of which
    nothing is known."""
    return _Trace(graph, layers, inputs).means()


def analytic_problem(graph: Graph, layer: Layer, known: Mapping[str, np.ndarray]) -> str:
    """Why no mean of the layer's inputs follows, or nothing; ``known`` is what :func:`analytic_means` gave."""
    if layer.name in known:
        return ""
    maker = graph.producer.get(layer.input)
    what = f"what {maker.op_type} makes of them" if maker is not None else "that input"
    return (
        f"the mean of its inputs does not follow from the model: nothing is known of {what}; '-bc' takes it from data"
    )


def assumed_inputs(graph: Graph) -> dict[str, Moments]:
    """Inputs of mean 0 and variance 1: enough to find out which layers' means follow."""
    shapes = {name: graph.shapes.get(name, ()) for name in graph.inputs}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.input}
    return {
        name: (np.zeros(channels), np.ones(channels))
        for name, shape in shapes.items()
        if types.get(name) == onnx.TensorProto.FLOAT and len(shape) > 1 and (channels := shape[1]) is not None
    }


class _Trace:
    """Moments of tensors ``[rows, channels, ...]``, node by node."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], inputs: Mapping[str, Moments]) -> None:
        self.graph = graph
        self.layer_at = {layer.node: layer for layer in layers}
        self.known: dict[str, Moments] = dict(inputs)
        self._means: dict[str, np.ndarray] = {}

    def means(self) -> dict[str, np.ndarray]:
        for node in self.graph.model.graph.node:
            if node.domain not in ("", "ai.onnx"):
                continue
            found = self._moments(node)
            # What a batch norm said of a tensor goes before what follows from its inputs.
            found = self.graph.norms.get(node.output[0], found)
            if found is not None:
                self.known[node.output[0]] = found
        return self._means

    def _moments(self, node: onnx.NodeProto) -> Moments | None:
        layer = self.layer_at.get(node.name)
        if layer is not None:
            return self._layer(layer, node)
        given = self.known.get(node.input[0]) if node.input else None
        if node.op_type in ("Add", "Sub", "Sum", "Mul", "Div"):
            return self._arithmetic(node)
        if given is None:
            return None
        if node.op_type == "Clip":
            bounds = clip_bounds(self.graph, node)
            return None if bounds is None else moments_of(lambda x: np.clip(x, *bounds), *given)
        if node.op_type in _FUNCTIONS:
            return moments_of(_FUNCTIONS[node.op_type](node), *given)
        if node.op_type in _SAME:
            return given
        if node.op_type in ("Pad", "Slice"):
            return self._cut(node, given)
        if node.op_type in ("ReduceMean", "Flatten", "Reshape", "Squeeze"):
            return self._rows(node, given)
        return None

    def _layer(self, layer: Layer, node: onnx.NodeProto) -> Moments | None:
        given = self.known.get(layer.input)
        weight = self.graph.constant(layer.weight)
        assert weight is not None
        if given is None or layer.op_type not in ("Conv", "Gemm", "MatMul") or attribute(node, "transA", 0):
            return None
        if layer.op_type != "Conv" and (layer.weight_index != 1 or weight.ndim != 2 or not self._is_matrix(layer)):
            return None
        rows = np.moveaxis(weight.astype(np.float64), layer.channel_axis, 0)
        groups = layer.groups
        inputs = rows.shape[1]
        if len(given[0]) != groups * inputs:
            return None
        mean, variance = (each.reshape(groups, inputs) for each in given)
        spread = math.prod(rows.shape[2:])
        self._means[layer.name] = np.repeat(mean, spread, axis=1)
        flat = rows.reshape(groups, -1, inputs, spread)
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return None
        bias = self.graph.constant(layer.bias) if layer.bias else np.zeros(1)
        if bias is None or bias.size not in (1, layer.channels):
            return None
        out = np.einsum("goik,gi->go", flat, mean).reshape(-1) + bias.reshape(-1).astype(np.float64)
        return out, np.einsum("goik,gi->go", np.square(flat), variance).reshape(-1)

    def _is_matrix(self, layer: Layer) -> bool:
        """Whether a product reads rows ``[rows, K]``: of more dimensions, the second is no channel."""
        shape = self.graph.shapes.get(layer.input)
        return shape is not None and len(shape) == 2

    def _arithmetic(self, node: onnx.NodeProto) -> Moments | None:
        """Sums and products of independent channels, or of channels and constants."""
        if any(name not in self.known and self._constant(name, node) is None for name in node.input):
            return None
        parts = [self.known.get(name) or (self._constant(name, node), 0.0) for name in node.input]
        if not any(name in self.known for name in node.input):
            return None
        sizes = {len(self.known[name][0]) for name in node.input if name in self.known}
        if len(sizes) != 1:
            return None
        mean, variance = parts[0]
        for other, spread in parts[1:]:
            assert mean is not None and other is not None
            if node.op_type in ("Add", "Sum"):
                mean, variance = mean + other, variance + spread
            elif node.op_type == "Sub":
                mean, variance = mean - other, variance + spread
            elif node.op_type == "Mul":
                mean, variance = mean * other, variance * spread + variance * other**2 + spread * mean**2
            elif np.ndim(spread) or not np.all(other):
                return None  # division by something that varies
            else:
                mean, variance = mean / other, variance / other**2
        size = sizes.pop()
        return np.broadcast_to(np.asarray(mean), (size,)), np.broadcast_to(np.asarray(variance), (size,))

    def _constant(self, name: str, node: onnx.NodeProto) -> Array | None:
        """A constant with one value, or one a channel."""
        value = self.graph.constant(name)
        if value is None or value.dtype.kind != "f":
            return None
        if value.size == 1:
            return np.asarray(float(value.reshape(())))
        rank = len(self.graph.shapes.get(node.output[0], ()))
        axis = value.ndim - rank + 1  # of the channels
        return value.reshape(-1).astype(np.float64) if axis >= 0 and value.size == value.shape[axis] else None

    def _cut(self, node: onnx.NodeProto, given: Moments) -> Moments | None:
        """Positions cut off or padded leave means about as they are; channels padded with zeros are zeros."""
        shape = self.graph.shapes.get(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Slice":
            return given if self._positions_only(node, 3, len(shape)) else None
        pads = self.graph.constant(node.input[1])
        value = self.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        named = len(node.input) > 3 and node.input[3]
        if pads is None or value is None or value.any() or named or attribute(node, "mode", "constant") != "constant":
            return None
        before, after = (int(each) for each in pads.reshape(2, -1)[:, 1])
        if min(before, after) < 0:
            return None
        return np.pad(given[0], (before, after)), np.pad(given[1], (before, after))

    def _positions_only(self, node: onnx.NodeProto, operand: int, rank: int) -> bool:
        """Whether the axes that are the node's input number ``operand`` are known, and neither rows nor channels."""
        axes = self.graph.constant(node.input[operand]) if len(node.input) > operand and node.input[operand] else None
        return axes is not None and all(int(axis) % rank >= 2 for axis in axes.reshape(-1))

    def _rows(self, node: onnx.NodeProto, given: Moments) -> Moments | None:
        """Means over positions; and ``[rows, channels, ...]`` made rows, each channel as often as it had positions."""
        before, after = (self.graph.shapes.get(name) for name in (node.input[0], node.output[0]))
        if before is None or after is None:
            return None
        if node.op_type == "ReduceMean":
            return given if self._positions_only(node, 1, len(before)) else None
        rest = [size for size in before[1:] if size is not None]
        if len(after) != 2 or len(rest) != len(before) - 1 or after[1] != math.prod(rest):
            return None
        positions = math.prod(rest[1:])
        return np.repeat(given[0], positions), np.repeat(given[1], positions)


def _leaky(slope: float) -> Callable[[Array], Array]:
    return lambda x: np.where(x > 0, x, slope * x)


def _elu(alpha: float) -> Callable[[Array], Array]:
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hard_sigmoid(node: onnx.NodeProto) -> Callable[[Array], Array]:
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return lambda x: np.clip(alpha * x + beta, 0, 1)
