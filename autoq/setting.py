"""What a job reads, checked, and what is made of it before the first candidate.

Forms, groundwork, the gauge and its reference, and the workload that goes to the workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32
from autoq.errors import DataError, JobError, MetricError, ProfileError, TrialError
from autoq.model.bank import BANK_VERSION, default_cache_dir
from autoq.model.calibrate import output_shapes
from autoq.model.corrections import CORRECTION_VERSION
from autoq.model.layers import with_macs
from autoq.model.lower import Lowering
from autoq.model.source import SourceModel, read_model
from autoq.model.target import Target
from autoq.record.files import write_atomically
from autoq.record.machines import machine_document, machines_note, machines_of
from autoq.record.run_folder import RunFolder
from autoq.runtime.base import InputSpec, fixed_batch
from autoq.runtime.data import Split, load_split
from autoq.runtime.detect import detect, fit
from autoq.runtime.gauge import METER, Gauge, load_gauge
from autoq.runtime.kind import kind_of
from autoq.runtime.machine import describe
from autoq.runtime.meter import SEARCH_PLAN
from autoq.runtime.metric import Metric, resolve_metric
from autoq.runtime.ort import input_specs, open_session
from autoq.runtime.profiles import read_profile
from autoq.search.candidates import Candidates, candidates
from autoq.search.evaluate import Workload
from autoq.search.fidelity import Steps
from autoq.search.form_probe import FormFigure, probe_forms
from autoq.search.groundwork import Calibrated, lay_groundwork
from autoq.search.problem import nearest_of
from autoq.spec.hardware import Profile
from autoq.spec.job import Job
from autoq.spec.profile_fields import AUTO
from autoq.spec.space import Space, load_space


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """All that a search reads, checked before anything dear begins. ``model`` has its layers' MACs filled in.

    ``target`` is what candidates are written for and scored on. ``padding_mask`` is the input that says what
    calibration leaves out. ``mismatch`` says why the profile does not describe this machine, or that the search ran on
    machines of several kinds, where it was forced. ``forms`` are the forms of the graph that candidates are written in:
    none until :func:`choose_forms`.
    """

    job: Job
    space: Space
    profile: Profile
    metric: Metric
    model: SourceModel
    inputs: tuple[InputSpec, ...]
    calibration: Split
    search: Split
    final: Split
    candidates: tuple[Candidates, ...]
    target: Target
    padding_mask: str | None = None
    mismatch: str = ""
    forms: tuple[str, ...] = ()
    form_figures: tuple[FormFigure, ...] = ()

    @property
    def built_from(self) -> list[object]:
        """What the files of policies depend on besides the policies, as JSON can hold it."""
        return [
            self.model.identity,
            self.calibration.fingerprint,
            BANK_VERSION,
            CORRECTION_VERSION,
            self.padding_mask,
            self.profile.lowering.accuracy_level,
            *(["integer products"] if self.profile.lowering.integer_products else []),
        ]


def read_setting(job: Job, *, force: bool = False, warn: Callable[[str], None] = lambda text: None) -> Setting:
    """Reads all that ``job`` names, and checks it. Raises :class:`autoq.errors.AutoqError`."""
    if job.then_on:
        raise JobError(
            f"hardware: one profile is asked for here, and the job names {len(job.targets)} "
            f"({', '.join(job.targets)}); `autoq search` and `autoq.search_targets` take several"
        )
    space = load_space(job.space, job.base_dir)
    profile, mismatch, target = _hardware(job, force, warn)
    metric = resolve_metric(job)
    model = read_model(job.model_path, equalized=space.equalization == "cross-layer")
    for note in model.notes:
        warn(note)
    specs = _input_specs(job)
    search, final = load_split(job, "search", specs), load_split(job, "final", specs)
    rows = specs[0].shape[0] if specs[0].shape and specs[0].shape[0] else 1
    first_rows = {name: array[:rows] for name, array in search.inputs.items()}
    layers = with_macs(model.layers, output_shapes(model.graph, model.layers, first_rows))
    model = dataclasses.replace(model, layers=layers)
    found = candidates(model.graph, layers, space, profile, model.opset)
    for pattern in space.unmatched([(layer.name, layer.op_type) for layer in layers]):
        warn(f"space {space.name!r}: the rule {pattern!r} fits no layer of this model")
    return Setting(
        job=job,
        space=space,
        profile=profile,
        metric=metric,
        model=model,
        inputs=specs,
        candidates=found,
        calibration=load_split(job, "calibration", specs),
        search=search,
        final=final,
        target=target,
        padding_mask=_padding_mask(job, specs),
        mismatch=mismatch,
    )


def on_hardware(
    setting: Setting, job: Job, *, force: bool = False, warn: Callable[[str], None] = lambda text: None
) -> Setting:
    """``setting`` for ``job``, which differs in its hardware alone: model and data are not read again.

    Raises :class:`autoq.errors.AutoqError` as :func:`read_setting`.
    """
    profile, mismatch, target = _hardware(job, force, warn)
    model = setting.model
    return dataclasses.replace(
        setting,
        job=job,
        profile=profile,
        mismatch=mismatch,
        target=target,
        candidates=candidates(model.graph, model.layers, setting.space, profile, model.opset),
        forms=(),
        form_figures=(),
    )


def _hardware(job: Job, force: bool, warn: Callable[[str], None]) -> tuple[Profile, str, Target]:
    """The job's profile, why it does not describe this machine where ``force`` lets it pass, and its target."""
    profile = read_profile(job.hardware, job.base_dir)
    mismatch = check_machine(profile, force, warn)
    return profile, mismatch, Target.load(profile.runtime.name, profile.runtime.arguments)


