"""What the placement of Q/DQ pairs knows about operators. Everything not named here stays float.

Two tables, each one line an operator; :mod:`autoq.model.activations` says how those that no kernel has are written:

* *carry* operators move values without changing them: their output has their input's scale, and they run on the
  integers themselves.
* *integer* operators compute on 8-bit inputs when all of their inputs and their output are quantized; the runtime fuses
  ``DequantizeLinear -> op -> QuantizeLinear`` into one integer kernel.

``docs/lowering.md`` lists what is not here, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from autoq.model.graph import Graph, attribute

PICK = "::Pick"
"""Ends the name of the weight of a convolution that only selects: a form of Slice and Pad."""

Condition = Callable[[Graph, onnx.NodeProto], bool]


def _always(graph: Graph, node: onnx.NodeProto) -> bool:
    return True


def _pad_keeps_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    # Zero is exactly representable in every affine scheme here; another constant might lie outside the range.
    if attribute(node, "mode", "constant") != "constant":
        return True
    if len(node.input) < 3 or not node.input[2]:
        return True
    value = graph.constant(node.input[2])
    return value is not None and not np.any(value)


def _fuses(graph: Graph, node: onnx.NodeProto) -> bool:
    return not must_not_fuse(node)


def _selects(graph: Graph, node: onnx.NodeProto) -> bool:
    return node.input[1].endswith(PICK)


def _resize_copies(graph: Graph, node: onnx.NodeProto) -> bool:
    # tf_crop_and_resize fills with a float outside the image.
    cropped = attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return attribute(node, "mode", "nearest") == "nearest" and not cropped


CARRY: dict[str, Condition] = {
    "Conv": _selects,
    "DepthToSpace": _always,
    "Expand": _always,
    "Flatten": _always,
    "Gather": _always,
    "MaxPool": _fuses,
    "Pad": _pad_keeps_zero,
    "Reshape": _always,
    "Resize": _resize_copies,
    "Slice": _always,
    "SpaceToDepth": _always,
    "Split": _always,
    "Squeeze": _always,
    "Tile": _always,
    "Transpose": _always,
    "Unsqueeze": _always,
}
"""Operators whose first input is carried to every output."""


def _no_constant_input(graph: Graph, node: onnx.NodeProto) -> bool:
    return not any(name in graph.initializers for name in node.input if name)


def _concat_of_activations(graph: Graph, node: onnx.NodeProto) -> bool:
    return _no_constant_input(graph, node) and len(node.input) >= 2


def _holds_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    bounds = clip_bounds(graph, node)
    return bounds is not None and bounds[0] <= 0 <= bounds[1]


def _fits_bytes(graph: Graph, node: onnx.NodeProto) -> bool:
    return hard_sigmoid_codes(node) is not None


INTEGER: dict[str, Condition] = {
    "Add": _no_constant_input,
    "AveragePool": _fuses,
    "Clip": _holds_zero,
    "Concat": _concat_of_activations,
    "GlobalAveragePool": _always,
    "HardSigmoid": _fits_bytes,
    "HardSwish": _always,
    "LeakyRelu": _always,
    "Mul": _no_constant_input,
    "Relu": _always,
    "Sigmoid": _always,
}
"""Operators with an integer kernel, or an integer form, that has a scale of its own for the output."""

UNSIGNED = frozenset(["Clip", "HardSigmoid", "HardSwish"])
"""Those of them whose form rests on saturation at both ends, which symmetric integers have elsewhere."""


def must_not_fuse(node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime turns a pair before ``node`` into something that it then rejects.

    Version 1.31.1 makes a QLinearAveragePool of a dilated AveragePool, and that has no dilations; and it moves a signed
    pair past a MaxPool with two outputs with one half of it unsigned.
    """
    if node.op_type == "AveragePool":
        return any(step != 1 for step in attribute(node, "dilations", ()))
    return node.op_type == "MaxPool" and len(node.output) > 1


def is_carry(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` moves values without changing them; a constant has nothing to carry."""
    condition = CARRY.get(node.op_type)
    if condition is None or node.domain not in ("", "ai.onnx") or node.input[0] in graph.initializers:
        return False
    return condition(graph, node)


def is_integer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` has an integer kernel once its inputs and output are quantized."""
    condition = INTEGER.get(node.op_type)
    return node.domain in ("", "ai.onnx") and condition is not None and condition(graph, node)


def absorbed_activation(graph: Graph, tensor: str, *, signed: bool = False) -> onnx.NodeProto | None:
    """The activation that is the only reader of ``tensor`` and that quantization can take over, if there is one.

    A Relu; a Clip when its lower bound is zero, since the upper one is no smaller than the calibrated range, which
    saturates; and, unsigned, a HardSigmoid: a straight line between two bounds, which saturation cuts off.
    """
    reader = graph.sole_consumer(tensor)
    if reader is None or reader.domain not in ("", "ai.onnx") or reader.input[0] != tensor:
        return None
    if reader.op_type == "Relu":
        return reader
    if reader.op_type == "Clip":
        bounds = clip_bounds(graph, reader)
        return reader if bounds is not None and bounds[0] == 0 else None
    if reader.op_type == "HardSigmoid" and not signed and hard_sigmoid_codes(reader) is not None:
        return reader
    return None


def clip_bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """The constant bounds of a Clip, infinite where one is not given; ``None`` where one is computed."""
    bounds = [-math.inf, math.inf]
    for index, name in enumerate(node.input[1:3]):
        if name:
            value = graph.constant(name)
            if value is None or value.size != 1:
                return None
            bounds[index] = float(value.reshape(()))
    return bounds[0], bounds[1]


def hard_sigmoid_codes(node: onnx.NodeProto) -> tuple[np.float32, int] | None:
    """Scale and zero point at which uint8 saturates where ``node`` does: code ``c`` then stands for ``c / 255``.

    HardSigmoid is ``max(0, min(1, alpha x + beta))``; a HardSwish holds one of 1/6 and 1/2 (ONNX, HardSwish). Rounding
    ``255 beta`` to a code moves the result by at most 0.5 / 255. ``None`` where no zero point does it.
    """
    alpha, beta = 1 / 6, 0.5
    if node.op_type == "HardSigmoid":
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    if not (1e-6 < alpha < 1e6 and 0 <= beta <= 1):
        return None
    return np.float32(1 / (255 * alpha)), round(255 * beta)


def least_that_counts(graph: Graph, tensor: str) -> float | None:
    """What values of ``tensor`` below may be raised to without changing the model, or ``None``.

    HardSwish is 0 from -3 down: where nothing else reads its input, an integer spent below -3 is spent for nothing.
    """
    readers = graph.consumers.get(tensor, ())
    kept = tensor in graph.outputs or tensor in graph.captured
    if kept or not readers or any(node.op_type != "HardSwish" or node.domain for node, _ in readers):
        return None
    return -3.0
