"""Operators that move values, on TFLite: they keep their input's grid, and a Transpose moves nothing yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx

from autoq.model.graph import Graph, attribute
from autoq.model.tflite_read import refusal
from autoq.model.tflite_values import NHWC, Emitter, Value


def pad(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Pad with zeros, another constant, or a mirror."""
    value, mode = emitter.value(node), attribute(node, "mode", "constant")
    given = _ints(emitter, node, 1)
    axes = _ints(emitter, node, 3) if len(node.input) > 3 and node.input[3] else list(range(len(value.shape)))
    if min(given, default=0) < 0 or mode not in ("constant", "reflect"):
        raise refusal(node, f"pads in the mode {mode!r} or takes away; TFLite has constants and 'reflect'")
    amounts = [(0, 0)] * len(value.shape)
    for index, axis in enumerate(axes):
        amounts[axis] = (given[index], given[index + len(axes)])
    if mode == "reflect":
        shape = [size + sum(amount) for size, amount in zip(value.shape, amounts, strict=True)]
        made = emitter.new(node.output[0], shape, value.order, value.grid)
        by_place = emitter.file.ints([amounts[axis] for axis in value.order])
        kind = emitter.file.schema.MirrorPadMode.REFLECT
        emitter.values[node.output[0]] = emitter.emit("MIRROR_PAD", [value, by_place], made, "MirrorPad", mode=kind)
        return
    emitter.values[node.output[0]] = emitter.padded(value, amounts, _filler(emitter, node, value))