def check_machine(profile: Profile, force: bool, warn: Callable[[str], None]) -> str:
    """Refuses a machine that ``profile`` does not describe (:class:`ProfileError`), or, with ``force``, warns of it.

    What it warns of comes back: records are marked with it. Empty where the profile fits.
    """
    machine = describe()
    problems = fit(profile, machine).problems
    if problems and not force:
        fitting = [each.name for each in detect(machine) if each.fits]
        advice = f"Write hardware: {fitting[0]}" if fitting else "Choose another with `hardware:` (see `autoq doctor`)"
        raise ProfileError(
            f"profile {profile.name!r} does not describe this machine: {'; '.join(problems)}. {advice}, or search all "
            "the same with --force"
        )
    if not problems:
        return ""
    mark = f"measured on a machine that profile {profile.name!r} does not describe: {'; '.join(problems)}"
    warn(mark)
    return mark


def with_machines(
    setting: Setting,
    run: Path,
    recorded: Mapping[str, Any],
    *,
    force: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> tuple[Setting, list[dict[str, Any]]]:
    """``setting`` and the machines of the search in ``run``, whose ``run.json`` is ``recorded``: its own and this one.

    Raises :class:`autoq.errors.RunError` where they are not of one kind; with ``force`` it warns of it, and the setting
    is marked.
    """
    timed = setting.profile.measure.by == METER
    own = kind_of(describe(), setting.profile.runtime.name)
    machines = machines_of(run, recorded, own, timed=timed, force=force)
    if note := machines_note(machines, timed=timed):
        warn(note)
        setting = dataclasses.replace(setting, mismatch="; ".join(filter(None, [setting.mismatch, note])))
    return setting, [machine_document(machine) for machine in machines]


def _padding_mask(job: Job, inputs: Sequence[InputSpec]) -> str | None:
    """The input that is 0 at padded positions: the one that the job names, or ``attention_mask``."""
    wanted = job.data.padding_mask
    if wanted == "none":
        return None
    names = [spec.name for spec in inputs if len(spec.shape) == 2]
    if wanted is not None and wanted not in names:
        raise DataError(
            f"data.padding_mask: {wanted!r} is no input of the model with two dimensions (rows, positions); such are: "
            f"{', '.join(names) or 'none'}"
        )
    return wanted or ("attention_mask" if "attention_mask" in names else None)


def _input_specs(job: Job) -> tuple[InputSpec, ...]:
    try:
        return input_specs(open_session(job.model_path))
    except TrialError as error:
        raise ProfileError(f"the float32 model {job.model_path} does not run: {error}") from None


def groundwork_of(
    setting: Setting, *, calibrated: Calibrated | None = None, step: Callable[[str], None] = lambda text: None
) -> Lowering:
    """What every candidate of ``setting`` is built from, in its forms: see :func:`lay_groundwork`."""
    return lay_groundwork(
        setting.model,
        setting.candidates,
        setting.calibration,
        setting.inputs,
        cache_dir=default_cache_dir(),
        padding_mask=setting.padding_mask,
        accuracy_level=setting.profile.lowering.accuracy_level,
        integer_products=setting.profile.lowering.integer_products,
        forms=setting.forms,
        calibrated=calibrated,
        step=step,
    )


def choose_forms(
    setting: Setting, recorded: Mapping[str, Any] | None = None, *, step: Callable[[str], None] = lambda text: None
) -> Setting:
    """``setting`` with the forms that its profile names, or that a probe finds to pay here (docs/lowering.md).

    A search that goes on keeps the forms of its ``recorded`` run, so that its models stay the same.
    """
    if recorded:
        return dataclasses.replace(setting, forms=tuple(recorded.get("identity", {}).get("forms", ())))
    timed_here = setting.profile.measure.by == METER and setting.target.runs_onnx
    if setting.profile.forms == (AUTO,) and not timed_here:  # what pays cannot be found out here
        return setting
    if setting.profile.forms != (AUTO,):
        return dataclasses.replace(setting, forms=setting.profile.forms)
    latency, runtime = setting.profile.latency_with(setting.job.latency), setting.profile.runtime
    try:
        figures = probe_forms(
            setting.model,
            setting.candidates,
            inference_feeds(setting),
            threads=latency.threads,
            runtime=runtime.name,
            runtime_options=runtime.arguments,
            cache_dir=default_cache_dir(),
            step=step,
        )
    except TrialError as error:
        raise MetricError(f"the model cannot be measured: {error}") from None
    names = tuple(figure.name for figure in figures if figure.pays)
    return dataclasses.replace(setting, forms=names, form_figures=figures)


def gauge_of(setting: Setting, reference: Path) -> Gauge:
    """What takes latency and memory as the profile has it, against the file ``reference``."""
    profile = setting.profile
    latency = profile.latency_with(setting.job.latency)
    plan = None
    if latency.samples is not None:
        sittings = max(2, -(-latency.samples // 2))  # of two rounds each
        plan = dataclasses.replace(
            SEARCH_PLAN, max_rounds=2, min_sittings=sittings, max_sittings=sittings, limit_s=3600.0
        )
    return load_gauge(
        profile.measure.by,
        reference,
        inference_feeds(setting),
        batch=inference_batch(setting),
        threads=latency.threads,
        runtime=profile.runtime.name,
        runtime_options=profile.runtime.arguments,
        plan=plan,
        reference_name=str(profile.reference),
        options=profile.measure.options,
    )


def reference_path(setting: Setting, run: Path) -> Path:
    """The file that latencies of the search in the folder ``run`` are against."""
    if setting.profile.reference == FLOAT32:
        return setting.model.path
    return run / f"reference{setting.target.suffix}"


def write_reference(setting: Setting, lowering: Lowering, folder: RunFolder) -> Path:
    """The uniform candidate that stands for float32 where the hardware cannot run that; kept in the run folder."""
    wanted = setting.profile.reference
    schemes = {
        entry.layer.name: nearest_of(wanted, entry.schemes) if wanted not in entry.schemes else wanted
        for entry in setting.candidates
    }
    path = reference_path(setting, folder.path)
    try:
        model = setting.target.write(lowering.build(lowering.canonical(Policy.of(schemes))))
    except TrialError as error:
        raise ProfileError(
            f"profile {setting.profile.name!r} cannot hold this model, not even as {wanted}: {error}"
        ) from None
    write_atomically(path, model)
    return path


def inference_batch(setting: Setting) -> int:
    """Rows of an inference that is timed."""
    return fixed_batch(setting.inputs) or setting.profile.latency_with(setting.job.latency).batch


def inference_feeds(setting: Setting) -> dict[str, np.ndarray]:
    """The inputs of an inference that is timed."""
    batch = inference_batch(setting)
    return {name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in setting.search.inputs.items()}


def workload_of(
    setting: Setting, lowering: Lowering, steps: Steps | None = None, known: Mapping[str, float] | None = None
) -> Workload:
    """What evaluating candidates of ``setting`` needs; ``known`` are metrics of files, by SHA-256, scored before."""
    return Workload(
        model=setting.model.graph.model.SerializeToString(),
        layers=setting.model.layers,
        affines=lowering.affines,
        bank=lowering.bank,
        corrections=lowering.corrections,
        smoothing=lowering.smoothing,
        inputs=setting.search.inputs,
        targets=setting.search.targets,
        metric=setting.metric.spec,
        base_dir=str(setting.job.base_dir),
        batch=setting.job.data.batch,
        accuracy_level=lowering.accuracy_level,
        integer_products=lowering.integer_products,
        forms=setting.forms,
        steps=steps,
        runtime=setting.profile.runtime.name,
        runtime_options=setting.profile.runtime.arguments,
        known=known or {},
    )
