"""One job on several pieces of hardware: ``hardware: [a, b]``. A search for each; then every file on each of them.

::

    OUT/
      targets.json    the job, what was measured of every file on every target, and what one file for all costs
      targets.html    the same as a page
      PROFILE/        the run folder of each target's own search

Searches follow one another, since they time on one machine. What is the same is not done again: quantized weights
come from the bank, a file that was scored with the same arithmetic is not scored again, and later searches begin with
the fronts of earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoq.core.objectives import Values, constraint_violations, losses, metric_drop
from autoq.core.policy import Policy
from autoq.core.result import Estimate, Front, FrontPoint, Latency
from autoq.core.targets import TargetPoint, TargetResult, Targets, common_file
from autoq.errors import JobError, RunError, TrialError
from autoq.numerics.pareto import non_dominated
from autoq.pipeline import RUNS, Events, Outcome, TakenOver, run_search
from autoq.pipeline.baseline import wants_memory
from autoq.pipeline.start import tracking_uri_of
from autoq.record.front import read_front
from autoq.record.run_folder import RunFolder, free_name
from autoq.record.targets import TARGETS_FILE, TargetsRecord, read_targets_record, write_targets
from autoq.record.tracking import Tracker
from autoq.runtime.gauge import Gauge, measure_each
from autoq.runtime.profiles import read_profile
from autoq.search.store import TrialLog
from autoq.setting import Setting, gauge_of, read_setting, reference_path
from autoq.spec.hardware import Profile
from autoq.spec.job import Job, load_job


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsOutcome:
    """Every target's own front, by profile, and what was found about all files on all targets."""

    fronts: Mapping[str, Front]
    targets: Targets
    path: Path
    tracking_uri: str


@dataclass(frozen=True, slots=True)
class _File:
    """A point of some target's own front. ``key`` is what its metric was taken on: runtime and options."""

    point: FrontPoint
    found_for: str
    path: Path
    key: str


def run_targets(
    source: str | Path | Mapping[str, Any] | Job,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trials: int | None = None,
    time_limit: str | float | None = None,
    tracking_uri: str | None = None,
    seed: int | None = None,
    polish: str | None = None,
    base_dir: str | Path | None = None,
    force: bool = False,
    events: Events | None = None,
    **options: Any,
) -> TargetsOutcome:
    """Searches the job for each of its profiles, then puts every front's files to every target that can run them.

    The budget is each target's. ``resume`` goes on with the search that was interrupted, and begins those that had not
    begun. ``options`` (``ray``, ``workers``) are those of :func:`autoq.pipeline.run_search`. Raises
    :class:`autoq.errors.AutoqError`; a target that cannot be searched ends it, and what was found is kept.
    """
    events = events or Events()
    job = load_job(source, base_dir).overridden(
        trials=trials, time=time_limit, tracking_uri=tracking_uri, seed=seed, polish=polish
    )
    profiles = _profiles(job)
    path = Path(out) if out is not None else free_name(RUNS, job.name)
    record = _open(path, job, resume)
    uri = tracking_uri_of(job)
    tracker = Tracker.open(
        uri,
        experiment=job.tracking.experiment or job.name,
        run_name=path.name,
        tags={"autoq.targets": ", ".join(profiles), "autoq.run_folder": str(path.absolute())},
        params=job.to_dict(),
        resume_run_id=record.run_id if record.tracking_uri == uri else None,
        warn=events.warn,
    )
    record = dataclasses.replace(record, tracking_uri=uri, run_id=tracker.run_id)
    write_targets(path, record)
    status = "FAILED"
    try:
        fronts: dict[str, Front] = {}
        for name, profile in profiles.items():
            events.step(f"target {name} ({len(fronts) + 1} of {len(profiles)})")
            mine, run = job.on(profile[0]), path / name
            taken_over = _taken_over(path, fronts, profiles, profile[1], tracker.run_id)
            fronts[name] = _finished(run, mine) or _search(mine, run, taken_over, force, events, options).front
        results = _measure_all(job, path, profiles, fronts, force, events)
        common, why = common_file(results, job.objectives)
        first = next(iter(fronts.values()))
        targets = Targets(
            name=job.name,
            objectives=job.objectives,
            metric_name=first.metric_name,
            targets=results,
            common=common,
            why_no_common=why,
        )
        write_targets(path, dataclasses.replace(record, targets=targets))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
    return TargetsOutcome(fronts=fronts, targets=targets, path=path, tracking_uri=uri)


