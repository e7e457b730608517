"""What a probe found on a machine, as a profile carries it: what each scheme takes of a layer, and which do not pay."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from pydantic import Field, model_validator

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.spec.checking import AsTuple, Count, Fields, Positive, Text

Ratio = Annotated[tuple[Positive, Positive, Positive], AsTuple]
"""A ratio of times to the reference's, and the ends of its 95 % interval; all three are one where it is an estimate."""


class Finding(Fields):
    """One scheme (less what changes no kernel: :func:`form`) on layers of one shape.

    ``beside_float`` is its time between float neighbours, ``among_integers`` between integer ones, each to that of
    ``reference`` there; a target that holds no floats has the second alone. ``reference_ms`` is what the reference
    takes alone; ``size`` its file, or what that takes in the device's storage, to the reference's. ``dropped`` says why
    it is no candidate, and is empty where it is one.
    """

    kind: Text
    weight: Annotated[tuple[Count, ...], AsTuple]
    uses: Annotated[float, Field(ge=1)]
    scheme: Text
    reference: Text = "float32"
    reference_ms: Positive
    beside_float: Ratio | None = None
    among_integers: Ratio | None = None
    size: Positive
    dropped: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_old(cls, value: Any) -> Any:
        """Before there were other references, ``reference_ms`` was called ``float32_ms``."""
        if isinstance(value, dict) and "float32_ms" in value:
            value = {"reference_ms" if name == "float32_ms" else name: each for name, each in value.items()}
        return value

    @model_validator(mode="after")
    def _has_a_time(self) -> Finding:
        if self.beside_float is None and self.among_integers is None:
            raise ValueError("must have beside_float, among_integers, or both")
        return self


class Probed(Fields):
    """Where, when and with what a probe ran, and what it found.

    ``by`` says who gave the times. Those that were ``estimated`` hold on any machine.
    """

    machine: Text
    arch: Text
    versions: dict[Text, Text]
    date: Text
    model: Text
    threads: Count
    batch: Count
    by: str = ""
    estimated: bool = False
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
        if machine != self.machine and not self.estimated:
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
