"""Choosing one point of a front: by a rule, by weights, or by its id, among those that keep the bounds.

============  ===================================================================================================
rule          takes
============  ===================================================================================================
``knee``      the point nearest to the ideal one (:func:`autoq.numerics.compromise.knee`)
``best``      the best metric; ties: the faster
``fastest``   the best metric of those points whose latency cannot be told from the lowest
``smallest``  the smallest file; ties: the better metric
``weights``   the least augmented weighted Chebyshev distance (:func:`autoq.numerics.compromise.chebyshev`)
============  ===================================================================================================

What the measurements cannot tell apart is not ranked (:mod:`autoq.record.noise`): where another point is within one
standard error of the rule's point in metric, shown worse in nothing else and shown cheaper in something, that one is
taken: the one-standard-error rule (Breiman et al. 1984, section 3.4.3). ``smallest`` is exact, and an id is an id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from autoq.core.near_miss import keeps, near_misses
from autoq.core.objectives import Constraints, constraint_excesses, metric_loss, point_losses, point_values
from autoq.core.result import Front, FrontPoint
from autoq.errors import RunError
from autoq.numerics.compromise import chebyshev, knee
from autoq.record.figures import metric_of, uses_final
from autoq.record.noise import alike, cheaper, shown_better

RULES = ("knee", "best", "fastest", "smallest")

OPTIONS = {
    "max_metric_drop": "--max-drop",
    "max_latency_ratio": "--max-latency-ratio",
    "max_size_ratio": "--max-size-ratio",
    "max_peak_memory_ratio": "--max-memory-ratio",
}
"""Bound -> how the command line calls it."""

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A chosen point. ``kept`` is the front of the points that keep the bounds, ``broken`` the other points' number.

    ``rule`` says in words what chose; ``passed_over`` is the point that the rule alone would have taken, where it is
    another. ``alike`` are points whose metric cannot be told from this one's and that are cheaper in something.
    """

    point: FrontPoint
    rule: str
    bounds: Constraints
    kept: Front
    broken: int = 0
    passed_over: FrontPoint | None = None
    alike: tuple[FrontPoint, ...] = ()


def select(
    front: Front, how: str | None = None, *, bounds: Constraints | None = None, weights: Weights | None = None
) -> FrontPoint:
    """The point of :func:`choose`."""
    return choose(front, how, bounds=bounds, weights=weights).point


def choose(
    front: Front, how: str | None = None, *, bounds: Constraints | None = None, weights: Weights | None = None
) -> Choice:
    """The point that ``how`` names, among those that keep ``bounds``, and why.

    ``how`` is one of :data:`RULES` or an id, of which a unique beginning will do; the default is ``"knee"``.
    ``weights`` (objective -> weight) choose instead of it. The metric's drop is on the final split where there is one.
    Raises :class:`~autoq.errors.RunError` when no point is left (naming the bounds that bind and the nearest misses),
    when an id is unknown or ambiguous (naming the ids), when speed is asked for and was not measured, or when weights
    are given with ``how``, negative, all 0, or of what is no objective of the front.
    """
    if weights is not None and how is not None:
        raise RunError(f"weights choose a point by themselves: leave out either them or {how!r}")
    by_weights = None if weights is None else _checked_weights(front, weights)
    how = "knee" if how is None else how
    if not front.points:
        raise RunError(f"the front of {front.name!r} is empty: there is no point to choose{_why_empty(front)}")
    named = None if by_weights is not None or how in RULES else _by_id(front, how)
    bounds = bounds or Constraints()
    points = _within(front, named, bounds)
    kept = replace(front, points=tuple(points))
    if named is not None:
        first, rule = named, f"the id {how}"
    elif by_weights is not None:
        first, rule = _by_weights(front, points, by_weights)
    else:
        first, rule = _by_rule(front, points, how)
    exact = named is not None or how == "smallest"
    point = first if exact else _no_dearer_than_need_be(kept, first)
    return Choice(
        point=point,
        rule=rule,
        bounds=bounds,
        kept=kept,
        broken=len(front.points) - len(points),
        passed_over=None if point is first else first,
        alike=tuple(alike(kept, point)),
    )


