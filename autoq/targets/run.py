"""The flow of a job on several targets: a search for each, every file on each, one file for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoq.core.result import Front
from autoq.core.targets import TargetResult, Targets, common_file
from autoq.errors import JobError, RunError
from autoq.pipeline import RUNS, Events, Outcome, run_search
from autoq.pipeline.start import tracking_uri_of
from autoq.record.front import read_front
from autoq.record.run_folder import TARGETS_FILE, RunFolder, free_name
from autoq.record.targets import TargetsRecord, read_targets_record, write_targets
from autoq.record.tracking import Tracker
from autoq.runtime.profiles import read_profile
from autoq.setting import Setting, gauge_of, on_hardware, read_setting, reference_path
from autoq.spec.job import Job
from autoq.targets.files import files_of, on_target
from autoq.targets.sharing import taken_over


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsOutcome:
    """Every target's own front, by profile, and what was found about all files on all targets."""

    fronts: Mapping[str, Front]
    targets: Targets
    path: Path
    tracking_uri: str


def run_targets(
    job: Job,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    ray: str = "local",
    workers: int = 0,
    force: bool = False,
    events: Events | None = None,
) -> TargetsOutcome:
    """Searches the job for each of its profiles, then puts every front's files to every target that can run them.

    The budget is each target's. ``resume`` goes on with the search that was interrupted, and begins those that had not
    begun. The other options are those of :func:`autoq.pipeline.run_search`. Raises :class:`autoq.errors.AutoqError`:
    before the first search where one of the profiles is wrong or describes no such machine; a target that cannot be
    searched ends it, and what was found is kept.
    """
    events = events or Events()
    jobs = _jobs(job)
    path = Path(out) if out is not None else free_name(RUNS, job.name)
    record = _open(path, job, resume)
    events.step("reading model and data")
    settings = _settings(jobs, force, events)
    _make(path)
    uri = tracking_uri_of(job)
    tracker = Tracker.open(
        uri,
        experiment=job.tracking.experiment or job.name,
        run_name=path.name,
        tags={"autoq.targets": ", ".join(jobs), "autoq.run_folder": str(path.absolute())},
        params=job.to_dict(),
        resume_run_id=record.run_id if record.tracking_uri == uri else None,
        warn=events.warn,
    )
    record = dataclasses.replace(record, hardware=job.targets, tracking_uri=uri, run_id=tracker.run_id)
    write_targets(path, record)
    status = "FAILED"
    try:
        fronts: dict[str, Front] = {}
        outcomes: dict[str, Outcome] = {}
        for name, setting in settings.items():
            events.step(f"target {name} ({len(fronts) + 1} of {len(settings)})")
            front = _finished(path / name, setting.job)
            if front is None:
                outcomes[name] = run_search(
                    setting.job,
                    out=path / name,
                    resume=(path / name / "run.json").exists(),
                    ray=ray,
                    workers=workers,
                    force=force,
                    events=events,
                    taken_over=taken_over(path, fronts, outcomes, settings, setting, tracker.run_id),
                )
                front = outcomes[name].front
            fronts[name] = front
        results = _on_all(path, settings, fronts, events)
        common, why = common_file(results, job.objectives)
        first = next(iter(fronts.values()))
        targets = Targets(
            name=job.name,
            objectives=job.objectives,
            metric_name=first.metric_name,
            metric_direction=first.metric_direction,
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


def _jobs(job: Job) -> dict[str, Job]:
    """Profile name -> the job for that profile alone. A name is a folder's, so each may occur once."""
    found: dict[str, Job] = {}
    for text in job.targets:
        name = read_profile(text, job.base_dir).name
        if name in found:
            raise JobError(
                f"hardware: {text} and {found[name].hardware} are both called {name!r}; give one of the profiles "
                "another `name:`"
            )
        if "/" in name or name in (".", "..", TARGETS_FILE):
            raise JobError(f"hardware: {text} is called {name!r}, which is no name for a folder")
        found[name] = job.on(text)
    return found


def _settings(jobs: Mapping[str, Job], force: bool, events: Events) -> dict[str, Setting]:
    """What each target's search is made of; model and data are read once, for the first."""
    found: dict[str, Setting] = {}
    first: Setting | None = None
    for name, job in jobs.items():
        first = first or read_setting(job, force=force, warn=events.warn)
        own = first if job is first.job else on_hardware(first, job, force=force, warn=events.warn)
        # What measures must be there, too: better told now than after the searches before it.
        gauge_of(own, own.model.path).close()
        found[name] = own
    return found


def _open(path: Path, job: Job, resume: bool) -> TargetsRecord:
    if resume:
        record = read_targets_record(path)
        if not set(record.hardware) & set(job.targets):
            raise RunError(
                f"{path} holds a search for {', '.join(record.hardware)}, and none for {', '.join(job.targets)}; give "
                "another --out"
            )
        return record
    if path.is_dir() and any(path.iterdir()):
        held = "already holds a search; continue it with --resume" if (path / TARGETS_FILE).exists() else "is not empty"
        raise RunError(f"{path} {held}, or give another --out")
    return TargetsRecord(hardware=job.targets)


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}; give another --out") from None


def _finished(run: Path, job: Job) -> Front | None:
    """The front of a target whose search has ended with this very job; else it is begun, or gone on with."""
    folder = RunFolder(run)
    if not folder.front.exists():
        return None
    front, recorded = read_front(folder.front), folder.read()
    same = recorded.get("job") == job.to_dict() and recorded.get("base_dir") == str(job.base_dir)
    return front if front.final and same else None


def _on_all(
    path: Path, settings: Mapping[str, Setting], fronts: Mapping[str, Front], events: Events
) -> tuple[TargetResult, ...]:
    results = []
    for name, setting in settings.items():
        files = files_of(path, settings, fronts, setting)
        events.step(f"measuring {len(files)} files on {name}")
        with gauge_of(setting, reference_path(setting, path / name)) as gauge:
            results.append(on_target(path, setting, fronts[name], files, gauge))
    return tuple(results)
