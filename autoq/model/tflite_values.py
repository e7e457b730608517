"""What TFLite operators are written with: values whose axes may stand in another order than ONNX's.

A tensor of four axes stands as TFLite's kernels want it: batch, height, width, channels. An ONNX Transpose is then only
another order of the same bytes, and is written where an operator needs an order that the bytes are not in: see
:meth:`Emitter.ordered`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from autoq.model.graph import Graph
from autoq.model.tflite_file import FlatFile, Grid
from autoq.model.tflite_read import Ending, ending, grid_of, refusal

NHWC = (0, 2, 3, 1)
SEQUENCE = (0, 2, 1)
_FUSED = (("NONE", -math.inf, math.inf), ("RELU", 0, math.inf), ("RELU6", 0, 6), ("RELU_N1_TO_1", -1, 1))


def usual_order(rank: int) -> tuple[int, ...]:
    """The order that inputs and outputs of the model stand in."""
    return NHWC if rank == 4 else tuple(range(rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Tensor ``index`` of the file. ``shape`` is ONNX's; ``order[i]`` is the ONNX axis that stands ``i``-th.

    ``columns`` is for a flattened image that one product reads: the ONNX column that stands ``i``-th.
    """

    index: int
    shape: tuple[int, ...]
    order: tuple[int, ...]
    grid: Grid
    columns: np.ndarray | None = None

    @property
    def stands(self) -> tuple[int, ...]:
        """The shape in the file."""
        return tuple(self.shape[axis] for axis in self.order)

    def place(self, axis: int) -> int:
        """Where ONNX's ``axis`` stands."""
        return self.order.index(axis % len(self.order))


