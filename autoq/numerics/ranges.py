"""Clipping ranges of activations: pure functions of the statistics, one per calibration method.

Every method takes ``(statistics, calibration, signed)`` and returns ``(low, high)`` within the observed
``[min, max]``. ``signed`` says which grid the range is for: signed symmetric int8, or unsigned asymmetric uint8 (see
:func:`autoq.numerics.affine.activation_affine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.scheme import Calibration
from autoq.numerics.histogram import TensorStatistics
from autoq.numerics.moments import Moments

Method = Callable[[TensorStatistics, Calibration, bool], tuple[float, float]]
_Vector = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.integer[Any]]

EMA_MOMENTUM = 0.9
_ENTROPY_CANDIDATES = 512


def clip_range(statistics: TensorStatistics, calibration: Calibration, *, signed: bool) -> tuple[float, float]:
    """The range ``(low, high)`` that ``calibration`` chooses, within the observed ``[min, max]``.

    Raises ``ValueError`` where no value was observed.
    """
    histogram = statistics.histogram
    if histogram.count == 0:
        raise ValueError(f"no value was observed: calibration {calibration} has nothing to go by")
    if histogram.min == histogram.max:
        return histogram.min, histogram.max
    low, high = METHODS[calibration.method](statistics, calibration, signed)
    return max(low, histogram.min), min(high, histogram.max)


def minmax(statistics: TensorStatistics, calibration: Calibration, signed: bool) -> tuple[float, float]:
    """Everything that was seen."""
    return statistics.histogram.min, statistics.histogram.max


def ema(statistics: TensorStatistics, calibration: Calibration, signed: bool) -> tuple[float, float]:
    """Exponential moving average of the batches' ranges, in batch order (Jacob et al. 2018, section 3.1)."""
    if not statistics.batches:
        raise ValueError("calibration ema needs the ranges of the batches, and these statistics have none")
    low, high = statistics.batches[0].low, statistics.batches[0].high
    for batch in statistics.batches[1:]:
        low = EMA_MOMENTUM * low + (1 - EMA_MOMENTUM) * batch.low
        high = EMA_MOMENTUM * high + (1 - EMA_MOMENTUM) * batch.high
    return low, high


def percentile(statistics: TensorStatistics, calibration: Calibration, signed: bool) -> tuple[float, float]:
    """Keeps ``calibration.percentile`` percent of the values.

    Signed: of the magnitudes, since the grid is symmetric. Unsigned: the rest is cut half from each side, or all from
    the one side where no value crosses zero. Values count as uniform within a bin.
    """
    histogram = statistics.histogram
    assert calibration.percentile is not None  # Calibration's own invariant
    keep = calibration.percentile / 100
    edges = histogram.edges
    if histogram.min >= 0:
        return histogram.min, _quantile(histogram.counts, edges, keep)
    if histogram.max <= 0:
        return _quantile(histogram.counts, edges, 1 - keep), histogram.max
    if signed:
        n = histogram.bins_per_side
        peak = max(-histogram.min, histogram.max)
        magnitudes = histogram.counts[n:] + histogram.counts[:n][::-1]
        threshold = _quantile(magnitudes, np.minimum(np.arange(n + 1) * histogram.width, peak), keep)
        return -threshold, threshold
    cut = (1 - keep) / 2
    return _quantile(histogram.counts, edges, cut), _quantile(histogram.counts, edges, 1 - cut)


def _quantile(counts: _Counts, edges: _Vector, share: float) -> float:
    below = np.concatenate([[0], np.cumsum(counts)])
    target = share * below[-1]
    index = int(np.clip(np.searchsorted(below, target, side="left") - 1, 0, counts.size - 1))
    inside = (target - below[index]) / max(int(counts[index]), 1)
    return float(edges[index] + min(max(inside, 0.0), 1.0) * (edges[index + 1] - edges[index]))


def entropy(statistics: TensorStatistics, calibration: Calibration, signed: bool) -> tuple[float, float]:
    """The threshold whose quantized distribution has the least Kullback-Leibler divergence from the reference.

    Migacz, "8-bit inference with TensorRT" (GTC 2017); ONNX Runtime's and TensorRT's entropy calibrators do
    likewise. For a window of bins, P is the histogram with the outliers added to the window's outermost bins, Q the
    histogram in the window merged into the grid's levels, each level spread evenly over the bins where P is
    not zero; D(P || Q) is minimised over windows. Data on one side of zero: only its far end moves, over 255 levels
    (127 where signed). Data on both sides: symmetric thresholds, never beyond the observed range, over 255 levels. On
    a tie the widest window wins.

    Two cares: exact zeros cost a grid nothing, so the bin that holds them counts no more than its neighbour (as in
    NVIDIA's pytorch-quantization); and a window holds at least half the values, since one that holds next to
    nothing has all of P in its outermost bin and matches itself.
    """
    histogram = statistics.histogram
    n = histogram.bins_per_side
    occupied = np.flatnonzero(histogram.counts)
    first, last = int(occupied[0]) - n, int(occupied[-1]) + 1 - n  # bins [first, last) relative to the origin
    both = first < 0 < last
    levels = 127 if signed and not both else 255
    reach = max(-first, last)
    # Some hundreds of thresholds, and every one near zero, where heavy outliers leave the body.
    dense, spread = np.arange(2, min(reach, 128)), np.linspace(2, reach, _ENTROPY_CANDIDATES).round().astype(np.intp)
    thresholds = np.unique(np.concatenate([dense, spread]))[::-1]
    left = np.where(first < 0, -thresholds, 0)
    right = np.where(last > 0, thresholds, 0)
    if both and not signed:  # an asymmetric grid spends its levels on the observed range only
        left, right = np.maximum(left, first), np.minimum(right, last)
    counts = histogram.counts.astype(np.float64)
    counts[n] = min(counts[n], counts[n + 1])
    divergence = _divergence(counts, left + n, right + n, levels)
    best = int(thresholds[int(np.argmin(divergence))])
    return max(histogram.min, -best * histogram.width), min(histogram.max, best * histogram.width)


