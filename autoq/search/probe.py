"""What pays on this machine: single layers of a model's own shapes, in every scheme, timed beside the reference.

Each layer stands alone in a file, once as it runs between float neighbours, conversions included, and once between
integer ones, where floats are what must convert; a target that holds no floats has the second alone. What then gains
nothing over a gentler scheme is dropped (:mod:`autoq.search.pays`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.identity import content_id, sha256_hex
from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.result import Estimate, Latency
from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import AutoqError, TrialError
from autoq.model.bank import Bank
from autoq.model.cache import write_aside
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.moments import sees_data
from autoq.model.single import among_integers, inputs_of, integer_input, single
from autoq.model.target import Target
from autoq.runtime.gauge import Gauge, load_gauge, measure_each
from autoq.runtime.machine import describe, software_versions
from autoq.runtime.timing import TimingPlan
from autoq.search.candidates import Candidates, activation_specs, weight_specs
from autoq.search.pays import Shape, doubtful, judged
from autoq.search.problem import nearest_of
from autoq.spec.hardware import Profile
from autoq.spec.probed import Finding, Ratio, form

_FLOATS = "the float layer between conversions"

_ALIKE = (1.0, 1.0, 1.0)

VERSION = 5
"""Part of every address in the cache: raise it when files or timing change."""

PLAN = TimingPlan(block_s=0.005, warm_s=0.005, max_warm_s=0.1, max_sittings=8, limit_s=0.25, half_width=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was found of each shape, the dearest first; ``left`` are shapes that there was no time for.

    ``by`` says who gave the times where that was not autoq, and ``estimated`` that they are no measurements.
    """

    shapes: tuple[tuple[Shape, tuple[Finding, ...]], ...]
    left: int
    problems: tuple[str, ...] = ()
    by: str = ""
    estimated: bool = False


def shapes_of(
    graph: Graph, found: Sequence[Candidates], feeds: Mapping[str, np.ndarray], reference: Scheme = FLOAT32
) -> list[Shape]:
    """The distinct shapes among the layers that have a choice, the most arithmetic first.

    Where ``reference`` is not float32, that of a shape is what comes nearest to it of what its layers may have.
    """
    entries = [entry for entry in found if len(entry.schemes) > 1]
    inputs = inputs_of(graph, [entry.layer for entry in entries], feeds)
    grouped: dict[str, list[tuple[Candidates, tuple[int, ...], np.dtype[np.generic]]]] = {}
    for entry in entries:
        node = graph.nodes[entry.layer.node]
        attributes = sorted(each.SerializeToString() for each in node.attribute)
        shape, dtype = inputs[entry.layer.input]
        key = [entry.layer.kind, entry.layer.weight_shape, shape, str(dtype), entry.layer.bias is not None]
        digest = sha256_hex(b"".join(attributes))
        grouped.setdefault(content_id([*key, digest]), []).append((entry, shape, dtype))
    shapes = []
    for alike in grouped.values():
        first, shape, dtype = alike[0]
        own = reference if reference == FLOAT32 else _plain(nearest_of(reference, first.schemes))
        forms: dict[str, Scheme] = {}
        for entry, _, _ in alike:
            for scheme in entry.schemes:
                if scheme != FLOAT32 or own != FLOAT32:
                    forms.setdefault(form(scheme), _plain(scheme))
        shapes.append(
            Shape(layer=first.layer, layers=len(alike), forms=forms, input_shape=shape, dtype=dtype, reference=own)
        )
    return sorted(shapes, key=lambda each: -each.macs)


def probe(
    graph: Graph,
    shapes: Sequence[Shape],
    profile: Profile,
    target: Target,
    *,
    threads: int,
    batch: int,
    limit_s: float,
    clock: Callable[[], float],
    cache_dir: Path | None,
    step: Callable[[str], None] = lambda text: None,
) -> ProbeResult:
    """Times the shapes in their order for about ``limit_s`` seconds; what the cache has costs no time.

    A shape whose files do not build or run is told of in ``problems``. Raises :class:`autoq.errors.ProfileError` where
    nothing can be measured at all. ``clock`` gives seconds.
    """
    start, done, left, problems, estimated, by = clock(), [], 0, [], False, ""
    for number, shape in enumerate(shapes):
        file = None if cache_dir is None else cache_dir / "probe" / f"{_identity(graph, shape, profile, threads)}.json"
        found = _read(file)
        if found is None:
            if clock() - start > limit_s:
                left += 1
                continue
            step(f"timing shape {number + 1} of {len(shapes)}: {shape.layer.kind} {shape.layer.weight_shape}")
            try:
                found = _measure(graph, shape, profile, target, threads=threads, batch=batch)
            except TrialError as error:
                problems.append(f"{shape.layer.name}: {error}")
                continue
            if file is not None:
                text = json.dumps(found.to_dict())
                write_aside(file, lambda handle, text=text: handle.write(text.encode()))  # type: ignore[misc]
        done.append((shape, judged(shape, found.findings, estimated=found.estimated)))
        estimated, by = found.estimated, found.by
    return ProbeResult(shapes=tuple(done), left=left, problems=tuple(problems), by=by, estimated=estimated)