class Emitter:
    """Values by ONNX name, and the operators that several of the candidate's nodes are written with."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.file = FlatFile()
        self.values: dict[str, Value] = {}
        self.done: set[str] = set()
        """Names of nodes that others have been written together with."""

    # -- reading and writing -------------------------------------------------------------------------------------------

    def value(self, node: onnx.NodeProto, index: int = 0) -> Value:
        """What ``node`` reads as its input ``index``. Raises :class:`TrialError` (``build``) for floats."""
        name = node.input[index]
        if name not in self.values:
            raise refusal(
                node,
                f"reads the float {name!r}; on TFLite every layer must have 8-bit activations, on both sides of it",
            )
        return self.values[name]

    def shape(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the candidate."""
        shape = self.graph.shapes.get(name)
        if shape is None or None in shape:
            raise refusal(node, f"writes {name!r} of a shape that is not known before it runs; fix the model's shapes")
        return tuple(size for size in shape if size is not None)

    def ending(self, node: onnx.NodeProto, output: str | None = None) -> Ending:
        """See :func:`autoq.model.tflite_read.ending`; what it absorbs is done."""
        found = ending(self.graph, node, output)
        self.done.update(found.absorbed)
        return found

    def new(self, name: str, shape: Sequence[int], order: Sequence[int], grid: Grid) -> Value:
        """A value that the next operator writes."""
        stands = [shape[axis] for axis in order]
        return Value(index=self.file.tensor(name, stands, grid), shape=tuple(shape), order=tuple(order), grid=grid)

    def emit(self, code: str, inputs: Sequence[Value | int], output: Value, options: str = "", **fields: Any) -> Value:
        """Writes one operator; ``options`` is the class of the schema that ``fields`` are of."""
        made = None
        if options:
            made = getattr(self.file.schema, f"{options}OptionsT")()
            for name, entry in fields.items():
                assert hasattr(made, name), f"{options} has no {name}"
                setattr(made, name, entry)
        numbers = [each.index if isinstance(each, Value) else each for each in inputs]
        self.file.operator(code, numbers, [output.index], output.grid.bits, made)
        return output

    def keep(self, found: Ending, value: Value) -> None:
        """Gives ``value``, rounded to the grid of the ending, the names that its readers know."""
        if found.written is not None:
            value = self.at(value, found.written)
        self.values.update((name, value) for name in found.names)

    def compute(
        self,
        node: onnx.NodeProto,
        inputs: Sequence[Value],
        write: Callable[[list[Value], Grid, str], Value],
        output: str | None = None,
    ) -> None:
        """An operator whose output has a grid of its own: ``write(inputs, grid, fused activation)``.

        TFLite's kernels read and write one width. Where any is 16 bits, so are all: those of 8 become the same numbers
        in 16, and a result that is wanted in 8 is computed in finer steps and then rounded.
        """
        found = self.ending(node, output)
        if found.written is None:
            raise refusal(node, "writes a float output; TFLite needs a calibrated range for it (integer_products)")
        if found.read != found.written:
            raise refusal(node, "has a HardSigmoid behind it that only Conv and Gemm can take in")
        self.keep(found, self.widened(inputs, found.written, lambda v, grid: write(v, grid, self.fused(node, found))))

    def widened(self, inputs: Sequence[Value], grid: Grid, write: Callable[[list[Value], Grid], Value]) -> Value:
        """``write`` on inputs and to a grid of one width."""
        if grid.bits == 8 and all(value.grid.bits == 8 for value in inputs):
            return write(list(inputs), grid)
        return write([self.at(value, value.grid.fine()) for value in inputs], grid.fine())

    def unclipped(self, node: onnx.NodeProto, found: Ending) -> None:
        """Refuses an activation behind an operator whose kernel has none."""
        if (name := self.fused(node, found)) != "NONE":
            raise refusal(node, f"is clipped behind it ({name}), and its TFLite kernel has no activation")

    def fused(self, node: onnx.NodeProto, found: Ending) -> str:
        """The name of the activation that cuts off at the ending's bounds, where the grid itself does not."""
        assert found.written is not None
        low, high = found.low, found.high
        ends_low, ends_high = found.written.low >= low, found.written.high <= high
        for name, least, most in _FUSED:
            if (least == low or (ends_low and least <= low)) and (most == high or (ends_high and most >= high)):
                return name
        raise refusal(node, f"is clipped to {low:g} ... {high:g}; TFLite has 0, 0 ... 6 and -1 ... 1 only")

    # -- operators that others are written with ------------------------------------------------------------------------

    def at(self, value: Value, grid: Grid) -> Value:
        """``value`` on another grid."""
        if value.grid == grid:
            return value
        return self.emit("QUANTIZE", [value], self._like(value, grid=grid), "Quantize")

    def ordered(self, value: Value, order: Sequence[int]) -> Value:
        """``value`` with its axes standing in ``order``; axes of one element move for nothing."""
        order = tuple(order)
        if value.order == order:
            return value
        target = replace(value, order=order)
        if [a for a in value.order if value.shape[a] > 1] == [a for a in order if value.shape[a] > 1]:
            return target if target.stands == value.stands else self.reshaped(value, value.shape, order)
        made = self._like(value, order=order)
        return self.emit(
            "TRANSPOSE", [value, self.file.ints([value.order.index(axis) for axis in order])], made, "Transpose"
        )

    def reshaped(self, value: Value, shape: Sequence[int], order: Sequence[int]) -> Value:
        """The same bytes under another shape."""
        if [shape[axis] for axis in order] == list(value.stands):
            return replace(value, shape=tuple(shape), order=tuple(order))
        made = self.new(self._name(value), shape, order, value.grid)
        return self.emit("RESHAPE", [value, self.file.ints(made.stands)], made, "Reshape", newShape=list(made.stands))

    def image(self, value: Value) -> Value:
        """``value`` as kernels for images read it: batch, height, width, channels. A sequence is a row of pixels."""
        if len(value.shape) == 4:
            return self.ordered(value, NHWC)
        batch, channels, length = value.shape
        return self.reshaped(self.ordered(value, SEQUENCE), (batch, channels, 1, length), NHWC)

    def like(self, image: Value, rank: int) -> Value:
        """What a kernel for images wrote, with ``rank`` axes: undoes :meth:`image`."""
        return image if rank == 4 else self.reshaped(image, (*image.shape[:2], image.shape[3]), SEQUENCE)

    def ranked(self, value: Value, rank: int) -> Value:
        """``value`` with axes of one element put in front, as broadcasting does."""
        extra = rank - len(value.shape)
        if not extra:
            return value
        order = (*range(extra), *(axis + extra for axis in value.order))
        return self.reshaped(value, (1,) * extra + value.shape, order)

    def padded(self, value: Value, amounts: Sequence[tuple[int, int]], fill: int | None = None) -> Value:
        """``value`` with ``amounts`` added before and behind each ONNX axis: zeros, or the integer ``fill``."""
        if not any(map(any, amounts)):
            return value
        shape = [size + sum(amount) for size, amount in zip(value.shape, amounts, strict=True)]
        made = self.new(self._name(value), shape, value.order, value.grid)
        by_place = self.file.ints([amounts[axis] for axis in value.order])
        if fill is None or fill == value.grid.zero_point:
            return self.emit("PAD", [value, by_place], made, "Pad")
        return self.emit("PADV2", [value, by_place, self.file.filler(value.grid, fill)], made, "PadV2")

    def line(self, value: Value, gain: float, shift: float, grid: Grid, fused: str = "NONE") -> Value:
        """``gain * x + shift`` with one rounding: a depthwise convolution with the same weight for each channel.

        The bias is a whole number of steps of ``gain * x`` by the weight, so the weight is that of 1 to 127 for which
        the shift is nearest to one.
        """
        *rows, channels = value.stands
        image = value.stands if len(rows) == 3 else (1, 1, math.prod(rows), channels)
        flat = self.reshaped(value, image, (0, 1, 2, 3))
        scales = np.float32(gain) / np.arange(1, 128, dtype=np.float32)
        exact = shift / (value.grid.scale * scales.astype(np.float64))
        weight = int(np.abs(exact - np.rint(exact)).argmin()) + 1
        scale = scales[weight - 1]
        stored = np.full((1, 1, 1, channels), weight, np.int8)
        kernel = self.file.weights("::line", stored, np.full(channels, scale, np.float32), 3)
        amount = np.full(channels, round(exact[weight - 1]), np.int32 if grid.bits == 8 else np.int64)
        bias = self.file.weights("::shift", amount, np.full(channels, np.float32(value.grid.scale) * scale), 0)
        made = self.new(self._name(value), flat.shape, flat.order, grid)
        self.emit(
            "DEPTHWISE_CONV_2D", [flat, kernel, bias], made, "DepthwiseConv2D",
            padding=self.file.schema.Padding.VALID, strideH=1, strideW=1, depthMultiplier=1,
            fusedActivationFunction=self.activation(fused), dilationHFactor=1, dilationWFactor=1,
        )  # fmt: skip
        return self.reshaped(made, value.shape, value.order)

    def activation(self, name: str) -> int:
        """The schema's number for a fused activation."""
        return int(getattr(self.file.schema.ActivationFunctionType, name))

    def dequantized(self, node: onnx.NodeProto) -> None:
        """A DequantizeLinear: another name for the same integers, which must mean the same."""
        value = self.value(node)
        if grid_of(self.graph, node) != value.grid:
            raise refusal(node, "reads integers on another grid than the one they were written on")
        self.values[node.output[0]] = value

    def _like(self, value: Value, *, grid: Grid | None = None, order: Sequence[int] | None = None) -> Value:
        return self.new(self._name(value), value.shape, order or value.order, grid or value.grid)

    def _name(self, value: Value) -> str:
        return f"::{value.index}"
