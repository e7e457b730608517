"""The figures of a front's points that everything else is made of: on which split, and against float32."""

from __future__ import annotations

from autoq.core.objectives import metric_drop
from autoq.core.result import Front, FrontPoint


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
