"""A hardware profile as its reader wants it: what each op may have, in words, and how every figure comes about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from autoq.core.op_rules import op_problem
from autoq.core.scheme import BLOCKS, FLOAT32, Scheme, WeightSpec
from autoq.spec.hardware import Profile
from autoq.spec.probed import form
from autoq.spec.schemes import by_family, known_texts

OBTAINED = {
    "meter": "measured",
    "command": "command",
    "vela": "estimated",
    "roofline": "estimated",
}
"""How a gauge comes by a latency; one that is not listed measures."""

_WORDS = {
    "measured": "measured here, in turn with the reference, each file in a fresh process",
    "command": "measured by the profile's command, which autoq runs for every file",
    "estimated": "estimated, never measured; shown as estimated wherever it is shown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The schemes of one family that an op may have, and what they may be: each a phrase."""

    family: str
    weights: str
    activations: str
    rounding: str
    runs: str
    schemes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpPage:
    """What one op may have, what it may not, and why; ``aligned`` are multiples that layers must have."""

    op: str
    families: tuple[Family, ...]
    forbidden: tuple[tuple[str, str], ...]
    aligned: tuple[str, ...] = ()


def gauge_name(profile: Profile) -> str:
    """What takes latency on this profile: ``meter``, ``roofline``, …"""
    return profile.measure.by


def obtained(profile: Profile) -> str:
    """``measured``, ``command`` or ``estimated``: how a latency on this profile comes about."""
    return OBTAINED.get(gauge_name(profile), "measured")


def latency_words(profile: Profile) -> str:
    """How a latency comes about, as a sentence's end."""
    return _WORDS[obtained(profile)]


def op_pages(profile: Profile) -> list[OpPage]:
    """A page for every op that the profile names."""
    return [_op_page(profile, op) for op in profile.ops]


def page_dict(profile: Profile) -> dict[str, Any]:
    """The whole page, as JSON can hold it."""
    return {
        "name": profile.name,
        "kind": profile.kind,
        "description": profile.description,
        "runtime": profile.runtime.model_dump(mode="json"),
        "latency": {
            "obtained": obtained(profile),
            "by": gauge_name(profile),
            **profile.latency.model_dump(mode="json"),
        },
        "reference": str(profile.reference),
        "measure": profile.measure.model_dump(mode="json"),
        "match": profile.match.model_dump(mode="json"),
        "limits": profile.limits.model_dump(mode="json", exclude_none=True),
        "costs": costs_words(profile),
        "probed": None if profile.probed is None else profile.probed.model_dump(mode="json"),
        "ops": [asdict(page) for page in op_pages(profile)],
        "instead": dict(profile.instead),
        "forms": list(profile.forms),
        "lowering": profile.lowering.model_dump(mode="json"),
    }


def costs_words(profile: Profile) -> str:
    """Where the costs that guide proposals come from, as a sentence's end."""
    probed = profile.probed
    if probed is not None and probed.estimated:
        return f"estimated by {probed.by} in a probe of {probed.model}, {probed.date}: nothing was timed"
    if probed is not None:
        how = f" with {probed.by}" if probed.by else ""
        return f"measured by a probe of {probed.model} on {probed.machine}{how}, {probed.date}"
    if profile.costs_are == "estimated":
        return "of single layers, estimated by a model of the hardware; they order proposals and are never reported"
    if profile.costs_are == "declared":
        return "declared, not measured: they order proposals; `autoq profile probe` measures them on such a machine"
    return "of single layers, measured on such a machine; they order proposals and are never reported"


