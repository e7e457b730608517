"""The whole job, readable from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.identity import sha256_hex
from autoq.core.objectives import Direction, Values
from autoq.core.policy import Policy
from autoq.core.proxy import ProxyTruth
from autoq.core.result import Estimate, FormGain, Front, FrontPoint, Latency, MetricPair, StopReason, Trial
from autoq.core.scheme import FLOAT32
from autoq.errors import AutoqError, MetricError, ProfileError, RunError, TrialError
from autoq.model.bank import default_cache_dir
from autoq.model.forms import formed
from autoq.model.health import ROWS as HEALTH_ROWS
from autoq.model.health import HealthCheck
from autoq.model.lower import Lowering
from autoq.model.parts import Parts
from autoq.model.placement import Placer
from autoq.model.source import SourceModel
from autoq.model.suffix import Suffixes
from autoq.model.target import Target
from autoq.record.evidence_plots import rank_text
from autoq.record.front import write_front
from autoq.record.health import Health, health_record
from autoq.record.manifest import layer_record
from autoq.record.publish import EXAMPLE_ROWS, publish
from autoq.record.run_folder import RunFolder, free_name
from autoq.record.running_front import RunningFront
from autoq.record.tracking import Tracker
from autoq.runtime.base import fixed_batch
from autoq.runtime.gauge import Gauge
from autoq.runtime.machine import describe, software_versions
from autoq.search.evaluate import Workload
from autoq.search.executor import Executor, LocalExecutor
from autoq.search.fidelity import Steps, plan_steps, planned_looks
from autoq.search.final import check_front
from autoq.search.latency import LatencyModel, cached_table, keep, measure_table, read_kept, time_for_it
from autoq.search.loop import Limits, Search
from autoq.search.polish import Polished, polish_front
from autoq.search.polish_log import PolishLog
from autoq.search.polish_point import PolishWork
from autoq.search.problem import Problem, nearest_of
from autoq.search.proposer import Proposer
from autoq.search.ranking import proxy_truths
from autoq.search.seeds import Seed, opening_seeds, proxies
from autoq.search.sensitivity import (
    Probe,
    Sensitivity,
    cached,
    disturbance,
    measure_by,
    probe_rows,
    probes,
    sensitivity,
)
from autoq.search.stopping import LEAST_GAIN
from autoq.search.store import TrialLog, disk_error
from autoq.search.study_record import StudyRecord
from autoq.setting import (
    Setting,
    choose_forms,
    gauge_of,
    groundwork_of,
    inference_feeds,
    read_setting,
    workload_of,
    write_reference,
)
from autoq.spec.job import Job, load_job

PREDICTED_SEEDS = 24
"""Seeds from the predicted front, at most."""

LAST_COPIES_S = 5.0
"""How long a search that was ended goes on telling the tracking server of its trials; ``--resume`` tells the rest."""

RUNS = Path("runs")
"""Where runs go by default, and with them MLflow's database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What a caller may watch: steps in words, finished trials (with all so far and the front), warnings."""

    step: Callable[[str], None] = lambda text: None
    trial: Callable[[Trial, Search], None] = lambda trial, search: None
    warn: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished search: its front, every trial, the folder that holds them, and where it was tracked."""

    front: Front
    trials: tuple[Trial, ...]
    path: Path
    tracking_uri: str
    tracking_problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a search takes over from searches of the same job for other hardware.

    ``known`` has the metric on the search split of files, by SHA-256, that were scored with the same arithmetic.
    ``seeds`` are policies to begin with, whose schemes are taken as near as they can be had here. ``parent_run`` is the
    MLflow run that this search's is shown under.
    """

    known: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seeds: tuple[tuple[str, Policy], ...] = ()
    parent_run: str | None = None


NOTHING = TakenOver()


