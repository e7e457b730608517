"""The hardware profile: what runs on a piece of hardware, with which runtime, and about how fast.

:func:`load_profile` reads version 1 of the format, which docs/hardware-profiles.md explains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.form import FORM_NAMES
from autoq.core.layer import LAYER_OPS, Layer
from autoq.core.op_rules import op_problem
from autoq.core.scheme import FLOAT32, PACKED, Scheme
from autoq.errors import JobError
from autoq.spec.checking import nearest, show, validate
from autoq.spec.costs import Cost, cost_of, priced_as, read_costs
from autoq.spec.extends import read_extended
from autoq.spec.job import LatencyChoice
from autoq.spec.limits import Limits
from autoq.spec.probed import Probed
from autoq.spec.profile_fields import (
    AUTO,
    CostSource,
    Kind,
    LatencySettings,
    LoweringChoice,
    Match,
    MeasureChoice,
    OpRules,
    ProfileFields,
    RuntimeChoice,
)
from autoq.spec.resources import find_named, named
from autoq.spec.schemes import (
    by_family,
    glob_problem,
    globbed,
    matches,
)

_PACKED = tuple(f"w{bits}" for bits in PACKED)
_NOT_PACKED = (
    "weights of 6, 5 and 3 bits lie in whole bytes here, as large and as slow as 8-bit ones and less exact: they are "
    "for hardware whose compiler packs weights (lowering.packed_weights)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A checked hardware profile. ``costs`` maps (op type, or ``""`` for all, and scheme text) to a modelled cost.

    That is points (uses of a weight, cost), the least uses first; one point is a cost that does not depend on them.

    ``instead`` maps families of schemes to those that stand in for them here: ``{"w8a8": "w7a8"}``. ``forms`` says
    which forms of the graph (:mod:`autoq.model.forms`) candidates are written in. ``reference`` is what latencies are
    against: float32, or the scheme of the uniform candidate that stands for it where the hardware cannot run it.
    ``limits`` are what candidates must keep, ``probed`` what a probe found out on one machine.
    """

    name: str
    kind: Kind
    description: str
    runtime: RuntimeChoice
    latency: LatencySettings
    match: Match
    ops: Mapping[str, OpRules]
    costs: Mapping[tuple[str, str], Cost]
    lowering: LoweringChoice = dataclasses.field(default_factory=LoweringChoice)
    instead: Mapping[str, str] = dataclasses.field(default_factory=dict)
    forms: tuple[str, ...] = (AUTO,)
    measure: MeasureChoice = dataclasses.field(default_factory=MeasureChoice)
    reference: Scheme = FLOAT32
    limits: Limits = dataclasses.field(default_factory=Limits)
    costs_are: CostSource = "measured"
    probed: Probed | None = None

    def instead_of(self, scheme: Scheme) -> Scheme:
        """What a layer gets here where a space says ``scheme``: that, or the same options on other weights."""
        family = self.instead.get(scheme.family)
        if family is None or scheme.weight is None:
            return scheme
        bits = int(family[1])
        return dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, bits=bits))  # type: ignore[arg-type]

    def legal(self, op_type: str, scheme: Scheme) -> str | None:
        """``None`` where a layer of ``op_type`` may have ``scheme`` here; else why not, in words."""
        return self.legal_by_name(op_type, globbed(scheme))

    def legal_by_name(self, op_type: str, names: tuple[str, str]) -> str | None:
        """As :meth:`legal`, of the scheme with these :func:`autoq.spec.schemes.globbed`."""
        rules = self.ops.get(op_type)
        if rules is None:
            float32 = names[0] == FLOAT32.family
            return None if float32 else f"the profile {self.name} says nothing of {op_type}: it stays float32"
        for forbidden in rules.forbid:
            if matches(forbidden.schemes, names):
                return forbidden.why
        if not self.lowering.packed_weights and names[0].startswith(_PACKED):
            return _NOT_PACKED
        if any(matches(glob, names) for glob in rules.allow):
            return None
        return f"the profile {self.name} allows {op_type} only {', '.join(rules.allow)}"

    def misaligned(self, layer: Layer, scheme: Scheme) -> str | None:
        """Why no kernel here takes a layer of this shape under ``scheme``; ``None`` where one does."""
        rules = self.ops.get(layer.op_type)
        inputs = layer.parameters // max(layer.channels, 1)
        for rule in rules.align if rules is not None else ():
            if not matches(rule.schemes, globbed(scheme)):
                continue
            for what, size, step in (("inputs", inputs, rule.inputs), ("outputs", layer.channels, rule.outputs)):
                if size % step:
                    return f"its {size} {what} are no multiple of {step}: {rule.why}"
        return None

    def runs(self, op_type: str, scheme: Scheme) -> str:
        """How a layer of ``op_type`` runs under ``scheme``: ``native``, ``folded``, ``float`` or ``refused``."""
        names = globbed(scheme)
        if op_problem(op_type, scheme) is not None or self.legal_by_name(op_type, names) is not None:
            return "refused"
        rules = self.ops.get(op_type)
        for how, globs in (("native", rules.native), ("folded", rules.folded)) if rules else ():
            if any(matches(glob, names) for glob in globs):
                return how
        return "float"

    def cost(self, op_type: str, scheme: Scheme, uses: float = 1.0) -> float:
        """Modelled time per multiply-accumulate, float32 = 1; it guides proposals and is never a measurement.

        ``op_type`` may be a layer's kind, ``depthwise Conv`` for one, where that has a cost of its own. ``uses`` is how
        often each weight is used (:attr:`autoq.core.layer.Layer.uses`); between two points of a cost it is
        interpolated on their logarithms, beyond the last it stays.
        """
        points = cost_of(self.costs, op_type, scheme)
        if points is None:
            return 1.0
        return float(np.interp(math.log(uses), [math.log(at) for at, _ in points], [cost for _, cost in points]))

    def latency_with(self, override: LatencyChoice) -> LatencySettings:
        """The profile's settings, those of the job in place of them where it gives any."""
        given = override.model_dump(exclude_none=True)
        return LatencySettings.model_validate(self.latency.model_dump() | given)

    def match_problems(self, arch: str, cpu_flags: Collection[str], gpus: Collection[str] = ()) -> list[str]:
        """Why a machine with this architecture, CPU flags and GPUs is not this hardware; empty where it is."""
        problems = []
        if self.match.arch and arch.lower() not in [known.lower() for known in self.match.arch]:
            problems.append(f"the machine's architecture is {arch or 'unknown'}, not {' or '.join(self.match.arch)}")
        flags = {flag.lower() for flag in cpu_flags}
        any_of, all_of = self.match.any_cpu_flags, self.match.all_cpu_flags
        if any_of and not any(flag.lower() in flags for flag in any_of):
            problems.append(f"the CPU has none of {', '.join(any_of)}")
        missing = [flag for flag in all_of if flag.lower() not in flags]
        if missing:
            problems.append(f"the CPU lacks {', '.join(missing)}")
        unwanted = [flag for flag in self.match.no_cpu_flags if flag.lower() in flags]
        if unwanted:
            problems.append(f"the CPU has {', '.join(unwanted)}")
        wanted = self.match.gpu_names
        if wanted and not any(fnmatchcase(name.lower(), glob.lower()) for name in gpus for glob in wanted):
            problems.append(f"no GPU here is {' or '.join(wanted)}; there is {', '.join(gpus) or 'none'}")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """All that decides a search's outcome, as JSON can hold it; the profile's identity."""
        return {
            "name": self.name,
            "kind": self.kind,
            "runtime": self.runtime.model_dump(mode="json", exclude_none=True),
            "latency": self.latency.model_dump(mode="json"),
            "lowering": self.lowering.to_dict(),
            "ops": {op: _rules_document(rules) for op, rules in self.ops.items()},
            # Lists, as run.json gives them back: a search that goes on compares the two.
            "costs": {f"{op}:{text}": [list(pair) for pair in cost] for (op, text), cost in self.costs.items()},
            **({"instead": dict(self.instead)} if self.instead else {}),
            **({} if self.forms == (AUTO,) else {"forms": list(self.forms)}),
            **({} if self.measure == MeasureChoice() else {"measure": self.measure.model_dump(mode="json")}),
            **({} if self.reference == FLOAT32 else {"reference": str(self.reference)}),
            **({} if self.limits == Limits() else {"limits": self.limits.model_dump(mode="json", exclude_none=True)}),
            **({} if self.probed is None else {"probed": self.probed.model_dump(mode="json")}),
        }


