"""How much each layer's precision disturbs the model's outputs, measured without labels, one layer at a time.

The measure is the relative noise power of the outputs, ``E|y - y_float|^2 / E|y_float|^2``, with one layer quantized
and all others in float32, on a few calibration rows. Where outputs are classes, a quarter of the share of rows
whose class changes comes on top: noise that changes no answer costs no accuracy, and where none changes the noise still
tells layers apart. That sum ranked policies better than the noise or the divergence (docs/benchmarks.md).

Noise powers of independent disturbances add, so the noise of a whole policy is predicted as the sum over its layers,
and that of a scheme as the sum of its weights' and its activations' noise: the model behind mixed precision by integer
programming (Hubara et al. 2021, "Accurate Post Training Quantization With Small Calibration Sets", section 4). It is a
proxy that picks where to look first; nothing is ranked by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from autoq.core.identity import content_id
from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, ActivationSpec, Scheme, WeightSpec
from autoq.errors import TrialError
from autoq.numerics.distortion import changed_answers, relative_noise
from autoq.runtime.ort import open_session, run_batches
from autoq.search.candidates import Candidates

T = TypeVar("T")
Outputs = Mapping[str, np.ndarray]

MOST_PROBES = 800
"""Above this, one calibration stands for all of a layer: a very deep model is not probed for hours."""

PROBE_ROWS = (16, 64)
"""Calibration rows that probes run on: the fewest, which a large model gets, and the most."""

PROBE_MACS = 3e12
"""Multiply-accumulates that all probes of a model may take together, before there are fewer rows than the most."""

ANSWERS = 0.25
"""Weight of an answer that changes. Summed over layers, such shares come to two to four times that of the whole."""

VERSION = 3
"""Part of a cached table's address: raise it when lowering or the measure changes what a probe gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Noise power by layer and weight scheme, and by layer and activation scheme; ``inf`` where none could be taken."""

    weights: Mapping[tuple[str, WeightSpec], float]
    activations: Mapping[tuple[str, ActivationSpec], float]

    def noise(self, layer: str, scheme: Scheme) -> float:
        """The predicted noise power of one layer's scheme."""
        noise = 0.0
        if scheme.weight is not None and scheme.weight.bits != 16:
            noise += self.weights[layer, scheme.weight]
        if scheme.activation is not None:
            noise += self.activations[layer, scheme.activation]
        return noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One layer quantized in one way, all others float32. Its subject is the one of ``weight`` and ``activation``."""

    layer: str
    policy: Policy
    weight: WeightSpec | None = None
    activation: ActivationSpec | None = None


class Runs(Protocol):
    """What models give for the rows that probes run on, as :class:`autoq.model.suffix.Suffixes` does."""

    @property
    def reference(self) -> Outputs:
        """Float32's."""
        ...

    def outputs(self, policy: Policy) -> Outputs:
        """Of a policy; raises :class:`TrialError`. Called from several threads."""
        ...


def probes(candidates: Sequence[Candidates], canonical: Callable[[Policy], Policy]) -> list[Probe]:
    """What to measure: each layer with each of its weight schemes, and with each of its activation schemes.

    Activations are taken with the finest weights they go with, whose own noise is far smaller.
    """
    own = [entry for entry in candidates if entry.layer.tied_to is None]
    subjects = [(entry, scheme, subject) for entry in own for scheme, subject in _subjects(entry.schemes)]
    if len(subjects) > MOST_PROBES:
        first: dict[tuple[str, int], ActivationSpec] = {}
        for entry, _, subject in subjects:
            if subject.activation is not None:
                first.setdefault((entry.layer.name, subject.activation.bits), subject.activation)
        subjects = [
            (entry, scheme, subject)
            for entry, scheme, subject in subjects
            if subject.activation is None or first[entry.layer.name, subject.activation.bits] == subject.activation
        ]
    names = [entry.layer.name for entry in candidates]
    found = []
    for entry, scheme, subject in subjects:
        policy = canonical(Policy.of(dict.fromkeys(names, FLOAT32) | {entry.layer.name: scheme}))
        found.append(dataclasses.replace(subject, layer=entry.layer.name, policy=policy))
    return found


def probe_rows(found: Sequence[Probe], candidates: Sequence[Candidates]) -> int:
    """On how many rows to take ``found``; of the model alone, so that every machine predicts the same."""
    row = sum(entry.layer.macs for entry in candidates)
    fewest, most = PROBE_ROWS
    return int(np.clip(PROBE_MACS / max(row * len(found), 1), fewest, most))


def scheme_probes(
    candidates: Sequence[Candidates], canonical: Callable[[Policy], Policy]
) -> list[tuple[Scheme, Probe]]:
    """Each layer with a weight of its own under each of its schemes but float32, whole."""
    names = [entry.layer.name for entry in candidates]
    found = []
    for entry in candidates:
        for scheme in entry.schemes if entry.layer.tied_to is None else ():
            if scheme != FLOAT32:
                policy = canonical(Policy.of(dict.fromkeys(names, FLOAT32) | {entry.layer.name: scheme}))
                found.append((scheme, Probe(layer=entry.layer.name, policy=policy)))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class WholeFiles:
    """:class:`Runs` the plain way: a file is built, opened and run for each policy, ``batch`` rows at a time."""

    build: Callable[[Policy], bytes]
    inputs: Outputs
    batch: int
    reference: Outputs

    def outputs(self, policy: Policy) -> Outputs:
        """See :class:`Runs`."""
        return run_batches(open_session(self.build(policy)), self.inputs, self.batch)


