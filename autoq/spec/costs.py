"""What a profile says that a scheme costs: its ``cost`` section, and which of its figures a scheme has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from autoq.core.layer import LAYER_OPS
from autoq.core.scheme import FLOAT32, IN_BYTES, WEIGHT_BITS, Scheme
from autoq.spec.checking import nearest, show
from autoq.spec.schemes import costed_texts, nearest_scheme, without_calibration

Cost = tuple[tuple[float, float], ...]
"""Points (uses of a weight, time relative to float32), fewest uses first; one alone holds for all."""

_COSTED = (*LAYER_OPS, "depthwise Conv", "grouped Conv")


def read_costs(values: Mapping[str, Any]) -> tuple[dict[tuple[str, str], Cost], list[str]]:
    """The ``cost`` section: scheme -> number for every op, or op -> (scheme -> number, or uses -> number)."""
    costs: dict[tuple[str, str], Cost] = {}
    problems: list[str] = []
    known = costed_texts()
    for key, value in values.items():
        table, op = (value, key) if isinstance(value, Mapping) else ({key: value}, "")
        if op and op not in _COSTED:
            problems.append(f"cost: no layer is a {show(op)}{nearest(op, _COSTED)}; known: {', '.join(_COSTED)}")
            continue
        for text, number in table.items():
            field = f"cost.{op}.{text}" if op else f"cost.{text}"
            if text not in known:
                problems.append(f"{field}: no scheme (less its @calibration) is called that{nearest_scheme(str(text))}")
                continue
            points = number.items() if isinstance(number, Mapping) and number else [(1, number)]
            wrong = [each for point in points for each in point if not _is_positive(each)]
            if wrong:
                problems.append(
                    f"{field}: must be a number above 0, the time relative to float32, or such a number for each of a "
                    f"few counts of rows, {{1: 0.5, 64: 0.9}} ({show(wrong[0])})"
                )
            else:
                costs[op, str(text)] = tuple(sorted((float(uses), float(cost)) for uses, cost in points))
    return costs, problems


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e6


def cost_of(costs: Mapping[tuple[str, str], Cost], op_type: str, scheme: Scheme) -> Cost | None:
    """The most specific figure there is.

    A kind of layer goes before its op, an op before all ops, and the scheme itself before one with fewer options.
    """
    if scheme == FLOAT32:
        return ((1.0, 1.0),)
    for op in (op_type, op_type.split()[-1], ""):
        for name in _cost_names(scheme):
            if (op, name) in costs:
                return costs[op, name]
    return None


def _cost_names(scheme: Scheme) -> list[str]:
    """What a scheme's cost may be listed under, the most telling first."""
    text = without_calibration(scheme)
    if scheme.weight is None:
        return [text]
    # How weights were rounded changes no speed, nor what was done to biases and inputs; codebooks are expanded once.
    weight = dataclasses.replace(scheme.weight, rounding="nearest", bias_correction=None, smoothing=None)
    activation = scheme.activation and dataclasses.replace(scheme.activation, smoothing=None)
    plain = without_calibration(Scheme(weight=weight, activation=activation))
    # Kernels take about as long with zero points as without.
    names = [text, plain, plain.replace("-asym", ""), plain.removesuffix("-tensor"), scheme.family]
    if scheme.activation is not None and scheme.activation.dynamic:
        names = [f"{text}@dynamic", f"{plain}@dynamic", f"{scheme.family}@dynamic", text, plain, scheme.family]
    return [name.replace(scheme.family, family, 1) for family in priced_as(scheme.family) for name in names]


@cache
def priced_as(family: str) -> tuple[str, ...]:
    """The family, and those whose cost it has without one of its own, the first first: what no ONNX type holds takes as
    long as the next wider weights to kernels that read bytes, and at most as long where weights are packed. For 16-bit
    activations the cost of 8 is a guess, on the right side of float32."""
    if family[:1] != "w":
        return (family,)
    wider = [bits for bits in reversed(WEIGHT_BITS) if bits > int(family[1])] if int(family[1]) in IN_BYTES else []
    found = (family, *(f"w{bits}{family[2:]}" for bits in wider))
    return (*found, *(name.replace("a16", "a8") for name in found if "a16" in name))
