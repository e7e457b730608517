"""What the placement of Q/DQ pairs knows about operators. Everything not named here stays float.

Two tables, each one line an operator:

* *carry* operators move values without changing them: their output has their input's scale, and they run on the
  integers themselves.
* *integer* operators compute on 8-bit inputs when all of their inputs and their output are quantized; the runtime fuses
  ``DequantizeLinear -> op -> QuantizeLinear`` into one integer kernel.

``docs/lowering.md`` lists what is not here, and why.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from autoq.model.graph import Graph, attribute

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


def _resize_copies(graph: Graph, node: onnx.NodeProto) -> bool:
    # tf_crop_and_resize fills with a float outside the image.
    cropped = attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    return attribute(node, "mode", "nearest") == "nearest" and not cropped


CARRY: dict[str, Condition] = {
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


INTEGER: dict[str, Condition] = {
    "Add": _no_constant_input,
    "AveragePool": _fuses,
    "Concat": _concat_of_activations,
    "GlobalAveragePool": _always,
    "LeakyRelu": _always,
    "Mul": _no_constant_input,
    "Sigmoid": _always,
}
"""Operators with an integer kernel that has a scale of its own for the output."""


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


def absorbed_activation(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    """The Relu or Clip that is the only reader of ``tensor`` and that quantization can take over, if there is one.

    A Clip counts when its lower bound is zero: the upper one is no smaller than the calibrated range, which saturates.
    """
    reader = graph.sole_consumer(tensor)
    if reader is None or reader.domain not in ("", "ai.onnx") or reader.input[0] != tensor:
        return None
    if reader.op_type == "Relu":
        return reader
    if reader.op_type == "Clip" and len(reader.input) > 1 and reader.input[1]:
        low = graph.constant(reader.input[1])
        bounds_known = all(name in graph.initializers for name in reader.input[1:] if name)
        if low is not None and bounds_known and low.size == 1 and float(low.reshape(())) == 0.0:
            return reader
    return None