def run_search(
    source: str | Path | Mapping[str, Any] | Job,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trials: int | None = None,
    time_limit: str | float | None = None,
    ray: str = "local",
    workers: int = 0,
    tracking_uri: str | None = None,
    seed: int | None = None,
    polish: str | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    events: Events | None = None,
    taken_over: TakenOver = NOTHING,
) -> Outcome:
    """Runs a job: reads and checks everything, calibrates, searches, checks the front on unseen data, records it.

    ``ray`` is ``"local"``, ``"off"`` or a cluster's address; ``workers`` 0 is one a core. ``force`` searches on a
    machine that the profile does not describe. Raises :class:`autoq.errors.AutoqError`; finished trials stay in the
    run folder whatever happens.
    """
    events = events or Events()
    started = time.monotonic()
    job = load_job(source, base_dir).overridden(
        trials=trials, time=time_limit, tracking_uri=tracking_uri, seed=seed, polish=polish
    )
    events.step("reading model and data")
    setting = read_setting(job, force=force, warn=events.warn)
    path = Path(out) if out is not None else free_name(RUNS, job.name)
    with RunFolder(path).open(resume=resume) as folder:
        recorded = folder.read() if resume else {}
        setting = choose_forms(setting, recorded, step=events.step)
        record = _record(folder, setting, recorded)
        tracker = _open_tracker(folder, record, setting, taken_over, events)
        record["tracking"] = {"uri": tracker.uri, "run_id": tracker.run_id}
        folder.write(record)
        status = "FAILED"
        try:
            front, found = _search(folder, setting, taken_over, tracker, started, ray, workers, events)
            folder.write(record | {"stop_reason": front.stop_reason})
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)  # type: ignore[arg-type]
    return Outcome(front=front, trials=found, path=path, tracking_uri=tracker.uri, tracking_problems=tracker.problems)


def _search(
    folder: RunFolder,
    setting: Setting,
    taken_over: TakenOver,
    tracker: Tracker,
    started: float,
    ray: str,
    workers: int,
    events: Events,
) -> tuple[Front, tuple[Trial, ...]]:
    job = setting.job
    log = TrialLog(folder.trials)
    finished = log.read()
    # First, since a metric that does not fit the model shows here, and what follows may take minutes.
    events.step("measuring float32")
    answers = _float32_answers(setting)
    if setting.profile.reference == FLOAT32:
        gauge = gauge_of(setting, setting.model.path)
        baseline = _baseline(setting, answers, gauge, folder)
        lowering = groundwork_of(setting, step=events.step)
    else:
        lowering = groundwork_of(setting, step=events.step)
        gauge = gauge_of(setting, write_reference(setting, lowering, folder))
        baseline = _baseline(setting, answers, gauge, folder)
    form = _form_gain(setting, lowering, gauge)
    predicted = _prediction(setting, lowering, events)
    problem = _problem(setting, lowering, baseline)
    latency, latency_notes = _latency(setting, lowering, problem, gauge, folder, bool(finished), events)
    if latency is not None:
        problem = dataclasses.replace(problem, latency=latency.ratio)
    study = StudyRecord(
        folder.study,
        job.name,
        _directions(setting),
        job.objectives,
        layers=list(problem.choices),
        schemes=problem.schemes(),
    )

    running = RunningFront(folder.front)
    points: dict[int, FrontPoint] = {}
    why, why_after = "", 0

    def write_running_front(search: Search) -> None:
        nonlocal why, why_after
        for trial in search.front:
            if trial.number not in points:
                points[trial.number] = _point(trial, search.model_path(trial.id), folder)
        found = [points[trial.number] for trial in search.front]
        # To find the nearest miss, all trials are looked at: not after every one of thousands.
        if not found and len(search.trials) >= 1.05 * why_after:
            why, why_after = _why_empty(search, found), len(search.trials)
        front = _front(setting, baseline, search, found, started)
        running.write(dataclasses.replace(front, form=form, why_empty="" if found else why))

    finished_now: deque[Trial] = deque()

    def on_trial(trial: Trial, search: Search) -> None:
        finished_now.append(trial)
        write_running_front(search)
        events.trial(trial, search)

    untracked: deque[Trial] = deque()

    def copy_trials(over: Callable[[], bool] = lambda: False) -> None:
        """The study and the tracking server get their copies while workers score, so that no trial waits for them."""
        copied = [finished_now.popleft() for _ in range(len(finished_now))]
        untracked.extend(copied)
        study.add((trial, _study_values(trial, setting)) for trial in copied)
        while untracked and not over():
            tracker.log_trial(untracked.popleft())

    events.step("starting workers" if ray != "off" else "searching")
    workload = workload_of(setting, lowering, _steps(setting, answers), taken_over.known)
    executor = _executor(workload, gauge, ray, workers)
    try:
        search = Search(
            problem=problem,
            proposer=_proposer(setting, problem, predicted, latency, taken_over.seeds),
            executor=executor,
            log=log,
            models=folder.models,
            clock=time.monotonic,
            on_trial=on_trial,
            meanwhile=copy_trials,
            step_rows=setting.search.rows if workload.steps else None,
            suffix=setting.target.suffix,
        )
        if not folder.front.exists():
            write_running_front(search)
        deadline = None if job.budget.time_s is None else started + job.budget.time_s
        events.step("searching")
        limits = Limits(
            trials=job.budget.trials,
            deadline=deadline,
            until=job.budget.until.bounds if job.budget.until else None,
            patience=job.budget.patience,
        )
        stop_reason = search.run(limits, finished)
        copy_trials()
        study.add((trial, _study_values(trial, setting)) for trial in search.trials)  # what a crash kept from it
        for trial in search.trials:
            if trial.number < len(finished):
                tracker.log_trial(trial)
        paths = _front_files(search, lowering, setting.target)
        polished, polish_notes = _polish(folder, setting, search, executor, events)
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
            ended = time.monotonic()
            copy_trials(lambda: time.monotonic() - ended > LAST_COPIES_S)
        executor.close()
    truths = proxy_truths(problem, search.trials, predicted)
    front = dataclasses.replace(
        _front(setting, checked.baseline, search, checked.points, started),
        dropped=checked.dropped,
        form=form,
        why_empty=_why_empty(search, checked.points),
        final=True,
        stop_reason=stop_reason,
        notes=(
            *_mark(setting),
            *_stop_notes(limits, search, stop_reason),
            *latency_notes,
            *_notes(setting, search, truths),
            *polish_notes,
            *checked.notes,
        ),
    )
    write_front(front, folder.front)
    events.step("writing the report")
    extras = _extras(setting, executor)
    example = {name: array[:EXAMPLE_ROWS] for name, array in setting.search.inputs.items()}
    health = _health(setting, lowering, front, folder, events)
    publish(folder.path, front, search.trials, extras, tracker, example, job.data.batch, health, setting.target, truths)
    return front, tuple(search.trials)


