"""k-means of numbers on a line, where the best partition can be found outright.

The clusters of least squared error are intervals, so dynamic programming over the sorted values finds them (Wang and
Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", 2011, equation 2). Many
values are first put into cells of near-equal weight, which keeps it exact up to the cells; Lloyd's iterations on the
values themselves (Lloyd, "Least Squares Quantization in PCM", 1982) then only lower the error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_CELLS = 1024
_ITERATIONS = 50
_NOTHING = 1e-12  # share of all weight that running totals could not tell from 0, with a margin


def centers(values: npt.ArrayLike, weights: npt.ArrayLike, count: int) -> Vector:
    """At most ``count`` centers, ascending and distinct, of least ``sum_i weights_i min_c (values_i - c)**2``.

    ``values`` and ``weights`` (not negative) have one shape. Fewer distinct values of any weight (above 1e-12 of all)
    than ``count`` are centers themselves; with no weight at all the one center is 0. The same input gives the same
    result everywhere.
    """
    flat, mass = np.ravel(np.asarray(values, np.float64)), np.ravel(np.asarray(weights, np.float64))
    some = mass > _NOTHING * mass.sum()
    points, where = np.unique(flat[some], return_inverse=True)
    if not points.size:
        return np.zeros(1)
    mass = np.bincount(where, mass[some]).astype(np.float64)
    if points.size <= count:
        return points
    if points.size <= _CELLS:
        return _optimal(points, mass, count)
    cell = _cells(points, mass)
    in_cell = np.bincount(cell, mass).astype(np.float64)
    middles = np.bincount(cell, mass * points).astype(np.float64) / in_cell
    return _lloyd(points, mass, _optimal(middles, in_cell, count))


def _cells(points: Vector, mass: Vector) -> npt.NDArray[np.intp]:
    """The cell of each point, ascending. Half of its share is weight and half is room, so that tails get some, too."""
    share = np.cumsum(mass) / mass.sum() + (points - points[0]) / (points[-1] - points[0])
    return np.unique(np.minimum((share * (_CELLS / 2)).astype(np.intp), _CELLS - 1), return_inverse=True)[1]


def _optimal(points: Vector, mass: Vector, count: int) -> Vector:
    """The centers of the best partition of ascending ``points``, by dynamic programming."""
    middle = float((mass * points).sum() / mass.sum())
    points = points - middle  # or the square of a far-off mean would drown the rest
    sums = [np.concatenate([[0.0], np.cumsum(mass * points**power)]) for power in range(3)]
    weight, first, second = (total[None, :] - total[:, None] for total in sums)  # [start, stop]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(weight > 0, np.maximum(second - first**2 / weight, 0.0), np.inf)
    best = cost[0]  # of the first ``stop`` points in one cluster
    starts = []
    for _ in range(count - 1):
        total = best[:, None] + cost
        starts.append(total.argmin(axis=0))
        best = np.take_along_axis(total, starts[-1][None], axis=0)[0]
    found, stop = [], len(points)
    for start in reversed(starts):
        begin = int(start[stop])
        found.append(first[begin, stop] / weight[begin, stop])
        stop = begin
    found.append(first[0, stop] / weight[0, stop])
    return np.unique(np.array(found) + middle)


def _lloyd(points: Vector, mass: Vector, centers: Vector) -> Vector:
    """Lloyd's iterations from ``centers``: sums over intervals come from running totals."""
    weight = np.concatenate([[0.0], np.cumsum(mass)])
    first = np.concatenate([[0.0], np.cumsum(mass * points)])
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(points, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(points)]])
        inside = np.diff(weight[edges])
        moved = np.where(inside > 0, np.diff(first[edges]) / np.where(inside > 0, inside, 1.0), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers
