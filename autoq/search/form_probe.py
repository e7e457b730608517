"""Which forms of the graph pay on this machine: measured once for a model, then remembered.

Two files are timed with and without each form that changes them, in warm blocks in turn: the float32 model, and the
model quantized throughout, whose scales are rough, since no value changes how long a kernel takes. Every form was seen
to pay somewhere, so one is used unless its intervals show that it gains less than 1 % here: on a busy machine, where
they are wide, it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.form import FORM_NAMES
from autoq.core.identity import content_id, sha256_hex
from autoq.core.policy import Policy
from autoq.core.result import Latency
from autoq.core.scheme import FLOAT32, Calibration, Scheme, WeightSpec
from autoq.errors import TrialError
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.lower import Lowering
from autoq.model.source import SourceModel
from autoq.runtime.gauge import Measurement
from autoq.runtime.machine import describe, software_versions
from autoq.runtime.meter import Meter
from autoq.runtime.timing import TimingPlan
from autoq.search.candidates import Candidates, activation_specs, weight_specs

VERSION = 2
"""Part of every address in the cache: raise it when a form or the way of choosing changes."""

PAYS = 0.99
"""A form that surely does not get below this ratio of times, with it to without it, is left out."""

_EACH: dict[str, tuple[str, ...]] = {"": (), **{name: (name,) for name in FORM_NAMES}}

PLAN = TimingPlan(block_s=0.01, warm_s=0.01, min_sittings=4, max_sittings=12, limit_s=0.6, half_width=0.004)

Ratio = tuple[float, float, float]
"""A ratio of times, and the ends of its 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFigure:
    """One form's ratios of times, with it to without it, on the float32 and the quantized file.

    ``None`` is where the file is the same with and without, or does not load with it.
    """

    name: str
    float32: Ratio | None
    quantized: Ratio | None

    @property
    def pays(self) -> bool:
        """Whether the form is worth using: its mean ratio may lie below :data:`PAYS`."""
        lows = [ratio[1] for ratio in (self.float32, self.quantized) if ratio is not None]
        return bool(lows) and math.exp(sum(map(math.log, lows)) / len(lows)) <= PAYS


def probe_forms(
    model: SourceModel,
    found: Sequence[Candidates],
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    runtime: str,
    runtime_options: Mapping[str, object],
    cache_dir: Path | None,
    step: Callable[[str], None] = lambda text: None,
) -> tuple[FormFigure, ...]:
    """The figures of every form that changes a file of ``model``; empty where none does.

    ``feeds`` are one inference's inputs. The answer is kept in ``cache_dir`` for this model, machine and software.
    Raises :class:`autoq.errors.TrialError` when the model without forms cannot be measured.
    """
    machine, versions = describe(), software_versions()
    identity = {
        "version": VERSION,
        "forms": FORM_NAMES,
        "model": model.identity,
        "policy": throughout(found).to_text(),
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
        "runtime": [runtime, dict(runtime_options), threads],
        "machine": [machine.cpu_model, machine.arch, sorted(machine.flags)],
        "versions": [versions["autoq"], versions.get(runtime)],
    }
    file = None if cache_dir is None else cache_dir / "forms" / f"{content_id(identity)}.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return tuple(_read(entry) for entry in json.loads(file.read_bytes()))
    with tempfile.TemporaryDirectory(prefix="autoq-forms-") as folder:
        files = write_files(model, found, feeds, Path(folder), cache_dir=cache_dir)
        if any(len(variants) > 1 for variants in files.values()):
            step("timing forms of the graph")
        options = {"threads": threads, "runtime": runtime, "runtime_options": runtime_options}
        ratios = {kind: _ratios(variants, feeds, options) for kind, variants in files.items()}
    names = [name for name in FORM_NAMES if any(name in measured for measured in ratios.values())]
    figures = tuple(
        FormFigure(name=name, **{kind: ratios.get(kind, {}).get(name) for kind in ("float32", "quantized")})
        for name in names
    )
    if file is not None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps([asdict(figure) for figure in figures]))
            temporary.replace(file)
    return figures


