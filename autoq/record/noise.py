"""What the measurements can tell apart of two points of a front, and what they cannot.

==============  ====================================================================================================
objective       two points are told apart when they differ by more than
==============  ====================================================================================================
metric          1.96 standard errors of their difference, from the paired bootstrap on the final split; where there is
                none (a running front, or one of an earlier version) as it stands
latency         the 95 % half-width of the ratio of the two, from both intervals, and 1 %
size            1 %; it is exact, and the rest is not worth a word
peak memory     1 %, and half a megabyte: repeats differ by that
==============  ====================================================================================================
"""

from __future__ import annotations

import math

from autoq.core.objectives import metric_drop
from autoq.core.result import Estimate, Front, FrontPoint, Latency
from autoq.record.figures import metric_of

Z95 = 1.96
STEP = 0.01
"""Latencies, sizes and peaks of memory nearer to each other than this are not ranked."""

MEMORY_STEP = 500_000

COSTS = ("latency", "size", "peak_memory")


def gap_se(a: FrontPoint, b: FrontPoint) -> float | None:
    """The standard error of the difference of two points' final metrics; ``None`` where it was not taken."""
    return dict(b.metric.gap_se).get(a.id, dict(a.metric.gap_se).get(b.id))


def metric_gap(front: Front, a: FrontPoint, b: FrontPoint) -> tuple[float, float]:
    """How much worse the metric of ``a`` is than that of ``b``, and the standard error of that (0: unknown)."""
    error = gap_se(a, b)
    if error is not None and a.metric.final is not None and b.metric.final is not None:
        return metric_drop(a.metric.final, b.metric.final, front.metric_direction), error
    return metric_drop(metric_of(front, a), metric_of(front, b), front.metric_direction), 0.0


def shown_better(front: Front, a: FrontPoint, b: FrontPoint, objective: str, *, z: float = Z95) -> bool:
    """Whether the measurements show ``a`` to be better than ``b`` in an objective; ``z`` is for the metric."""
    if objective == "metric":
        gap, error = metric_gap(front, b, a)
        return gap > z * error
    gain = cost_ratio(b, a, objective)
    if gain is None or gain <= 1 + STEP:
        return False
    if objective == "latency":
        assert a.latency is not None and b.latency is not None
        return math.log(gain) > math.hypot(_half_width(a.latency), _half_width(b.latency))
    if objective == "peak_memory":
        assert a.peak_memory_bytes is not None and b.peak_memory_bytes is not None
        return b.peak_memory_bytes - a.peak_memory_bytes > MEMORY_STEP
    return True


def cost_ratio(a: FrontPoint, b: FrontPoint, objective: str) -> float | None:
    """The latency, size or peak memory of ``a`` over that of ``b``; ``None`` where one was not measured."""
    if objective == "latency":
        if a.latency is None or b.latency is None:
            return None
        return a.latency.ratio / b.latency.ratio
    if objective == "size":
        return a.size_bytes / b.size_bytes if b.size_bytes else None
    first, second = a.peak_memory_bytes, b.peak_memory_bytes
    return first / second if first is not None and second else None


def cheaper(front: Front, a: FrontPoint, b: FrontPoint, *, z: float = Z95) -> bool:
    """Whether ``a`` is shown cheaper than ``b`` in an objective, and ``b`` better than ``a`` in none."""
    if any(shown_better(front, b, a, objective, z=z) for objective in front.objectives):
        return False
    return any(shown_better(front, a, b, objective) for objective in front.objectives if objective in COSTS)


def alike(front: Front, point: FrontPoint) -> list[FrontPoint]:
    """The points whose metric cannot be told from that of ``point``, and that are shown cheaper in some objective.

    Empty where the differences of the metrics were not taken.
    """
    return [
        other
        for other in front.points
        if other.id != point.id
        and gap_se(point, other) is not None
        and not any(shown_better(front, *pair, "metric") for pair in ((point, other), (other, point)))
        and any(shown_better(front, other, point, objective) for objective in front.objectives if objective in COSTS)
    ]


def nothing_ranked(front: Front) -> bool:
    """Whether the final split tells the metrics of no two points apart (of two points at least, errors known)."""
    pairs = [(a, b) for i, b in enumerate(front.points) for a in front.points[:i]]
    known = [gap_se(a, b) is not None for a, b in pairs]
    return (
        bool(pairs)
        and all(known)
        and not any(shown_better(front, a, b, "metric") or shown_better(front, b, a, "metric") for a, b in pairs)
    )


def _half_width(latency: Latency | Estimate) -> float:
    """0 for an estimate, which comes out the same every time."""
    if latency.interval is None:
        return 0.0
    low, high = latency.interval
    return math.log(high / low) / 2
