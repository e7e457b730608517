"""Cross-layer equalization of a prepared model: the same function, with weights that suit one range a tensor better.

Channels are followed from the layers that write them, through operators with ``f(s x) = s f(x)`` for every ``s > 0``,
to the layers that read them. Tensors whose channels must be scaled alike (a residual sum and all its terms, a
convolution's output and its Relu's) form a knot. One that reaches anything else, such as a Clip at 6, a HardSwish, a
Softmax or the model's output, stays as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from autoq.core.layer import Layer
from autoq.model.graph import Graph, attribute
from autoq.model.operators import clip_bounds
from autoq.numerics.equalize import Array, Knot, equalizing_scales

EQUALIZATION_VERSION = 1
"""Part of the identity of an equalized model: raise it when what is computed changes."""

GROWTH = 4.0
"""How much larger than the largest bias of its layer any bias may become."""

_SAME = frozenset(
    ["Abs", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Neg", "Relu"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalized:
    """The rescaled model and its ``norms`` (:class:`Graph`); how many knots were rescaled; and what kept others as they
    are, with how many it kept so."""

    model: onnx.ModelProto
    norms: dict[str, tuple[np.ndarray, np.ndarray]]
    rescaled: int
    kept: Counter[str]

    def __str__(self) -> str:
        text = f"cross-layer equalization rescaled {self.rescaled} tensors between layers" + (
            "" if self.rescaled else ": the model stays as it is"
        )
        reasons = ", ".join(f"{count} for {what}" for what, count in self.kept.most_common(4))
        return f"{text}; as they were: {reasons}" if reasons else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor has a knot's channels: along ``axis`` (negative), each ``repeat`` times in a row."""

    knot: int
    axis: int
    repeat: int = 1


@dataclass(slots=True)
class _Tie:
    """A knot in the making."""

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    biases: list[tuple[str, int]] = field(default_factory=list)  # constants added on the way, and their channel axis
    obstacle: str = ""


def equalize(graph: Graph, layers: Sequence[Layer]) -> Equalized:
    """``graph`` equalized: the same function up to float rounding, the same names, other values in its constants."""
    trace = _Trace(graph, layers)
    trace.follow()
    every = [tie for index, tie in enumerate(trace.ties) if trace.top(index) == index]
    free = [tie for tie in every if tie.readers and not tie.obstacle]
    knots = [Knot(writers=tuple(tie.writers), readers=tuple(tie.readers), least=trace.least_scale(tie)) for tie in free]
    scales = equalizing_scales(trace.magnitudes(), knots)
    values = _Rescaled(graph)
    norms = dict(graph.norms)
    outputs = {layer.name: layer.output for layer in layers}
    for tie, scale in zip(free, scales, strict=True):
        for name in tie.writers:
            if (output := outputs.get(name, "")) in norms:
                mean, variance = norms[output]
                norms[output] = (mean / scale, variance / np.square(scale))
        for name in tie.writers:
            trace.parts[name].write(values, 1 / scale)
        for name in tie.readers:
            trace.parts[name].read(values, scale)
        for name, axis in tie.biases:
            values.times(name, 1 / scale, axis)
    return Equalized(
        model=values.model(),
        norms=norms,
        rescaled=len(free),
        kept=Counter(tie.obstacle for tie in every if tie.obstacle),
    )


