"""What guides proposals: predicted sensitivity, a latency model, and the policies to begin with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from autoq.model.bank import default_cache_dir
from autoq.model.lower import Lowering
from autoq.model.parts import Parts
from autoq.model.suffix import Suffixes
from autoq.pipeline.exchange import NOTHING, Events, TakenOver
from autoq.record.run_folder import RunFolder
from autoq.runtime.gauge import Gauge
from autoq.runtime.machine import describe, software_versions
from autoq.search.latency import LatencyModel, cached_table, keep, measure_table, read_kept, time_for_it
from autoq.search.other_hardware import likeliest
from autoq.search.problem import Problem, nearest_of
from autoq.search.proposer import Proposer
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
from autoq.setting import Setting, inference_feeds

PREDICTED_SEEDS = 24
"""Seeds from the predicted front, at most."""


def prediction(setting: Setting, lowering: Lowering, events: Events) -> Sensitivity | None:
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


def latency_model(
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


def seeds_from_others(problem: Problem, taken_over: TakenOver, trials: int) -> list[Seed]:
    """What a search of so many ``trials`` begins with of the searches for other hardware.

    At most half of them are files whose metric is known; at most a quarter other points, and half in all.
    """
    known = likeliest(problem, taken_over.scored, trials // 2)
    offered = problem.choices
    others = [
        (name, {layer: nearest_of(scheme, offered[layer]) for layer, scheme in policy.items_ if layer in offered})
        for name, policy in taken_over.seeds[: min(trials // 4, trials // 2 - len(known))]
    ]
    return [*known, *others]


def proposer_of(
    setting: Setting,
    problem: Problem,
    predicted: Sensitivity | None,
    latency: LatencyModel | None,
    taken_over: TakenOver = NOTHING,
) -> Proposer:
    """First what is taken over (:func:`seeds_from_others`); then what is predicted to trace the front:
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
    first = [*seeds_from_others(problem, taken_over, setting.job.budget.trials), *first]
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
