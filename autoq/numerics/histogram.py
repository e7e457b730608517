"""Statistics of a tensor's values that merge exactly, in any order, in bounded memory.

A :class:`Histogram` has ``N`` bins on each side of the origin, all of width ``2**exponent``. The width is the smallest
that holds the largest magnitude, and bins of a finer width fall in pairs, exactly, into those of the next. The
result therefore depends only on the set of values: never on batches, workers or their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

BINS_PER_SIDE = 2048
_CHUNK = 1 << 16  # values binned at a time: the scratch arrays stay in the second-level cache
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Counts of float32 values in bins ``[i * width, (i + 1) * width)`` for ``i`` in ``-N .. N-1``.

    ``counts`` is int64 ``[2N]``, entry ``i + N`` for bin ``i``; ``width = 2**exponent``; ``min`` and ``max`` are exact
    (``inf`` and ``-inf`` while empty). Immutable: :meth:`update` and :meth:`merge` return a new histogram.
    """

    counts: npt.NDArray[np.int64]
    exponent: int
    min: float
    max: float

    @classmethod
    def empty(cls, bins_per_side: int = BINS_PER_SIDE) -> Histogram:
        """No values yet. ``bins_per_side`` is a power of two, at least 2."""
        if bins_per_side < 2 or bins_per_side & (bins_per_side - 1):
            raise ValueError(f"bins_per_side must be a power of two, at least 2, not {bins_per_side}")
        counts = np.zeros(2 * bins_per_side, np.int64)
        return cls(counts=counts, exponent=_exponent(0.0, bins_per_side), min=math.inf, max=-math.inf)

    @classmethod
    def of(cls, values: npt.ArrayLike, bins_per_side: int = BINS_PER_SIDE) -> Histogram:
        """The histogram of ``values`` (any shape, taken as float32); ``ValueError`` on a NaN or an infinity."""
        return cls.empty(bins_per_side).update(values)

    @property
    def bins_per_side(self) -> int:
        """N."""
        return self.counts.size // 2

    @property
    def width(self) -> float:
        """Width of every bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Bin edges, float64 ``[2N + 1]``, those beyond the data drawn in to ``[min, max]``."""
        n = self.bins_per_side
        return np.clip(np.arange(-n, n + 1) * self.width, self.min, self.max)

    @property
    def sum(self) -> float:
        """Sum of the values, each taken at its bin's middle: within ``count * width / 2`` of the true sum.

        A running float sum would be closer but would depend on the order of the values.
        """
        return float(self.counts @ self._middles()) if self.count else 0.0

    @property
    def sum_of_squares(self) -> float:
        """Sum of the squared values, values taken as uniform within their bins."""
        edges = self.edges if self.count else np.zeros(self.counts.size + 1)
        return float(self.counts @ (self._middles() ** 2 + np.diff(edges) ** 2 / 12)) if self.count else 0.0

    def _middles(self) -> npt.NDArray[np.float64]:
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def update(self, values: npt.ArrayLike) -> Histogram:
        """This histogram with ``values`` counted in; about 3 ns a value. ``ValueError`` on a NaN or an infinity."""
        with np.errstate(over="ignore"):  # what overflows float32 is reported below
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return self
        low, high = float(flat.min()), float(flat.max())  # both are NaN if any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int(np.flatnonzero(~np.isfinite(flat))[0])
            raise ValueError(f"value {bad} of {flat.size} is {flat[bad]}; statistics need finite float32 values")
        n = self.bins_per_side
        exponent = _exponent(max(-low, high), n)
        counts = _bin(flat, exponent, n, non_negative=low >= 0)
        return self.merge(Histogram(counts=counts, exponent=exponent, min=low + 0.0, max=high + 0.0))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values. Exactly associative and commutative."""
        if self.counts.size != other.counts.size:
            raise ValueError(f"histograms of {self.bins_per_side} and {other.bins_per_side} bins a side do not merge")
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            counts=_coarsen(self.counts, exponent - self.exponent) + _coarsen(other.counts, exponent - other.exponent),
            exponent=exponent,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        same = (self.exponent, self.min, self.max) == (other.exponent, other.min, other.max)
        return same and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]


def _exponent(peak: float, n: int) -> int:
    """The smallest exponent with ``peak < n * 2**exponent``; for zeros alone, that of the smallest subnormal."""
    return math.frexp(max(peak, _SMALLEST))[1] - (n.bit_length() - 1)


def _bin(flat: npt.NDArray[np.float32], exponent: int, n: int, *, non_negative: bool) -> npt.NDArray[np.int64]:
    # Scaling by a power of two must be exact, or bins would depend on the width they were first counted in: a tiny
    # negative value that underflowed to -0 would change sides. A factor of 1 or more cannot underflow.
    dtype = np.float32 if -126 <= exponent <= 0 else np.float64
    factor = dtype(math.ldexp(1.0, -exponent))
    scaled = np.empty(min(_CHUNK, flat.size), dtype)
    index = np.empty(scaled.size, np.intp)
    counts = np.zeros(2 * n, np.int64)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        part = scaled[: chunk.size]
        np.multiply(chunk, factor, out=part, dtype=dtype)
        if not non_negative:
            np.floor(part, out=part)
        np.copyto(index[: chunk.size], part, casting="unsafe")  # truncates, which is floor from here on
        if non_negative:
            counts[n:] += np.bincount(index[: chunk.size], minlength=n)
        else:
            counts += np.bincount(index[: chunk.size] + n, minlength=2 * n)
    return counts


def _coarsen(counts: npt.NDArray[np.int64], doublings: int) -> npt.NDArray[np.int64]:
    """``counts`` with bins ``2**doublings`` times as wide: bin ``i`` goes to ``i >> doublings``."""
    if doublings == 0:
        return counts
    n = counts.size // 2
    group = min(1 << min(doublings, 62), n)  # at most a whole side into the bin next to the origin
    wide = np.zeros_like(counts)
    kept = n // group
    wide[n - kept : n] = counts[:n].reshape(kept, group).sum(axis=1)
    wide[n : n + kept] = counts[n:].reshape(kept, group).sum(axis=1)
    return wide


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BatchRange:
    """Smallest and largest value of one calibration batch."""

    batch: int
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """All that calibration keeps of one tensor: a histogram, and the range of each batch in batch order."""

    histogram: Histogram
    batches: tuple[BatchRange, ...] = ()

    @classmethod
    def empty(cls, bins_per_side: int = BINS_PER_SIDE) -> TensorStatistics:
        """No values yet."""
        return cls(histogram=Histogram.empty(bins_per_side))

    @classmethod
    def of(cls, values: npt.ArrayLike, *, batch: int = 0, bins_per_side: int = BINS_PER_SIDE) -> TensorStatistics:
        """The statistics of one batch; errors as :meth:`Histogram.of`."""
        histogram = Histogram.of(values, bins_per_side)
        if not histogram.count:
            return cls(histogram=histogram)
        return cls(histogram=histogram, batches=(BatchRange(batch=batch, low=histogram.min, high=histogram.max),))

    def update(self, values: npt.ArrayLike, *, batch: int) -> TensorStatistics:
        """These statistics with the values of batch number ``batch`` added."""
        return self.merge(TensorStatistics.of(values, batch=batch, bins_per_side=self.histogram.bins_per_side))

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of both parts, whoever saw which batch; parts of one batch are joined."""
        histogram = self.histogram.merge(other.histogram)
        first, second = sorted((self.batches, other.batches))
        if not first or not second or first[-1].batch < second[0].batch:
            return TensorStatistics(histogram=histogram, batches=first + second)
        merged: dict[int, BatchRange] = {}
        for part in first + second:
            known = merged.get(part.batch, part)
            low, high = min(known.low, part.low), max(known.high, part.high)
            merged[part.batch] = BatchRange(batch=part.batch, low=low, high=high)
        return TensorStatistics(histogram=histogram, batches=tuple(merged[batch] for batch in sorted(merged)))


def merge_all(parts: Iterable[TensorStatistics]) -> TensorStatistics:
    """The statistics of all parts; ``ValueError`` where there is none."""
    parts = list(parts)
    if not parts:
        raise ValueError("no statistics to merge")
    return reduce(TensorStatistics.merge, parts)