class _Rescaled:
    """Constants in float64 on their way to other values."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values: dict[str, np.ndarray] = {}

    def times(self, name: str, scale: Array, axis: int) -> None:
        """Multiplies along ``axis``; where the constant has one value for all channels there, it gets one each."""
        value = self._value(name)
        missing = max(0, -axis - value.ndim)
        value = value.reshape((1,) * missing + value.shape)
        self._values[name] = value * scale.reshape((-1,) + (1,) * (-axis - 1))

    def weight(self, name: str, scale: Array, shape: tuple[int, ...], spread: tuple[int, ...]) -> None:
        """Multiplies the constant, seen in ``shape``, by the scale, seen in ``spread``."""
        value = self._value(name)
        self._values[name] = (value.reshape(shape) * scale.reshape(spread)).reshape(value.shape)

    def model(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._graph.model)
        others = [value for value in model.graph.value_info if value.name not in self._values]
        del model.graph.value_info[:]
        model.graph.value_info.extend(others)  # a bias of one value has more now
        for tensor in model.graph.initializer:
            if tensor.name in self._values:
                tensor.CopyFrom(numpy_helper.from_array(self._values[tensor.name].astype(np.float32), tensor.name))
        return model

    def _value(self, name: str) -> np.ndarray:
        if name in self._values:
            return self._values[name]
        value = self._graph.constant(name)
        assert value is not None
        return value.astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A layer, or the scale and bias of a LayerNormalization, as something that writes and reads channels.

    ``shape`` is the weight's, split into groups, outputs, inputs and what each input is repeated or spread over;
    ``order`` says along which axes of ``shape`` these lie.
    """

    weight: str
    bias: str | None
    bias_axis: int
    shape: tuple[int, ...]
    order: tuple[int, int, int, int] = (0, 1, 2, 3)

    def magnitude(self, graph: Graph) -> Array:
        """The largest magnitude between each output and each input, ``[groups, outputs, inputs]``."""
        weight = graph.constant(self.weight)
        assert weight is not None
        found: Array = np.abs(weight).reshape(self.shape).transpose(self.order).max(axis=3).astype(np.float64)
        return found

    def write(self, values: _Rescaled, scale: Array) -> None:
        """Scales the output channels."""
        values.weight(self.weight, scale, self.shape, self._spread(self.order[0], self.order[1]))
        if self.bias:
            values.times(self.bias, scale, self.bias_axis)

    def read(self, values: _Rescaled, scale: Array) -> None:
        """Scales the input channels."""
        values.weight(self.weight, scale, self.shape, self._spread(self.order[0], self.order[2]))

    def _spread(self, *axes: int) -> tuple[int, ...]:
        return tuple(size if axis in axes else 1 for axis, size in enumerate(self.shape))