def measure(
    found: Sequence[Probe],
    build: Callable[[Policy], bytes],
    inputs: Mapping[str, np.ndarray],
    *,
    batch: int,
    workers: int,
    judge: Callable[[Outputs, Outputs], T],
    keep: Callable[[Probe, T | None], None],
) -> None:
    """:func:`measure_by` of whole files: several times slower, and of anything that ``build`` gives."""
    if found:
        float32 = build(Policy.of(dict.fromkeys(found[0].policy, FLOAT32)))
        reference = run_batches(open_session(float32), inputs, batch)
        measure_by(found, WholeFiles(build, inputs, batch, reference), workers=workers, judge=judge, keep=keep)


def measure_by(
    found: Sequence[Probe],
    runs: Runs,
    *,
    workers: int,
    judge: Callable[[Outputs, Outputs], T],
    keep: Callable[[Probe, T | None], None],
) -> None:
    """Tells ``keep`` what ``judge`` makes of each probe's outputs and float32's (its second argument).

    A probe that does not build or run has ``None``. Sessions run on one thread each: the figures do not depend on
    ``workers``.
    """

    def judged(probe: Probe) -> T | None:
        try:
            return judge(runs.outputs(probe.policy), runs.reference)
        except TrialError:
            return None

    with ThreadPoolExecutor(workers) as pool:
        for probe, value in zip(found, pool.map(judged, found), strict=True):
            keep(probe, value)


def cached(
    path: Path | None,
    found: Sequence[Probe],
    identity: object,
    take: Callable[[Sequence[Probe], Callable[[Probe, Any], None]], None],
) -> list[Any]:
    """What ``take`` gives for each probe, as JSON can hold it, less what the cache folder ``path`` has already.

    ``take`` is given the probes that are missing, and a function to tell each result at once: what was told is kept
    whatever happens next. ``identity`` is what the figures depend on besides the probes: model, data, bank. A cache
    that cannot be read or written costs time and nothing else.
    """
    file = path and path / "sensitivity" / f"{content_id({'version': VERSION, 'of': identity})}.jsonl"
    known: dict[str, Any] = {}
    if file:
        with contextlib.suppress(OSError):
            for line in file.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # half a line, of a search that was killed
                    probe_id, value = json.loads(line)
                    known[probe_id] = value

    def keep(probe: Probe, value: Any) -> None:
        known[probe.policy.id] = value
        if file:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a") as lines:
                    lines.write(json.dumps([probe.policy.id, value]) + "\n")

    missing = {probe.policy.id: probe for probe in found if probe.policy.id not in known}
    if missing:
        take(list(missing.values()), keep)
    return [known[probe.policy.id] for probe in found]


def sensitivity(
    candidates: Sequence[Candidates], found: Sequence[Probe], noises: Sequence[float | None]
) -> Sensitivity:
    """The table of what was measured; ``None`` is a probe that failed.

    An activation scheme that was not probed itself takes the figure of the layer's first of as many bits.
    """
    weights: dict[tuple[str, WeightSpec], float] = {}
    activations: dict[tuple[str, ActivationSpec], float] = {}
    first: dict[tuple[str, int], float] = {}
    for probe, noise in zip(found, noises, strict=True):
        value = float("inf") if noise is None else noise
        if probe.weight is not None:
            weights[probe.layer, probe.weight] = value
        if probe.activation is not None:
            activations[probe.layer, probe.activation] = value
            first.setdefault((probe.layer, probe.activation.bits), value)
    for entry in candidates:
        for scheme in entry.schemes:
            if scheme.activation is not None and entry.layer.tied_to is None:
                figure = first[entry.layer.name, scheme.activation.bits]
                activations.setdefault((entry.layer.name, scheme.activation), figure)
    return Sensitivity(weights=weights, activations=activations)


def noise_power(outputs: Outputs, reference: Outputs) -> float | None:
    """Relative noise power, the mean over the outputs that hold floats; ``None`` where it is not finite."""
    powers = [
        relative_noise(expected, outputs[name])
        for name, expected in reference.items()
        if expected.dtype.kind == "f" and expected.size
    ]
    if not powers or not np.isfinite(powers).all():
        return None
    return float(np.mean(powers))


def disturbance(classes: tuple[str, int] | None) -> Callable[[Outputs, Outputs], float | None]:
    """The judge of a search's probes. ``classes`` is the output that holds classes, and their axis, where one does."""

    def judge(outputs: Outputs, reference: Outputs) -> float | None:
        noise = noise_power(outputs, reference)
        if classes is None or noise is None:
            return noise
        name, axis = classes
        return noise + ANSWERS * changed_answers(reference[name], outputs[name], axis)

    return judge


def _subjects(schemes: Sequence[Scheme]) -> Iterator[tuple[Scheme, Probe]]:
    nothing = Policy.of({})
    integer = [scheme for scheme in schemes if scheme.weight is not None and scheme.weight.bits != 16]
    for weight in dict.fromkeys(scheme.weight for scheme in integer):
        scheme = next(scheme for scheme in integer if scheme.weight == weight)
        # Smoothed weights mean something with their inputs only: the scheme itself, whose activations add little.
        alone = scheme if weight is not None and weight.smoothing is not None else Scheme(weight=weight)
        yield alone, Probe(layer="", policy=nothing, weight=weight)
    for activation in dict.fromkeys(scheme.activation for scheme in integer if scheme.activation is not None):
        finest = max((scheme for scheme in integer if scheme.activation == activation), key=lambda s: s.weight_bits)
        yield finest, Probe(layer="", policy=nothing, activation=activation)
