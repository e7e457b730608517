"""The final check: the front scored on data that no choice has seen, and timed once more, all in turn."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoq.core.objectives import constraint_violations, metric_drop, point_losses, point_values
from autoq.core.result import DroppedPoint, Failure, FrontPoint, MetricPair, Polish, Trial
from autoq.errors import RunError, TrialError
from autoq.model.target import Target
from autoq.numerics.bootstrap import interval
from autoq.numerics.pareto import non_dominated
from autoq.runtime.data import Split
from autoq.runtime.gauge import Measurement
from autoq.runtime.metric import Metric, bootstrap_paired
from autoq.runtime.shipped import zipped_bytes
from autoq.search.executor import Executor
from autoq.search.polish import Polished
from autoq.search.problem import Problem

LATENCY_STEP = 0.01
"""Latencies nearer to each other than this are not ranked; repeated measurements of one file differ by up to 0.5 %."""

Outputs = Mapping[str, np.ndarray]


class FinalMetric(NamedTuple):
    """A metric on the final split, its 95 % interval, and that of the drop against float32 on the same rows."""

    value: float
    ci95: tuple[float, float] | None
    drop_ci95: tuple[float, float] | None


def outputs_of(target: Target, path: Path, inputs: Outputs, batch: int) -> Outputs:
    """Of a file on ``target``. The float32 model as given is ONNX, whatever the target's files are."""
    own = target if path.name.endswith(target.suffix) else Target.load("onnxruntime")
    return own.outputs(path, inputs, batch)


