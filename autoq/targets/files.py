"""Every front's files on every target: scored on its runtime on the final split, and timed there, all in turn."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoq.core.objectives import Values, constraint_violations, losses, metric_drop
from autoq.core.result import Estimate, Front, FrontPoint
from autoq.core.targets import TargetPoint, TargetResult
from autoq.errors import MetricError, TrialError
from autoq.numerics.pareto import non_dominated
from autoq.pipeline.baseline import wants_memory
from autoq.runtime.gauge import Gauge, Measurement, measure_each
from autoq.runtime.metric import Metric
from autoq.search.final import FinalMetric, Outputs, answers_of, final_metrics, outputs_of
from autoq.setting import Setting
from autoq.spec.limits import limit_problem
from autoq.targets.sharing import arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A point of a target's own front, and its file. ``scored_alike``: its metric is what it would be here."""

    point: FrontPoint
    found_for: str
    path: Path
    scored_alike: bool

    @property
    def name(self) -> str:
        """What it is called where it is refused."""
        return f"{self.point.id} of {self.found_for}"


def files_of(path: Path, settings: Mapping[str, Setting], fronts: Mapping[str, Front], setting: Setting) -> list[File]:
    """The files of all ``fronts``, in folders of ``path``, as they are put to the target of ``setting``.

    Of those with the same bytes its own stands for all, or else one that was scored as it would be here.
    """
    name = setting.profile.name
    files = [
        File(
            point=point,
            found_for=found_for,
            path=path / found_for / point.model_path,
            scored_alike=arithmetic(settings[found_for].profile) == arithmetic(setting.profile),
        )
        for found_for, front in fronts.items()
        for point in front.points
    ]
    kept: dict[str, File] = {}
    for file in sorted(files, key=lambda file: (file.found_for != name, not file.scored_alike)):
        kept.setdefault(file.point.sha256, file)
    return list(kept.values())


def on_target(path: Path, setting: Setting, front: Front, files: Sequence[File], gauge: Gauge) -> TargetResult:
    """Every one of ``files`` that runs on one target, whose own search gave ``front``.

    ``path`` is the folder of the whole search. A file that the target does not read, that fails there or that goes over
    its limits is refused, with the reason.
    """
    job, base, direction = setting.job, front.baseline, setting.metric.direction
    assert base.metric.final is not None, "a finished search has scored float32 on the final split"
    refused: dict[str, str] = {}
    metrics = _metrics(setting, files, refused)
    runs = [file for file in files if file.point.sha256 in metrics]
    found = _measured(setting, gauge, runs, refused)
    reference = Values(
        metric=base.metric.final,
        latency_ratio=base.latency.ratio if base.latency else None,
        size_bytes=base.size_bytes,
        peak_memory_bytes=base.peak_memory_bytes,
    )
    points, rows = [], []
    for file in runs:
        digest = file.point.sha256
        if digest not in found:
            continue
        metric, measured = metrics[digest], found[digest]
        latency, size = measured.latency, measured.size_bytes or file.path.stat().st_size
        values = Values(
            metric=metric.value,
            latency_ratio=latency.ratio,
            size_bytes=size,
            peak_memory_bytes=measured.peak_memory_bytes,
        )
        rows.append(losses(values, job.objectives, direction))
        points.append(
            TargetPoint(
                id=file.point.id,
                sha256=digest,
                found_for=file.found_for,
                file=str(file.path.relative_to(path)),
                metric=metric.value,
                metric_ci95=metric.ci95,
                drop=metric_drop(metric.value, base.metric.final, direction),
                drop_ci95=metric.drop_ci95,
                size_bytes=size,
                size_ratio=size / base.size_bytes,
                latency_ratio=latency.ratio,
                latency_ci95=latency.interval,
                latency_ms=latency.ms,
                estimated=isinstance(latency, Estimate),
                peak_memory_bytes=measured.peak_memory_bytes,
                breaks=tuple(constraint_violations(values, job.constraints, reference, direction)),
            )
        )
    fit = [index for index, point in enumerate(points) if not point.breaks]
    best = list(non_dominated([rows[index] for index in fit])) if fit else []
    front_at = {index for index, keep in zip(fit, best, strict=True) if keep}
    return TargetResult(
        profile=setting.profile.name,
        run=setting.profile.name,
        reference=str(setting.profile.reference),
        baseline_metric=base.metric.final,
        baseline_ms=base.latency.ms if base.latency else None,
        points=tuple(dataclasses.replace(point, on_front=i in front_at) for i, point in enumerate(points)),
        refused=tuple(refused.items()),
    )