def _record(folder: RunFolder, setting: Setting, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json``; what is ``recorded`` of a search that goes on must be of the same one."""
    job = setting.job
    identity = {
        "model": setting.model.identity,
        "search data": setting.search.fingerprint,
        "final data": setting.final.fingerprint,
        "calibration data": setting.calibration.fingerprint,
        "data.batch": job.data.batch,
        "metric": {name: value for name, value in setting.metric.spec.items() if name != "timeout"},
        "space": setting.space.to_dict(),
        "hardware": setting.profile.to_dict(),
        "objectives": list(job.objectives),
        "constraints": job.to_dict()["constraints"],
        "latency": job.to_dict()["latency"],
        "sampler": job.search.sampler,
        "seed": job.seed,
        "search.fidelity": "steps" if _looks(setting) else "full",
        **({"forms": list(setting.forms)} if setting.forms else {}),
        **({"padding mask": setting.padding_mask} if setting.padding_mask else {}),
    }
    if recorded:
        # Runs from before it was part of the identity have it in their job alone.
        before = {"data.batch": recorded.get("job", {}).get("data", {}).get("batch"), "search.fidelity": "full"}
        folder.check_identity(before | recorded.get("identity", {}), identity)
    return {
        "name": job.name,
        "identity": identity,
        "job": job.to_dict(),
        "base_dir": str(job.base_dir),
        "model_sha256": setting.model.sha256,
        "layers": _layer_records(setting.model, setting.forms, setting.profile.lowering.integer_products),
        "profile": setting.profile.name,
        "runtime": {"name": setting.profile.runtime.name, "options": setting.profile.runtime.arguments},
        "forms": recorded.get("forms") or [dataclasses.asdict(figure) for figure in setting.form_figures],
        "versions": software_versions(),
        "tracking": recorded.get("tracking", {}),
    }


def _layer_records(model: SourceModel, forms: tuple[str, ...], integer_products: bool) -> list[dict[str, Any]]:
    graph = formed(model.graph, forms)
    placer = Placer(graph, model.layers, integer_products)
    return [
        layer_record(layer, tuple(dict.fromkeys([layer.output, placer.stored(graph.nodes[layer.node])])))
        for layer in model.layers
    ]


def tracking_uri_of(job: Job) -> str:
    """The job's MLflow server, or the default one."""
    uri = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        RUNS.mkdir(exist_ok=True)
        uri = f"sqlite:///{(RUNS / 'mlflow.db').absolute()}"
    return uri


def _open_tracker(
    folder: RunFolder, record: dict[str, Any], setting: Setting, taken_over: TakenOver, events: Events
) -> Tracker:
    job = setting.job
    uri = tracking_uri_of(job)
    before = record["tracking"]
    versions = {f"autoq.version.{name}": version for name, version in software_versions().items() if version}
    tags = {"autoq.model_sha256": setting.model.sha256, "autoq.profile": setting.profile.name}
    tags |= {"autoq.machine_mismatch": setting.mismatch} if setting.mismatch else {}
    tags |= {"autoq.space": setting.space.name, "autoq.run_folder": str(folder.path.absolute())}
    if taken_over.parent_run is not None:
        tags["mlflow.parentRunId"] = taken_over.parent_run
    return Tracker.open(
        uri,
        experiment=job.tracking.experiment or job.name,
        run_name=folder.path.name,
        tags=tags | versions,
        params=job.to_dict(),
        resume_run_id=before.get("run_id") if before.get("uri") == uri else None,
        warn=events.warn,
    )


def _form_gain(setting: Setting, lowering: Lowering, gauge: Gauge) -> FormGain | None:
    """How fast float32 itself is in the forms of the candidates; ``None`` where these have the model's own."""
    if not setting.forms or setting.profile.reference != FLOAT32:
        return None
    float32 = lowering.canonical(Policy.uniform([layer.name for layer in setting.model.layers], FLOAT32))
    with tempfile.TemporaryDirectory(prefix="autoq-forms-") as folder:
        path = Path(folder) / "float32.onnx"
        path.write_bytes(lowering.build(float32))
        try:
            latency = gauge.measure_many([path])[0].latency
        except TrialError as error:
            raise MetricError(f"the float32 model in the forms {', '.join(setting.forms)} fails: {error}") from None
    return FormGain(names=setting.forms, latency=latency) if isinstance(latency, Latency) else None


def _float32_answers(setting: Setting) -> Mapping[str, np.ndarray]:
    """The outputs on the search split of the float32 model as its file gave it, on the target where that runs ONNX."""
    target = setting.target if setting.target.runs_onnx else Target.load("onnxruntime")
    try:
        return target.outputs(setting.model.path, setting.search.inputs, setting.job.data.batch)
    except TrialError as error:
        raise MetricError(f"the float32 model cannot be scored: {error}") from None


def _baseline(setting: Setting, answers: Mapping[str, np.ndarray], gauge: Gauge, folder: RunFolder) -> FrontPoint:
    """The float32 model, scored and measured like a candidate; its ratio is 1 by definition.

    Where the hardware cannot run it, it has neither latency nor memory; the reference is measured in its place.
    """
    model, runs = setting.model, setting.profile.reference == FLOAT32
    what = (
        "float32 model"
        if runs
        else f"{setting.profile.reference} model, the reference of profile {setting.profile.name!r},"
    )
    try:
        metric = setting.metric(answers, setting.search.targets)
        measured = gauge.measure(gauge.baseline)
    except TrialError as error:
        raise MetricError(f"the {what} cannot be scored or measured: {error}") from None
    if measured.peak_memory_bytes is None and wants_memory(setting.job):
        raise ProfileError(
            f"profile {setting.profile.name!r} tells no peak memory (measure.by: {setting.profile.measure.by}): take "
            "peak_memory from objectives and constraints"
        )
    own = measured.latency
    latency: Latency | Estimate
    if isinstance(own, Latency):
        latency = dataclasses.replace(own, ratio=1.0, ratio_ci95=(1.0, 1.0), blocks_ms=(), baseline_blocks_ms=())
    else:
        latency = dataclasses.replace(own, ratio=1.0)
    return FrontPoint(
        id="float32",
        policy=Policy.uniform([layer.name for layer in model.layers], FLOAT32),
        metric=MetricPair(search=metric),
        latency=latency if runs else None,
        size_bytes=model.size_bytes,
        peak_memory_bytes=measured.peak_memory_bytes if runs else None,
        weight_bits_mean=32.0,
        model_path=os.path.relpath(model.path, folder.path),
        sha256=model.sha256,
        origin="the model as given",
        load_ms=measured.load_ms if runs else None,
    )


def wants_memory(job: Job) -> bool:
    """Whether the job asks for the peak memory of its models."""
    return "peak_memory" in job.objectives or job.constraints.max_peak_memory_ratio is not None


def _looks(setting: Setting) -> tuple[int, ...]:
    """After how many rows of the search split candidates may be dropped; none where all are scored whatever comes."""
    if setting.job.search.fidelity == "full":
        return ()
    return planned_looks(setting.search.rows, setting.search.group, _chunk(setting))


def _chunk(setting: Setting) -> int:
    """Rows that go through the model at once when it is scored."""
    return fixed_batch(setting.inputs) or setting.job.data.batch


def _steps(setting: Setting, answers: Mapping[str, np.ndarray]) -> Steps | None:
    if not _looks(setting):
        return None
    split = setting.search
    return plan_steps(
        setting.metric, answers, split.targets, group=split.group, chunk=_chunk(setting), seed=setting.job.seed
    )


def _problem(setting: Setting, lowering: Lowering, baseline: FrontPoint) -> Problem:
    return Problem(
        candidates=setting.candidates,
        canonical=lowering.canonical,
        seed_schemes=tuple(dict.fromkeys(map(setting.profile.instead_of, setting.space.seeds))),
        objectives=setting.job.objectives,
        direction=setting.metric.direction,
        constraints=setting.job.constraints,
        baseline=Values(
            metric=baseline.metric.search,
            latency_ratio=baseline.latency.ratio if baseline.latency else None,
            size_bytes=baseline.size_bytes,
            peak_memory_bytes=baseline.peak_memory_bytes,
        ),
        profile=setting.profile,
    )


def _prediction(setting: Setting, lowering: Lowering, events: Events) -> Sensitivity | None:
    """How much each scheme disturbs each layer, or ``None`` where there is nothing to tell apart."""
    found = probes(setting.candidates, lowering.canonical)
    if not found or setting.job.budget.trials <= len(setting.space.seeds):
        return None
    events.step(f"probing the sensitivity of {len(setting.candidates)} layers")
    rows = probe_rows(found, setting.candidates)
    inputs = {name: array[:rows] for name, array in setting.calibration.inputs.items()}

    def take(missing: Sequence[Probe], keep: Callable[[Probe, float | None], None]) -> None:
        runs = Suffixes(lowering, inputs, rows)
        classes = setting.metric.classes(runs.reference, setting.search.targets)
        measure_by(missing, runs, workers=os.cpu_count() or 1, judge=disturbance(classes), keep=keep)

    metric = {name: value for name, value in setting.metric.spec.items() if name != "timeout"}
    noises = cached(default_cache_dir(), found, [setting.built_from, rows, metric], take)
    return sensitivity(setting.candidates, found, noises)


def _latency(
    setting: Setting,
    lowering: Lowering,
    problem: Problem,
    gauge: Gauge,
    folder: RunFolder,
    resumed: bool,
    events: Events,
) -> tuple[LatencyModel | None, tuple[str, ...]]:
    """A latency model measured here, or ``None`` where the profile's costs serve; and what to say of it.

    The run folder keeps what it was: a search that goes on proposes by the same figures.
    """
    job = setting.job
    if "latency" not in job.objectives and job.constraints.max_latency_ratio is None:
        return None, ()
    kept = read_kept(folder.latency)
    if kept is None and resumed:  # trials from before there was a model
        return None, ()
    if kept is None:
        limit_s = time_for_it(job.budget.trials, job.budget.time_s)
        kept = (
            "no latency model was measured, for want of trials, time or policies: the profile's costs guide proposals"
        )
        if limit_s:
            settings, machine, versions = setting.profile.latency_with(job.latency), describe(), software_versions()
            identity = {
                "built from": [setting.model.identity, setting.forms, setting.profile.lowering.to_dict()],
                "schemes": {entry.layer.name: list(map(str, entry.schemes)) for entry in setting.candidates},
                "shapes": {name: list(array.shape) for name, array in inference_feeds(setting).items()},
                "runtime": [setting.profile.to_dict()["runtime"], settings.threads],
                "measured": [setting.profile.measure.model_dump(mode="json"), str(setting.profile.reference)],
                "profile": setting.profile.to_dict()["costs"],
                "machine": [machine.cpu_model, machine.arch, sorted(machine.flags), machine.usable_cores],
                "versions": [versions["autoq"], versions.get(setting.profile.runtime.name)],
                "seconds": limit_s,
            }
            events.step(f"timing files for a latency model, at most {limit_s:.0f} s")
            table = cached_table(
                default_cache_dir(),
                identity,
                lambda: measure_table(
                    setting.candidates,
                    lowering,
                    problem.complete,
                    setting.profile,
                    gauge,
                    limit_s=limit_s,
                    clock=time.monotonic,
                    target=setting.target,
                ),
            )
            kept = table or kept
        keep(folder.latency, kept)
    if isinstance(kept, str):
        return None, (kept,)
    events.step(str(kept.check))
    parts = Parts(lowering.formed, lowering.layers, lowering.placer, setting.profile.lowering.packed_weights)
    model = LatencyModel(table=kept, parts=parts)
    return model if kept.check.good else None, (str(kept.check),)


def _proposer(
    setting: Setting,
    problem: Problem,
    predicted: Sensitivity | None,
    latency: LatencyModel | None,
    given: Sequence[tuple[str, Policy]] = (),
) -> Proposer:
    """First those that are ``given``, at most a quarter of the budget; then what is predicted to trace the front:
    uniform policies, and at most :data:`PREDICTED_SEEDS` others or half
    of the budget. Then the sampler's, with the other uniform policies among them. Without predictions, all of these
    come first."""
    uniform = problem.uniform_seeds()
    count = min(PREDICTED_SEEDS, (setting.job.budget.trials - len(uniform)) // 2)
    times = latency.layer_times(setting.candidates, problem.complete) if predicted and latency else None
    profile = setting.profile
    first: list[Seed] = uniform
    later: list[Seed] = []
    if predicted:
        found, later = opening_seeds(setting.candidates, predicted, profile, uniform, max(count, 0), times)
        first = [(name, {layer: seed[layer] for layer in problem.choices}) for name, seed in found]
    offered = {entry.layer.name: entry.schemes for entry in setting.candidates}
    first = [
        *(
            (
                name,
                {
                    layer: nearest_of(scheme, offered[layer])
                    for layer, scheme in policy.items_
                    if layer in problem.choices
                },
            )
            for name, policy in given[: setting.job.budget.trials // 4]
        ),
        *first,
    ]
    believed = proxies(setting.candidates, predicted, profile, setting.job.objectives, times) if predicted else None
    return Proposer(
        problem.choices,
        problem.complete,
        seeds=first,
        later=later,
        objectives=len(setting.job.objectives),
        sampler=setting.job.search.sampler,
        seed=setting.job.seed,
        proxies=believed,
        reference=problem.reference(),
    )


def _executor(workload: Workload, gauge: Gauge, ray: str, workers: int) -> Executor:
    if ray == "off":
        return LocalExecutor(workload, gauge)
    from autoq.search.ray_executor import RayExecutor

    return RayExecutor(workload, gauge, address=ray, workers=workers)


def _polish(
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


# Results -------------------------------------------------------------------------------------------------------------


def _directions(setting: Setting) -> list[Direction]:
    return [setting.metric.direction if name == "metric" else "minimize" for name in setting.job.objectives]


def _study_values(trial: Trial, setting: Setting) -> list[float] | None:
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


def _point(trial: Trial, path: Path, folder: RunFolder) -> FrontPoint:
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


def _front(
    setting: Setting, baseline: FrontPoint, search: Search, points: Sequence[FrontPoint], started: float
) -> Front:
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
        notes=_mark(setting),
    )


def _mark(setting: Setting) -> tuple[str, ...]:
    return (setting.mismatch,) if setting.mismatch else ()


def _front_files(search: Search, lowering: Lowering, target: Target) -> list[Path]:
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


def _stop_notes(limits: Limits, search: Search, reason: StopReason) -> list[str]:
    """What there is to say of a search that ended before its budget was spent."""
    if reason == "no gain":
        return [
            f"stopped after {len(search.trials)} trials: the last {limits.patience} have widened the front by less "
            f"than {LEAST_GAIN:.1%} of its hypervolume (budget.patience)"
        ]
    if reason == "target met":
        met = next(trial for trial in search.trials if search.problem.feasible(trial, limits.until))
        return [f"stopped at trial {met.number} ({met.id}): it keeps the bounds of budget.until on the search split"]
    return []


def _why_empty(search: Search, points: Sequence[FrontPoint]) -> str:
    if points:
        return ""
    if search.front:
        return "the final check took off all that the search had found"
    return search.problem.nearest_miss(search.trials)


def _notes(setting: Setting, search: Search, truths: Sequence[ProxyTruth]) -> tuple[str, ...]:
    notes = list(setting.model.notes)
    tried = {trial.policy for trial in search.trials}
    seeds = search.problem.uniform_seeds()
    untried = [name for name, chosen in seeds if search.problem.complete(chosen) not in tried]
    if untried:
        notes.append(
            f"the search ended before {len(untried)} of its {len(seeds)} uniform seeds were tried: "
            f"{', '.join(untried)}; a larger budget has them"
        )
    if truths:
        ranks = ", ".join(map(rank_text, truths))
        notes.append(f"the proxies ranked the truth with Spearman correlations of: {ranks}")
    return tuple(notes)


def _health(setting: Setting, lowering: Lowering, front: Front, folder: RunFolder, events: Events) -> Health:
    """The health of the front's points; what cannot be taken is left out, with a warning: no search ends for it."""
    narrow = describe().adds_pairs_in_16_bits or bool(setting.profile.instead)
    batch = fixed_batch(setting.inputs) or HEALTH_ROWS
    calibration = {name: array[:batch] for name, array in setting.calibration.inputs.items()}
    rows = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in calibration.items()}
    found = {}
    try:
        check = HealthCheck(lowering, rows)
        for point in front.points:
            if setting.target.runs_onnx:
                model = (folder.path / point.model_path).read_bytes()
            else:  # the same numbers
                model = lowering.build(point.policy)
            layers = check.take(point.policy, model, banked=point.polish is None)
            found[point.id] = health_record(layers, narrow=narrow)
    except (TrialError, OSError) as error:
        events.warn(f"the numerical health of the front's models could not be taken: {error}")
    return found


def _extras(setting: Setting, executor: Executor) -> dict[str, dict[str, object]]:
    machine = describe()
    return {
        "Machine": {
            "processor": machine.cpu_model,
            "cores": f"{machine.usable_cores} usable of {machine.logical_cores}",
            "memory, GiB": round(machine.memory_bytes / 2**30, 1),
            "system": machine.os,
        },
        "Search": {
            "hardware profile": setting.profile.name,
            "space": setting.space.name,
            "evaluated by": executor.description,
            "model SHA-256": setting.model.sha256,
            "rows": f"{setting.calibration.rows} calibration, {setting.search.rows} search, {setting.final.rows} final",
        },
        "Versions": dict(software_versions()),
    }