def slice_(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Slice by constant bounds, forwards."""
    value = emitter.value(node)
    starts, ends = _ints(emitter, node, 1), _ints(emitter, node, 2)
    axes = _ints(emitter, node, 3) if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = _ints(emitter, node, 4) if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    if min(steps, default=1) < 1:
        raise refusal(node, "runs backwards; no TFLite kernel for accelerators does")
    ranges = [slice(0, size, 1) for size in value.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        ranges[axis] = slice(*slice(start, end, step).indices(value.shape[axis]))
    emitter.values[node.output[0]] = _cut_out(emitter, node.output[0], value, ranges)


def split(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Split: a STRIDED_SLICE for each part."""
    value, axis = emitter.value(node), attribute(node, "axis", 0) % len(emitter.value(node).shape)
    start = 0
    for name in node.output:
        size = emitter.shape(node, name)[axis]
        ranges = [slice(0, each, 1) for each in value.shape]
        ranges[axis] = slice(start, start + size, 1)
        emitter.values[name] = _cut_out(emitter, name, value, ranges)
        start += size


def reshape(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze.

    Axes of one element come and go without a move. An image that is flattened for products alone keeps its bytes'
    order: the product's weights change theirs.
    """
    value, shape = emitter.value(node), emitter.shape(node, node.output[0])
    emitter.values[node.output[0]] = _reshaped(emitter, node, value, shape)


def transpose(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Transpose: the same bytes, whose axes have other numbers."""
    value = emitter.value(node)
    perm = attribute(node, "perm", list(reversed(range(len(value.shape)))))
    shape = tuple(value.shape[axis] for axis in perm)
    order = tuple(list(perm).index(axis) for axis in value.order)
    emitter.values[node.output[0]] = replace(value, shape=shape, order=order)


def resize(emitter: Emitter, node: onnx.NodeProto) -> None:
    """Resize of images, to the nearest pixel or linearly, where one of TFLite's rules takes the same pixels."""
    value, shape = emitter.value(node), emitter.shape(node, node.output[0])
    mode = attribute(node, "mode", "nearest")
    if mode == "cubic" or attribute(node, "antialias", 0) or len(shape) != 4 or shape[:2] != value.shape[:2]:
        raise refusal(node, "is cubic, antialiased, or resizes other than two axes; TFLite has no kernel for it")
    wanted = [_wanted(emitter, node, axis, value.shape[axis], shape[axis]) for axis in (2, 3)]
    for align, half in ((False, True), (False, False), (True, False)):
        rule = [_tflite(value.shape[axis], shape[axis], mode, align=align, half=half) for axis in (2, 3)]
        if all(np.allclose(a, b, atol=1e-4) for a, b in zip(wanted, rule, strict=True)):
            break
    else:
        raise refusal(node, "takes other pixels than TFLite's rules; export with asymmetric or half_pixel coordinates")
    source = emitter.ordered(value, NHWC)
    made = emitter.new(node.output[0], shape, NHWC, value.grid)
    code, options = (
        ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor")
        if mode == "nearest"
        else ("RESIZE_BILINEAR", "ResizeBilinear")
    )
    size = emitter.file.ints(shape[2:])
    made = emitter.emit(code, [source, size], made, options, alignCorners=align, halfPixelCenters=half)
    emitter.values[node.output[0]] = made


def _reshaped(emitter: Emitter, node: onnx.NodeProto, value: Value, shape: tuple[int, ...]) -> Value:
    if shape == value.shape:
        return value
    plain = tuple(range(len(shape)))
    before = [axis for axis, size in enumerate(value.shape) if size > 1]
    after = [axis for axis, size in enumerate(shape) if size > 1]
    if [value.shape[axis] for axis in before] == [shape[axis] for axis in after]:
        moved = dict(zip(before, after, strict=True))
        order = (*(axis for axis in plain if axis not in after), *(moved[a] for a in value.order if a in moved))
        return emitter.reshaped(value, shape, order)
    flattened = len(shape) == 2 and value.shape[0] == shape[0] == 1 and value.order[0] == 0
    if flattened and value.order != tuple(range(len(value.order))) and _read_by_products(emitter.graph, node.output[0]):
        numbers = np.arange(shape[1]).reshape(value.shape[1:])
        columns = numbers.transpose([axis - 1 for axis in value.order[1:]]).reshape(-1)
        return replace(emitter.reshaped(value, shape, plain), columns=columns)
    return emitter.reshaped(emitter.ordered(value, range(len(value.shape))), shape, plain)


def _read_by_products(graph: Graph, name: str) -> bool:
    readers = graph.consumers.get(name, [])
    if name in graph.outputs or not readers:
        return False
    return all(
        _read_by_products(graph, node.output[0])
        if node.op_type == "DequantizeLinear"
        else node.op_type in ("Gemm", "MatMul") and index == 0
        for node, index in readers
    )


def _cut_out(emitter: Emitter, name: str, value: Value, ranges: list[slice]) -> Value:
    shape = [len(range(each.start, each.stop, each.step)) for each in ranges]
    if tuple(shape) == value.shape:
        return value
    made = emitter.new(name, shape, value.order, value.grid)
    bounds = [
        emitter.file.ints([getattr(ranges[axis], part) for axis in value.order]) for part in ("start", "stop", "step")
    ]
    return emitter.emit("STRIDED_SLICE", [value, *bounds], made, "StridedSlice")


def _ints(emitter: Emitter, node: onnx.NodeProto, index: int) -> list[int]:
    found = emitter.graph.constant(node.input[index])
    if found is None:
        raise refusal(node, f"has an input {node.input[index]!r} that is computed; TFLite needs it constant")
    return [int(each) for each in found.reshape(-1)]


def _filler(emitter: Emitter, node: onnx.NodeProto, value: Value) -> int | None:
    """The integer that a Pad fills with; ``None`` for zero."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    found = emitter.graph.constant(node.input[2])
    if found is None:
        raise refusal(node, "fills with what is computed; TFLite needs it constant")
    number = found.reshape(()).item()
    if found.dtype == np.float32:
        number = round(number / value.grid.scale) + value.grid.zero_point
        return int(min(max(number, -(1 << (value.grid.bits - 1))), (1 << (value.grid.bits - 1)) - 1))
    return int(number) - {"uint8": 128, "uint16": 1 << 15}.get(found.dtype.name, 0)


def _wanted(emitter: Emitter, node: onnx.NodeProto, axis: int, length: int, size: int) -> np.ndarray:
    """Where ONNX's Resize reads along an axis: ``[size]``, for the nearest pixel whole numbers."""
    scales = emitter.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    scale = float(scales[axis]) if scales is not None and scales.size == 4 else size / length
    i = np.arange(size, dtype=np.float64)
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        x = i / scale
    elif mode == "align_corners":
        x = i * (length - 1) / max(size - 1, 1)
    elif mode == "half_pixel" or (mode == "pytorch_half_pixel" and size > 1):
        x = (i + 0.5) / scale - 0.5
    else:
        raise refusal(node, f"has {mode!r} coordinates; export with asymmetric or half_pixel ones")
    if attribute(node, "mode", "nearest") != "nearest":
        return np.clip(x, 0, length - 1)
    rounding: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return np.clip(rounding[attribute(node, "nearest_mode", "round_prefer_floor")](x), 0, length - 1)


def _tflite(length: int, size: int, mode: str, *, align: bool, half: bool) -> np.ndarray:
    """Where TFLite's kernels read along an axis."""
    i = np.arange(size, dtype=np.float64)
    scale = (length - 1) / (size - 1) if align and size > 1 else length / size
    x = (i + 0.5) * scale if half else i * scale
    if mode == "nearest":
        x = np.floor(x + 0.5) if align else np.floor(x)
    elif half:
        x = x - 0.5
    return np.clip(x, 0, length - 1)