def _plain(scheme: Scheme) -> Scheme:
    """A scheme with the same kernel that takes no time to find."""
    text = form(scheme)
    return Scheme.parse(f"{text}@minmax" if scheme.activation is not None and "@" not in text else text)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was found of one shape, before it is judged; ``by`` and ``estimated`` as in :class:`ProbeResult`."""

    findings: tuple[Finding, ...]
    by: str
    estimated: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "findings": [each.model_dump(mode="json") for each in self.findings],
            "by": self.by,
            "estimated": self.estimated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """Each file's time to the reference's, and its bytes; ``ms`` is what the reference takes."""

    ratios: Mapping[str, Ratio]
    sizes: Mapping[str, int]
    ms: float
    by: str
    estimated: bool


def _measure(graph: Graph, shape: Shape, profile: Profile, target: Target, *, threads: int, batch: int) -> _Found:
    alone = single(graph, shape.layer, shape.input_shape, shape.dtype)
    (layer,) = (each for each in read_layers(alone) if each.op_type == shape.layer.op_type)
    rng = np.random.default_rng(0)
    floats = np.issubdtype(shape.dtype, np.floating)
    values = (
        rng.standard_normal(shape.input_shape) if floats else rng.integers(0, layer.weight_shape[0], shape.input_shape)
    )
    feeds = {layer.input: values.astype(shape.dtype)}
    reference = form(shape.reference)
    built = build_forms(alone, layer, {reference: shape.reference, **shape.forms}, feeds, profile)
    take = functools.partial(_times, profile=profile, threads=threads, batch=batch)
    with tempfile.TemporaryDirectory(prefix="autoq-probe-") as folder:
        stems = (Path(folder) / str(number) for number in itertools.count())
        files = _written(built, stems, target, reference)
        holds_floats = str(FLOAT32) in files
        times = take(files, reference, [name for name in files if name in shape.forms], feeds)

        def findings(among: Mapping[str, Ratio]) -> tuple[Finding, ...]:
            return tuple(
                Finding(
                    kind=shape.layer.kind,
                    weight=shape.layer.weight_shape,
                    uses=shape.layer.uses,
                    scheme=name,
                    reference=reference,
                    reference_ms=times.ms,
                    beside_float=times.ratios[name] if holds_floats else None,
                    among_integers=among.get(name) if holds_floats else times.ratios[name],
                    size=times.sizes[name] / times.sizes[reference],
                )
                for name in shape.forms
                if name in times.ratios
            )

        among: dict[str, Ratio] = {}
        # Where a scheme pays beside floats, nothing more need be known; an estimate costs nothing.
        doubted: set[str] = set()
        if holds_floats:
            doubted = {*shape.forms} & {*built} if times.estimated else doubtful(shape, findings({}))
        for name in sorted({*doubted, reference} if doubted else ()):
            inside = among_integers(alone, layer, built[name])
            if inside is not None:
                model, base, dtype = inside
                pair = _written({name: model, _FLOATS: base}, stems, target, _FLOATS)
                given = integer_input(dtype, shape.input_shape, rng)
                among |= take(pair, _FLOATS, [each for each in pair if each == name], given).ratios
        if reference in among:
            among = {name: _divided(ratio, among[reference]) for name, ratio in {**among, str(FLOAT32): _ALIKE}.items()}
    return _Found(findings=findings(among), by=times.by, estimated=times.estimated)


def _divided(ratio: Ratio, by: Ratio) -> Ratio:
    return ratio[0] / by[0], ratio[1] / by[2], ratio[2] / by[1]


def build_forms(
    alone: Graph, layer: Layer, forms: Mapping[str, Scheme], feeds: Mapping[str, np.ndarray], profile: Profile
) -> dict[str, bytes]:
    """The file of each form of the layer that builds, and float32's."""
    entries = [Candidates(layer=layer, schemes=(FLOAT32, *forms.values()))]
    bank = Bank(alone, calibration_id="", cache_dir=None)
    lowering = Lowering(alone, (layer,), {}, bank.entries, **lowering_options(profile))
    wanted = weight_specs(entries)
    seeing = [layer] if any(sees_data(layer, spec) for _, spec in wanted) else []
    tensors = lowering.placer.tensors_to_calibrate()
    seen = calibrate(alone, [dict(feeds)], tensors=tensors, moment_layers=seeing)
    bank.compute(bank.read_cache(wanted), seen.moments)
    lowering.affines = affine_table(seen.statistics, activation_specs(entries))
    built = {}
    for name, scheme in {str(FLOAT32): FLOAT32, **forms}.items():
        with contextlib.suppress(TrialError):
            built[name] = lowering.build(lowering.canonical(Policy.of({layer.name: scheme})))
    return built


