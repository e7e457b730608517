"""What pays, by what was found of single layers: which schemes gain nothing over a gentler one, and what each costs.

A scheme is gentler than another where it keeps at least as much of a model's precision, whatever the model
(:func:`gentler`). One that is neither faster nor smaller than a gentler one loses precision for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoq.core.layer import Layer
from autoq.core.scheme import FLOAT32, ActivationSpec, Scheme, WeightSpec
from autoq.spec.hardware import Profile
from autoq.spec.probed import Finding, Ratio
from autoq.spec.schemes import costed_texts

PAYS = 0.99
"""A scheme whose ratio to a gentler one surely does not get below this is no faster."""

SMALLER = 0.98
"""Nor is one smaller whose file is above this share of the gentler one's."""

QUICK_MS = 0.02
"""Of a layer that takes less, a good part is the call of the session: that says nothing of the layer in a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Layers of one kind that do the same work: one of them, how many there are, and what each may become.

    ``reference`` is what their times are to be held against.
    """

    layer: Layer
    layers: int
    forms: Mapping[str, Scheme]
    input_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    reference: Scheme = FLOAT32

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all of its layers."""
        return self.layers * self.layer.macs


def judged(shape: Shape, found: Sequence[Finding], *, estimated: bool = False) -> tuple[Finding, ...]:
    """The findings, each with why its scheme is dropped where it gains nothing over a gentler one.

    Figures that were ``estimated`` tell of quick layers, too: no call of a session is in them.
    """
    return tuple(each.model_copy(update={"dropped": _dropped(shape, each, found, estimated)}) for each in found)


def doubtful(shape: Shape, found: Sequence[Finding]) -> set[str]:
    """The forms that gain nothing as far as ``found`` tells, and those that they gain nothing over."""
    names = set()
    for own in found:
        rivals = [other for other in _rivals(shape, own, found) if not _gains(own, other)]
        names |= {own.scheme, *(other.scheme for other in rivals)} if rivals else set()
    return names


def gentler(other: Scheme, scheme: Scheme) -> bool:
    """Whether ``other`` keeps at least as much of a model's precision as ``scheme``, whatever the model.

    Float32 is gentler than anything, float16 weights than all but that. Of integers those are whose weights have no
    fewer bits, whose scales are no coarser, and whose activations are no coarser or are floats.
    """
    if other == scheme or scheme == FLOAT32:
        return False
    if other == FLOAT32:
        return True
    if scheme.weight is None or other.weight is None or scheme.weight.bits == 16:
        return False
    return other.weight.bits == 16 or (
        _finer_weights(other.weight, scheme.weight) and _finer_activations(other.activation, scheme.activation)
    )


def measured_costs(shapes: Sequence[tuple[Shape, Sequence[Finding]]], profile: Profile) -> dict[str, dict[str, Any]]:
    """What a profile's ``cost`` becomes: op -> scheme -> time relative to float32, by the rows of a sample where known.

    A scheme that was timed in both surroundings has the geometric mean of the two. Where ratios are against another
    reference, float32's own says how those compare; on hardware that has none, the reference keeps its cost.
    """
    known = costed_texts() - {str(FLOAT32)}
    figures: dict[tuple[str, str], list[tuple[Shape, float]]] = {}
    for shape, found in shapes:
        op = shape.layer.kind if shape.layer.op_type != "Gather" else "Gather"
        unit = _unit(shape, found, profile)
        for each in found:
            if each.scheme in known:
                figures.setdefault((op, each.scheme), []).append((shape, unit * _typical(each)))
    costs: dict[str, dict[str, Any]] = {}
    for (op, name), pairs in figures.items():
        by_uses: dict[float, list[tuple[float, float]]] = {}
        for shape, ratio in pairs:
            uses = round(shape.layer.uses, 3) if op in ("Gemm", "MatMul") else 1.0
            by_uses.setdefault(uses, []).append((math.log(ratio), float(max(shape.macs, 1))))
        means = {uses: float(f"{math.exp(_mean(values)):.4g}") for uses, values in sorted(by_uses.items())}
        costs.setdefault(op, {})[name] = means if len(means) > 1 else next(iter(means.values()))
    return costs


def _unit(shape: Shape, found: Sequence[Finding], profile: Profile) -> float:
    """The cost of the reference, relative to float32."""
    if shape.reference == FLOAT32:
        return 1.0
    floats = next((each for each in found if each.scheme == str(FLOAT32)), None)
    if floats is not None:
        return 1 / _typical(floats)
    return profile.cost(shape.layer.kind, shape.reference, shape.layer.uses)


def _typical(each: Finding) -> float:
    ratios = [ratio[0] for ratio in (each.beside_float, each.among_integers) if ratio is not None]
    return math.prod(ratios) ** (1 / len(ratios))


def _mean(values: Iterable[tuple[float, float]]) -> float:
    pairs = list(values)
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


def _dropped(shape: Shape, own: Finding, found: Sequence[Finding], estimated: bool) -> str:
    if own.reference_ms < QUICK_MS and not estimated:
        return ""
    rival = next((other for other in _rivals(shape, own, found) if not _gains(own, other)), None)
    if rival is None:
        return ""
    places = [
        f"{_shown(ratio)} of {own.reference}'s time{where}"
        for ratio, where in (
            (own.beside_float, " between float layers"),
            (own.among_integers, " between integer ones" if own.beside_float else ""),
        )
        if ratio is not None
    ]
    lead = "probed, by estimates" if estimated else "probed"
    return f"{lead}: it takes {' and '.join(places)}, and {rival.scheme} is no slower and as small"


def _rivals(shape: Shape, own: Finding, found: Sequence[Finding]) -> list[Finding]:
    """The findings of gentler schemes, the gentlest first; float32 is one where it is the reference."""
    scheme, rivals = shape.forms[own.scheme], []
    if shape.reference == FLOAT32:
        alike = {"beside_float": (1.0, 1.0, 1.0), "among_integers": (1.0, 1.0, 1.0), "size": 1.0}
        rivals.append(own.model_copy(update={"scheme": str(FLOAT32), **alike}))
    for each in sorted(found, key=lambda each: -shape.forms[each.scheme].weight_bits):
        other = shape.forms[each.scheme]
        if gentler(other, scheme):
            # Between integer neighbours, what computes in floats is to float32 what it is between float ones.
            floats = other.activation is None and each.among_integers is None
            rivals.append(each.model_copy(update={"among_integers": each.beside_float}) if floats else each)
    return rivals


def _gains(own: Finding, other: Finding) -> bool:
    """Whether ``own`` is, or may be, faster or smaller than ``other`` in any of the places that are known."""
    if own.size <= SMALLER * other.size:
        return True
    if (
        own.beside_float is not None
        and other.beside_float is not None
        and _faster(own.beside_float, other.beside_float)
    ):
        return True
    if own.among_integers is None:
        return False
    return other.among_integers is None or _faster(own.among_integers, other.among_integers)


def _faster(own: Ratio, other: Ratio) -> bool:
    return own[1] < PAYS * other[0]


def _finer_weights(other: WeightSpec, own: WeightSpec) -> bool:
    scales = other.granularity == own.granularity or (other.granularity, own.granularity) == ("channel", "tensor")
    zeros = other.symmetric == own.symmetric or not other.symmetric
    return other.bits >= own.bits and other.rounding == own.rounding and scales and zeros


def _finer_activations(other: ActivationSpec | None, own: ActivationSpec | None) -> bool:
    if other is None:
        return True
    if own is None or other.dynamic != own.dynamic:
        return False
    return other.bits > own.bits or (other.bits == own.bits and other.signed <= own.signed)


def _shown(ratio: Ratio) -> str:
    exact = ratio[1] == ratio[2]
    return f"{ratio[0]:.2f}" if exact else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"
