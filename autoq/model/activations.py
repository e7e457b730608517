"""Activations on integers, written with what ONNX Runtime has integer kernels for: LeakyRelu and Mul.

A LeakyRelu between two pairs is one table of 256 entries (QLinearLeakyRelu), so with slope 1 it is a requantization:

* Relu, and Clip from zero: slope 0; any other Clip around zero: slope 1, and the output's range saturates.
* HardSigmoid, ``max(0, min(1, alpha x + beta))``: x quantized to scale ``1 / (255 alpha)`` and zero point ``255 beta``
  saturates where HardSigmoid does, and the same integers read at scale 1/255 and zero point 0 are its result. Right
  after an integer layer that quantization is the layer's own, and HardSigmoid costs nothing.
* HardSwish, ``x * HardSigmoid(x)``: the same, and a Mul with x (QLinearMul).
"""

from __future__ import annotations

import numpy as np
import onnx

from autoq.model.graph import Graph
from autoq.model.operators import clip_bounds, hard_sigmoid_codes
from autoq.numerics.affine import MIN_SCALE

UNIT: tuple[np.float32, int] = (np.float32(1 / 255), 0)
"""Scale and zero point at which the codes of a HardSigmoid are read."""

ACTIVATIONS = frozenset(["Clip", "HardSigmoid", "HardSwish", "Relu"])
"""What this file has a form for."""


def slope(graph: Graph, node: onnx.NodeProto) -> float:
    """The slope below zero of the LeakyRelu that stands for a Relu or Clip; saturation does the rest."""
    if node.op_type == "Relu":
        return 0.0
    bounds = clip_bounds(graph, node)
    assert bounds is not None, "placement takes a Clip with constant bounds only"
    return 0.0 if bounds[0] == 0 else 1.0


def written_at(node: onnx.NodeProto) -> tuple[np.float32, int]:
    """Scale and zero point at which the input of a HardSigmoid, or of the one in a HardSwish, is quantized."""
    codes = hard_sigmoid_codes(node)
    assert codes is not None and codes[0] >= MIN_SCALE, "placement takes a HardSigmoid that fits bytes only"
    return codes
