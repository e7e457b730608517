"""Convolutions and matrix products on TFLite: the candidate's integers, in TFLite's order of axes.

A bias is an integer at the product of the input's and the weight's scale, as in ONNX's QLinearConv and in TFLite's
specification, so results agree with ONNX Runtime's but for how the last factor is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from autoq.model.aligned import rescaled
from autoq.model.graph import attribute
from autoq.model.tflite_file import Grid
from autoq.model.tflite_read import Ending, real_constant, refusal, stored_integers
from autoq.model.tflite_values import NHWC, Emitter, Value

_LARGEST = float(2**31 - 1)
_EXACT = float(2**22)  # up to which float32 has quarters


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weights:
    """A candidate's integers int8, scales float32 ``[channels]`` or ``[1]`` and bias float64 ``[channels]``.

    ``stated`` are the scales that the file gives the integers.
    """

    values: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    stated: np.ndarray


_Write = Callable[[list[Value], Grid, str, _Weights], Value]
"""Inputs, the grid to write, the fused activation, and the weights with their final scales."""


def conv(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Conv of images and sequences: CONV_2D, or DEPTHWISE_CONV_2D where each channel is a group of its own."""
    value = emitter.value(node)
    if len(value.shape) not in (3, 4):
        raise refusal(node, f"has {len(value.shape) - 2} spatial axes; TFLite's integer kernels have two")
    weights = _weights(emitter, node)
    if len(value.shape) == 3:
        weights = replace(weights, values=weights.values[:, :, None, :])
    channels = weights.values.shape[0]
    group = attribute(node, "group", 1)
    depthwise = group == value.shape[1] and weights.values.shape[1] == 1
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    stored = np.ascontiguousarray(weights.values.transpose(order))
    kernel = weights.values.shape[2:]
    shape = image_shape(emitter.shape(node, node.output[0]))

    def write(inputs: list[Value], grid: Grid, fused: str, scaled: _Weights) -> Value:
        source, same = padded_window(emitter, node, emitter.image(inputs[0]), kernel, shape[2:])
        numbers = _numbers(emitter, node, source.grid, scaled, stored, 3 if depthwise else 0)
        made = emitter.new(node.output[0], shape, NHWC, grid)
        dilations, strides = (steps(node, name) for name in ("dilations", "strides"))
        padding = emitter.file.schema.Padding
        options = {
            "padding": padding.SAME if same else padding.VALID,
            "strideH": strides[0],
            "strideW": strides[1],
            "dilationHFactor": dilations[0],
            "dilationWFactor": dilations[1],
            "fusedActivationFunction": emitter.activation(fused),
        }
        if depthwise:
            options["depthMultiplier"] = channels // group
            made = emitter.emit("DEPTHWISE_CONV_2D", [source, *numbers], made, "DepthwiseConv2D", **options)
        else:
            made = emitter.emit("CONV_2D", [source, *numbers], made, "Conv2D", **options)
        return emitter.like(made, len(value.shape))

    _layer(emitter, node, value, weights, write)


