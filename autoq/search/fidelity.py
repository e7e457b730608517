"""Fidelity steps: a candidate is scored on more and more rows, and dropped when it can hardly reach the front any more.

The search split is scored in a fixed, seeded order. At each look the candidate's answers are compared, row by row, with
those of float32: the difference of two models that agree on most rows is known from far fewer rows than either metric.
:mod:`autoq.numerics.sequential` bounds what the candidate loses. It is dropped when the bound is beyond its *hurdle*:
what it may lose and still be worth anything.

All that decides is fixed when a batch is asked for, so every worker decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.objectives import metric_drop
from autoq.core.result import Pruned
from autoq.errors import MetricError
from autoq.numerics.sequential import least_lost_share, least_of_jackknife
from autoq.runtime.metric import Metric
from autoq.runtime.ort import joined

LEVEL = 0.05
"""The probability, over all looks, that a candidate is dropped that all rows would not have shown to be dominated."""

LEAST_UNITS = 100
"""Rows (groups of rows) of the first look. Below, too little can be told to pay."""

_LOOKS = 4  # before all rows: 1/16, 1/8, 1/4 and 1/2 of them
_FEWEST_LOOKS = 2
_BLOCKS = 20  # of the jackknife

_ROUNDING = 1e-9  # of differences of metrics

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hurdle:
    """What a candidate may lose against float32 and still be worth something.

    ``rivals`` are finished trials that are predicted to be as fast as the candidate: (size in bytes, drop, name). Size
    is 0 where it is no objective. ``max_drop`` is the constraint.
    """

    rivals: tuple[tuple[int, float, str], ...] = ()
    max_drop: float | None = None

    def for_size(self, size_bytes: int) -> tuple[float, str]:
        """The largest drop for a file of that size, and whose; infinite where nobody sets one."""
        options = [
            (drop, f"{name}, as small and predicted to be as fast, loses")
            for size, drop, name in self.rivals
            if size <= size_bytes
        ]
        if self.max_drop is not None:
            options.append((self.max_drop, "max_metric_drop allows"))
        return min(options, default=(math.inf, "nobody loses"))

    def not_taken(self, size_bytes: int, drop: float) -> str:
        """Why a candidate that loses ``drop`` on all rows is not worth timing; empty where it is.

        One that a rival equals in all is not.
        """
        limit, whose = self.for_size(size_bytes)
        if drop < limit - _ROUNDING or (drop <= limit + _ROUNDING and limit == self.max_drop):
            return ""
        return f"it loses {drop:.4g} against float32, and {whose} {limit:.4g}: it was not timed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """The first ``rows`` rows of the order, and float32's metric on them: of all, and without each block."""

    rows: int
    value: float
    left_out: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """How candidates are scored. ``order`` [rows] are the rows of the split in the order of scoring.

    ``chunk`` rows go through the model at once. ``hits`` [rows] says which rows of the order float32 gets right, where
    the metric is their mean. ``baseline`` is float32's metric on all rows. ``level`` is that of one look.
    """

    order: np.ndarray
    chunk: int
    group: int
    looks: tuple[Look, ...]
    baseline: float
    level: float
    hits: np.ndarray | None = None