def _profiles(job: Job) -> dict[str, tuple[str, Profile]]:
    """Profile name -> how the job calls it, and the profile. A name is a folder's, so each may occur once."""
    found: dict[str, tuple[str, Profile]] = {}
    for text in job.targets:
        profile = read_profile(text, job.base_dir)
        if profile.name in found:
            raise JobError(
                f"hardware: {text} and {found[profile.name][0]} are both called {profile.name!r}; give one of the "
                "profiles another `name:`"
            )
        if "/" in profile.name or profile.name in (".", "..", TARGETS_FILE):
            raise JobError(f"hardware: {text} is called {profile.name!r}, which is no name for a folder")
        found[profile.name] = text, profile
    return found


def _open(path: Path, job: Job, resume: bool) -> TargetsRecord:
    if resume:
        record = read_targets_record(path)
        if record.hardware != job.targets:
            raise RunError(
                f"{path} holds a search for {', '.join(record.hardware)}, not for {', '.join(job.targets)}; give "
                "another --out"
            )
        return record
    if path.is_dir() and any(path.iterdir()):
        held = "already holds a search; continue it with --resume" if (path / TARGETS_FILE).exists() else "is not empty"
        raise RunError(f"{path} {held}, or give another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; give another --out") from None
    return TargetsRecord(hardware=job.targets)


def _finished(run: Path, job: Job) -> Front | None:
    """The front of a target whose search has ended with this very job; else it is begun, or gone on with."""
    folder = RunFolder(run)
    if not folder.front.exists():
        return None
    front, recorded = read_front(folder.front), folder.read()
    same = recorded.get("job") == job.to_dict() and recorded.get("base_dir") == str(job.base_dir)
    return front if front.final and same else None


def _search(
    job: Job, run: Path, taken_over: TakenOver, force: bool, events: Events, options: Mapping[str, Any]
) -> Outcome:
    begun = (run / "run.json").exists()
    return run_search(job, out=run, resume=begun, force=force, events=events, taken_over=taken_over, **options)


def _taken_over(
    path: Path,
    fronts: Mapping[str, Front],
    profiles: Mapping[str, tuple[str, Profile]],
    profile: Profile,
    parent_run: str,
) -> TakenOver:
    known: dict[str, float] = {}
    seeds: dict[Policy, str] = {}
    for name, front in fronts.items():
        if _arithmetic(profiles[name][1]) == _arithmetic(profile):
            log = TrialLog(RunFolder(path / name).trials)
            known |= {t.sha256: t.metric for t in log.read() if t.sha256 is not None and t.metric is not None}
        for point in front.points:
            seeds.setdefault(point.policy, f"front:{name}")
    return TakenOver(
        known=known, seeds=tuple((origin, policy) for policy, origin in seeds.items()), parent_run=parent_run
    )


def _arithmetic(profile: Profile) -> str:
    """What decides which outputs a file gives, on one machine."""
    runtime = profile.runtime
    return f"{runtime.name} {sorted(runtime.arguments.items())}"


