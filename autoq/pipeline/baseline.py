"""The float32 model as a candidate of its own: what all others are compared with."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoq.core.policy import Policy
from autoq.core.result import Estimate, FormGain, FrontPoint, Latency, MetricPair
from autoq.core.scheme import FLOAT32
from autoq.errors import MetricError, ProfileError, TrialError
from autoq.model.lower import Lowering
from autoq.model.target import Target
from autoq.pipeline.exchange import Events, TakenOver
from autoq.record.run_folder import RunFolder
from autoq.runtime.gauge import Gauge
from autoq.setting import Setting
from autoq.spec.job import Job


def form_gain(setting: Setting, lowering: Lowering, gauge: Gauge) -> FormGain | None:
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


def float32_answers(setting: Setting, taken_over: TakenOver, events: Events) -> Mapping[str, np.ndarray]:
    """The outputs on the search split of the float32 model as its file gave it, on the target where that runs ONNX.

    They come first of all: a metric that does not fit the model shows in them, and what follows may take minutes.
    """
    events.step("measuring float32")
    if taken_over.answers is not None:
        return taken_over.answers
    target = setting.target if setting.target.runs_onnx else Target.load("onnxruntime")
    try:
        return target.outputs(setting.model.path, setting.search.inputs, setting.job.data.batch)
    except TrialError as error:
        raise MetricError(f"the float32 model cannot be scored: {error}") from None


def measured_baseline(
    setting: Setting, answers: Mapping[str, np.ndarray], gauge: Gauge, folder: RunFolder
) -> FrontPoint:
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