def match_words(profile: Profile) -> str:
    """How the machine is recognised, as a sentence's end."""
    match = profile.match
    parts = [f"architecture {' or '.join(match.arch)}"] if match.arch else []
    parts += [f"a CPU with any of {', '.join(match.any_cpu_flags)}"] if match.any_cpu_flags else []
    parts += [f"a CPU with {' and '.join(match.all_cpu_flags)}"] if match.all_cpu_flags else []
    parts += [f"a CPU without {', '.join(match.no_cpu_flags)}"] if match.no_cpu_flags else []
    parts += [f"a GPU whose name is like {' or '.join(match.gpu_names)}"] if match.gpu_names else []
    return ", ".join(parts) or "any machine"


def _op_page(profile: Profile, op: str) -> OpPage:
    legal: dict[str, list[Scheme]] = {}
    for names in known_texts():
        if profile.legal_by_name(op, names) is None and op_problem(op, scheme := Scheme.parse(names[0])) is None:
            legal.setdefault(scheme.family, []).append(scheme)
    forbidden = [(each.schemes, each.why) for each in profile.ops[op].forbid]
    return OpPage(
        op=op,
        families=tuple(_family(name, schemes, _runs(profile, op, schemes)) for name, schemes in legal.items()),
        forbidden=tuple(forbidden),
        aligned=tuple(
            f"{rule.schemes}: inputs a multiple of {rule.inputs}, outputs of {rule.outputs} ({rule.why})"
            for rule in profile.ops[op].align
        ),
    )


def _runs(profile: Profile, op: str, schemes: list[Scheme]) -> str:
    return _listed(profile.runs(op, scheme) for scheme in {form(scheme): scheme for scheme in schemes}.values())


def _family(name: str, schemes: list[Scheme], runs: str) -> Family:
    weights = [scheme.weight for scheme in schemes if scheme.weight is not None]
    if schemes[0].floats is not None:
        return Family(family=name, weights=name, activations=name, rounding="", runs=runs, schemes=len(schemes))
    if not weights:
        return Family(
            family=name, weights="float32", activations="float32", rounding="", runs=runs, schemes=len(schemes)
        )
    if weights[0].bits == 16:
        return Family(
            family=name, weights="float16", activations="float32", rounding="", runs=runs, schemes=len(schemes)
        )
    return Family(
        family=name,
        weights=_weight_words(weights),
        activations=_activation_words(schemes),
        rounding=_listed(spec.rounding for spec in weights),
        runs=runs,
        schemes=len(schemes),
    )


def _weight_words(weights: list[WeightSpec]) -> str:
    bits = weights[0].bits
    scales = {spec.granularity for spec in weights}
    parts = [text for key, text in (("channel", "channel"), ("tensor", "tensor")) if key in scales]
    blocks = [str(size) for name, size in BLOCKS.items() if name in scales]
    words = f"{bits} bits, a scale per {' or '.join(parts)}" if parts else f"{bits} bits"
    if blocks:
        words += f"{', or' if parts else ', a scale'} per block of {', '.join(blocks)}"
    asymmetric = {spec.granularity for spec in weights if not spec.symmetric}
    return words + ("; zero points with blocks, else symmetric" if asymmetric else "; symmetric, zero points 0")


_SIGNS = {
    "uint8": "unsigned with a zero point",
    "int8": "signed and symmetric (-s8)",
    "int16": "signed and symmetric",
}


def _activation_words(schemes: list[Scheme]) -> str:
    specs = [scheme.activation for scheme in schemes if scheme.activation is not None]
    if not specs:
        return "float32"
    signs = [text for dtype, text in _SIGNS.items() if any(spec.dtype == dtype for spec in specs)]
    ranges = [
        text
        for dynamic, text in ((False, "calibrated"), (True, "found at run time"))
        if any(spec.dynamic == dynamic for spec in specs)
    ]
    bits = _listed(f"{spec.bits} bits" for spec in specs)
    return f"{bits}, {' or '.join(signs)}, ranges {' or '.join(ranges)}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def not_allowed(page: OpPage) -> list[str]:
    """The families that the op cannot have at all."""
    have = {FLOAT32.family, *(family.family for family in page.families)}
    return [name for name in by_family() if name not in have]