def _measure_all(
    job: Job,
    path: Path,
    profiles: Mapping[str, tuple[str, Profile]],
    fronts: Mapping[str, Front],
    force: bool,
    events: Events,
) -> tuple[TargetResult, ...]:
    files = [
        _File(point, name, path / name / point.model_path, _arithmetic(profiles[name][1]))
        for name, front in fronts.items()
        for point in front.points
    ]
    results = []
    for name, (text, profile) in profiles.items():
        events.step(f"measuring {len(files)} files on {name}")
        setting = read_setting(job.on(text), force=force)
        mine = [file for file in files if file.found_for == name]
        own = {file.point.sha256 for file in mine}
        others = {file.point.sha256: file for file in files if file.point.sha256 not in own}
        with gauge_of(setting, reference_path(setting, path / name)) as gauge:
            results.append(
                _on_target(path, setting, fronts[name], [*mine, *others.values()], _arithmetic(profile), gauge)
            )
    return tuple(results)


def _on_target(
    path: Path, setting: Setting, front: Front, files: Sequence[_File], key: str, gauge: Gauge
) -> TargetResult:
    """Every file that runs on one target, timed in turn with each other."""
    job, base = setting.job, front.baseline
    refused: dict[str, str] = {}
    metrics: dict[str, float] = {}
    for file in files:
        try:
            metrics[file.point.sha256] = _metric(setting, file, key)
        except TrialError as error:
            refused[f"{file.point.id} of {file.found_for}"] = str(error)
    runs = [file for file in files if file.point.sha256 in metrics]
    latencies, failed = _timed(gauge, runs)
    refused |= failed
    reference = Values(
        metric=base.metric.final,
        latency_ratio=base.latency.ratio if base.latency else None,
        size_bytes=base.size_bytes,
        peak_memory_bytes=base.peak_memory_bytes,
    )
    assert base.metric.final is not None, "a finished search has scored float32 on the final split"
    points, rows = [], []
    for file in runs:
        digest = file.point.sha256
        if digest not in latencies:
            continue
        latency = latencies[digest]
        memory = file.point.peak_memory_bytes if file.found_for == setting.profile.name else None
        if memory is None and wants_memory(job):
            memory = gauge.measure(file.path).peak_memory_bytes
        values = Values(
            metric=metrics[digest],
            latency_ratio=latency.ratio,
            size_bytes=file.point.size_bytes,
            peak_memory_bytes=memory,
        )
        rows.append(losses(values, job.objectives, setting.metric.direction))
        points.append(
            TargetPoint(
                id=file.point.id,
                sha256=digest,
                found_for=file.found_for,
                file=str(file.path.relative_to(path)),
                metric=metrics[digest],
                drop=metric_drop(metrics[digest], base.metric.final, setting.metric.direction),
                size_bytes=file.point.size_bytes,
                size_ratio=file.point.size_bytes / base.size_bytes,
                latency_ratio=latency.ratio,
                latency_ms=latency.ms,
                estimated=isinstance(latency, Estimate),
                peak_memory_bytes=memory,
                breaks=tuple(constraint_violations(values, job.constraints, reference, setting.metric.direction)),
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


def _metric(setting: Setting, file: _File, key: str) -> float:
    """A file's metric on the final split: as its own search has it where the arithmetic is the same, or taken here."""
    if file.key == key and file.point.metric.final is not None:
        return file.point.metric.final
    target, split = setting.target, setting.final
    if not file.path.name.endswith(target.suffix):
        raise TrialError("load", f"it reads {target.suffix} files")
    return setting.metric(target.outputs(file.path, split.inputs, setting.job.data.batch), split.targets)


def _timed(gauge: Gauge, files: Sequence[_File]) -> tuple[dict[str, Latency | Estimate], dict[str, str]]:
    """SHA-256 -> latency, all in turn; one that fails is timed no more, and why is told of it."""
    latencies: dict[str, Latency | Estimate] = {}
    failed: dict[str, str] = {}
    for file, found in zip(files, measure_each(gauge, [file.path for file in files]) if files else (), strict=True):
        if isinstance(found, TrialError):
            failed[f"{file.point.id} of {file.found_for}"] = str(found)
        else:
            latencies[file.point.sha256] = found.latency
    return latencies, failed
