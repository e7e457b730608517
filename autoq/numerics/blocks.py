"""Weights in blocks of consecutive inputs, each with a scale and, where asymmetric, a zero point of its own.

``w`` is ``(q - z) s``, as in MatMulNBits and GatherBlockQuantized of ONNX Runtime. Symmetric blocks have no zero point,
but may have a negative scale: the levels reach one further below zero than above, and the sign says which side of the
weights gets it (as in ggml's Q4_0). Scales are rounded to float16 where that can hold them, and levels found for what
is left: at 4 bits and blocks of 32, a float32 scale would take a fifth of the file.

Rounding with a Hessian is GPTQ (:mod:`autoq.numerics.gptq`) with the scales of all blocks fixed before its columns are
put in order ("static groups"), then sweeps of coordinate descent and of least-squares scales, block by block.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.numerics.affine import MIN_SCALE
from autoq.numerics.gptq import Factors, Grid, compensate, descend, factorize, loss, uniform
from autoq.numerics.scales import WEIGHT_LEVELS, best_scales

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int8]

# Ends of an asymmetric range, as shares of a block's own, of which all pairs are tried. At 8 bits nothing is won.
_SHARES = {8: (1.0,), 4: (1.0, 0.9, 0.8, 0.7), 2: (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)}
_REFINEMENTS = 2
_CHUNK = 1 << 15  # weights at a time, as in scales.py

# Relative to the best scales for rounding to nearest, as in weights.py; all blocks of a channel share the pick.
_GPTQ_CANDIDATES = {8: (1.0,), 4: (0.9, 1.0, 1.1), 2: (0.7, 0.85, 1.0, 1.15)}
_SWEEPS = 3

_HALF = np.finfo(np.float16)


def blocks_of(inputs: int, block: int) -> int:
    """How many blocks ``inputs`` take; the last is filled up with zeros."""
    return -(-inputs // block)


def quantize_in_blocks(
    weight: Matrix,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    hessian: Array | None = None,
    factors: Factors | None = None,
) -> tuple[Integers, Matrix, Integers | None]:
    """Levels int8 ``[channels, K]``, scales and zero points ``[channels, blocks]`` of ``weight`` ``[channels, K]``.

    With ``hessian`` ``[K, K]``, the second moment of the inputs (and its ``factors``, if they are known), levels are
    rounded by GPTQ, and no channel's loss is higher than after rounding to nearest; without one all inputs weigh the
    same. Levels and zero points lie between ``-2**(bits - 1)`` and ``2**(bits - 1) - 1``; zero points are ``None``
    where ``symmetric``. Scales are never 0.
    """
    # A power of two: nothing is rounded by it, here or in the scales.
    unit = float(_power_of_two(np.abs(weight).max(initial=0.0)))
    rows = weight.astype(np.float64) / unit
    inputs = rows.shape[1]
    importance = np.ones((1, inputs)) if hessian is None or bits == 8 else _importance(hessian)
    blocks, weights = _split(rows, block), np.tile(_split(importance, block), (len(rows), 1))
    # Nor do the squares of small blocks vanish beside large ones.
    own = _power_of_two(np.abs(blocks).max(axis=1))
    blocks = (blocks / own[:, None]).astype(np.float32)
    if symmetric:
        scale, zero = _signed_scales(blocks, weights, bits), None
        low, high = WEIGHT_LEVELS[bits]
    else:
        scale, zero = _affine_scales(blocks, weights, bits)
        zero = zero.reshape(len(rows), -1)
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scale *= own
    # Sums over a block of zeros cancel, up to rounding in units of its scale: 1 may be large beside the others.
    empty = ~blocks.any(axis=1)
    if not empty.all():
        scale[empty] = np.abs(scale[~empty]).min()
    scale = _storable(scale.reshape(len(rows), -1), unit)
    offset = np.zeros((1, 1)) if zero is None else spread(zero, inputs, block)
    grid = uniform(low, high)
    found = grid(rows / spread(scale, inputs, block) + offset) - offset
    if hessian is not None:
        factors = factors or factorize(hessian[None])
        found, scale = _gptq(rows, hessian, factors, found, scale, grid, offset, bits, block, unit)
    zeros = None if zero is None else zero.astype(np.int8)
    return (found + offset).astype(np.int8), (scale * unit).astype(np.float32), zeros


def with_positive_scales(levels: Integers, scale: Matrix, *, bits: int, block: int) -> tuple[Integers, Matrix]:
    """The same weights, levels ``[channels, K]`` and scales ``[channels, blocks]``, with every scale above 0.

    For kernels that take no negative scale. A block that has one changes its signs; where it uses the level that has
    no opposite, ``-2**(bits - 1)``, it is rounded anew, at the scale of least squared error between that which fits the
    level and that which cuts it off. All other blocks stay as they are.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    inputs, count = levels.shape[1], scale.shape[1]
    padded = np.zeros((len(levels), count * block), np.float64)
    padded[:, :inputs] = levels
    signs = np.sign(scale).reshape(-1, 1)
    turned = padded.reshape(-1, block) * signs
    size = np.abs(scale.astype(np.float64)).reshape(-1, 1)
    beyond = (turned > high).any(axis=1)
    found, best = np.clip(turned, low, high), size.copy()
    error = np.square(turned - found).sum(axis=1)
    for factor in np.linspace(1, -low / high, 9)[1:]:
        tried = np.clip(np.rint(turned / factor), low, high)
        its = np.square(turned - tried * factor).sum(axis=1)
        better = beyond & (its < error)
        found[better], error[better], best[better] = tried[better], its[better], size[better] * factor
    kept = found.reshape(len(levels), -1)[:, :inputs]
    return kept.astype(np.int8), best.reshape(scale.shape).astype(np.float32)