class _Trace:
    """Follows channels through a graph, node by node."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.graph = graph
        self.layer_at = {layer.node: layer for layer in layers}
        self.parts: dict[str, _Part] = {}
        self.ties: list[_Tie] = []
        self._above: list[int] = []
        self._places: dict[str, _Place] = {}

    def follow(self) -> None:
        """Ties all that must be scaled alike."""
        for node in self.graph.model.graph.node:
            self._follow(node)
        for name, place in self._places.items():
            if name in self.graph.outputs or name in self.graph.captured:
                self._stop(place, "an output of the model" if name in self.graph.outputs else "a nested graph")

    def magnitudes(self) -> dict[str, Array]:
        """What :func:`equalizing_scales` wants of every layer."""
        return {name: part.magnitude(self.graph) for name, part in self.parts.items()}

    def least_scale(self, tie: _Tie) -> Array:
        """Below this, the division by the scale would make some bias larger than :data:`GROWTH` times the largest."""
        least = np.zeros(tie.channels)
        names = [(part.bias, -1) for part in (self.parts[name] for name in tie.writers) if part.bias]
        for name, axis in [*names, *tie.biases]:
            value = self.graph.constant(name)
            assert value is not None
            if value.ndim >= -axis and value.shape[axis] == tie.channels and value.any():
                size = np.abs(np.moveaxis(value, axis, 0)).reshape(tie.channels, -1).max(axis=1).astype(np.float64)
                least = np.maximum(least, size / (GROWTH * size.max()))
        return np.minimum(least, 1.0)

    def top(self, index: int) -> int:
        """The knot that the knot ``index`` has become part of."""
        while self._above[index] != index:
            index = self._above[index]
        return index

    def _follow(self, node: onnx.NodeProto) -> None:
        standard = node.domain in ("", "ai.onnx")
        if standard and (layer := self.layer_at.get(node.name)) is not None and self._enter(layer, node):
            return
        handler = _HANDLERS.get(node.op_type) if standard else None
        if node.op_type in _SAME and standard and len(node.output) == 1:
            handler = _Trace._same
        if handler is not None and handler(self, node):
            return
        self._refuse(node)

    def _refuse(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in self._places:
                self._stop(self._places[name], node.op_type)

    def _stop(self, place: _Place, obstacle: str) -> None:
        tie = self.ties[self.top(place.knot)]
        tie.obstacle = tie.obstacle or obstacle

    def _place(self, name: str) -> _Place | None:
        return self._places.get(name)

    def _own(self, name: str | None) -> bool:
        """Whether a constant is read once, so that other values harm nobody."""
        return name is not None and name in self.graph.initializers and self.graph.sole_consumer(name) is not None

    # Layers ----------------------------------------------------------------------------------------------------------

    def _enter(self, layer: Layer, node: onnx.NodeProto) -> bool:
        """Ties a layer to what it reads, and begins a knot with what it writes."""
        if not self._own(layer.weight) or layer.op_type not in ("Conv", "Gemm", "MatMul"):
            return False
        if attribute(node, "transA", 0) or (layer.op_type != "Conv" and layer.weight_index != 1):
            return False
        place = self._place(layer.input)
        shape = layer.weight_shape
        if layer.op_type == "Conv":
            groups, inputs, axis = layer.groups, shape[1], 2 - len(shape) - 1
            part = _Part(
                weight=layer.weight,
                bias=layer.bias,
                bias_axis=-1,
                shape=(groups, shape[0] // groups, inputs, math.prod(shape[2:])),
            )
            fits = place is not None and (place.axis, place.repeat) == (axis, 1)
            fits = fits and place is not None and self.ties[self.top(place.knot)].channels == groups * inputs
        else:
            if len(shape) != 2:
                return False
            outputs = shape[layer.channel_axis]
            inputs = shape[1 - layer.channel_axis]
            axis, repeat = -1, place.repeat if place is not None else 1
            fits = place is not None and place.axis == -1
            fits = fits and place is not None and self.ties[self.top(place.knot)].channels * repeat == inputs
            repeat = repeat if fits else 1
            turned = layer.channel_axis == 1
            part = _Part(
                weight=layer.weight,
                bias=layer.bias,
                bias_axis=-1,
                shape=(1, inputs // repeat, repeat, outputs) if turned else (1, outputs, inputs // repeat, repeat),
                order=(0, 3, 1, 2) if turned else (0, 1, 2, 3),
            )
        self.parts[layer.name] = part
        if place is not None and fits:
            self.ties[self.top(place.knot)].readers.append(layer.name)
        elif place is not None:
            self._stop(place, node.op_type)
        self._begin(layer.name, part, layer.output, layer.channels, axis)
        if layer.bias is not None and not self._own(layer.bias):
            self._stop(self._places[layer.output], "a bias that is computed or shared")
        return True

    def _begin(self, name: str, part: _Part, output: str, channels: int, axis: int) -> None:
        self._above.append(len(self.ties))
        self.ties.append(_Tie(channels=channels, writers=[name]))
        self._places[output] = _Place(knot=len(self.ties) - 1, axis=axis)

    def _layer_norm(self, node: onnx.NodeProto) -> bool:
        """Its scale and bias write the channels anew; what it reads may not change."""
        self._refuse(node)
        scale = self.graph.constant(node.input[1])
        axis = attribute(node, "axis", -1)
        rank = len(self.graph.shapes.get(node.input[0], ())) or None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        last = axis == -1 or (rank is not None and axis == rank - 1)
        if (
            scale is None
            or scale.ndim != 1
            or not last
            or not self._own(node.input[1])
            or (bias and not self._own(bias))
        ):
            return True
        part = _Part(weight=node.input[1], bias=bias, bias_axis=-1, shape=(1, len(scale), 1, 1))
        self.parts[node.name] = part
        self._begin(node.name, part, node.output[0], len(scale), -1)
        return True

    # Operators with f(s x) = s f(x) -----------------------------------------------------------------------------------

    def _same(self, node: onnx.NodeProto) -> bool:
        place = self._place(node.input[0])
        if place is not None:
            self._places[node.output[0]] = place
        return True

    def _clip(self, node: onnx.NodeProto) -> bool:
        bounds = clip_bounds(self.graph, node)
        if bounds is None or bounds[0] not in (0.0, -math.inf) or bounds[1] != math.inf:
            return False
        return self._same(node)

    def _sum(self, node: onnx.NodeProto) -> bool:
        """Add, Sub, Sum: what is added is scaled alike, be it another tensor or a constant."""
        places = [self._places[name] for name in node.input if name in self._places]
        if not places:
            return True
        axes = {(place.axis, place.repeat, self.ties[self.top(place.knot)].channels) for place in places}
        others = [name for name in node.input if name not in self._places]
        if len(axes) != 1 or places[0].repeat != 1:
            return False
        axis, _, channels = axes.pop()
        biases = []
        for name in others:
            value = self.graph.constant(name)
            if value is None:
                return False
            wide = value.ndim >= -axis and value.shape[axis] != 1
            if wide and value.shape[axis] != channels:
                return False
            if value.any():
                if not self._own(name):
                    return False
                biases.append((name, axis))
        first = self.top(places[0].knot)
        for place in places[1:]:
            self._join(first, self.top(place.knot))
        self.ties[first].biases += biases
        self._places[node.output[0]] = _Place(knot=first, axis=axis)
        return True

    def _join(self, first: int, second: int) -> None:
        if first == second:
            return
        one, two = self.ties[first], self.ties[second]
        self._above[second] = first
        one.writers += two.writers
        one.readers += two.readers
        one.biases += two.biases
        one.obstacle = one.obstacle or two.obstacle

    def _product(self, node: onnx.NodeProto) -> bool:
        """Mul, Div by something that is not scaled: a constant, or a gate."""
        first, second = (self._place(name) for name in node.input)
        if first is None and second is not None and node.op_type == "Mul":
            first, second = second, first
        if first is None or second is not None or self.ties[self.top(first.knot)].channels == 1:
            return first is None and second is None
        self._places[node.output[0]] = first
        return True

    def _transpose(self, node: onnx.NodeProto) -> bool:
        place, order = self._place(node.input[0]), attribute(node, "perm")
        if place is None or order is None:
            return place is None
        axis = list(order).index(place.axis + len(order)) - len(order)
        self._places[node.output[0]] = _Place(knot=place.knot, axis=axis, repeat=place.repeat)
        return True

    def _pad(self, node: onnx.NodeProto) -> bool:
        place, pads = self._place(node.input[0]), self.graph.constant(node.input[1])
        if place is None:
            return True
        if pads is None or (len(node.input) > 3 and node.input[3]):
            return False
        if attribute(node, "mode", "constant") == "constant" and len(node.input) > 2 and node.input[2]:
            value = self.graph.constant(node.input[2])
            if value is None or value.any():
                return False
        if pads.reshape(2, -1)[:, place.axis].any():
            return False
        return self._same(node)

    def _slice(self, node: onnx.NodeProto) -> bool:
        """Over other axes than the channels'."""
        place, shape = self._place(node.input[0]), self.graph.shapes.get(node.input[0])
        axes = self.graph.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        if place is None:
            return True
        if shape is None or axes is None:
            return False
        cut = {int(axis) % len(shape) - len(shape) for axis in axes.reshape(-1)}
        return place.axis not in cut and self._same(node)

    def _flatten(self, node: onnx.NodeProto) -> bool:
        """Flatten, Reshape, Squeeze to ``[rows, all the rest]``: a channel becomes as many in a row as it had values.

        Also a Reshape that leaves the last axis alone, where the channels lie along that.
        """
        place = self._place(node.input[0])
        if place is None:
            return True
        before, after = self.graph.shapes.get(node.input[0]), self.graph.shapes.get(node.output[0])
        if before is None or after is None:
            return False
        if place.axis == -1 and len(after) and None is not before[-1] == after[-1]:
            return self._same(node)
        if len(after) != 2 or place.axis != 1 - len(before):
            return False
        rest = before[1:]
        if None in rest or after[1] != math.prod(size for size in rest if size is not None):
            return False
        repeat = place.repeat * math.prod(size for size in before[2:] if size is not None)
        self._places[node.output[0]] = _Place(knot=place.knot, axis=-1, repeat=repeat)
        return True

    def _mean(self, node: onnx.NodeProto) -> bool:
        """ReduceMean, ReduceSum over other axes than the channels'."""
        place = self._place(node.input[0])
        if place is None:
            return True
        shape, axes = self.graph.shapes.get(node.input[0]), None
        if len(node.input) > 1 and node.input[1]:
            axes = self.graph.constant(node.input[1])
        if shape is None or axes is None:
            return False
        gone = {int(axis) % len(shape) - len(shape) for axis in axes.reshape(-1)}
        if place.axis in gone:
            return False
        removed = 0 if attribute(node, "keepdims", 1) else sum(axis > place.axis for axis in gone)
        self._places[node.output[0]] = _Place(knot=place.knot, axis=place.axis + removed, repeat=place.repeat)
        return True

    def _resize(self, node: onnx.NodeProto) -> bool:
        place = self._place(node.input[0])
        if place is None:
            return True
        before, after = self.graph.shapes.get(node.input[0]), self.graph.shapes.get(node.output[0])
        if attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            return False
        if before is None or after is None or None in (before[place.axis], after[place.axis]):
            return False
        return before[place.axis] == after[place.axis] and self._same(node)


_HANDLERS: dict[str, Callable[[_Trace, onnx.NodeProto], bool]] = {
    "Add": _Trace._sum,
    "Clip": _Trace._clip,
    "Div": _Trace._product,
    "Flatten": _Trace._flatten,
    "LayerNormalization": _Trace._layer_norm,
    "Mul": _Trace._product,
    "Pad": _Trace._pad,
    "Slice": _Trace._slice,
    "ReduceMean": _Trace._mean,
    "ReduceSum": _Trace._mean,
    "Reshape": _Trace._flatten,
    "Resize": _Trace._resize,
    "Squeeze": _Trace._flatten,
    "Sub": _Trace._sum,
    "Sum": _Trace._sum,
    "Transpose": _Trace._transpose,
}
"""How channels pass an operator; one that is not here stops them. ``False``: it does, as it is here."""
