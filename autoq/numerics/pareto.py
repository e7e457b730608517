"""Fronts of non-dominated points. Every objective is a loss: smaller is better."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float64]


def non_dominated(losses: npt.ArrayLike, *, keep_duplicates: bool = False) -> npt.NDArray[np.bool_]:
    """Which rows of ``losses`` ``[n, d]`` no other row dominates: bool ``[n]``.

    A row dominates another when it is nowhere larger and somewhere smaller. Of identical rows only the first stays,
    or all with ``keep_duplicates``. Raises ``ValueError`` on NaN.
    """
    points = _checked(losses)
    unique, first, inverse = np.unique(points, axis=0, return_index=True, return_inverse=True)
    # Rows now come in lexicographic order: a row can only be dominated by an earlier one, hence by one of the front.
    front = _front_of_three(unique) if unique.shape[1] == 3 else _front_of_any(unique)
    if keep_duplicates:
        return np.asarray(front[inverse.reshape(-1)])
    mask = np.zeros(len(points), dtype=bool)
    mask[first[front]] = True  # np.unique gives the first occurrence
    return mask


def _front_of_any(rows: Losses) -> npt.NDArray[np.bool_]:
    """Of distinct rows in lexicographic order."""
    front = np.zeros(len(rows), dtype=bool)
    kept = np.empty_like(rows)
    size = 0
    for index, point in enumerate(rows):
        if not (kept[:size] <= point).all(axis=1).any():
            kept[size] = point
            size += 1
            front[index] = True
    return front


def _front_of_three(rows: Losses) -> npt.NDArray[np.bool_]:
    """The same, with the front of the last two columns as stairs (Kung, Luccio and Preparata 1975)."""
    ys: list[float] = []  # rises,
    zs: list[float] = []  # falls
    front = []
    for _, y, z in rows.tolist():
        place = bisect_right(ys, y)
        front.append(not (place and zs[place - 1] <= z))
        if front[-1]:
            first = place - 1 if place and ys[place - 1] == y else place
            last = place
            while last < len(ys) and zs[last] >= z:
                last += 1
            ys[first:last], zs[first:last] = [y], [z]
    return np.array(front, dtype=bool)


def hypervolume(losses: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Volume dominated by ``losses`` ``[n, d]`` and bounded by ``reference`` ``[d]``; exact.

    Points that are not below the reference in every objective add nothing. In two and three dimensions a sweep over the
    last one (three: Fonseca et al. 2006, "An Improved Dimension-Sweep Algorithm for the Hypervolume Indicator"), above
    that by slicing objectives (While et al. 2006); meant for d up to 4, and there for some hundreds of points.
    Raises ``ValueError`` on NaN, on minus infinity or on a reference that does not fit.
    """
    points, bound = _checked(losses), np.asarray(reference, np.float64)
    if bound.shape != (points.shape[1],) or not np.isfinite(bound).all():
        raise ValueError(f"the reference must be {points.shape[1]} finite numbers, not {reference!r}")
    if np.isneginf(points).any():
        raise ValueError("a loss of minus infinity dominates an infinite volume")
    return _volume(points[(points < bound).all(axis=1)], bound)


def _volume(points: Losses, bound: Losses) -> float:
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(bound[0] - points.min())
    points = points[non_dominated(points)]
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.diff(points[:, -1], append=bound[-1])
    if points.shape[1] == 2:
        # Sorted by the second objective, a front's first objective falls: each slab spans to the least so far.
        return float(((bound[0] - np.minimum.accumulate(points[:, 0])) * depths).sum())
    if points.shape[1] == 3:
        return float((_areas(points[:, :2].tolist(), bound[0], bound[1]) * depths).sum())
    slices = (_volume(points[: i + 1, :-1], bound[:-1]) * depth for i, depth in enumerate(depths) if depth > 0)
    return float(sum(slices))


def _areas(points: list[list[float]], right: float, top: float) -> npt.NDArray[np.float64]:
    """The area that each point and those before it dominate, up to ``right`` and ``top``: ``[n]``."""
    xs: list[float] = []  # the front so far: x rises,
    ys: list[float] = []  # y falls
    area, areas = 0.0, []
    for x, y in points:
        first = last = bisect_left(xs, x)
        left, height = x, ys[first - 1] if first else top
        while height > y:  # over the steps of the front that this point takes away
            ends = last == len(xs)
            edge = right if ends else xs[last]
            area += (edge - left) * (height - y)
            if ends or ys[last] < y:
                break
            left, height, last = edge, ys[last], last + 1
        else:
            if last == first:  # dominated
                areas.append(area)
                continue
        xs[first:last], ys[first:last] = [x], [y]
        areas.append(area)
    return np.array(areas)


def _checked(losses: npt.ArrayLike) -> Losses:
    points = np.asarray(losses, np.float64) + 0.0  # turns -0 into 0: they are one value
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"losses must be [points, objectives], not an array of shape {points.shape}")
    if np.isnan(points).any():
        raise ValueError(f"the losses of row {int(np.isnan(points).any(axis=1).argmax())} hold a NaN")
    return points
