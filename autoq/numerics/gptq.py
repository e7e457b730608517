"""GPTQ: rounding that lets later weights make up for the error of earlier ones.

Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022). The loss of a row w rounded to s q is ``(w - s q) H (w - s q)^T`` with H the sum of x x^T over the
layer's inputs. Inputs are processed in the order of falling ``diag(H)`` ("act-order"), with lazy updates of
blocks of columns. After it, coordinate descent on the same loss (Behdin et al., "QuantEase", 2023, equation 8) and the
least-squares scale for the levels found, both of which can only lower it.

Arrays are ``[groups, K, rows]``: a grouped convolution has one H per group, and rows of a group are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.lapack import dtrtri

Array = npt.NDArray[np.float64]
Grid = Callable[[Array], Array]
"""Weights, as multiples of their scale -> the nearest levels, integers as float64."""

_BLOCK = 128
_DAMPING = 0.01  # share of the mean of diag(H) that is added to it; times 10 until H is positive definite
_SWEEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What rounding needs of the Hessians, in processing order.

    ``order`` ``[g, K]`` is the permutation, ``damped`` ``[g, K, K]`` the damped Hessian, and ``lower``
    ``[g, K, K]`` the transpose of the upper triangular U with ``U^T U`` = inverse of the damped Hessian.
    """

    order: npt.NDArray[np.intp]
    damped: Array
    lower: Array

    def ordered(self, values: Array) -> Array:
        """``values`` ``[g, K, rows]`` in processing order."""
        return np.take_along_axis(values, self.order[:, :, None], axis=1)

    def ordered_square(self, matrix: Array) -> Array:
        """``matrix`` ``[g, K, K]`` in processing order."""
        return np.stack([m[np.ix_(p, p)] for m, p in zip(matrix, self.order, strict=True)])

    def restored(self, ordered: Array) -> Array:
        """The inverse of :meth:`ordered`."""
        values = np.empty_like(ordered)
        np.put_along_axis(values, self.order[:, :, None], ordered, axis=1)
        return values


def uniform(low: int, high: int) -> Grid:
    """The grid of all integers from ``low`` to ``high``."""
    return lambda steps: np.asarray(np.clip(np.rint(steps), low, high))


def factorize(hessian: Array) -> Factors:
    """The factors of ``hessian`` ``[g, K, K]`` (positive semi-definite). An input that never fired has its diagonal
    set to the mean, and being uncoupled is rounded to nearest."""
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    damped, lower = np.empty(hessian.shape), np.empty(hessian.shape)
    for group, permutation in enumerate(order):
        damped[group], lower[group] = _factorize_one(hessian[group][np.ix_(permutation, permutation)])
    return Factors(order=order, damped=damped, lower=lower)


def _factorize_one(hessian: Array) -> tuple[Array, Array]:
    diagonal = np.diagonal(hessian)
    mean = float(diagonal.mean())
    if mean <= 0:  # no input ever fired
        return np.eye(len(hessian)), np.eye(len(hessian))
    damping = _DAMPING * mean
    while True:
        damped = hessian.copy()
        damped[np.diag_indices_from(damped)] = np.where(diagonal > 0, diagonal, mean) + damping
        try:
            # The inverse's upper factor without the inverse: with P the reversal, P H P = L L^T, so that
            # H = (P L P)(P L P)^T with P L P upper triangular, and U = (P L P)^-1 = P L^-1 P.
            reversed_factor = cholesky(damped[::-1, ::-1], lower=True, check_finite=False)
        except LinAlgError:
            damping *= 10
            continue
        inverse, info = dtrtri(reversed_factor, lower=1)
        assert info == 0  # a Cholesky factor has a positive diagonal
        return damped, np.ascontiguousarray(inverse[::-1, ::-1].T)


def gptq(
    weight: Array,
    hessian: Array,
    scale: Array,
    *,
    grid: Grid,
    candidates: tuple[float, ...],
    shared: bool,
    factors: Factors | None = None,
) -> tuple[Array, Array]:
    """Levels ``[g, K, rows]`` and scales ``[g, rows]`` of ``weight`` ``[g, K, rows]`` under ``hessian`` ``[g, K, K]``.

    Each row keeps, of the scales ``scale * candidate``, the one of least loss; where ``shared``, all keep the same.
    ``factors`` are those of ``hessian``, if they are known.
    """
    factors = factors or factorize(hessian)
    ordered = factors.ordered(weight)
    found, scale = best_start(ordered, scale, factors, factors.ordered_square(hessian), grid, candidates, shared)
    scale = least_squares(ordered, scale, found, factors.damped, shared)
    for _ in range(_SWEEPS):
        better = descend(ordered, scale, found, factors.damped, grid)
        if np.array_equal(better, found):  # and the scale is the best for it already
            break
        found, scale = better, least_squares(ordered, scale, better, factors.damped, shared)
    return factors.restored(found), scale