def planned_looks(rows: int, group: int, chunk: int) -> tuple[int, ...]:
    """After how many rows to look, before all are scored: whole chunks and groups, doubling. Empty where it cannot pay.

    Whole chunks, since a model that quantizes its activations as it runs sees a chunk as a whole.
    """
    unit = math.lcm(group, chunk)
    wanted = [rows >> power for power in range(_LOOKS, 0, -1)]
    found = dict.fromkeys(count // unit * unit for count in wanted)
    looks = tuple(count for count in found if count >= LEAST_UNITS * group)
    return looks if len(looks) >= _FEWEST_LOOKS else ()


def plan_steps(
    metric: Metric, float32: Outputs, targets: np.ndarray | None, *, group: int, chunk: int, seed: int
) -> Steps | None:
    """The steps for a split with these outputs of float32, in file order; ``None`` where they would not pay.

    A look at which float32 itself has no metric (a class that does not occur, say) is left out.
    """
    outputs = metric.reads(float32)
    rows = len(next(iter(outputs.values())))
    planned = planned_looks(rows, group, chunk)
    if not planned:
        return None
    order = _shuffled(rows, group, seed)
    looks = []
    for count in planned:
        values = _values(metric, outputs, targets, order[:count], group)
        if values is not None:
            looks.append(Look(rows=count, value=values[0], left_out=values[1]))
    if not looks:
        return None
    hits = metric.hits(outputs, targets) if group == 1 else None
    return Steps(
        order=order,
        chunk=chunk,
        group=group,
        looks=tuple(looks),
        baseline=metric(float32, targets),
        level=LEVEL / len(looks),
        hits=None if hits is None else hits[order],
    )


def score_in_steps(
    run: Callable[[Mapping[str, np.ndarray]], Outputs],
    metric: Metric,
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
    steps: Steps,
    limit: tuple[float, str],
) -> tuple[dict[str, np.ndarray], Pruned | None]:
    """The outputs of all rows in file order; or, once the bound is beyond ``limit``, why there is no more to do.

    ``run`` gives a model's outputs for some rows.
    """
    parts: list[Outputs] = []
    looks = {look.rows: look for look in steps.looks}
    total = len(steps.order)
    for start in range(0, total, steps.chunk):
        stop = min(start + steps.chunk, total)
        rows = steps.order[start:stop]
        parts.append(run({name: array[rows] for name, array in inputs.items()}))
        if stop in looks and math.isfinite(limit[0]):
            pruned = _judged(metric, _joined(parts), targets, steps, looks[stop], limit)
            if pruned is not None:
                return {}, pruned
    scored = _joined(parts)
    back = np.empty_like(steps.order)
    back[steps.order] = np.arange(total)
    return {name: array[back] for name, array in scored.items()}, None


def _judged(
    metric: Metric, outputs: Outputs, targets: np.ndarray | None, steps: Steps, look: Look, limit: tuple[float, str]
) -> Pruned | None:
    most, whose = limit
    rows, total = look.rows, len(steps.order)
    seen = None if targets is None else targets[steps.order[:rows]]
    read = metric.reads(outputs)
    try:
        value = metric(read, seen)
    except MetricError:  # on these rows; what all rows give will show
        return None
    drop = metric_drop(value, look.value, metric.direction)
    if drop <= most:
        return None
    bound: float | None
    if steps.hits is not None:
        right, before = metric.hits(read, seen), steps.hits[:rows]
        assert right is not None
        lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
        bound = least_lost_share(lost, gained, rows, steps.level, 1 - rows / total)
    else:
        values = _values(metric, read, seen, np.arange(rows), steps.group)
        if values is None or len(values[1]) != len(look.left_out):
            return None
        drops = [metric_drop(own, base, metric.direction) for own, base in zip(values[1], look.left_out, strict=True)]
        bound = least_of_jackknife(drop, drops, steps.level, 1 - rows / total)
        # A jackknife knows only what it saw: against a hurdle better than float32 it would miss rare gains.
        most = max(most, 0.0)
    if bound is None or bound <= most:
        return None
    sign = 1 if metric.direction == "minimize" else -1
    return Pruned(
        rows=rows,
        of=total,
        metric=steps.baseline + sign * drop,
        bound=steps.baseline + sign * bound,
        why=f"after {rows} of {total} rows it loses {bound:.4g} or more against float32, with confidence, and {whose} "
        f"{limit[0]:.4g}",
    )


def _values(
    metric: Metric, outputs: Outputs, targets: np.ndarray | None, rows: np.ndarray, group: int
) -> tuple[float, tuple[float, ...]] | None:
    """The metric on ``rows``, and on these without each block of whole groups; ``None`` where it has no value."""

    def of(kept: np.ndarray) -> float:
        return metric(
            {name: array[kept] for name, array in outputs.items()}, None if targets is None else targets[kept]
        )

    groups = rows.reshape(-1, group)
    blocks = np.array_split(np.arange(len(groups)), _BLOCKS)
    try:
        return of(rows), tuple(of(np.delete(groups, block, axis=0).reshape(-1)) for block in blocks)
    except MetricError:
        return None


def _shuffled(rows: int, group: int, seed: int) -> np.ndarray:
    """All rows, whole groups in a seeded order."""
    groups = np.random.default_rng([seed, rows]).permutation(rows // group)
    return np.asarray((groups[:, None] * group + np.arange(group)).reshape(-1))


def _joined(parts: Sequence[Outputs]) -> dict[str, np.ndarray]:
    return {name: joined(name, [part[name] for part in parts]) for name in parts[0]}
