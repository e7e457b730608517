"""The expected squared error of an 8-bit grid under a histogram.

Values count as uniform within their bin, so the integrals over any interval are closed forms of prefix sums: a grid
costs one look-up for each border between two levels, whatever the number of values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.numerics.histogram import Histogram

_Vector = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.integer[Any]]


class Moments:
    """Integrals of 1, x and x**2 under a histogram's density, from which a grid's expected error follows exactly.

    x is in units of ``peak``, the histogram's largest magnitude, which must not be 0; the density integrates to 1.
    """

    def __init__(self, histogram: Histogram) -> None:
        self.peak = peak = max(-histogram.min, histogram.max)
        self.bins_per_side = histogram.bins_per_side
        self.width = histogram.width / peak
        edges = histogram.edges / peak
        self.edges, self.widths = edges[:-1], np.diff(edges)
        self.weights = histogram.counts / histogram.count
        self.below = [np.concatenate([[0.0], np.cumsum(self._part(k, self.widths))]) for k in range(3)]

    def _part(self, k: int, reach: _Vector, index: _Indices | slice = slice(None)) -> _Vector:
        """Integral of x**k over the first ``reach`` of the bins ``index``; a bin of no width is a point."""
        edge, width = self.edges[index], self.widths[index]
        share = np.where(width > 0, reach / np.where(width > 0, width, 1.0), 1.0) * self.weights[index]
        if k == 0:
            return share
        if k == 1:
            return share * (edge + reach / 2)
        return share * (edge * (edge + reach) + reach * reach / 3)

    def error(self, low: _Vector | float, high: _Vector | float, *, signed: bool) -> _Vector:
        """Mean squared error of quantizing to each range, float64 ``[ranges]``, in squared units.

        ``low`` and ``high``, in units, broadcast to ``[ranges]``; the grids are those of
        :func:`autoq.numerics.affine.activation_affine`.
        """
        low, high = np.broadcast_arrays(np.atleast_1d(low), np.atleast_1d(high))
        if signed:
            scale, zero_point, levels = np.maximum(-low, high) / 127, np.zeros_like(low), np.arange(-128, 128)
        else:
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
            scale = (high - low) / 255
            zero_point, levels = np.rint(-low / scale), np.arange(256)
        values = (levels - zero_point[:, None]) * scale[:, None]
        borders = (values[:, :-1] + values[:, 1:]) / 2
        floor = np.floor(borders / self.width)
        index = np.clip(floor + self.bins_per_side, 0, 2 * self.bins_per_side - 1).astype(np.intp)
        reach = np.clip(borders - self.edges[index], 0.0, self.widths[index])
        moments = []
        for k in range(3):
            inner = self.below[k][index] + self._part(k, reach, index)
            ends = np.full((len(low), 1), self.below[k][-1])
            moments.append(np.diff(inner, axis=1, prepend=0.0, append=ends))
        return np.asarray((moments[2] - 2 * values * moments[1] + values**2 * moments[0]).sum(axis=1))