def gemm(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Gemm and MatMul with a constant right-hand side: FULLY_CONNECTED."""
    value = emitter.value(node)
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        raise refusal(node, "has transA, alpha or beta, which no integer kernel has; fold them into the weights")
    weights = _weights(emitter, node)
    if weights.values.ndim != 2:
        raise refusal(node, "needs a matrix of weights on the right")
    stored = weights.values
    if value.columns is not None:  # a flattened image: its bytes stay, the weights change places
        stored = stored[:, value.columns]
    stored = np.ascontiguousarray(stored)
    shape = emitter.shape(node, node.output[0])
    plain = tuple(range(len(value.shape)))

    def write(inputs: list[Value], grid: Grid, fused: str, scaled: _Weights) -> Value:
        source = emitter.ordered(inputs[0], plain)
        made = emitter.new(node.output[0], shape, plain, grid)
        return emitter.emit(
            "FULLY_CONNECTED", [source, *_numbers(emitter, node, source.grid, scaled, stored, 0)], made,
            "FullyConnected", fusedActivationFunction=emitter.activation(fused), keepNumDims=len(shape) > 2,
        )  # fmt: skip

    _layer(emitter, node, value, weights, write)


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of a sequence as an image of one row."""
    return shape if len(shape) == 4 else (*shape[:2], 1, shape[2])


def steps(node: onnx.NodeProto, name: str) -> list[int]:
    """``strides`` or ``dilations`` along height and width."""
    return [1, *attribute(node, name, [1, 1])][-2:]


def pads(node: onnx.NodeProto) -> list[int]:
    """``pads`` before height and width, then behind them."""
    given = list(attribute(node, "pads", [0, 0, 0, 0]))
    return given if len(given) == 4 else [0, given[0], 0, given[1]]


def padded_window(
    emitter: Emitter,
    node: onnx.NodeProto,
    value: Value,
    kernel: Sequence[int],
    size: Sequence[int],
    fill: int | None = None,
) -> tuple[Value, bool]:
    """``value`` padded as ``node`` says, and whether it need not be, since TFLite's SAME pads like that.

    ``size`` is that of the output; what a ceiling adds to it is padded, too. Padding is ``fill``, or zeros.
    """
    strides, dilations = (steps(node, name) for name in ("strides", "dilations"))
    given, mode = pads(node), attribute(node, "auto_pad", "NOTSET")
    amounts, same = [], True
    for axis in range(2):
        length = value.shape[2 + axis]
        needed = (size[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - length
        before = given[axis]
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            before = (max(needed, 0) + (mode == "SAME_LOWER")) // 2
        amounts.append((before, max(needed - before, 0)))
        total = max(needed, 0)
        same = same and size[axis] == -(-length // strides[axis]) and amounts[-1] == (total // 2, total - total // 2)
    if same and any(map(any, amounts)):
        return value, True
    return emitter.padded(value, [(0, 0), (0, 0), *amounts], fill), False


def _layer(emitter: Emitter, node: onnx.NodeProto, value: Value, weights: _Weights, write: _Write) -> None:
    """Writes a layer to where its result goes; a HardSigmoid behind it becomes part of its scales and bias.

    Lowering writes HardSigmoid by rounding ``v`` to a grid and reading the integers on another: ``(v + shift) * gain``.
    Weights whose scales are ``gain`` times as large, and a bias moved by ``shift``, write to the other grid at once.
    The bias is as many steps as before: divided by other steps, it would round otherwise where it is close to a half.
    """
    found = emitter.ending(node, _behind_bias(emitter, node)[1])
    if found.written is None:
        raise refusal(node, "writes a float output; TFLite needs a calibrated range for it (integer_products)")
    gain, shift = _between(found)
    scaled = replace(weights, bias=weights.bias + shift)
    if gain != 1:
        assert found.read is not None
        scales = (np.float32(grid.scale) for grid in (value.grid, found.written, found.read))
        scaled = replace(scaled, stated=rescaled(weights.scale, *scales)[0])
    plain = replace(found, written=found.read, read=found.read)
    emitter.keep(
        plain,
        emitter.widened(
            [value], found.read or found.written, lambda v, grid: write(v, grid, emitter.fused(node, plain), scaled)
        ),
    )


def _between(found: Ending) -> tuple[float, float]:
    written, read = found.written, found.read
    assert written is not None and read is not None
    return read.scale / written.scale, (written.zero_point - read.zero_point) * written.scale


def _weights(emitter: Emitter, node: onnx.NodeProto) -> _Weights:
    stored = stored_integers(emitter.graph, node.input[1])
    if stored is None:
        raise refusal(node, "has weights that are no stored integers; give the layer w8a8, w4a8 or w2a8")
    values, scale, axis = stored
    if values.dtype != np.int8:
        raise refusal(node, f"has {values.dtype.name} weights; TFLite's are int8")
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)):
        values, axis = values.T, (1 - axis if values.ndim == 2 else axis)
    if scale.size > 1 and axis != 0:
        raise refusal(node, "has a scale for each input channel; TFLite has them for output channels")
    bias = np.zeros(values.shape[0])
    name = node.input[2] if len(node.input) > 2 else _behind_bias(emitter, node)[0]
    if name:
        found = real_constant(emitter.graph, name)
        if found is None:
            raise refusal(node, f"has a bias {name!r} that is computed")
        bias = np.broadcast_to(found.reshape(-1), bias.shape).astype(np.float64)
    return _Weights(values=values, scale=scale, bias=bias, stated=scale)


def _behind_bias(emitter: Emitter, node: onnx.NodeProto) -> tuple[str, str]:
    """The constant that an Add alone adds to a MatMul, and what that writes; else nothing and the node's own output."""
    graph = emitter.graph
    reader = graph.sole_consumer(node.output[0]) if node.op_type == "MatMul" else None
    if reader is not None and reader.op_type in ("Add", "Sum") and len(reader.input) == 2:
        other = next(name for name in reader.input if name != node.output[0])
        value = graph.constant(other)
        if value is not None and value.size in (1, emitter.shape(node, node.output[0])[-1]):
            emitter.done.add(reader.name)
            return other, reader.output[0]
    return "", node.output[0]


def _numbers(
    emitter: Emitter, node: onnx.NodeProto, grid: Grid, weights: _Weights, stored: np.ndarray, axis: int
) -> list[int]:
    """The tensors of weights and bias for an input on ``grid``."""
    step = (np.float32(grid.scale) * weights.scale).astype(np.float32)
    values = np.rint(weights.bias / step.astype(np.float64))
    # A bias that the candidate has in float32 ONNX Runtime divides in float32, with other results close to a half.
    short = np.rint(weights.bias.astype(np.float32) / step)
    values = np.where(np.abs(values) < _EXACT, short, values)
    if grid.bits == 8 and np.abs(values).max(initial=0) > _LARGEST:
        raise refusal(node, "has a bias that does not fit 32 bits at the scale of its input and weights")
    bias = values.astype(np.int32 if grid.bits == 8 else np.int64)
    name = node.input[1].rpartition("::")[0]  # exporters have "::" in their own names, too
    return [
        emitter.file.weights(name, stored, weights.stated, axis),
        emitter.file.weights(f"{name}::bias", bias, (np.float32(grid.scale) * weights.stated).astype(np.float32), 0),
    ]
