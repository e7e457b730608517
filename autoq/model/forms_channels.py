"""Forms that give integer convolutions the numbers of channels that their kernels are made for."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from autoq.model.draft import Draft
from autoq.model.graph import attribute

INPUT_STEP = 4
"""The 8-bit dot products of x86 and Arm take four inputs at once (VNNI, SDOT)."""

LEAST_OUTPUTS = 16
"""Output channels below which ONNX Runtime has no such kernel for a convolution."""


def widen_narrow_inputs(draft: Draft) -> int:
    """Pads the input channels of integer convolutions to a multiple of 4 with zeros, and their weights likewise.

    ONNX Runtime's fast integer convolution reads four channels at a time. Where their number is no multiple, as in the
    first layer of nearly every network, it copies every patch of the image and multiplies matrices instead. The weights
    are padded when the session loads, so that the file does not grow.
    """
    count = 0
    for conv in list(draft.nodes):
        if conv.op_type != "Conv" or attribute(conv, "group", 1) != 1:
            continue
        data, weight = (draft.made_by(name, "DequantizeLinear") for name in conv.input[:2])
        shape = _stored_shape(draft, weight.input[0]) if weight is not None else None
        if (
            data is None
            or weight is None
            or shape is None
            or not _is_zero(draft, weight)
            or not _is_unsigned(draft, data)
        ):
            continue
        if shape[0] < LEAST_OUTPUTS or shape[0] % 4 or shape[1] % INPUT_STEP == 0:
            continue
        missing = -shape[1] % INPUT_STEP
        for index, source, zero in ((0, data, data.input[2]), (1, weight, "")):
            _widen(draft, conv, index, source, zero, len(shape), missing)
        count += 1
    return count


def _widen(
    draft: Draft, conv: onnx.NodeProto, index: int, source: onnx.NodeProto, zero: str, rank: int, missing: int
) -> None:
    """Makes an input of ``conv`` read what ``source`` dequantizes, and ``missing`` channels more that hold ``zero``."""
    integers, target = f"{source.input[0]}::Wide", f"{source.output[0]}::Wide"
    if draft.producer(target) is None:  # a tensor may have several such readers
        pads = np.zeros((2, rank), np.int64)
        pads[1, 1] = missing
        name = draft.add_constant(f"{rank}x{missing}::Pads", pads.reshape(-1))
        inputs = [source.input[0], name, *([zero] if zero else [])]
        pad = helper.make_node("Pad", inputs, [integers], f"{integers}::Pad")
        dequantize = onnx.NodeProto()
        dequantize.CopyFrom(source)
        dequantize.name, dequantize.input[0], dequantize.output[0] = f"{target}::DequantizeLinear", integers, target
        draft.insert(conv, [pad, dequantize])
    draft.reconnect(conv, index, target)


def _stored_shape(draft: Draft, tensor: str) -> list[int] | None:
    """The shape of a stored weight, also where it is widened from fewer bits or looked up in a codebook."""
    while tensor not in draft.constants:
        node = draft.made_by(tensor, "Cast", "Gather")
        if node is None:
            return None
        tensor = node.input[1 if node.op_type == "Gather" else 0]
    return list(draft.constants[tensor].dims)


def _is_zero(draft: Draft, dequantize: onnx.NodeProto) -> bool:
    """Whether the zero point is 0."""
    zero_point = draft.constant(dequantize.input[2]) if len(dequantize.input) > 2 else np.zeros(1)
    return zero_point is not None and not zero_point.any()


def _is_unsigned(draft: Draft, dequantize: onnx.NodeProto) -> bool:
    """Signed pairs are left alone: the runtime makes them unsigned, but only where Q and DQ touch."""
    zero_point = draft.constant(dequantize.input[2]) if len(dequantize.input) > 2 else None
    return zero_point is not None and zero_point.dtype == np.uint8
