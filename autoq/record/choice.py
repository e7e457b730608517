"""Choosing one point of a front: by a rule, or by its id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autoq.core.objectives import Constraints, constraint_excesses, metric_drop, metric_loss, point_losses, point_values
from autoq.core.result import Front, FrontPoint
from autoq.errors import RunError

RULES = ("knee", "best", "fastest", "smallest")


def uses_final(front: Front) -> bool:
    """Whether every metric of the front, float32's too, was taken on the final split.

    Final and search metrics come from different rows, so they are never compared with each other.
    """
    return all(point.metric.final is not None for point in (front.baseline, *front.points))


def metric_of(front: Front, point: FrontPoint) -> float:
    """The point's metric on the split that the front is compared on: the final one when all points have it."""
    final = point.metric.final
    return final if final is not None and uses_final(front) else point.metric.search


def drop_of(front: Front, point: FrontPoint) -> float:
    """What the point's metric loses against float32's, in the metric's own unit; positive is worse."""
    return metric_drop(metric_of(front, point), metric_of(front, front.baseline), front.metric_direction)


def knee_point(front: Front, points: Sequence[FrontPoint] | None = None) -> FrontPoint:
    """The knee of ``points`` (by default the whole front) over the front's objectives; they must not be empty."""
    # NumPy is kept out of the start of the command line.
    import numpy as np

    from autoq.numerics.pareto import knee, non_dominated

    candidates = front.points if points is None else points
    final = uses_final(front)
    rows = np.asarray([point_losses(point, front.objectives, front.metric_direction, final) for point in candidates])
    # A point that another one beats everywhere is no knee, and would stretch the scale.
    (kept,) = np.nonzero(non_dominated(rows, keep_duplicates=True))
    return candidates[int(kept[knee(rows[kept])])]


def select(
    front: Front, how: str, *, max_drop: float | None = None, max_latency_ratio: float | None = None
) -> FrontPoint:
    """The point that ``how`` names, among those that keep the bounds.

    ``how`` is ``"knee"``, ``"best"`` (the best metric; ties: the faster), ``"fastest"``, ``"smallest"`` (ties: the
    better metric) or an id, of which a unique beginning will do. ``max_drop`` bounds the metric's loss against
    float32 in the metric's own unit, on the final split where there is one; ``max_latency_ratio`` bounds the measured
    ratio to float32. Raises :class:`~autoq.errors.RunError` when no point is left (naming the bound and the nearest
    miss), when an id is unknown or ambiguous (naming the ids), or when speed is asked for and was not measured.
    """
    if not front.points:
        raise RunError(f"the front of {front.name!r} is empty: there is no point to choose{_why_empty(front)}")
    named = None if how in RULES else _by_id(front, how)
    kept = _within(front, named, max_drop, max_latency_ratio)
    if named is not None:
        return named
    if how == "knee":
        return knee_point(front, kept)

    def loss(point: FrontPoint) -> float:
        return metric_loss(metric_of(front, point), front.metric_direction)

    def ratio(point: FrontPoint) -> float:
        return point.latency.ratio_to_float32 if point.latency else float("inf")

    if how == "fastest":
        kept = [point for point in kept if point.latency is not None]
        if not kept:
            raise RunError(f"latency was not measured in {front.name!r}: choose knee, best, smallest or an id")
    orders: dict[str, Callable[[FrontPoint], tuple[float, ...]]] = {
        "best": lambda point: (loss(point), ratio(point), point.size_bytes),
        "fastest": lambda point: (ratio(point), loss(point), point.size_bytes),
        "smallest": lambda point: (point.size_bytes, loss(point), ratio(point)),
    }
    return min(kept, key=orders[how])


def _by_id(front: Front, prefix: str) -> FrontPoint:
    points = {point.id: point for point in front.points}
    matches = [key for key in points if prefix and key.startswith(prefix)]
    if prefix in points:
        return points[prefix]
    if len(matches) == 1:
        return points[matches[0]]
    for dropped in front.dropped:
        if prefix and dropped.point.id.startswith(prefix):
            raise RunError(f"the point {dropped.point.id} was taken off the front: {dropped.why}")
    ids = ", ".join(points)
    if matches:
        raise RunError(f"{prefix!r} is the beginning of {len(matches)} ids: {', '.join(matches)}; give more of it")
    raise RunError(f"{prefix!r} is no point of this front; choose {', '.join(RULES)} or an id: {ids}")


def _within(
    front: Front, named: FrontPoint | None, max_drop: float | None, max_latency_ratio: float | None
) -> list[FrontPoint]:
    """The points (of all, or the named one) that keep both bounds; :class:`~autoq.errors.RunError` if there is none."""
    points = list(front.points) if named is None else [named]
    bounds = Constraints(max_metric_drop=max_drop, max_latency_ratio=max_latency_ratio)
    options = {"max_metric_drop": "--max-drop", "max_latency_ratio": "--max-latency-ratio"}
    final = uses_final(front)
    baseline = point_values(front.baseline, use_final=final)
    excesses = [
        constraint_excesses(point_values(point, use_final=final), bounds, baseline, front.metric_direction)
        for point in points
    ]
    kept = [point for point, excess in zip(points, excesses, strict=True) if _keeps(excess)]
    if kept:
        return kept
    # A bound that no point keeps binds by itself; when each is kept by some point, they bind together, and the
    # nearest miss of one is looked for among the points that keep the others.
    alone = [name for name in excesses[0] if not any(_keeps({name: excess[name]}) for excess in excesses)]
    parts = []
    for name in alone or list(excesses[0]):
        others = [] if alone else [other for other in excesses[0] if other != name]
        misses = [
            (amount, point)
            for point, excess in zip(points, excesses, strict=True)
            if (amount := excess[name]) is not None and _keeps({other: excess[other] for other in others})
        ]
        bound = getattr(bounds, name)
        if not misses:
            parts.append(f"{options[name]} {bound:g} (it was not measured)")
            continue
        amount, point = min(misses, key=lambda miss: miss[0])
        who = "it" if named else f"the nearest, {point.id},"
        what = "loses" if name == "max_metric_drop" else "has the ratio"
        parts.append(f"{options[name]} {bound:g} ({who} {what} {bound + amount:.4g})")
    who = f"the point {named.id} breaks" if named else "no point of the front keeps"
    raise RunError(f"{who} {' and '.join(parts)}; loosen a bound or search longer")


def _keeps(excess: dict[str, float | None]) -> bool:
    return all(amount is not None and amount <= 0 for amount in excess.values())


def _why_empty(front: Front) -> str:
    return f"; {front.dropped[0].why}" if front.dropped else f" ({front.trials_complete} trials were complete)"