def load_profile(name_or_path: str | Path, base_dir: str | Path) -> Profile:
    """The profile of that name, or in the YAML file at that path relative to ``base_dir``.

    Raises :class:`JobError`, which lists every problem and names the nearest op, scheme or field for a typo.
    """
    path = find_named("hardware_profiles", name_or_path, Path(base_dir))
    fields = validate(ProfileFields, read_extended(path), str(path))
    costs, problems = read_costs(fields.cost)
    problems += _instead_problems(fields.instead)
    problems += _form_problems(fields.forms)
    reference, reference_problems = _read_reference(fields.reference)
    problems += reference_problems
    for op, rules in fields.ops.items():
        if op not in LAYER_OPS:
            problems.append(f"ops: no layer is a {show(op)}{nearest(op, LAYER_OPS)}; known: {', '.join(LAYER_OPS)}")
        globs = [(f"ops.{op}.allow[{number}]", glob) for number, glob in enumerate(rules.allow)]
        globs += [(f"ops.{op}.forbid[{number}].schemes", each.schemes) for number, each in enumerate(rules.forbid)]
        globs += [(f"ops.{op}.{how}", glob) for how in ("native", "folded") for glob in getattr(rules, how)]
        globs += [(f"ops.{op}.align[{number}].schemes", each.schemes) for number, each in enumerate(rules.align)]
        problems += [f"{field}: {problem}" for field, glob in globs if (problem := glob_problem(glob))]
    profile = Profile(
        name=fields.name,
        kind=fields.kind,
        description=fields.description.strip(),
        runtime=fields.runtime,
        latency=fields.latency,
        match=fields.match,
        ops=fields.ops,
        costs=costs,
        lowering=fields.lowering,
        instead=fields.instead,
        forms=() if fields.forms == ("none",) else fields.forms,
        measure=fields.measure,
        reference=reference,
        limits=fields.limits,
        costs_are=fields.costs_are,
        probed=fields.probed,
    )
    if not problems:
        problems = _unpriced(profile)
    if problems:
        raise JobError("\n".join(f"{path}: {problem}" for problem in problems))
    return profile


