"""Scales of what an Add reads, so chosen that every runtime rounds the sum alike.

An integer Add rounds ``a * scale_a / scale_y + b * scale_b / scale_y``, which ONNX Runtime computes in float32,
TFLite's kernels with multipliers of some 20 bits. Where the sum comes within their errors of the middle between two
integers, they differ, and a network carries such a step on to most of its outputs. With both ratios whole multiples of
``1 / DENOMINATOR``, which is odd, no sum of integers is nearer to a middle than ``0.5 / DENOMINATOR``: more than any
error.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import numpy.typing as npt

from autoq.core.scheme import ActivationSpec
from autoq.model.graph import Graph
from autoq.model.placement import Placement, Placer

DENOMINATOR = 1023
"""Odd; half of its inverse is 4 times what TFLite's multipliers and float32 are off by for sums of 8-bit integers."""

_LEAST = 64
"""Of a ratio's multiple: below it, rounding would move the scale by more than 1 %."""


def aligned(
    placer: Placer,
    placement: Placement,
    affine: Callable[[str, ActivationSpec], tuple[np.float32, int]],
    fixed: Container[str],
) -> dict[tuple[str, ActivationSpec], tuple[np.float32, int]]:
    """Scale and zero point of the tensors whose scale is moved, by at most 1 %, by root and how that is quantized.

    ``affine`` gives the calibrated ones; roots in ``fixed`` keep theirs. An Add is served after those that read its
    result; of two Adds that read one tensor, the later one.
    """
    graph: Graph = placer.graph
    quantized = placement.quantized
    moved: dict[tuple[str, ActivationSpec], tuple[np.float32, int]] = {}
    settled: set[str] = set()
    for node in reversed(graph.model.graph.node):
        if node.op_type != "Add" or node.name not in placement.integer_nodes:
            continue
        target = placer.stored(node, signed=placement.signed)
        roots = {placer.root(name) for name in node.input}
        if target not in quantized or not roots <= quantized.keys():
            continue
        if any(quantized[name].bits != 8 for name in (target, *roots)):
            continue  # the steps of 16 bits are finer than the errors
        key = (target, quantized[target])
        scale = float(moved.get(key, affine(*key))[0])
        for root in sorted(roots - settled):
            if root in fixed:
                continue
            settled.add(root)
            key = (root, quantized[root])
            calibrated, zero_point = affine(*key)
            multiple = round(float(calibrated) / scale * DENOMINATOR)
            if multiple >= _LEAST:
                moved[key] = (np.float32(scale * multiple / DENOMINATOR), zero_point)
    return moved


def rescaled(
    scale: npt.NDArray[np.float32], source: np.float32, written: np.float32, read: np.float32
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Scales of weights with which an output at ``read`` has the factor that ``scale`` gives one at ``written``.

    The factor is ``source * scale / output``, rounded to float32 twice, as kernels compute it. Where no scale gives the
    very same, the nearest; the second array says where there is one.
    """
    wanted, near = source * scale / written, scale * (read / written)
    best, same = near, np.zeros(scale.shape, np.bool_)
    for ulps in range(-4, 5):
        other = _moved(near, ulps)
        fits = source * other / read == wanted
        best, same = np.where(fits, other, best), same | fits
    return best, same


def rescalable(
    scale: npt.NDArray[np.float32], source: np.float32, written: np.float32, read: np.float32
) -> npt.NDArray[np.float32]:
    """``scale`` moved by a few units in its last place to where :func:`rescaled` finds the very same factor."""
    best, done = scale, np.zeros(scale.shape, np.bool_)
    for ulps in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        other = _moved(scale, ulps)
        fits = rescaled(other, source, written, read)[1] & ~done
        best, done = np.where(fits, other, best), done | fits
    return best


def _moved(values: npt.NDArray[np.float32], ulps: int) -> npt.NDArray[np.float32]:
    return (values.view(np.int32) + ulps).view(np.float32)