def _metrics(setting: Setting, files: Sequence[File], refused: dict[str, str]) -> dict[str, FinalMetric]:
    """SHA-256 -> the metric on the final split with its intervals: its own search's where that computed alike.

    The others are scored here, and paired with float32 as this target has it.
    """
    metrics: dict[str, FinalMetric] = {}
    foreign: dict[Path, File] = {}
    target, metric, split = setting.target, setting.metric, setting.final
    for file in files:
        own = file.point.metric
        if file.scored_alike and own.final is not None:
            metrics[file.point.sha256] = FinalMetric(own.final, own.final_ci95, own.drop_ci95)
        elif file.path.name.endswith(target.suffix):
            foreign[file.path] = file
        else:
            refused[file.name] = f"{setting.profile.name} reads {target.suffix} files"
    if not foreign:
        return metrics

    def outputs(path: Path) -> Outputs:
        return metric.reads(outputs_of(target, path, split.inputs, setting.job.data.batch))

    answers, lost = answers_of(outputs, [setting.model.path, *foreign], os.cpu_count() or 1)
    for path, file in foreign.items():
        if why := lost.get(path) or lost.get(setting.model.path) or _unscored(metric, answers[path], split.targets):
            refused[file.name] = why
    scored = [path for path, file in foreign.items() if file.name not in refused]
    if scored:
        every = [answers[path] for path in (setting.model.path, *scored)]
        try:
            taken, _ = final_metrics(metric, every, split, seed=setting.job.seed)
        except MetricError:  # on every resample of one of them: each has its value all the same
            taken = [FinalMetric(metric(each, split.targets), None, None) for each in every]
        metrics |= {foreign[path].point.sha256: each for path, each in zip(scored, taken[1:], strict=True)}
    return metrics


def _unscored(metric: Metric, outputs: Outputs, targets: np.ndarray | None) -> str:
    """Why the metric has no value for a file's outputs; empty where it has one."""
    try:
        metric(outputs, targets)
    except (MetricError, TrialError) as error:
        return str(error)
    return ""


def _measured(setting: Setting, gauge: Gauge, files: Sequence[File], refused: dict[str, str]) -> dict[str, Measurement]:
    """SHA-256 -> what was measured here, latencies all in turn; one that fails is timed no more."""
    found: dict[str, Measurement] = {}
    for file, each in zip(files, measure_each(gauge, [file.path for file in files]) if files else (), strict=True):
        try:
            if isinstance(each, TrialError):
                raise each
            found[file.point.sha256] = _with_size(setting, gauge, file, each)
        except TrialError as error:
            refused[file.name] = str(error)
    return found


def _with_size(setting: Setting, gauge: Gauge, file: File, measured: Measurement) -> Measurement:
    """Size and peak memory on this target beside a latency; raises :class:`TrialError` where it has no room."""
    point, latency = file.point, measured.latency
    size, memory = measured.size_bytes, measured.peak_memory_bytes
    if file.found_for == setting.profile.name:
        return dataclasses.replace(measured, size_bytes=point.size_bytes, peak_memory_bytes=point.peak_memory_bytes)
    if memory is None and wants_memory(setting.job):
        memory = gauge.measure(file.path).peak_memory_bytes
    file_bytes = file.path.stat().st_size
    over = limit_problem(
        setting.profile.limits,
        file_bytes=file_bytes,
        stored_bytes=size,
        memory_bytes=memory,
        figures=latency.figures if isinstance(latency, Estimate) else {},
    )
    if over:
        raise TrialError("limit", over)
    return dataclasses.replace(measured, size_bytes=file_bytes if size is None else size, peak_memory_bytes=memory)
