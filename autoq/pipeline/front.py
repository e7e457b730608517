"""The front: its points, its files, and what polishing makes of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from autoq.core.identity import sha256_hex
from autoq.core.objectives import Direction
from autoq.core.result import Front, FrontPoint, MetricPair, Trial
from autoq.errors import RunError
from autoq.model.lower import Lowering
from autoq.model.target import Target
from autoq.pipeline.exchange import Events
from autoq.record.run_folder import RunFolder
from autoq.runtime.base import fixed_batch
from autoq.search.executor import Executor
from autoq.search.loop import Search
from autoq.search.polish import Polished, polish_front
from autoq.search.polish_log import PolishLog
from autoq.search.polish_point import PolishWork
from autoq.search.store import disk_error
from autoq.setting import Setting


def directions(setting: Setting) -> list[Direction]:
    """Of the job's objectives, in their order."""
    return [setting.metric.direction if name == "metric" else "minimize" for name in setting.job.objectives]


def study_values(trial: Trial, setting: Setting) -> list[float] | None:
    """A trial's objectives as Optuna's study has them; ``None`` where it has not all of them."""
    if not trial.complete:
        return None
    measured = {
        "metric": trial.metric,
        "latency": trial.latency.ratio if trial.latency else None,
        "size": trial.size_bytes,
        "peak_memory": trial.peak_memory_bytes,
    }
    values = [measured[name] for name in setting.job.objectives]
    return None if any(value is None for value in values) else [float(value) for value in values if value is not None]


def point_of(trial: Trial, path: Path, folder: RunFolder) -> FrontPoint:
    """A trial on the front before the final check, whose file is ``path``."""
    assert trial.metric is not None and trial.size_bytes is not None and trial.weight_bits_mean is not None
    return FrontPoint(
        id=trial.id,
        policy=trial.policy,
        metric=MetricPair(search=trial.metric),
        latency=trial.latency,
        size_bytes=trial.size_bytes,
        peak_memory_bytes=trial.peak_memory_bytes,
        weight_bits_mean=trial.weight_bits_mean,
        model_path=os.path.relpath(path, folder.path),
        sha256=trial.sha256 or "",
        origin=trial.origin,
    )


def front_of(
    setting: Setting, baseline: FrontPoint, search: Search, points: Sequence[FrontPoint], started: float
) -> Front:
    """The front with these ``points``, as far as the search has come."""
    failed, pruned = search.failed, search.pruned
    return Front(
        name=setting.job.name,
        objectives=setting.job.objectives,
        metric_name=setting.metric.name,
        metric_direction=setting.metric.direction,
        baseline=baseline,
        points=tuple(points),
        trials_complete=len(search.trials) - failed - pruned,
        trials_failed=failed,
        trials_pruned=pruned,
        wall_s=time.monotonic() - started,
        notes=mark(setting),
    )


def mark(setting: Setting) -> tuple[str, ...]:
    """What the front is marked with where the profile does not describe this machine."""
    return (setting.mismatch,) if setting.mismatch else ()


def front_files(search: Search, lowering: Lowering, target: Target) -> list[Path]:
    """The front's files; one that a crash kept from being written whole is built again, to the same bytes."""
    paths = []
    for trial in search.front:
        path = search.model_path(trial.id)
        try:
            if not path.exists() or sha256_hex(path.read_bytes()) != trial.sha256:
                model = target.write(lowering.build(trial.policy))
                if sha256_hex(model) != trial.sha256:
                    raise RunError(
                        f"{path} is missing or damaged, and this version of autoq builds another file for trial "
                        f"{trial.number}; search anew with another --out"
                    )
                path.write_bytes(model)
        except OSError as error:
            raise disk_error(path, error) from None
        paths.append(path)
    return paths


def polished_front(
    folder: RunFolder, setting: Setting, search: Search, executor: Executor, events: Events
) -> tuple[dict[str, Polished], tuple[str, ...]]:
    """The polished files of the front, where the job asks for them (:mod:`autoq.search.polish`)."""
    choice, log = setting.job.search, PolishLog(folder.polish, folder.models, setting.target.suffix)
    if choice.polish == "none":
        return {}, ()
    fixed = fixed_batch(setting.inputs)
    work = PolishWork(
        kind=choice.polish,
        inputs=setting.calibration.inputs,
        unit=fixed or setting.calibration.group,
        fixed=bool(fixed),
        padding_mask=setting.padding_mask,
    )
    return polish_front(
        search.front,
        work,
        problem=search.problem,
        executor=executor,
        log=log,
        limit_s=choice.polish_time_s,
        step=events.step,
    )
