"""Codebooks: every weight of a layer is one of 16 or 4 integers, found by k-means, times its channel's scale.

Levels that lie where the weights lie lose less than evenly spaced ones: of a normal variable, the best four levels lose
0.117 of the variance and the best even ones 0.119 (Max, "Quantizing for Minimum Distortion", 1960, tables 1 and 2);
-2, -1, 0, 1 with the best scale lose 0.149. The codebook is one for the layer, as in Han, Mao and Dally, "Deep
Compression" (2016), section 3, and entries are integers, so that an integer kernel can read what they stand for.

With the second moments of the inputs, errors are then made up for as :mod:`autoq.numerics.gptq` does, and codebook,
scales and levels take turns, each at its best while the others stand.

Arrays are ``[groups, K, rows]``, as there. Rows of zeros keep a scale so small that they stay zeros.
"""

from __future__ import annotations

import numpy as np

from autoq.numerics.clusters import centers
from autoq.numerics.gptq import Array, Factors, Grid, best_start, descend, factorize, least_squares, loss

PEAK = 64
"""Largest magnitude of an entry: of two products with uint8 the sum fits 16 bits, as x86 without VNNI adds them."""

_NO_SCALE = 1e-30  # of a row of zeros, whose other weights are at most 1
_ALTERNATIONS = 8
_STARTS = (0.7, 0.85, 1.0, 1.15, 1.3)  # scales tried with errors made up for, relative to the best without
_ROUNDS, _SWEEPS = 2, 4
_MOST_ROWS = 256  # that a codebook's normal equations are summed over


def grid(book: Array) -> Grid:
    """The nearest entries of ``book``, integers within ``PEAK`` in ascending order; of two equally near, the upper."""
    # Borders lie midway between integers, so between multiples of one half the nearest entry is the same.
    middles = np.arange(-2 * PEAK - 1, 2 * PEAK + 2) / 2 + 0.25
    table = book[np.abs(middles[:, None] - book).argmin(axis=1)]
    last = len(table) - 1
    return lambda steps: np.asarray(table[np.clip(np.floor(2 * steps) + (2 * PEAK + 1), 0, last).astype(np.intp)])


def fit(weight: Array, importance: Array, *, count: int, shared: bool) -> tuple[Array, Array]:
    """Codebook ``[count]`` and scales ``[g, rows]`` of least ``sum importance (weight - scale * nearest entry)**2``.

    Weights have magnitudes of at most 1, ``importance`` broadcasts to them. Weights over their row's scale are
    clustered, then scales and entries take turns. ``shared`` is one scale for all rows.
    """
    importance = np.broadcast_to(importance, weight.shape)

    def total(values: Array) -> Array:
        """Over each row, or over all."""
        rows = values.sum(axis=1)
        return np.broadcast_to(rows.sum(), rows.shape) if shared else rows

    norm = total(importance)
    scale = np.sqrt(total(weight**2 * importance) / np.where(norm > 0, norm, 1.0))
    scale = np.where(scale > 0, scale, _NO_SCALE)
    mass = importance * np.square(scale)[:, None]
    mass = mass * (weight != 0).any(axis=1, keepdims=True)  # rows of zeros have no say
    book, scale = _integers(centers(weight / scale[:, None], mass, count), scale)
    book = np.pad(book, (0, count - len(book)), mode="edge")
    for _ in range(_ALTERNATIONS):
        levels = grid(book)(weight / scale[:, None])
        along, square = total(importance * weight * levels), total(importance * levels**2)
        scale = np.where(along > 0, along / np.where(along > 0, square, 1.0), scale)
        levels = grid(book)(weight / scale[:, None])
        index = np.searchsorted(book, levels).ravel()
        first = np.bincount(index, (importance * scale[:, None] * weight).ravel(), count)
        second = np.bincount(index, (importance * np.square(scale)[:, None]).ravel(), count)
        moved = np.where(second > 0, first / np.where(second > 0, second, 1.0), book)
        before, (book, scale) = book, _integers(np.sort(moved), scale)
        if np.array_equal(before, book):
            break
    return book, scale


def compensated(
    weight: Array, hessian: Array, book: Array, scale: Array, *, shared: bool, factors: Factors | None = None
) -> tuple[Array, Array, Array]:
    """Levels ``[g, K, rows]``, scales and codebook of ``weight`` under ``hessian`` ``[g, K, K]``.

    ``book`` and ``scale`` are those of :func:`fit`, ``factors`` those of ``hessian``, if they are known. No worse in
    sum than they are with the nearest levels.
    """
    nearest = grid(book)(weight / scale[:, None])
    best, least = (nearest, scale, book), float(loss(weight - nearest * scale[:, None], hessian).sum())
    factors = factors or factorize(hessian)
    ordered, true = factors.ordered(weight), factors.ordered_square(hessian)
    for _ in range(_ROUNDS):  # the second starts anew from the first one's codebook
        levels, scale = best_start(ordered, scale, factors, true, grid(book), _STARTS, shared)
        for _ in range(_SWEEPS):
            scale = least_squares(ordered, scale, levels, factors.damped, shared)
            levels, book, scale = _refitted(ordered, levels, book, scale, factors.damped)
            scale = least_squares(ordered, scale, levels, factors.damped, shared)
            levels = descend(ordered, scale, levels, factors.damped, grid(book))
        scale = least_squares(ordered, scale, levels, factors.damped, shared)
        error = float(loss(ordered - levels * scale[:, None], true).sum())
        if error < least:
            best, least = (factors.restored(levels), scale, book), error
    return best


def _integers(entries: Array, scale: Array) -> tuple[Array, Array]:
    """``entries`` as integers within ``PEAK``, and the scales that make up for it."""
    factor = PEAK / (np.abs(entries).max() or PEAK)
    return np.rint(entries * factor), scale / factor


def _refitted(weight: Array, levels: Array, book: Array, scale: Array, hessian: Array) -> tuple[Array, Array, Array]:
    """The codebook of least loss with each weight at the entry it has, by its normal equations.

    For weights ``w = s Z c`` with Z saying which entry each has: ``sum s**2 Z^T H Z c = sum s Z^T H w``. Of many rows
    a fair sample will do: they have one codebook of at most 16 entries.
    """
    count, index = len(book), np.searchsorted(book, levels)
    sample = slice(None, None, -(-weight.shape[2] // _MOST_ROWS))
    part, steps = weight[:, :, sample], scale[:, None, sample]
    chosen = (index[:, :, sample, None] == np.arange(count)) * steps[..., None]
    projected = (hessian @ chosen.reshape(*hessian.shape[:2], -1)).reshape(chosen.shape)
    square = np.einsum("gkrm,gkrn->mn", chosen, projected, optimize=True)
    along = np.einsum("gkrn,gkr->n", projected, part)
    # An entry that none has stays where it was.
    ridge = 1e-6 * max(np.trace(square) / count, 1e-30)
    entries = np.linalg.solve(square + ridge * np.eye(count), along + ridge * book)
    order = np.argsort(entries, kind="stable")
    book, scale = _integers(entries[order], scale)
    return book[np.argsort(order)[index]], book, scale