def best_start(
    weight: Array,
    scale: Array,
    factors: Factors,
    hessian: Array,
    grid: Grid,
    candidates: tuple[float, ...],
    shared: bool,
) -> tuple[Array, Array]:
    """What :func:`compensate` finds with the best of the scales ``scale * candidate``: levels and scales.

    ``weight`` and ``hessian`` are in processing order; the best has the least loss under ``hessian``, row by row or,
    where ``shared``, for all of them.
    """
    rows = weight.shape[2]
    tried = (np.array(candidates)[:, None] * scale[:, None, :]).reshape(len(scale), -1)
    wide = np.tile(weight, (1, 1, len(candidates)))
    found = compensate(wide, tried, factors.lower, grid)
    losses = loss(wide - found * tried[:, None], hessian).reshape(len(scale), len(candidates), rows)
    if shared:
        losses = np.broadcast_to(losses.sum(axis=(0, 2), keepdims=True), losses.shape)
    pick = losses.argmin(axis=1) * rows + np.arange(rows)
    return np.take_along_axis(found, pick[:, None, :], axis=2), np.take_along_axis(tried, pick, axis=1)


def loss(error: Array, hessian: Array) -> Array:
    """``e H e^T`` of each column of ``error`` ``[g, K, rows]``: ``[g, rows]``."""
    return np.einsum("gkr,gkr->gr", hessian @ error, error)


def _everywhere(scale: Array, weight: Array) -> Array:
    """``scale``, ``[g, rows]`` or ``[g, K, rows]``, for each of the weights ``[g, K, rows]``."""
    return np.broadcast_to(scale[:, None] if scale.ndim == 2 else scale, weight.shape)


def _rounded(steps: Array, grid: Grid, zero: Array | None) -> Array:
    return grid(steps) if zero is None else grid(steps + zero) - zero


def compensate(weight: Array, scale: Array, lower: Array, grid: Grid, zero: Array | None = None) -> Array:
    """Algorithm 1 of the paper, on weights in processing order.

    ``scale`` is ``[g, rows]`` or ``[g, K, rows]``; ``zero`` ``[g, K, rows]`` is added to a weight, in steps of its
    scale, before it is rounded, and taken off after.
    """
    groups, inputs, rows = weight.shape
    scale = _everywhere(scale, weight)
    remaining = weight.copy()
    found = np.empty_like(weight)
    errors = np.empty((groups, min(_BLOCK, inputs), rows))
    diagonal = np.diagonal(lower, axis1=1, axis2=2)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        for i in range(start, stop):
            column = remaining[:, i]
            if i > start:  # the errors so far of this block, which its columns have not seen yet
                column = column - (lower[:, i : i + 1, start:i] @ errors[:, : i - start])[:, 0]
            rounded = _rounded(column / scale[:, i], grid, None if zero is None else zero[:, i])
            found[:, i] = rounded
            errors[:, i - start] = (column - rounded * scale[:, i]) / diagonal[:, i, None]
        if stop < inputs:
            remaining[:, stop:] -= lower[:, stop:, start:stop] @ errors[:, : stop - start]
    return found


def descend(weight: Array, scale: Array, found: Array, hessian: Array, grid: Grid, zero: Array | None = None) -> Array:
    """One sweep of coordinate descent: each level in turn takes its best value while all others stand.

    With g = H e, the loss of a row is least in coordinate i where ``s q_i`` grows by ``g_i / H_ii``. ``scale`` and
    ``zero`` as in :func:`compensate`.
    """
    found = found.copy()
    scale = _everywhere(scale, weight)
    error = weight - found * scale
    inputs = weight.shape[1]
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        gradient = hessian[:, start:stop] @ error
        changes = np.empty_like(gradient)
        for i in range(start, stop):
            slope = gradient[:, i - start]
            if i > start:
                slope = slope + (hessian[:, i : i + 1, start:i] @ changes[:, : i - start])[:, 0]
            steps = found[:, i] + slope / (diagonal[:, i, None] * scale[:, i])
            rounded = _rounded(steps, grid, None if zero is None else zero[:, i])
            changes[:, i - start] = (found[:, i] - rounded) * scale[:, i]
            found[:, i] = rounded
        error[:, start:stop] += changes
    return found


def least_squares(weight: Array, scale: Array, found: Array, hessian: Array, shared: bool) -> Array:
    """The scales of least loss for the levels ``found``: ``<w, q>_H / <q, q>_H``, where that is positive."""
    projected = hessian @ found
    products = np.einsum("gkr,gkr->gr", projected, weight)
    squares = np.einsum("gkr,gkr->gr", projected, found)
    if shared:
        products, squares = (np.broadcast_to(total.sum(), scale.shape) for total in (products, squares))
    usable = (products > 0) & (squares > 0)
    return np.where(usable, products / np.where(usable, squares, 1.0), scale)
