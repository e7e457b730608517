"""What a probe found on a machine, as a profile carries it: what each scheme takes of a layer, and which do not pay."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.spec.checking import AsTuple, Count, Fields, Positive, Text

Ratio = Annotated[tuple[Positive, Positive, Positive], AsTuple]
"""A ratio of times to float32's, and the ends of its 95 % interval."""


class Finding(Fields):
    """One scheme (less what changes no kernel: :func:`form`) on layers of one shape.

    ``beside_float`` is its time between float neighbours, ``among_integers`` between integer ones, each to float32's
    there; ``float32_ms`` is what float32 takes alone; ``size`` its file to float32's. ``dropped`` says why it is no
    candidate, and is empty where it is one.
    """

    kind: Text
    weight: Annotated[tuple[Count, ...], AsTuple]
    uses: Annotated[float, Field(ge=1)]
    scheme: Text
    float32_ms: Positive
    beside_float: Ratio
    among_integers: Ratio | None = None
    size: Positive
    dropped: str = ""


class Probed(Fields):
    """Where, when and with what a probe ran, and what it found."""

    machine: Text
    arch: Text
    versions: dict[Text, Text]
    date: Text
    model: Text
    threads: Count
    batch: Count
    findings: Annotated[tuple[Finding, ...], AsTuple] = ()

    def problem(self, layer: Layer, scheme: Scheme) -> str | None:
        """Why a layer is not to have ``scheme``, by what was measured; ``None`` where it may, or where nothing was.

        Where a layer's uses are unknown, all findings for its shape must agree.
        """
        name = form(scheme)
        found = [
            each
            for each in self.findings
            if (each.kind, each.weight, each.scheme) == (layer.kind, layer.weight_shape, name)
            and (not layer.macs or abs(each.uses - layer.uses) <= 1e-6 * each.uses)
        ]
        return found[0].dropped if found and all(each.dropped for each in found) else None

    def elsewhere(self, machine: str, versions: dict[str, str | None]) -> list[str]:
        """Why this machine is not where it was found out, in words; empty where it is."""
        problems = []
        if machine != self.machine:
            problems.append(f"it was probed on {self.machine}, and this is {machine}")
        for name, version in self.versions.items():
            if versions.get(name) != version:
                problems.append(f"it was probed with {name} {version}, and here is {versions.get(name)}")
        return [f"{problem}: probe again (autoq profile probe)" for problem in problems]


def form(scheme: Scheme) -> str:
    """The scheme less what changes no kernel: rounding, corrections, smoothing and calibration.

    ``@dynamic`` stays, and codebooks, which are stored otherwise.
    """
    if scheme.weight is None:
        return str(scheme)
    rounding = scheme.weight.rounding if scheme.weight.rounding in ("kmeans", "pq") else "nearest"
    weight = dataclasses.replace(scheme.weight, rounding=rounding, bias_correction=None, smoothing=None)
    activation = scheme.activation and dataclasses.replace(scheme.activation, smoothing=None)
    text, at, calibration = str(Scheme(weight=weight, activation=activation)).partition("@")
    return f"{text}@{calibration}" if at and calibration == "dynamic" else text