def lowering_options(profile: Profile) -> dict[str, Any]:
    """What a profile says of how candidates are written."""
    chosen = profile.lowering
    return {"accuracy_level": chosen.accuracy_level, "integer_products": chosen.integer_products}


def _written(built: Mapping[str, bytes], stems: Iterator[Path], target: Target, needed: str) -> dict[str, Path]:
    """The file of each that the target can hold; raises :class:`TrialError` where that is not ``needed``."""
    files = {}
    for name, model in built.items():
        with contextlib.suppress(TrialError) if name != needed else contextlib.nullcontext():
            data, stem = target.write(model), next(stems)
            files[name] = stem.with_name(stem.name + target.suffix)
            files[name].write_bytes(data)
    if needed not in files:
        raise TrialError("build", f"as {needed}, which the others would be held against, it cannot be built alone")
    return files


def _times(
    files: Mapping[str, Path],
    reference: str,
    wanted: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    *,
    profile: Profile,
    threads: int,
    batch: int,
) -> _Times:
    """Times and sizes of those of ``wanted`` that run; raises :class:`TrialError` where none does."""
    named = {name: files[name] for name in wanted if name != reference} or {reference: files[reference]}
    with _gauge(files[reference], feeds, profile, threads, batch) as gauge:
        taken = zip(named, measure_each(gauge, list(named.values())), strict=True)
        found = {name: each for name, each in taken if not isinstance(each, TrialError)}
        if not found:
            raise TrialError("measure", "none of its files runs here")
        sizes = {name: each.size_bytes or files[name].stat().st_size for name, each in found.items()}
        if reference not in sizes:
            stored = any(each.size_bytes is not None for each in found.values())  # a gauge that knows what a device has
            own = gauge.measure(files[reference]).size_bytes if stored else None
            sizes[reference] = own or files[reference].stat().st_size
    latencies = {name: each.latency for name, each in found.items()}
    return _Times(
        ratios={**{name: _ratio(each) for name, each in latencies.items()}, reference: _ALIKE},
        ms=statistics.median(each.ms / each.ratio for each in latencies.values()),
        sizes=sizes,
        by=next(iter(latencies.values())).by,
        estimated=any(isinstance(each, Estimate) for each in latencies.values()),
    )


def _gauge(reference: Path, feeds: Mapping[str, np.ndarray], profile: Profile, threads: int, batch: int) -> Gauge:
    return load_gauge(
        profile.measure.by,
        reference,
        feeds,
        batch=batch,
        threads=threads,
        runtime=profile.runtime.name,
        runtime_options=profile.runtime.arguments,
        plan=PLAN,
        reference_name=form(profile.reference),
        options=profile.measure.options,
    )


def _ratio(latency: Latency | Estimate) -> Ratio:
    low, high = latency.interval or (latency.ratio, latency.ratio)
    return latency.ratio, low, high


def _identity(graph: Graph, shape: Shape, profile: Profile, threads: int) -> str:
    machine, versions = describe(), software_versions()
    node = graph.nodes[shape.layer.node]
    return content_id(
        {
            "version": VERSION,
            "layer": [shape.layer.kind, shape.layer.weight_shape, shape.layer.bias is not None],
            "attributes": sha256_hex(b"".join(sorted(each.SerializeToString() for each in node.attribute))),
            "input": [shape.input_shape, str(shape.dtype)],
            "forms": sorted(shape.forms),
            "reference": form(shape.reference),
            "runtime": [profile.runtime.name, profile.runtime.arguments, threads],
            "measure": profile.measure.model_dump(mode="json"),
            "lowering": lowering_options(profile),
            "machine": [machine.cpu_model, machine.arch, sorted(machine.flags)],
            "versions": [versions["autoq"], versions.get(profile.runtime.name), versions.get(profile.measure.by)],
        }
    )


def _read(file: Path | None) -> _Found | None:
    if file is None:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AutoqError):
        kept = json.loads(file.read_bytes())
        findings = tuple(Finding.model_validate(each) for each in kept["findings"])
        return _Found(findings=findings, by=kept["by"], estimated=kept["estimated"])
    return None
