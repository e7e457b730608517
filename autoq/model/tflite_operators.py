"""Operators that compute, on TFLite: sums, products, pools, activations.

Some of TFLite's kernels fix the grid of their output: Sigmoid's and Softmax's is 1/256 (in 16 bits 1/32768), a pool's
and a Concat's is that of the input. What follows is then one QUANTIZE.
"""

from __future__ import annotations

import math

import onnx

from autoq.model.graph import attribute
from autoq.model.operators import clip_bounds
from autoq.model.tflite_file import Grid
from autoq.model.tflite_layers import image_shape, padded_window, pads, steps
from autoq.model.tflite_read import Ending, refusal
from autoq.model.tflite_values import NHWC, Emitter, Value

FIXED = {8: Grid(bits=8, scale=1 / 256, zero_point=-128), 16: Grid(bits=16, scale=1 / 32768, zero_point=0)}
"""The grids that LOGISTIC and SOFTMAX write (TFLite's 8-bit quantization specification)."""


def add(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Add, or Sum of two; Sum of one is a copy."""
    if len(node.input) == 1:
        emitter.values[node.output[0]] = emitter.value(node)
        return
    _elementwise(emitter, node, "ADD", "Add", potScaleInt16=False)


def mul(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Mul of two."""
    _elementwise(emitter, node, "MUL", "Mul")


def concat(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Concat: all inputs first brought to the grid of the output."""
    found = _quantized(emitter, node)
    assert found.written is not None
    grid, inputs = found.written, [emitter.value(node, index) for index in range(len(node.input))]
    order = inputs[0].order
    made = emitter.new(node.output[0], emitter.shape(node, node.output[0]), order, grid)
    parts = [emitter.at(emitter.ordered(value, order), grid) for value in inputs]
    place = made.place(attribute(node, "axis"))
    fused = emitter.activation(emitter.fused(node, found))
    emitter.keep(
        found, emitter.emit("CONCATENATION", parts, made, "Concatenation", axis=place, fusedActivationFunction=fused)
    )


def global_average(emitter: Emitter, node: onnx.NodeProto) -> None:
    """GlobalAveragePool: MEAN, which has grids of its own on both sides."""
    if len(emitter.value(node).shape) not in (3, 4):
        raise refusal(node, "averages over more than two axes; TFLite's pools have two")
    emitter.compute(node, [emitter.value(node)], lambda values, grid, fused: _mean(emitter, node, values, grid, fused))


def average_pool(emitter: Emitter, node: onnx.NodeProto) -> None:
    """AveragePool; where the output has another grid, in finer steps of 16 bits in between."""
    value, kernel, around = emitter.value(node), attribute(node, "kernel_shape"), pads(node)
    if len(value.shape) not in (3, 4) or any(step != 1 for step in attribute(node, "dilations", [1, 1])):
        raise refusal(node, "averages over more than two axes, or with dilations; TFLite has no kernel for it")
    if tuple(kernel) == value.shape[2:] and not any(around):
        global_average(emitter, node)
        return
    found = _quantized(emitter, node)
    assert found.written is not None
    source = emitter.image(value if value.grid == found.written else emitter.at(value, value.grid.fine()))
    size = image_shape(emitter.shape(node, node.output[0]))[2:]
    if attribute(node, "count_include_pad", 0) and any(around):
        source = emitter.padded(source, [(0, 0), (0, 0), (around[0], around[2]), (around[1], around[3])])
        same = False
    else:
        window, same = padded_window(emitter, node, source, window_of(node), size)
        if window is not source and not same:
            raise refusal(node, "leaves its padding out of the mean, which TFLite does for SAME padding only")
    made = _pool(emitter, node, "AVERAGE_POOL_2D", source, same=same)
    emitter.unclipped(node, found)
    emitter.keep(found, emitter.like(made, len(value.shape)))


def max_pool(emitter: Emitter, node: onnx.NodeProto) -> None:
    """MaxPool: on the integers, which keep their grid."""
    value = emitter.value(node)
    dilated = any(step != 1 for step in attribute(node, "dilations", [1, 1]))
    if len(value.shape) not in (3, 4) or len(node.output) > 1 or dilated:
        raise refusal(node, "has dilations, indices, or more than two axes; TFLite has no kernel for it")
    size = image_shape(emitter.shape(node, node.output[0]))[2:]
    lowest = -(1 << (value.grid.bits - 1))
    source, same = padded_window(emitter, node, emitter.image(value), window_of(node), size, lowest)
    made = _pool(emitter, node, "MAX_POOL_2D", source, same=same)
    emitter.values[node.output[0]] = emitter.like(made, len(value.shape))


def clip(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Relu and Clip that no layer has absorbed."""
    bounds = (0.0, math.inf) if node.op_type == "Relu" else clip_bounds(emitter.graph, node)
    if bounds is None:
        raise refusal(node, "has bounds that are computed")
    _cut(emitter, node, _quantized(emitter, node), *bounds)


def leaky_relu(emitter: Emitter, node: onnx.NodeProto) -> None:
    """LeakyRelu, and what lowering writes as one: Relu, a change of grid, HardSigmoid, the gate of a HardSwish."""
    slope, found = attribute(node, "alpha", 0.01), emitter.ending(node)
    value = emitter.value(node)
    if found.written is None or found.read is None:
        raise refusal(node, "writes a float output; TFLite needs a calibrated range for it")
    if slope == 1 and found.read != found.written:
        shift = (found.written.zero_point - found.read.zero_point) * found.written.scale
        gain = found.read.scale / found.written.scale
        made = emitter.widened([value], found.read, lambda v, grid: emitter.line(v[0], gain, shift * gain, grid))
        emitter.values.update((name, emitter.at(made, found.read)) for name in found.names)
    elif slope == 0:
        _cut(emitter, node, found, 0.0, math.inf)
    elif slope == 1:
        _cut(emitter, node, found, -math.inf, math.inf)
    else:
        emitter.unclipped(node, found)
        made = emitter.widened(
            [value],
            found.written,
            lambda v, grid: emitter.emit("LEAKY_RELU", v, _beside(emitter, node, v[0], grid), "LeakyRelu", alpha=slope),
        )
        emitter.keep(found, made)


def hard_swish(emitter: Emitter, node: onnx.NodeProto) -> None:
    """HardSwish: its gate and the product, in 16 bits, rounded once. (HARD_SWISH has fixed-point steps of its own.)"""
    found, value = _quantized(emitter, node), emitter.value(node)
    assert found.written is not None
    emitter.unclipped(node, found)
    value = emitter.at(value, value.grid.fine())
    gate = emitter.line(value, 1 / 6, 0.5, FIXED[16], "RELU")
    made = _beside(emitter, node, value, found.written.fine())
    emitter.keep(found, emitter.emit("MUL", [value, gate], made, "Mul"))


def sigmoid(emitter: Emitter, node: onnx.NodeProto) -> None:
    """LOGISTIC."""
    _fixed(emitter, node, "LOGISTIC", emitter.value(node))


def softmax(emitter: Emitter, node: onnx.NodeProto) -> None:
    """SOFTMAX, over the axis that stands last."""
    value = emitter.value(node)
    axis = attribute(node, "axis", -1) % len(value.shape)
    last = (*(each for each in value.order if each != axis), axis)
    _fixed(emitter, node, "SOFTMAX", emitter.ordered(value, last))


def _fixed(emitter: Emitter, node: onnx.NodeProto, code: str, value: Value) -> None:
    """An operator that writes :data:`FIXED`: in 8 bits, unless finer steps are wanted."""
    found = emitter.ending(node)
    wanted = found.written or FIXED[value.grid.bits]
    if found.written is not None:
        emitter.unclipped(node, found)
    narrow = wanted.bits == value.grid.bits == 8 and wanted.scale >= FIXED[8].scale
    if not narrow:
        value = emitter.at(value, value.grid.fine())
    made = emitter.new(node.output[0], value.shape, value.order, FIXED[8 if narrow else 16])
    options = ("Softmax", {"beta": 1.0}) if code == "SOFTMAX" else ("", {})
    emitter.keep(found, emitter.emit(code, [value], made, options[0], **options[1]))


def _elementwise(emitter: Emitter, node: onnx.NodeProto, code: str, options: str, **fields: object) -> None:
    inputs = [emitter.value(node, index) for index in range(len(node.input))]
    if len(inputs) != 2:
        raise refusal(node, "adds more than two tensors; write it as several Adds")
    shape = emitter.shape(node, node.output[0])
    inputs = [emitter.ranked(value, len(shape)) for value in inputs]
    order = max(inputs, key=lambda value: math.prod(value.shape)).order

    def write(values: list[Value], grid: Grid, fused: str) -> Value:
        ordered = [emitter.ordered(value, order) for value in values]
        made = emitter.new(node.output[0], shape, order, grid)
        return emitter.emit(
            code, ordered, made, options, fusedActivationFunction=emitter.activation(fused), **fields
        )  # fmt: skip

    emitter.compute(node, inputs, write)


def _mean(emitter: Emitter, node: onnx.NodeProto, values: list[Value], grid: Grid, fused: str) -> Value:
    if fused != "NONE":
        raise refusal(node, "is clipped behind the mean; TFLite's has no activation")
    source = emitter.image(values[0])
    made = emitter.new(node.output[0], (*source.shape[:2], 1, 1), NHWC, grid)
    made = emitter.emit("MEAN", [source, emitter.file.ints([1, 2])], made, "Reducer", keepDims=True)
    return emitter.like(made, len(values[0].shape))


def window_of(node: onnx.NodeProto) -> list[int]:
    """Height and width of a pool's window."""
    return [1, *attribute(node, "kernel_shape")][-2:]


def _pool(emitter: Emitter, node: onnx.NodeProto, code: str, source: Value, *, same: bool) -> Value:
    kernel, strides = window_of(node), steps(node, "strides")
    padding = emitter.file.schema.Padding
    shape = image_shape(emitter.shape(node, node.output[0]))
    made = emitter.new(node.output[0], shape, NHWC, source.grid)
    return emitter.emit(
        code, [source], made, "Pool2D", padding=padding.SAME if same else padding.VALID,
        filterHeight=kernel[0], filterWidth=kernel[1], strideH=strides[0], strideW=strides[1],
    )  # fmt: skip


def _cut(emitter: Emitter, node: onnx.NodeProto, found: Ending, low: float, high: float) -> None:
    """A change of grid that cuts off at bounds: QUANTIZE where the grid itself does."""
    assert found.written is not None
    bounded = Ending(
        written=found.written, read=found.written, names=found.names, absorbed=(),
        low=max(low, found.low), high=min(high, found.high),
    )  # fmt: skip
    value = emitter.value(node)
    code = emitter.fused(node, bounded)
    if code == "NONE":
        emitter.keep(found, value)
        return
    made = emitter.widened(
        [value], found.written, lambda v, grid: emitter.emit(code, v, _beside(emitter, node, v[0], grid))
    )
    emitter.keep(found, made)


def _beside(emitter: Emitter, node: onnx.NodeProto, value: Value, grid: Grid) -> Value:
    return emitter.new(node.output[0], value.shape, value.order, grid)


def _quantized(emitter: Emitter, node: onnx.NodeProto) -> Ending:
    found = emitter.ending(node)
    if found.written is None:
        raise refusal(node, "writes a float output; TFLite needs a calibrated range for it")
    if found.read != found.written:
        raise refusal(node, "has a HardSigmoid behind it that only Conv and Gemm can take in")
    return found
