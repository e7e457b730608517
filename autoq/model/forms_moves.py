"""Forms of what moves values without computing: the shortcuts of residual networks, first of all.

The parameter-free shortcut of He et al. (2016, "option A") takes every second pixel and pads the channels with zeros:
two Slices and a Pad, each of which the runtime runs in another layout than convolutions, with copies between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from autoq.model.draft import Draft, is_onnx
from autoq.model.graph import attribute
from autoq.model.operators import PICK

_LARGEST_PICK = 2**17
"""Weights (input times output channels) that a selecting convolution may have: beyond, it costs more than it saves."""

_TO_THE_END = 2**31 - 1  # exporters write this, or the largest 64-bit integer, for an open end


@dataclass(slots=True)
class _Move:
    """Which of the input's channels each output channel has (-1: zeros), and the strides of rows and columns."""

    inputs: int
    channels: np.ndarray
    strides: list[int]


def select_by_convolution(draft: Draft) -> int:
    """Writes chains of Slice and Pad over images [rows, channels, height, width] as one node.

    Only strided: a MaxPool of single pixels. With channels sliced or padded: a 1x1 convolution whose weights are 0 and
    1. Both run in the layout of the convolutions around, in float and on integers.
    """
    count = 0
    for last in list(draft.nodes):
        if last.op_type not in ("Slice", "Pad") or not is_onnx(last) or _continues(draft, last):
            continue
        chain = _chain(draft, last)
        move = _compiled(draft, chain)
        if move is None:
            continue
        source, target = chain[0].input[0], last.output[0]
        size = len(move.channels)
        same = np.array_equal(move.channels, np.arange(move.inputs))
        if same and move.strides == [1, 1]:
            continue
        if same:
            node = helper.make_node(
                "MaxPool", [source], [target], f"{target}::MaxPool", kernel_shape=[1, 1], strides=move.strides
            )
        else:
            weight = np.zeros((size, move.inputs, 1, 1), np.float32)
            if weight.size > _LARGEST_PICK:
                continue
            taken = np.flatnonzero(move.channels >= 0)
            weight[taken, move.channels[taken]] = 1.0
            name = draft.add_constant(f"{target}{PICK}", weight)
            node = helper.make_node(
                "Conv", [source, name], [target], f"{target}::Conv", kernel_shape=[1, 1], strides=move.strides
            )
        draft.replace(chain, [node])
        count += 1
    return count


def _continues(draft: Draft, node: onnx.NodeProto) -> bool:
    """Whether ``node`` is only a step of a longer chain."""
    reader = draft.sole_reader(node.output[0])
    return reader is not None and reader.op_type in ("Slice", "Pad") and reader.input[0] == node.output[0]


def _chain(draft: Draft, last: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The Slices and Pads that end in ``last`` and that nothing else reads, first to last."""
    chain = [last]
    while (before := draft.made_by(chain[0].input[0], "Slice", "Pad")) is not None and _continues(draft, before):
        chain.insert(0, before)
    return chain


def _compiled(draft: Draft, chain: list[onnx.NodeProto]) -> _Move | None:
    """What the chain does, or ``None`` where a convolution cannot do it."""
    source = chain[0].input[0]
    shape = draft.shapes.get(source)
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or source in draft.constants:
        return None
    move = _Move(inputs=shape[1], channels=np.arange(shape[1]), strides=[1, 1])
    for node in chain:
        done = _sliced(draft, node, move) if node.op_type == "Slice" else _padded(draft, node, move)
        if not done:
            return None
    return move


def _sliced(draft: Draft, node: onnx.NodeProto, move: _Move) -> bool:
    shape = draft.shapes.get(node.input[0], (None,) * 4)
    values = [draft.constant(name) for name in node.input[1:] if name]
    if any(value is None for value in values) or len([name for name in node.input if name]) != len(node.input):
        return False
    starts, ends, *others = [np.atleast_1d(value).tolist() for value in values if value is not None]
    axes = others[0] if others else list(range(len(starts)))
    steps = others[1] if len(others) > 1 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= 4
        if axis == 1 and step > 0:
            move.channels = move.channels[slice(start, end, step)]
        elif axis in (2, 3) and step > 0 and start == 0 and end >= _length(shape[axis]):
            move.strides[axis - 2] *= step
        else:
            return False
    return len(move.channels) > 0


def _length(size: int | str | None) -> int:
    return size if isinstance(size, int) else _TO_THE_END


def _padded(draft: Draft, node: onnx.NodeProto, move: _Move) -> bool:
    pads = draft.constant(node.input[1])
    filled = draft.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if attribute(node, "mode", "constant") != "constant" or pads is None or filled is None or np.any(filled):
        return False
    if len(node.input) > 3 and node.input[3]:
        return False  # preparing names all axes where it can
    before, after = pads.reshape(2, -1)
    if len(before) != 4 or before[1] < 0 or after[1] < 0 or before[[0, 2, 3]].any() or after[[0, 2, 3]].any():
        return False
    move.channels = np.concatenate([np.full(before[1], -1), move.channels, np.full(after[1], -1)])
    return True