def _divergence(counts: _Vector, left: _Counts, right: _Counts, levels: int) -> _Vector:
    """D(P || Q) for each window of bins ``[left, right)``, float64 ``[windows]``.

    Infinite where Q lacks P's support or the window holds less than half the counts.

    With p the reference counts, c the counts in the window, m a level's sum of c and k its number of bins with p > 0:
    D = sum p log p / T - sum p log(m / k) / T - log T + log C, where T = sum p and C = sum c.
    """
    running = np.concatenate([[0.0], np.cumsum(counts)])
    occupied = np.concatenate([[0], np.cumsum(counts > 0)])
    plogp = np.concatenate([[0.0], np.cumsum(_xlogx(counts))])
    size = (right - left)[:, None]
    steps = np.arange(levels + 1)
    # With fewer bins than levels each bin is a level; the outermost bins keep the outermost levels.
    bounds = left[:, None] + np.where(size >= levels, size * steps // levels, np.minimum(steps, size - 1))
    bounds[:, -1] = right
    mass = np.diff(running[bounds], axis=1)
    bins = np.diff(occupied[bounds], axis=1)
    reference = mass.copy()
    total, inside = running[-1], running[right] - running[left]
    entropy_sum = plogp[right] - plogp[left]
    for outliers, edge, level in ((running[left], left, 0), (total - running[right], right - 1, -1)):
        reference[:, level] += outliers
        bins[:, level] += (outliers > 0) & (counts[edge] == 0)
        entropy_sum += _xlogx(counts[edge] + outliers) - _xlogx(counts[edge])
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0: an empty level, or one that P reaches and Q does not
        cross = np.where(reference > 0, reference * np.log(mass / bins), 0.0).sum(axis=1)
        divergence = (entropy_sum - cross) / total - np.log(total) + np.log(inside)
    return np.where((inside >= total / 2) & np.isfinite(divergence), divergence, np.inf)


def _xlogx(x: _Vector) -> _Vector:
    return np.asarray(x * np.log(np.maximum(x, 1.0)))


def mse(statistics: TensorStatistics, calibration: Calibration, signed: bool) -> tuple[float, float]:
    """The range of least expected squared error, rounding and clipping together, under the histogram.

    The error is that of the very grid the range gives, zero point rounded (Nagel et al. 2021, "A White Paper on
    Neural Network Quantization", equation 17). One threshold is searched for a symmetric grid or data on one side of
    zero, both by coordinate descent otherwise. On a tie the widest range wins.
    """
    histogram = statistics.histogram
    moments = Moments(histogram)
    low, high = histogram.min / moments.peak, histogram.max / moments.peak
    if not signed and low < 0 < high:
        low, high = _descend(moments, low, high)
    elif signed and low < 0 < high:
        share = _search(lambda share: moments.error(-share, share, signed=True))
        low, high = -share, share
    elif low >= 0:  # a threshold below the smallest value would clip them all, and is never the best
        high *= _search(lambda share: moments.error(0.0, share * high, signed=signed))
    else:
        low *= _search(lambda share: moments.error(share * low, 0.0, signed=signed))
    return low * moments.peak, high * moments.peak


def _descend(moments: Moments, low: float, high: float) -> tuple[float, float]:
    """Both thresholds of an asymmetric grid: first shrunk together, then each in turn while the other stands."""

    def best_low(end: float) -> float:
        return low * _search(lambda share: moments.error(share * low, end, signed=False))

    def best_high(start: float) -> float:
        return high * _search(lambda share: moments.error(start, share * high, signed=False))

    share = _search(lambda share: moments.error(share * low, share * high, signed=False))
    found = share * low, share * high
    for _ in range(3):
        start = best_low(found[1])
        step = start, best_high(start)
        if step == found:
            break
        found = step
    return found


def _search(error: Callable[[_Vector], _Vector]) -> float:
    """The share in [1/1024, 1] of least error: a geometric grid from 1 down, then two finer ones around the best."""
    shares = np.geomspace(1.0, 1 / 1024, 64)
    for _ in range(3):
        best = int(np.argmin(error(shares)))  # the first of equals: the widest
        found = float(shares[best])
        upper, lower = shares[max(best - 1, 0)], shares[min(best + 1, shares.size - 1)]
        shares = np.concatenate([[found], np.linspace(upper, lower, 17)])
    return found


METHODS: Mapping[str, Method] = {
    "minmax": minmax,
    "ema": ema,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
"""Calibration method -> its function. A new one is a function above and a line here."""