def parse_weights(text: str) -> dict[str, float]:
    """``metric=1,latency=2`` as objective -> weight; :class:`~autoq.errors.RunError` where it is none."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, sign, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            sign = ""
        if not name or not sign:
            raise RunError(f"{part.strip()!r} is no weight; write objective=number, as in metric=1,latency=2,size=1")
        if name in weights:
            raise RunError(f"{name!r} has two weights in {text!r}; give it one")
        weights[name] = value
    return weights


def _checked_weights(front: Front, weights: Weights) -> tuple[float, ...]:
    known = ", ".join(front.objectives)
    for name, weight in weights.items():
        if name not in front.objectives:
            raise RunError(f"{name!r} is no objective of this front and can have no weight; it has {known}")
        if not (math.isfinite(weight) and weight >= 0):
            raise RunError(f"the weight of {name!r} is {weight:g}; it must be a finite number, 0 or more")
    if not any(weights.values()):
        raise RunError(f"all weights are 0: give at least one of {known} a weight above 0")
    return tuple(float(weights.get(name, 0.0)) for name in front.objectives)


def _by_weights(front: Front, points: Sequence[FrontPoint], weights: Sequence[float]) -> tuple[FrontPoint, str]:
    given = ", ".join(f"{name} {weight:g}" for name, weight in zip(front.objectives, weights, strict=True))
    best = _of_undominated(front, points, lambda rows: chebyshev(rows, weights))
    return best, f"the least weighted distance from the ideal point ({given})"


def _by_rule(front: Front, points: list[FrontPoint], how: str) -> tuple[FrontPoint, str]:
    if how == "knee":
        return _of_undominated(front, points, knee), "the knee, nearest to the ideal point"

    def loss(point: FrontPoint) -> float:
        return metric_loss(metric_of(front, point), front.metric_direction)

    def ratio(point: FrontPoint) -> float:
        return point.latency.ratio if point.latency else float("inf")

    if how == "best":
        best = min(points, key=lambda point: (loss(point), ratio(point), point.size_bytes))
        return best, f"the best {front.metric_name}"
    if how == "smallest":
        return min(points, key=lambda point: (point.size_bytes, loss(point), ratio(point))), "the smallest file"
    timed = [point for point in points if point.latency is not None]
    if not timed:
        raise RunError(f"latency was not measured in {front.name!r}: choose knee, best, smallest or an id")
    fastest = min(timed, key=ratio)
    tied = [point for point in timed if not shown_better(front, fastest, point, "latency")]
    best = min(tied, key=lambda point: (loss(point), ratio(point), point.size_bytes))
    return best, "the lowest latency"


def _of_undominated(
    front: Front, points: Sequence[FrontPoint], pick: Callable[[list[tuple[float, ...]]], int]
) -> FrontPoint:
    """What ``pick`` takes of the rows that no other one beats: one that is beaten would stretch the scale."""
    final = uses_final(front)
    rows = [point_losses(point, front.objectives, front.metric_direction, final) for point in points]
    kept = [i for i, row in enumerate(rows) if not any(_beats(other, row) for other in rows)]
    return points[kept[pick([rows[i] for i in kept])]]


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def _no_dearer_than_need_be(front: Front, first: FrontPoint) -> FrontPoint:
    """``first``, or what is cheaper and within one standard error of it; of several such, the knee's."""
    others = [point for point in front.points if point.id != first.id and cheaper(front, point, first, z=1.0)]
    return _of_undominated(front, others, knee) if others else first


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


def _within(front: Front, named: FrontPoint | None, bounds: Constraints) -> list[FrontPoint]:
    """The points that keep the bounds; :class:`~autoq.errors.RunError` if none does, or ``named`` does not."""
    final = uses_final(front)
    baseline = point_values(front.baseline, use_final=final)
    excesses = {
        point.id: constraint_excesses(point_values(point, use_final=final), bounds, baseline, front.metric_direction)
        for point in front.points
    }
    kept = [point for point in front.points if keeps(excesses[point.id])]
    if named in kept or (named is None and kept):
        return kept
    asked = [point.id for point in front.points] if named is None else [named.id]
    parts = []
    for miss in near_misses([excesses[key] for key in asked]):
        who = "it" if named else "" if miss.nearest is None else f"the nearest, {asked[miss.nearest]},"
        parts.append(miss.text(OPTIONS[miss.bound], getattr(bounds, miss.bound), who))
    who = f"the point {named.id} breaks" if named else "no point of the front keeps"
    raise RunError(f"{who} {' and '.join(parts)}; loosen a bound or search longer")


def _why_empty(front: Front) -> str:
    if front.why_empty:
        return f": {front.why_empty}"
    return f"; {front.dropped[0].why}" if front.dropped else f" ({front.trials_complete} trials were complete)"
