"""``autoq profile probe``: what pays on a profile for a model's own layers, as a profile that says so."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autoq.errors import ProfileError
from autoq.model.bank import default_cache_dir
from autoq.model.calibrate import output_shapes
from autoq.model.layers import with_macs
from autoq.model.source import read_model
from autoq.model.target import Target
from autoq.record.files import write_atomically
from autoq.runtime.base import InputSpec
from autoq.runtime.detect import detect
from autoq.runtime.machine import describe, software_versions
from autoq.runtime.ort import input_specs
from autoq.runtime.profiles import read_profile
from autoq.runtime.sheet import random_feeds
from autoq.search.candidates import all_candidates
from autoq.search.pays import measured_costs
from autoq.search.probe import ProbeResult, probe, shapes_of
from autoq.setting import check_machine, inference_feeds, read_setting
from autoq.spec.hardware import Profile
from autoq.spec.job import load_job
from autoq.spec.resources import named
from autoq.spec.space import load_space

SECONDS = 60.0
"""How long a probe takes, about, unless it is told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a probe of one model on one profile found; ``base`` is what the profile is called by."""

    model: str
    base: str
    profile: Profile
    threads: int
    batch: int
    result: ProbeResult


def probe_model(
    source: Path,
    *,
    hardware: str | None = None,
    space: str | None = None,
    seconds: float = SECONDS,
    force: bool = False,
    step: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Probe:
    """Times the layers of an ONNX file or of a job's model, alone, in every scheme that space and profile allow.

    ``hardware`` and ``space`` replace a job's; without a job, they are the profile that describes this machine best and
    ``default``. Findings are cached, so that a later call goes on where one ended. Raises
    :class:`autoq.errors.AutoqError`.
    """
    step("reading the model")
    if source.suffix in (".yaml", ".yml"):
        job = load_job(source)
        base, base_dir = (hardware, Path()) if hardware else (job.hardware, job.base_dir)
        profile = _unprobed(base, base_dir)
        check_machine(profile, force, warn)
        chosen = load_space(space, Path()) if space else load_space(job.space, job.base_dir)
        setting = read_setting(job, force=True)
        model, layers, feeds = setting.model, setting.model.layers, inference_feeds(setting)
        settings = profile.latency_with(job.latency)
    else:
        base, base_dir = hardware or next((each.name for each in detect() if each.fits), ""), Path()
        if not base:
            raise ProfileError("no profile describes this machine: name one with --profile")
        profile, chosen = _unprobed(base, base_dir), load_space(space or "default", Path())
        check_machine(profile, force, warn)
        model, settings = read_model(source, equalized=chosen.equalization == "cross-layer"), profile.latency
        feeds = _feeds(input_specs(source), settings.batch)
        layers = with_macs(model.layers, output_shapes(model.graph, model.layers, feeds))
    base = base if _is_named(base) else str((base_dir / base).resolve())
    target = Target.load(profile.runtime.name, profile.runtime.arguments)
    found = all_candidates(model.graph, layers, chosen, profile, model.opset)
    result = probe(
        model.graph,
        shapes_of(model.graph, found, feeds, profile.reference),
        profile,
        target,
        threads=settings.threads,
        batch=settings.batch,
        limit_s=seconds,
        clock=time.monotonic,
        cache_dir=default_cache_dir(),
        step=step,
    )
    return Probe(
        model=model.path.name,
        base=base,
        profile=profile,
        threads=settings.threads,
        batch=settings.batch,
        result=result,
    )


def probed_profile(found: Probe, out: Path, today: date) -> dict[str, Any]:
    """The profile file at ``out`` that carries the findings, on top of the one that was probed."""
    machine, versions = describe(), software_versions()
    base = found.base if _is_named(found.base) else os.path.relpath(found.base, out.resolve().parent)
    base = base if _is_named(base) or "/" in base else f"./{base}"
    estimated, runtime = found.result.estimated, found.profile.runtime.name
    decisive = (found.profile.measure.by,) if estimated else (runtime, found.profile.measure.by)
    software = {name: versions.get(name) for name in decisive}
    by = found.result.by or f"{runtime} {versions.get(runtime) or ''}".strip()
    how = f"estimated by {by}" if estimated else f"timed on {machine.cpu_model} by {by}"
    findings = [each for _, shape_findings in found.result.shapes for each in shape_findings]
    return {
        "version": 1,
        "extends": base,
        "name": f"{found.profile.name}-probed",
        "description": f"{found.profile.name}, probed with the layers of {found.model}, {how}.",
        "costs_are": "estimated" if estimated else "measured",
        "cost": measured_costs(found.result.shapes, found.profile),
        "probed": {
            "machine": machine.cpu_model,
            "arch": machine.arch,
            "versions": {name: version for name, version in software.items() if version},
            "date": today.isoformat(),
            "model": found.model,
            "threads": found.threads,
            "batch": found.batch,
            "by": by,
            **({"estimated": True} if estimated else {}),
            "findings": [_rounded(each.model_dump(mode="json", exclude_none=True)) for each in findings],
        },
    }


def write_probed(found: Probe, out: Path, today: date) -> None:
    """Writes :func:`probed_profile`; raises :class:`autoq.errors.RunError` where that cannot be."""
    text = yaml.safe_dump(probed_profile(found, out, today), sort_keys=False, default_flow_style=None, width=120)
    write_atomically(out, text)


def _unprobed(name: str, base_dir: Path) -> Profile:
    """The profile, without what an earlier probe dropped: all of it is to be looked at."""
    return dataclasses.replace(read_profile(name, base_dir), probed=None)


def _is_named(name: str) -> bool:
    return name in named("hardware_profiles")


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return round(value, 4) if isinstance(value, float) else value

    return {key: short(value) for key, value in values.items()}


def _feeds(specs: tuple[InputSpec, ...], batch: int) -> dict[str, np.ndarray]:
    """Inputs of the shapes that the model's file gives, ``batch`` rows where it leaves them open."""
    for spec in specs:
        if any(size is None for size in spec.shape[1:]):
            raise ProfileError(
                f"the model leaves the shape of its input {spec.name!r} open ({spec.shape}): give "
                "`autoq profile probe` a job file, whose data have one"
            )
    return random_feeds(specs, batch, open_size=batch)
