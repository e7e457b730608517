"""The whole job, readable from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoq.core.result import Front, Trial
from autoq.core.scheme import FLOAT32
from autoq.errors import AutoqError
from autoq.pipeline.baseline import float32_answers, form_gain, measured_baseline
from autoq.pipeline.exchange import NOTHING, Events, Outcome, TakenOver
from autoq.pipeline.front import front_files, front_of, mark, polished_front
from autoq.pipeline.guidance import latency_model, prediction, proposer_of
from autoq.pipeline.live import Live
from autoq.pipeline.notes import circumstances, health_of, notes_on, stop_notes, why_empty
from autoq.pipeline.scoring import executor_of, problem_of, steps_of
from autoq.pipeline.start import RUNS, open_tracker, run_record
from autoq.record.front import write_front
from autoq.record.machines import MACHINES
from autoq.record.publish import EXAMPLE_ROWS, publish
from autoq.record.run_folder import RunFolder, free_name
from autoq.record.tracking import Tracker
from autoq.search.final import check_front
from autoq.search.groundwork import Calibrated
from autoq.search.loop import Limits, Search
from autoq.search.ranking import proxy_truths
from autoq.search.store import TrialLog
from autoq.setting import (
    Setting,
    choose_forms,
    gauge_of,
    groundwork_of,
    read_setting,
    with_machines,
    workload_of,
    write_reference,
)
from autoq.spec.job import Job


def run_search(
    job: Job,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    ray: str = "local",
    workers: int = 0,
    force: bool = False,
    events: Events | None = None,
    taken_over: TakenOver = NOTHING,
) -> Outcome:
    """Runs a job: reads and checks what it names, calibrates, searches, checks the front on unseen data, records it.

    ``ray`` is ``"local"``, ``"off"`` or a cluster's address; ``workers`` 0 is one a core. ``force`` searches on a
    machine that the profile does not describe, or resumes on another one. Raises
    :class:`autoq.errors.AutoqError`; finished trials stay in the run folder whatever happens.
    """
    events = events or Events()
    started = time.monotonic()
    setting = taken_over.setting
    if setting is None:
        events.step("reading model and data")
        setting = read_setting(job, force=force, warn=events.warn)
    path = Path(out) if out is not None else free_name(RUNS, job.name)
    with RunFolder(path).open(resume=resume) as folder:
        recorded = folder.read() if resume else {}
        setting, machines = with_machines(setting, path, recorded, force=force, warn=events.warn)
        setting = choose_forms(setting, recorded, step=events.step)
        record = run_record(folder, setting, recorded)
        tracker = open_tracker(folder, record, setting, taken_over, events)
        record |= {"tracking": {"uri": tracker.uri, "run_id": tracker.run_id}, MACHINES: machines}
        folder.write(record)
        status = "FAILED"
        try:
            answers = float32_answers(setting, taken_over, events)
            front, found, calibrated = _search(
                folder, setting, answers, taken_over, tracker, started, ray, workers, events
            )
            folder.write(record | {"stop_reason": front.stop_reason})
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)  # type: ignore[arg-type]
    return Outcome(
        front=front,
        trials=found,
        path=path,
        tracking_uri=tracker.uri,
        tracking_problems=tracker.problems,
        answers=answers,
        calibrated=calibrated,
    )


def _search(
    folder: RunFolder,
    setting: Setting,
    answers: Mapping[str, np.ndarray],
    taken_over: TakenOver,
    tracker: Tracker,
    started: float,
    ray: str,
    workers: int,
    events: Events,
) -> tuple[Front, tuple[Trial, ...], Calibrated]:
    job = setting.job
    log = TrialLog(folder.trials)
    finished = log.read()
    if setting.profile.reference == FLOAT32:
        gauge = gauge_of(setting, setting.model.path)
        baseline = measured_baseline(setting, answers, gauge, folder)
        lowering = groundwork_of(setting, calibrated=taken_over.calibrated, step=events.step)
    else:
        lowering = groundwork_of(setting, calibrated=taken_over.calibrated, step=events.step)
        gauge = gauge_of(setting, write_reference(setting, lowering, folder))
        baseline = measured_baseline(setting, answers, gauge, folder)
    form = form_gain(setting, lowering, gauge)
    predicted = prediction(setting, lowering, events)
    problem = problem_of(setting, lowering, baseline)
    latency, latency_notes = latency_model(setting, lowering, problem, gauge, folder, bool(finished), events)
    if latency is not None:
        problem = dataclasses.replace(problem, latency=latency.ratio)
    live = Live(setting, folder, problem, baseline, form, tracker, started, events)
    events.step("starting workers" if ray != "off" else "searching")
    workload = workload_of(setting, lowering, steps_of(setting, answers), taken_over.known)
    executor = executor_of(workload, gauge, ray, workers)
    try:
        search = Search(
            problem=problem,
            proposer=proposer_of(setting, problem, predicted, latency, taken_over),
            executor=executor,
            log=log,
            models=folder.models,
            clock=time.monotonic,
            on_trial=live.on_trial,
            meanwhile=live.copy_trials,
            step_rows=setting.search.rows if workload.steps else None,
            suffix=setting.target.suffix,
        )
        if not folder.front.exists():
            live.write_front(search)
        deadline = None if job.budget.time_s is None else started + job.budget.time_s
        events.step("searching")
        limits = Limits(
            trials=job.budget.trials,
            deadline=deadline,
            until=job.budget.until.bounds if job.budget.until else None,
            patience=job.budget.patience,
        )
        stop_reason = search.run(limits, finished)
        live.copy_all(search, len(finished))
        paths = front_files(search, lowering, setting.target)
        polished, polish_notes = polished_front(folder, setting, search, executor, events)
        checked = check_front(
            search.front,
            paths,
            baseline,
            setting.model.path,
            problem=problem,
            executor=executor,
            target=setting.target,
            metric=setting.metric,
            split=setting.final,
            batch=job.data.batch,
            seed=job.seed,
            workers=os.cpu_count() or 1,
            run_folder=folder.path,
            polished=polished,
            step=events.step,
        )
    finally:
        with contextlib.suppress(AutoqError):  # what is on its way is the error that ends the search
            live.copy_last()
        executor.close()
    truths = proxy_truths(problem, search.trials, predicted)
    front = dataclasses.replace(
        front_of(setting, checked.baseline, search, checked.points, started),
        dropped=checked.dropped,
        form=form,
        why_empty=why_empty(search, checked.points),
        final=True,
        stop_reason=stop_reason,
        notes=(
            *mark(setting),
            *stop_notes(limits, search, stop_reason),
            *latency_notes,
            *notes_on(setting, search, truths),
            *polish_notes,
            *checked.notes,
        ),
    )
    write_front(front, folder.front)
    events.step("writing the report")
    extras = circumstances(setting, executor)
    example = {name: array[:EXAMPLE_ROWS] for name, array in setting.search.inputs.items()}
    health = health_of(setting, lowering, front, folder, events)
    publish(folder.path, front, search.trials, extras, tracker, example, job.data.batch, health, setting.target, truths)
    return front, tuple(search.trials), Calibrated(lowering.affines, lowering.smoothing)