def _read(entry: Mapping[str, Any]) -> FormFigure:
    ratios = {
        kind: None if entry[kind] is None else tuple(map(float, entry[kind])) for kind in ("float32", "quantized")
    }
    return FormFigure(name=entry["name"], **ratios)  # type: ignore[arg-type]


def throughout(found: Sequence[Candidates]) -> Policy:
    """Every layer with 8-bit activations that can have them, weights of as many bits as it may; the others float32."""
    schemes: dict[str, Scheme] = {}
    for entry in found:
        active = [scheme for scheme in entry.schemes if scheme.activation is not None and scheme.weight is not None]
        # Ranges that are known beforehand come first: where both are offered, they run the faster.
        active.sort(key=lambda s: (s.calibrated is None, s.activation_bits, -s.weight_bits))
        only = entry.schemes[0] if len(entry.schemes) == 1 else FLOAT32
        schemes[entry.layer.name] = _plain(active[0]) if active else only
    return Policy.of(schemes)


def _plain(scheme: Scheme) -> Scheme:
    """``scheme`` without what takes time to find and changes no kernel: rounding, corrections, calibration."""
    assert scheme.weight is not None and scheme.activation is not None
    activation = scheme.activation
    if not activation.dynamic:
        activation = replace(activation, calibration=Calibration(method="minmax"), smoothing=None)
    return Scheme(weight=WeightSpec(bits=scheme.weight.bits), activation=activation)


def write_files(
    model: SourceModel,
    found: Sequence[Candidates],
    feeds: Mapping[str, np.ndarray],
    folder: Path,
    choices: Mapping[str, tuple[str, ...]] = _EACH,
    cache_dir: Path | None = None,
) -> dict[str, dict[str, Path]]:
    """``"float32"`` and ``"quantized"`` -> choice of forms -> its file in ``folder``, unless it is the first one's.

    ``choices`` are the forms by the name of the choice; by default none, then each by itself.
    """
    policy = throughout(found)
    entries = [replace(entry, schemes=(scheme,)) for entry, (_, scheme) in zip(found, policy.items_, strict=True)]
    bank = Bank(model.graph, calibration_id="", cache_dir=cache_dir)
    bank.compute(bank.read_cache(weight_specs(entries)), {}, threads=os.cpu_count() or 1)
    lowerings = {
        name: Lowering(model.graph, model.layers, {}, bank.entries, forms=forms) for name, forms in choices.items()
    }
    tensors = dict.fromkeys(name for each in lowerings.values() for name in each.placer.tensors_to_calibrate())
    statistics = calibrate(model.graph, [dict(feeds)], tensors=list(tensors))
    affines = affine_table(statistics.statistics, activation_specs(entries))
    policies = {"float32": Policy.uniform(list(policy), FLOAT32)}
    if any(scheme != FLOAT32 for _, scheme in policy.items_):
        policies["quantized"] = policy
    files: dict[str, dict[str, Path]] = {kind: {} for kind in policies}
    for kind, wanted in policies.items():
        first = ""
        for number, (name, lowering) in enumerate(lowerings.items()):
            lowering.affines = affines
            candidate = lowering.build(lowering.canonical(wanted))
            digest = sha256_hex(candidate)
            if digest != first:
                first = first or digest
                files[kind][name] = folder / f"{kind}-{number}.onnx"
                files[kind][name].write_bytes(candidate)
    return files


def _ratios(files: Mapping[str, Path], feeds: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, Ratio]:
    """Form -> time with it to time without it."""
    plain, *others = files.items()
    if not others:
        return {}
    with Meter(plain[1], feeds, batch=1, final_plan=PLAN, **options) as meter:
        try:
            measured = meter.measure_many([path for _, path in others], at_once=len(others))
            return {name: _ratio(each) for (name, _), each in zip(others, measured, strict=True)}
        except TrialError:  # one of them does not run: each by itself
            ratios = {}
            for name, path in others:
                with contextlib.suppress(TrialError):
                    ratios[name] = _ratio(meter.measure_many([path])[0])
            return ratios


def _ratio(measured: Measurement) -> Ratio:
    assert isinstance(measured.latency, Latency)
    return measured.latency.ratio, *measured.latency.ratio_ci95