def _power_of_two(peak: npt.NDArray[Any]) -> Array:
    """The least power of two that is not below ``peak``, or below the smallest scale."""
    return np.asarray(np.exp2(np.ceil(np.log2(np.maximum(np.asarray(peak, np.float64), float(MIN_SCALE))))))


def _split(rows: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """``[rows, K]`` as ``[rows * blocks, block]``, the last block of each filled up with zeros."""
    count = blocks_of(rows.shape[1], block)
    padded = np.zeros((len(rows), count * block), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(-1, block)


def spread(per_block: npt.NDArray[Any], inputs: int, block: int) -> npt.NDArray[Any]:
    """``[channels, blocks]`` as ``[channels, K]``."""
    return np.repeat(per_block, block, axis=1)[:, :inputs]


def _storable(scale: Array, unit: float) -> Array:
    """``scale``, in units, rounded to what will be stored: float16 where its normal range holds all of them."""
    real = scale * unit
    magnitude = np.abs(real)
    if (magnitude >= float(_HALF.smallest_normal)).all() and (magnitude <= float(_HALF.max)).all():
        return real.astype(np.float16).astype(np.float64) / unit
    real = np.where(magnitude < MIN_SCALE, np.copysign(float(MIN_SCALE), real), real)
    return real.astype(np.float32).astype(np.float64) / unit


def _importance(hessian: Array) -> Array:
    """``diag(H)`` ``[1, K]`` with a mean of about 1; an input that never fired counts a little."""
    diagonal = np.diagonal(hessian)
    mean = float(diagonal.mean())
    return (diagonal / mean + 0.01)[None] if mean > 0 else np.ones((1, len(diagonal)))


def _signed_scales(blocks: Matrix, importance: Array, bits: int) -> Array:
    """The better, for each block, of the best scale and the best negative one."""
    scale = best_scales(blocks, importance, bits=bits, shared=False)
    if WEIGHT_LEVELS[bits][0] == -WEIGHT_LEVELS[bits][1]:
        return scale
    negative = -best_scales(-blocks, importance, bits=bits, shared=False)
    weights = importance.astype(np.float32)
    errors = [_error(blocks, each.astype(np.float32), weights, *WEIGHT_LEVELS[bits]) for each in (scale, negative)]
    return np.where(errors[1] < errors[0], negative, scale)


def _affine_scales(blocks: Matrix, importance: Array, bits: int) -> tuple[Array, Array]:
    """Scale and zero point of each of ``blocks`` ``[n, block]`` that minimise the weighted squared error.

    A grid over both ends of the range, which has 0 in it, then alternating least squares of the scale.
    """
    half = 1 << (bits - 1)
    step = max(1, _CHUNK // blocks.shape[1])
    scales, zeros = np.empty(len(blocks)), np.empty(len(blocks))
    for start in range(0, len(blocks), step):
        part, weights = blocks[start : start + step], importance[start : start + step].astype(np.float32)
        ends = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        best: tuple[Matrix, ...] | None = None
        for shrink_low, shrink_high in product(_SHARES[bits], repeat=2):
            low, high = ends[0] * np.float32(shrink_low), ends[1] * np.float32(shrink_high)
            scale = np.where(high > low, (high - low) / np.float32(2 * half - 1), np.float32(1))
            zero = np.rint(-low / scale) - half
            for _ in range(_REFINEMENTS):
                scale = _refined(part, scale, weights, -half - zero, half - 1 - zero)
            error = _error(part, scale, weights, -half - zero, half - 1 - zero)
            if best is None:
                best = error, scale, zero
            else:
                better = error < best[0]
                best = tuple(np.where(better, new, old) for new, old in zip((error, scale, zero), best, strict=True))
        assert best is not None
        _, scales[start : start + step], zeros[start : start + step] = best
    return scales, zeros


def _refined(blocks: Matrix, scale: Matrix, importance: Matrix, low: Any, high: Any) -> Matrix:
    """The scale of least error for the levels that ``scale`` gives."""
    levels = _levels(blocks, scale, low, high)
    products = np.einsum("rk,rk,rk->r", levels, blocks, importance)
    squares = np.einsum("rk,rk,rk->r", levels, levels, importance)
    usable = (products > 0) & (squares > 0)
    return np.where(usable, products / np.where(usable, squares, np.float32(1)), scale)


def _levels(blocks: Matrix, scale: Matrix, low: Any, high: Any) -> Matrix:
    low, high = (np.asarray(bound, np.float32).reshape(-1, 1) for bound in (low, high))
    return np.clip(np.rint(blocks / scale[:, None]), low, high)


def _error(blocks: Matrix, scale: Matrix, importance: Matrix, low: Any, high: Any) -> Matrix:
    error = blocks - _levels(blocks, scale, low, high) * scale[:, None]
    return np.einsum("rk,rk,rk->r", error, error, importance)


def _gptq(
    rows: Array,
    hessian: Array,
    factors: Factors,
    near: Array,
    near_scale: Array,
    grid: Grid,
    offset: Array,
    bits: int,
    block: int,
    unit: float,
) -> tuple[Array, Array]:
    """Levels less their zero points, ``[channels, K]``, and scales ``[channels, blocks]``; a channel that they do not
    better keeps those given."""
    inputs = rows.shape[1]
    order = factors.order[0]
    true, damped = factors.ordered_square(hessian[None]), factors.damped

    def ordered(values: Array) -> Array:
        """``[channels, K]`` as ``[1, K, channels]`` in processing order."""
        return np.ascontiguousarray(np.broadcast_to(values, rows.shape)[:, order].T)[None]

    weight, zero = ordered(rows), ordered(offset) if offset.any() else None
    members = [np.flatnonzero(order // block == index) for index in range(near_scale.shape[1])]
    found, scale, least = ordered(near), near_scale, np.full(len(rows), np.inf)
    for candidate in _GPTQ_CANDIDATES[bits]:
        tried = near_scale * candidate
        steps = ordered(spread(tried, inputs, block))
        rounded = compensate(weight, steps, factors.lower, grid, zero)
        losses = loss(weight - rounded * steps, true)[0]
        better = losses < least
        least = np.where(better, losses, least)
        found, scale = np.where(better, rounded, found), np.where(better[:, None], tried, scale)
    for last in (*[False] * (_SWEEPS - 1), True):
        scale = _least_squares(weight, scale, found, damped, members)
        scale = _storable(scale, unit) if last else scale
        found = descend(weight, ordered(spread(scale, inputs, block)), found, damped, grid, zero)
    found_loss = loss(weight - found * ordered(spread(scale, inputs, block)), true)[0]
    near_loss = loss(weight - ordered(near) * ordered(spread(near_scale, inputs, block)), true)[0]
    better = found_loss <= near_loss
    result = np.empty_like(rows)
    result[:, order] = found[0].T
    return np.where(better[:, None], result, near), np.where(better[:, None], scale, near_scale)


def _least_squares(
    weight: Array, scale: Array, found: Array, hessian: Array, members: list[npt.NDArray[np.intp]]
) -> Array:
    """The scales of least loss for the levels ``found``, one block after the other, all others standing.

    In block b the loss is least where ``s_b`` grows by ``<q_b, (H e)_b> / <q_b, H_bb q_b>``.
    """
    scale = scale.copy()
    error = np.empty_like(weight[0])
    for index, rows in enumerate(members):
        error[rows] = weight[0][rows] - found[0][rows] * scale[:, index]
    for index, rows in enumerate(members):
        levels = found[0][rows]
        gradient = np.einsum("kr,kr->r", levels, hessian[0][rows] @ error)
        curvature = np.einsum("kr,kr->r", levels, hessian[0][np.ix_(rows, rows)] @ levels)
        usable = curvature > 0
        change = np.where(usable, gradient / np.where(usable, curvature, 1.0), 0.0)
        moved = scale[:, index] + change
        change = np.where(moved * scale[:, index] > 0, change, 0.0)  # a scale keeps its sign, and never is 0
        scale[:, index] += change
        error[rows] -= levels * change
    return scale