def final_metrics(
    metric: Metric, outputs: Sequence[Outputs], split: Split, *, seed: int
) -> tuple[list[FinalMetric], np.ndarray]:
    """The metrics of several models on one split, of which the first is float32; and their bootstrap samples.

    The samples ``[models, resamples]`` are over groups of rows, and paired. Raises :class:`autoq.errors.MetricError`.
    """
    values = [metric(each, split.targets) for each in outputs]
    samples = bootstrap_paired(metric, outputs, split.targets, split.group, seed=seed)
    drops = [
        [metric_drop(own, base, metric.direction) for own, base in zip(row, samples[0], strict=True)] for row in samples
    ]
    found = [
        FinalMetric(value, interval(row), interval(np.asarray(drop)))
        for value, row, drop in zip(values, samples, drops, strict=True)
    ]
    return found, samples


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The front after the final check, best metric first, what fell off it, and what else there is to say."""

    baseline: FrontPoint
    points: tuple[FrontPoint, ...]
    dropped: tuple[DroppedPoint, ...]
    notes: tuple[str, ...] = ()


def check_front(
    front: Sequence[Trial],
    paths: Sequence[Path],
    baseline: FrontPoint,
    baseline_path: Path,
    *,
    problem: Problem,
    executor: Executor,
    target: Target,
    metric: Metric,
    split: Split,
    batch: int,
    seed: int,
    workers: int,
    run_folder: Path,
    polished: Mapping[str, Polished] | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Checked:
    """Scores and times the models in ``paths``, those of the trials ``front``, against float32.

    Points whose ids ``polished`` has are on the front with their polished file; the file before is scored and timed
    beside it, for the record alone.

    A point falls off when it breaks a constraint on the final split, or when another point or float32 dominates it
    there (latencies within :data:`LATENCY_STEP` of each other count as equal): the search split had flattered it. It
    falls off as well when its file cannot be scored or timed now, for want of memory, say; a polished file that cannot
    leaves the one before in its place. Intervals are bootstrapped over groups of rows, paired with float32's.
    Raises :class:`autoq.errors.TrialError` when float32 cannot be scored, and :class:`autoq.errors.MetricError`.
    """

    def outputs(path: Path) -> Outputs:
        return metric.reads(outputs_of(target, path, split.inputs, batch))

    polished = dict(polished or {})
    asked = [*paths, *(own.path for own in polished.values())]
    step(f"scoring {len(asked)} models on the final split")
    answers, lost = answers_of(outputs, [baseline_path, *asked], workers)
    if baseline_path in lost:
        raise TrialError("metric", lost[baseline_path])
    scored = [path for path in asked if path not in lost]
    step(f"timing {len(scored)} models in turn")
    taken = dict(zip(scored, executor.measure_many(scored) if scored else [], strict=True))
    lost |= {path: f"timing it: {each.message}" for path, each in taken.items() if isinstance(each, Failure)}
    notes = [
        f"{key} stays as it was before polishing, since its polished file failed in the final check: {lost[own.path]}"
        for key, own in polished.items()
        if own.path in lost
    ]
    dropped = [
        DroppedPoint(point=_point(trial, path, run_folder), why=f"its file failed in the final check: {lost[path]}")
        for trial, path in zip(front, paths, strict=True)
        if path in lost
    ]
    kept = [(trial, path) for trial, path in zip(front, paths, strict=True) if path not in lost]
    ids = {trial.id for trial, _ in kept}
    polished = {key: own for key, own in polished.items() if key in ids and own.path not in lost}
    every = [*(path for _, path in kept), *(own.path for own in polished.values())]
    measured = [each for path in every if not isinstance(each := taken[path], Failure)]
    found = [answers[path] for path in (baseline_path, *every)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        zipped = list(pool.map(zipped_bytes, [baseline_path, *every]))
    metrics, samples = final_metrics(metric, found, split, seed=seed)
    checked_baseline = dataclasses.replace(
        baseline,
        metric=MetricPair(search=baseline.metric.search, final=metrics[0].value, final_ci95=metrics[0].ci95),
        load_ms=_baseline_load_ms(baseline, measured),
        zip_bytes=zipped[0],
    )

    def metric_pair(search_metric: float | None, i: int) -> MetricPair:
        found = metrics[i]
        return MetricPair(
            search=_present(search_metric), final=found.value, final_ci95=found.ci95, drop_ci95=found.drop_ci95
        )

    points = [
        dataclasses.replace(
            _point(trial, path, run_folder),
            metric=metric_pair(trial.metric, i),
            latency=measured[i - 1].latency,
            load_ms=measured[i - 1].load_ms,
            zip_bytes=_zip_bytes(measured[i - 1], zipped[i]),
        )
        for i, (trial, path) in enumerate(kept, start=1)
    ]
    for i, (key, own) in enumerate(polished.items(), start=1 + len(kept)):
        where = next(index for index, point in enumerate(points) if point.id == key)
        points[where] = _with_polish(
            points[where],
            own,
            metric_pair(own.record.metric, i),
            measured[i - 1],
            zipped[i],
            own.path.relative_to(run_folder),
        )
    rows = dict(zip([*(trial.id for trial, _ in kept), *polished], samples[1:], strict=True))  # the polished one's last
    checked = _sorted_out(checked_baseline, points, problem)
    return dataclasses.replace(
        checked,
        points=_with_gaps(checked.points, rows),
        dropped=(*checked.dropped, *dropped),
        notes=tuple(notes),
    )


def answers_of(
    outputs: Callable[[Path], Outputs], paths: Sequence[Path], workers: int
) -> tuple[dict[Path, Outputs], dict[Path, str]]:
    """What the files answer, and why some do not: those that failed beside others were run once more, alone."""

    def attempt(path: Path) -> Outputs | str:
        try:
            return outputs(path)
        except TrialError as error:
            return f"scoring it: {error}"
        except MemoryError:
            return "scoring it: it does not fit into memory"

    with ThreadPoolExecutor(max(1, workers)) as pool:
        first = dict(zip(paths, pool.map(attempt, paths), strict=True))
    found = {path: attempt(path) if isinstance(each, str) else each for path, each in first.items()}
    answers = {path: each for path, each in found.items() if not isinstance(each, str)}
    return answers, {path: each for path, each in found.items() if isinstance(each, str)}


def _point(trial: Trial, path: Path, run_folder: Path) -> FrontPoint:
    """The point as the search left it."""
    return FrontPoint(
        id=trial.id,
        policy=trial.policy,
        metric=MetricPair(search=_present(trial.metric)),
        latency=trial.latency,
        size_bytes=int(_present(trial.size_bytes)),
        peak_memory_bytes=trial.peak_memory_bytes,
        weight_bits_mean=_present(trial.weight_bits_mean),
        model_path=str(path.relative_to(run_folder)),
        sha256=trial.sha256 or "",
        origin=trial.origin,
    )


def _with_polish(
    before: FrontPoint, polished: Polished, metric: MetricPair, measured: Measurement, zipped: int, path: Path
) -> FrontPoint:
    record = polished.record
    return dataclasses.replace(
        before,
        metric=metric,
        latency=measured.latency,
        size_bytes=polished.size_bytes,
        peak_memory_bytes=polished.peak_memory_bytes,
        model_path=str(path),
        sha256=record.sha256 or "",
        load_ms=measured.load_ms,
        zip_bytes=_zip_bytes(measured, zipped),
        polish=Polish(
            kind=record.kind,
            measure=record.measure,
            held_out=record.held_out,
            layers=record.layers,
            seconds=record.seconds,
            before=before,
        ),
    )


def _baseline_load_ms(baseline: FrontPoint, measured: Sequence[Measurement]) -> float | None:
    """Of the processes that the points were timed in, where float32 is what they were timed against."""
    told = [each.reference_load_ms for each in measured if each.reference_load_ms is not None]
    return statistics.median(told) if told and baseline.latency is not None else baseline.load_ms


def _zip_bytes(measured: Measurement, zipped: int) -> int | None:
    """None where the size that counts is not the file's own: its zip archive would be of something else."""
    return zipped if measured.size_bytes is None else None


