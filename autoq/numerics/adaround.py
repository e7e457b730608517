"""AdaRound: which of two neighbouring levels each weight takes, found for all of them together.

Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020).
The loss of a row is that of :mod:`autoq.numerics.gptq`, ``e H e^T`` (the paper's equation 20, where it is exact: no
activations are needed), which is minimised over soft levels ``low + h(v)`` with the rectified sigmoid h (equation 23),
and a regularizer (equation 24) that presses h to 0 or 1 more and more.

The paper starts from the real weights and chooses between the levels around them. GPTQ's solution is better than what
that finds where inputs are strongly correlated, and often further than one level from the weights. So the start is
GPTQ's solution here, and the neighbour of each level is the one that its derivative of the loss points to; every
row keeps what it had where that is better.

Arrays are ``[groups, K, rows]`` as in :mod:`autoq.numerics.gptq`. In float32, on so many rows at a time as stay in the
cache, which are independent: neither that nor the number of threads changes a result.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from autoq.numerics.gptq import Array, Grid, descend, least_squares, loss

_Single = npt.NDArray[np.float32]

STEPS = 400
_RATE = 0.03  # of Adam, on v
_PRESSURE = 10.0  # of the regularizer, relative to a row's loss at the start; for K weights together
_SHARPNESS = (20.0, 2.0)  # the exponent beta of the regularizer, falling along half a cosine
_FREE = 0.1  # share of the steps before the regularizer sets in
_STAY = 0.5  # how far the start lies from the weight that has least loss while all others stand, to GPTQ's level
_STRETCH = 1.2  # of the sigmoid, so that 0 and 1 are reached (the paper's zeta - gamma)
_CHUNK = 1 << 16  # weights at a time
_SWEEPS = 8


def adaround(
    weight: Array, hessian: Array, scale: Array, found: Array, *, grid: Grid, shared: bool, steps: int = STEPS
) -> tuple[Array, Array]:
    """Better levels ``[g, K, rows]`` and scales ``[g, rows]`` than ``found`` and ``scale``, row by row.

    ``hessian`` ``[g, K, K]`` is positive definite (damped). No row's loss under it is higher afterwards; with
    ``shared`` scales, not their sum.
    """
    if not found.size:
        return found, scale
    better = _soft(weight, hessian, scale, found, grid, steps)
    refined = least_squares(weight, scale, better, hessian, shared)
    for _ in range(_SWEEPS):
        descended = descend(weight, refined, better, hessian, grid)
        if np.array_equal(descended, better):
            break
        better, refined = descended, least_squares(weight, refined, descended, hessian, shared)
    before = loss(weight - found * scale[:, None], hessian)
    after = loss(weight - better * refined[:, None], hessian)
    improved = after < before
    if shared:
        improved = np.broadcast_to(after.sum() < before.sum(), improved.shape)
    return np.where(improved[:, None], better, found), np.where(improved, refined, scale)


def _soft(weight: Array, hessian: Array, scale: Array, found: Array, grid: Grid, steps: int) -> Array:
    """The levels that the relaxation ends at."""
    groups, inputs, rows = weight.shape
    result = np.empty_like(found)
    size = max(1, _CHUNK // (inputs * groups))
    single = hessian.astype(np.float32)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        levels, along = found[:, :, part], scale[:, None, part]
        error = levels * along - weight[:, :, part]
        slope = hessian @ error
        diagonal = np.diagonal(hessian, axis1=1, axis2=2)[:, :, None]
        wanted = levels - slope / (diagonal * along)
        neighbour = grid(levels + np.where(wanted >= levels, 1.0, -1.0))
        low, high = np.minimum(levels, neighbour), np.maximum(levels, neighbour)
        open_ = high > low  # at the end of the grid there may be no neighbour
        share = np.clip((wanted - low) / np.where(open_, high - low, 1.0), 0.0, 1.0)
        share = _STAY * (levels > low) + (1 - _STAY) * share
        base = np.maximum(np.einsum("gkr,gkr->gr", slope, error), 1e-12)[:, None]
        up = _relax(
            weight[:, :, part].astype(np.float32),
            single,
            low.astype(np.float32),
            (high - low).astype(np.float32),
            along.astype(np.float32),
            np.clip(share, 0.01, 0.99).astype(np.float32),
            base.astype(np.float32),
            steps,
        )
        result[:, :, part] = np.where(up, high, low)
    return result


def _relax(
    weight: _Single,
    hessian: _Single,
    low: _Single,
    gap: _Single,
    scale: _Single,
    share: _Single,
    base: _Single,
    steps: int,
) -> npt.NDArray[np.bool_]:
    """Which levels end at the upper of the two. Adam (Kingma and Ba 2014), by hand: its state is two arrays."""
    margin = (_STRETCH - 1) / 2
    v = np.log((share + margin) / (1 + margin - share), dtype=np.float32)
    first, second = np.zeros_like(v), np.zeros_like(v)
    step_size = scale * gap
    to_loss = 2 * step_size / base
    pressure = np.float32(2 * _PRESSURE / v.shape[1])
    for step in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(np.float32(_STRETCH) * sigmoid - np.float32(margin), 0, 1)
        gradient = (hessian @ (scale * low + step_size * h - weight)) * to_loss
        along = (step / steps - _FREE) / (1 - _FREE)
        if along > 0:
            beta = _SHARPNESS[1] + (_SHARPNESS[0] - _SHARPNESS[1]) * 0.5 * (1 + math.cos(math.pi * along))
            middle = 2 * h - 1
            gradient -= np.float32(pressure * beta) * np.sign(middle) * np.abs(middle) ** np.float32(beta - 1)
        gradient *= np.where((h > 0) & (h < 1), np.float32(_STRETCH) * sigmoid * (1 - sigmoid), np.float32(0))
        first += np.float32(0.1) * (gradient - first)
        second += np.float32(0.001) * (gradient * gradient - second)
        rate = np.float32(_RATE * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1)))
        v -= rate * first / (np.sqrt(second) + np.float32(1e-12))
    return v >= 0
