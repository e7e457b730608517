"""Scales of least squared error for symmetric integer weights, rounding to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

# Bits -> (smallest level, largest level). 8 bits leave out -128, so that the grid is symmetric; 6 and fewer are too
# few to leave one out. 7 bits are for x86 without VNNI, whose kernels add pairs of products with a uint8 in 16 bits and
# saturate there: of symmetric grids this is the widest that cannot, since 2 * 255 * 64 <= 32767.
WEIGHT_LEVELS = {8: (-127, 127), 7: (-64, 64), 6: (-32, 31), 5: (-16, 15), 4: (-8, 7), 3: (-4, 3), 2: (-2, 1)}

# Bits -> (candidates, the smallest as a share of the scale that just reaches the largest weight).
_GRID = {
    8: (20, 1 / 4),
    7: (20, 1 / 4),
    6: (100, 1 / 4),
    5: (100, 1 / 6),
    4: (100, 1 / 8),
    3: (100, 1 / 12),
    2: (100, 1 / 16),
}
_REFINEMENTS = 4
_CHUNK = 1 << 15  # weights at a time: the scratch arrays stay in the cache through all candidates


def best_scales(weight: Matrix, importance: Vector, *, bits: int, shared: bool) -> Vector:
    """Scale of each row of ``weight`` ``[rows, K]`` that minimises ``sum_k importance_k (w_k - s q_k)**2``.

    ``importance`` is ``[rows, K]`` or ``[1, K]`` and not negative; weights have magnitudes of at most 1. Returns
    float64 ``[rows]``, or ``[1]`` where ``shared``: one scale for all rows. A geometric grid from the scale that just
    reaches the largest weight, then alternating least squares: with q fixed, the best scale is ``<w, q> / <q, q>``.
    Never worse than that first scale, up to float32 rounding. Rows of zeros get scale 1.
    """
    low, high = WEIGHT_LEVELS[bits]
    peak = np.abs(weight).max(axis=1, initial=0.0).astype(np.float64)
    if shared:
        peak = np.full_like(peak, peak.max(initial=0.0))
    widest = np.where(peak > 0, peak, high) / high
    importance32 = np.broadcast_to(importance, weight.shape).astype(np.float32) if len(importance) > 1 else None
    common = importance[0].astype(np.float32)
    step = max(1, _CHUNK // max(weight.shape[1], 1))
    chunks = [
        (rows, weight[rows], common if importance32 is None else importance32[rows])
        for rows in (slice(start, start + step) for start in range(0, len(weight), step))
    ]
    count, share = _GRID[bits]
    factors = np.geomspace(1.0, share, count)

    def pooled(per_row: Vector) -> Vector:
        return per_row.sum(axis=-1, keepdims=True) if shared else per_row

    def error_of(scale: Vector) -> Vector:
        """Error of each row for ``scale`` ``[candidates, rows or 1]``, pooled: ``[candidates, rows or 1]``."""
        scale = np.broadcast_to(scale, (len(scale), len(weight)))
        errors = np.empty(scale.shape)
        for rows, part, weights in chunks:
            for index in range(len(scale)):
                errors[index, rows] = _error(part, scale[index, rows], weights, low, high)
        return pooled(errors)

    widest = widest[:1] if shared else widest
    errors = error_of(widest * factors[:, None])
    scale, error = widest * factors[errors.argmin(axis=0)], errors.min(axis=0)
    for _ in range(_REFINEMENTS):
        products = np.empty((2, len(weight)))
        per_row = np.broadcast_to(scale, (len(weight),))
        for rows, part, weights in chunks:
            products[:, rows] = _products(part, per_row[rows], weights, low, high)
        numerator, denominator = pooled(products)
        # A level has the sign of its weight, so the quotient is positive wherever any level is not zero.
        refined = np.where(numerator > 0, numerator / np.where(numerator > 0, denominator, 1.0), scale)
        refined_error = error_of(refined[None])[0]
        better = refined_error < error
        if not better.any():
            break
        scale, error = np.where(better, refined, scale), np.where(better, refined_error, error)
    return scale


def nearest(weight: npt.NDArray[np.floating[Any]], scale: Vector, *, bits: int) -> Vector:
    """Levels of ``weight`` ``[rows, K]``, rounded to nearest (half to even), for ``scale`` ``[rows]`` or ``[1]``."""
    return np.clip(np.rint(weight / scale[:, None]), *WEIGHT_LEVELS[bits])


def _levels(weight: Matrix, scale: Vector, low: int, high: int) -> tuple[Matrix, Matrix]:
    column: Matrix = scale.astype(np.float32)[:, None]
    levels: Matrix = weight * (np.float32(1) / column)
    np.rint(levels, out=levels)
    np.clip(levels, low, high, out=levels)
    return levels, column


def _error(weight: Matrix, scale: Vector, importance: Matrix, low: int, high: int) -> Matrix:
    levels, column = _levels(weight, scale, low, high)
    levels *= column
    levels -= weight
    np.multiply(levels, levels, out=levels)
    # Not a matrix product: its rounding would make a row's scale depend on which rows it is quantized with.
    return np.asarray(np.einsum("rk,rk->r", levels, np.broadcast_to(importance, levels.shape)))


def _products(weight: Matrix, scale: Vector, importance: Matrix, low: int, high: int) -> tuple[Vector, Vector]:
    """``<w, q>`` and ``<q, q>`` of each row, weighted by importance."""
    levels, _ = _levels(weight, scale, low, high)
    weighted = (levels * importance).astype(np.float64)
    return np.einsum("rk,rk->r", weighted, weight), np.einsum("rk,rk->r", weighted, levels)