def _rules_document(rules: OpRules) -> dict[str, Any]:
    # How a scheme runs is told to people alone.
    document = rules.model_dump(mode="json", exclude={"native", "folded"})
    return document if document["align"] else {name: each for name, each in document.items() if name != "align"}


def _instead_problems(instead: Mapping[str, str]) -> list[str]:
    """Families that are none, or that do not take the same options."""
    if not instead:
        return []
    options = {
        family: {text.removeprefix(family) for text, _ in listed}
        for family, listed in by_family().items()
        if family.startswith("w")
    }
    problems = []
    for family, other in instead.items():
        unknown = [name for name in (family, other) if name not in options]
        if unknown:
            known = ", ".join(options)
            problems.append(f"instead: {show(unknown[0])} is no family of schemes with integer weights; known: {known}")
        elif not options[family] <= options[other]:
            example = min(options[family] - options[other], key=len)
            problems.append(f"instead.{family}: {other} cannot stand in for it, since {other}{example} is no scheme")
        elif family.partition("a")[2] != other.partition("a")[2]:
            problems.append(f"instead.{family}: {other} has other activations; only the bits of weights change")
    return problems


def _read_reference(text: str) -> tuple[Scheme, list[str]]:
    try:
        return Scheme.parse(text), []
    except JobError as error:
        return FLOAT32, [f"reference: {error}"]


def _form_problems(forms: tuple[str, ...]) -> list[str]:
    known = (AUTO, "none", *FORM_NAMES)
    problems = [
        f"forms: no form of the graph is called {show(name)}{nearest(name, known)}; known: {', '.join(known)}"
        for name in forms
        if name not in known
    ]
    if len(forms) > 1 and not {AUTO, "none"}.isdisjoint(forms):
        problems.append(f"forms: auto and none stand alone ({show(list(forms))})")
    return problems


def fitting_profiles(arch: str, cpu_flags: Collection[str], gpus: Collection[str] = ()) -> list[str]:
    """Those that come with autoq and describe a machine with this architecture, CPU flags and GPUs, by name."""
    profiles = {name: load_profile(name, ".") for name in named("hardware_profiles")}
    return [name for name, profile in profiles.items() if not profile.match_problems(arch, cpu_flags, gpus)]


def _unpriced(profile: Profile) -> list[str]:
    missing = []
    for op in profile.ops:
        # A family's cost serves all of its schemes; one by one only the others are looked at, for there are thousands.
        priced = {text for owner, text in profile.costs if owner in (op, "")} | {FLOAT32.family}
        for family, listed in by_family().items():
            if priced.isdisjoint(priced_as(family)) and any(
                profile.legal_by_name(op, names) is None and cost_of(profile.costs, op, Scheme.parse(names[0])) is None
                for names in listed
            ):
                missing.append(f"cost: {op} may be {family}, which has no cost; add cost.{op}.{family}")
    return missing