def _with_gaps(points: Sequence[FrontPoint], samples: Mapping[str, np.ndarray]) -> tuple[FrontPoint, ...]:
    """``points`` with the standard errors of their metrics' differences, from the bootstrap's ``samples`` by id."""
    return tuple(
        dataclasses.replace(
            point,
            metric=dataclasses.replace(
                point.metric,
                gap_se=tuple(
                    (before.id, float(np.std(samples[point.id] - samples[before.id]))) for before in points[:i]
                ),
            ),
        )
        for i, point in enumerate(points)
    )


def _sorted_out(baseline: FrontPoint, points: list[FrontPoint], problem: Problem) -> Checked:
    base = dataclasses.replace(point_values(baseline, use_final=True), latency_ratio=problem.baseline.latency_ratio)
    dropped: list[DroppedPoint] = []
    feasible: list[FrontPoint] = []
    for point in points:
        broken = constraint_violations(
            point_values(point, use_final=True), problem.constraints, base, problem.direction
        )
        if broken:
            dropped.append(DroppedPoint(point=point, why=f"on the final split, {'; '.join(broken)}"))
        else:
            feasible.append(point)
    rows = [
        _told_apart(point_losses(point, problem.objectives, problem.direction, True), problem) for point in feasible
    ]
    own = problem.baseline_losses(base)
    rivals = [] if own is None else [("float32", _told_apart(own, problem))]
    kept = non_dominated([*(row for _, row in rivals), *rows])[len(rivals) :]
    stay = sorted(
        (pair for pair, keep in zip(zip(rows, feasible, strict=True), kept, strict=True) if keep),
        key=lambda pair: (pair[0], pair[1].id),
    )
    for row, point, keep in zip(rows, feasible, kept, strict=True):
        if not keep:
            others = [*rivals, *((other.id, values) for values, other in stay)]
            better = next(
                (name for name, values in others if all(a <= b for a, b in zip(values, row, strict=True))),
                "another point",
            )
            dropped.append(
                DroppedPoint(point=point, why=f"on the final split, {better} is at least as good in everything")
            )
    return Checked(baseline=baseline, points=tuple(point for _, point in stay), dropped=tuple(dropped))


def _told_apart(values: tuple[float, ...], problem: Problem) -> tuple[float, ...]:
    """``values`` with latency in whole steps of :data:`LATENCY_STEP`: less is noise, and no reason to stay."""
    return tuple(
        float(round(math.log(value) / math.log1p(LATENCY_STEP))) if name == "latency" else value
        for name, value in zip(problem.objectives, values, strict=True)
    )


def _present(value: float | None) -> float:
    if value is None:
        raise RunError("a trial on the front lacks a measurement; its trials.jsonl is damaged")
    return value
