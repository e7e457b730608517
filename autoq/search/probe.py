"""What pays on this machine: single layers of a model's own shapes, in every scheme, timed beside float32.

Each layer stands alone in a file, once as it runs between float neighbours, conversions included, and once between
integer ones, where float32 is what must convert. A scheme that is no faster in either, and no smaller than a gentler
one, gains nothing and is dropped: gentler are float32, float16, and the same weights with float activations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.identity import content_id, sha256_hex
from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.result import Estimate, Latency
from autoq.core.scheme import FLOAT32, IN_BYTES, Scheme
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
from autoq.spec.hardware import Profile
from autoq.spec.probed import Finding, Ratio, form
from autoq.spec.schemes import costed_texts

VERSION = 3
"""Part of every address in the cache: raise it when files or timing change."""

PAYS = 0.99
"""A scheme whose ratio to a gentler one surely does not get below this is no faster."""

SMALLER = 0.98
"""Nor is one smaller whose file is above this share of the gentler one's."""

QUICK_MS = 0.02
"""Of a layer that takes less, a good part is the call of the session: that says nothing of the layer in a model."""

PLAN = TimingPlan(block_s=0.005, warm_s=0.005, max_warm_s=0.1, max_sittings=8, limit_s=0.25, half_width=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Layers of one kind that do the same work: one of them, how many there are, and what each may become."""

    layer: Layer
    layers: int
    forms: Mapping[str, Scheme]
    input_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all of its layers."""
        return self.layers * self.layer.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What was found of each shape, the dearest first; ``left`` are shapes that there was no time for."""

    shapes: tuple[tuple[Shape, tuple[Finding, ...]], ...]
    left: int
    problems: tuple[str, ...] = ()


def shapes_of(graph: Graph, found: Sequence[Candidates], feeds: Mapping[str, np.ndarray]) -> list[Shape]:
    """The distinct shapes among the layers that have a choice, the most arithmetic first."""
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
        forms: dict[str, Scheme] = {}
        for entry, _, _ in alike:
            for scheme in entry.schemes:
                if scheme != FLOAT32:
                    forms.setdefault(form(scheme), _plain(scheme))
        first, shape, dtype = alike[0]
        shapes.append(Shape(layer=first.layer, layers=len(alike), forms=forms, input_shape=shape, dtype=dtype))
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
    start, done, left, problems = clock(), [], 0, []
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
                text = json.dumps([each.model_dump(mode="json") for each in found])
                write_aside(file, lambda handle, text=text: handle.write(text.encode()))  # type: ignore[misc]
        done.append((shape, judged(shape, found)))
    return ProbeResult(shapes=tuple(done), left=left, problems=tuple(problems))


def judged(shape: Shape, found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings, each with why its scheme is dropped where it gains nothing over a gentler one."""
    by_form = {each.scheme: each for each in found}
    return tuple(
        each.model_copy(update={"dropped": _dominated(shape.forms[each.scheme], each, by_form)}) for each in found
    )


def measured_costs(result: ProbeResult) -> dict[str, dict[str, Any]]:
    """What a profile's ``cost`` becomes: op -> scheme -> time relative to float32, by the rows of a sample where known.

    A scheme that was timed in both surroundings has the geometric mean of the two.
    """
    known = costed_texts()
    figures: dict[tuple[str, str], list[tuple[Shape, float]]] = {}
    for shape, found in result.shapes:
        op = shape.layer.kind if shape.layer.op_type != "Gather" else "Gather"
        for each in found:
            if each.scheme in known:
                figures.setdefault((op, each.scheme), []).append((shape, _typical(each)))
    costs: dict[str, dict[str, Any]] = {}
    for (op, name), pairs in figures.items():
        by_uses: dict[float, list[tuple[float, float]]] = {}
        for shape, ratio in pairs:
            uses = round(shape.layer.uses, 3) if op in ("Gemm", "MatMul") else 1.0
            by_uses.setdefault(uses, []).append((math.log(ratio), float(max(shape.macs, 1))))
        means = {uses: round(math.exp(_mean(values)), 4) for uses, values in sorted(by_uses.items())}
        costs.setdefault(op, {})[name] = means if len(means) > 1 else next(iter(means.values()))
    return costs


def _typical(each: Finding) -> float:
    alone = each.beside_float[0]
    return alone if each.among_integers is None else math.sqrt(alone * each.among_integers[0])


def _mean(values: Iterable[tuple[float, float]]) -> float:
    pairs = list(values)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def _dominated(scheme: Scheme, own: Finding, others: Mapping[str, Finding]) -> str:
    if own.float32_ms < QUICK_MS:
        return ""
    for name in _gentler(scheme):
        other = others.get(name)
        if other is None and name != str(FLOAT32):
            continue
        size, ratio = (1.0, 1.0) if other is None else (other.size, other.beside_float[0])
        among = own.among_integers
        if own.size <= SMALLER * size or own.beside_float[1] < PAYS * ratio:
            continue
        if among is not None and among[1] < PAYS * ratio:
            continue
        inside = "" if among is None else f", {_shown(among)} between integer ones"
        return (
            f"probed: it takes {_shown(own.beside_float)} of float32's time between float layers{inside}, and "
            f"{name} is as small"
        )
    return ""


def _gentler(scheme: Scheme) -> list[str]:
    """Forms that keep more of the model's precision, whatever the model."""
    names = [str(FLOAT32)]
    if scheme.weight is not None and scheme.weight.bits != 16:
        names.append("float16")
    if scheme.activation is not None and scheme.weight is not None and scheme.weight.bits not in IN_BYTES:
        weight = dataclasses.replace(scheme.weight, smoothing=None)
        names.append(form(Scheme(weight=weight)))
    return names


def _shown(ratio: Ratio) -> str:
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def _plain(scheme: Scheme) -> Scheme:
    """A scheme with the same kernel that takes no time to find."""
    text = form(scheme)
    return Scheme.parse(f"{text}@minmax" if scheme.activation is not None and "@" not in text else text)


def _measure(
    graph: Graph, shape: Shape, profile: Profile, target: Target, *, threads: int, batch: int
) -> tuple[Finding, ...]:
    alone = single(graph, shape.layer, shape.input_shape, shape.dtype)
    (layer,) = (each for each in read_layers(alone) if each.op_type == shape.layer.op_type)
    rng = np.random.default_rng(0)
    floats = np.issubdtype(shape.dtype, np.floating)
    values = (
        rng.standard_normal(shape.input_shape) if floats else rng.integers(0, layer.weight_shape[0], shape.input_shape)
    )
    feeds = {layer.input: values.astype(shape.dtype)}
    built = build_forms(alone, layer, shape.forms, feeds, profile)
    ratios = functools.partial(_ratios, profile=profile, threads=threads, batch=batch)
    with tempfile.TemporaryDirectory(prefix="autoq-probe-") as folder:
        stems = (Path(folder) / str(number) for number in itertools.count())
        files = {name: _written(next(stems), target, model) for name, model in built.items()}
        reference = files.pop(str(FLOAT32))
        alone_ratios, float32_ms = ratios(reference, files, feeds)
        among: dict[str, Ratio] = {}
        # Where a scheme pays beside floats, nothing more need be known.
        doubtful = [name for name, ratio in alone_ratios.items() if ratio[1] >= PAYS] if target.runs_onnx else []
        for name in doubtful:
            inside = among_integers(alone, layer, built[name])
            if inside is not None:
                model, base, dtype = inside
                paths = _written(next(stems), target, model), _written(next(stems), target, base)
                given = integer_input(dtype, shape.input_shape, rng)
                among |= ratios(paths[1], {name: paths[0]}, given)[0]
        sizes = {name: path.stat().st_size / reference.stat().st_size for name, path in files.items()}
    return tuple(
        Finding(
            kind=shape.layer.kind,
            weight=shape.layer.weight_shape,
            uses=shape.layer.uses,
            scheme=name,
            float32_ms=float32_ms,
            beside_float=ratio,
            among_integers=among.get(name),
            size=sizes[name],
        )
        for name, ratio in alone_ratios.items()
    )


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


def _written(stem: Path, target: Target, model: bytes) -> Path:
    path = stem.with_name(stem.name + target.suffix)
    path.write_bytes(target.write(model))
    return path


def _ratios(
    reference: Path,
    files: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    *,
    profile: Profile,
    threads: int,
    batch: int,
) -> tuple[dict[str, Ratio], float]:
    """Each file's time to the reference's, with its interval, and the reference's; what does not run is left out."""
    with _gauge(reference, feeds, profile, threads, batch) as gauge:
        taken = zip(files, measure_each(gauge, list(files.values())), strict=True)
    found = {name: each for name, each in taken if not isinstance(each, TrialError)}
    if not found:
        raise TrialError("measure", "none of its files runs here")
    own = statistics.median(each.ms / each.ratio for each in found.values())
    return {name: _ratio(each) for name, each in found.items()}, own


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
            "runtime": [profile.runtime.name, profile.runtime.arguments, threads],
            "measure": profile.measure.model_dump(mode="json"),
            "lowering": lowering_options(profile),
            "machine": [machine.cpu_model, machine.arch, sorted(machine.flags)],
            "versions": [versions["autoq"], versions.get(profile.runtime.name)],
        }
    )


def _read(file: Path | None) -> tuple[Finding, ...] | None:
    if file is None:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, AutoqError):
        return tuple(Finding.model_validate(each) for each in json.loads(file.read_bytes()))
    return None
