"""Objectives become losses here, and nowhere else: every loss is minimised.

==============  =====================================  =========================================
objective       loss                                   unit
==============  =====================================  =========================================
``metric``      ``-metric`` (``maximize``), or         the metric's own
                ``metric`` (``minimize``)
``latency``     ``ratio``, measured or estimated       1 = the reference, float32 as a rule; 0.5 = twice as fast
``size``        ``size_bytes``                         bytes
``peak_memory`` ``peak_memory_bytes``                  bytes
==============  =====================================  =========================================

A *drop* is a loss against float32 in the metric's own unit: positive is worse in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autoq.core.result import FrontPoint, Trial
from autoq.errors import JobError

Objective = Literal["metric", "latency", "size", "peak_memory"]
OBJECTIVES: tuple[Objective, ...] = ("metric", "latency", "size", "peak_memory")
Direction = Literal["maximize", "minimize"]

# 0.884 - 0.864 is 0.020000000000000018: a bound that is met in decimal must not be broken by the last binary digit.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What was measured of one model; ``None`` where it was not. ``metric`` is in its own direction."""

    metric: float | None = None
    latency_ratio: float | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Bounds that a candidate must keep; ``None`` is no bound.

    ``max_metric_drop`` is in the metric's own unit (0.02 = two points of accuracy); the others are ratios to
    float32 (0.5 = half). Raises :class:`~autoq.errors.JobError` when a bound is not finite, a drop is negative or a
    ratio is not positive.
    """

    max_metric_drop: float | None = None
    max_latency_ratio: float | None = None
    max_size_ratio: float | None = None
    max_peak_memory_ratio: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__dataclass_fields__)

    def __post_init__(self) -> None:
        drop = self.max_metric_drop
        if drop is not None and not (math.isfinite(drop) and drop >= 0):
            raise JobError(f"max_metric_drop is {drop}; it must be a finite number, 0 or more")
        for name in ("max_latency_ratio", "max_size_ratio", "max_peak_memory_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
                raise JobError(f"{name} is {ratio}; it must be a finite number above 0 (1 = float32)")


def trial_values(trial: Trial) -> Values:
    """What was measured of a trial (never ``latency_modelled``, which is no measurement)."""
    return Values(
        metric=trial.metric,
        latency_ratio=trial.latency.ratio if trial.latency else None,
        size_bytes=trial.size_bytes,
        peak_memory_bytes=trial.peak_memory_bytes,
    )


def point_values(point: FrontPoint, *, use_final: bool) -> Values:
    """What was measured of a point; its metric is the final split's (``None`` if not taken) or the search split's."""
    return Values(
        metric=point.metric.final if use_final else point.metric.search,
        latency_ratio=point.latency.ratio if point.latency else None,
        size_bytes=point.size_bytes,
        peak_memory_bytes=point.peak_memory_bytes,
    )


def metric_loss(metric: float, direction: Direction) -> float:
    """``-metric`` when the metric is maximised, else ``metric``."""
    return -metric if direction == "maximize" else metric


def metric_drop(metric: float, baseline: float, direction: Direction) -> float:
    """What ``metric`` loses against ``baseline``, in the metric's own unit; positive is worse, negative a gain."""
    return metric_loss(metric, direction) - metric_loss(baseline, direction)


def losses(values: Values, objectives: Sequence[str], direction: Direction) -> tuple[float, ...]:
    """One loss for each of ``objectives``, in their order; all are minimised.

    Raises ``ValueError`` when a value is missing, not finite, or an objective is unknown: a missing measurement has
    no loss, and a failed trial must never come this far.
    """
    measured: dict[str, float | None] = {
        "metric": None if values.metric is None else metric_loss(values.metric, direction),
        "latency": values.latency_ratio,
        "size": values.size_bytes,
        "peak_memory": values.peak_memory_bytes,
    }
    result = []
    for objective in objectives:
        if objective not in measured:
            raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
        loss = measured[objective]
        if loss is None or not math.isfinite(loss):
            raise ValueError(f"the objective {objective!r} has no finite value ({loss}): it has no loss")
        result.append(float(loss))
    return tuple(result)


def trial_losses(trial: Trial, objectives: Sequence[str], direction: Direction) -> tuple[float, ...]:
    """The losses of a complete trial; ``ValueError`` as :func:`losses`."""
    return losses(trial_values(trial), objectives, direction)


def point_losses(
    point: FrontPoint, objectives: Sequence[str], direction: Direction, use_final: bool
) -> tuple[float, ...]:
    """The losses of a front point, its metric on the final or the search split; ``ValueError`` as :func:`losses`."""
    return losses(point_values(point, use_final=use_final), objectives, direction)


def constraint_excesses(
    values: Values, constraints: Constraints, baseline: Values, direction: Direction
) -> dict[str, float | None]:
    """Bound name -> how far ``values`` is beyond it (0 or less keeps the bound), for each bound that is set.

    The excess is in the bound's own unit, and ``None`` where a measurement it needs is missing.
    """
    drop = None
    if values.metric is not None and baseline.metric is not None:
        drop = metric_drop(values.metric, baseline.metric, direction)
    shares = {
        "max_metric_drop": drop,
        "max_latency_ratio": values.latency_ratio,
        "max_size_ratio": _ratio(values.size_bytes, baseline.size_bytes),
        "max_peak_memory_ratio": _ratio(values.peak_memory_bytes, baseline.peak_memory_bytes),
    }
    excesses: dict[str, float | None] = {}
    for name, value in shares.items():
        bound = getattr(constraints, name)
        if bound is None:
            continue
        excess = None if value is None else value - bound
        if excess is not None and abs(excess) <= _ROUNDING:
            excess = 0.0
        excesses[name] = excess
    return excesses


def constraint_violations(
    values: Values, constraints: Constraints, baseline: Values, direction: Direction
) -> list[str]:
    """A sentence for each bound that is broken, or cannot be shown to hold; empty when all are kept."""
    names = {
        "max_metric_drop": "the metric drop",
        "max_latency_ratio": "the latency ratio to float32",
        "max_size_ratio": "the size ratio to float32",
        "max_peak_memory_ratio": "the peak memory ratio to float32",
    }
    sentences = []
    for bound_name, excess in constraint_excesses(values, constraints, baseline, direction).items():
        bound = getattr(constraints, bound_name)
        if excess is None:
            sentences.append(f"{names[bound_name]} was not measured, so {bound_name} {bound:g} cannot be shown to hold")
        elif excess > 0:
            sentences.append(f"{names[bound_name]} {bound + excess:.4g} is above {bound_name} {bound:g}")
    return sentences


def _ratio(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or not baseline else value / baseline
