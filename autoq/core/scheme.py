"""What a layer may become: a :class:`Scheme`, and the short text that names it.

Grammar (defaults are left out of the text, so that one scheme has one name)::

    float32                         untouched
    float16                         weights stored as float16, computed as before
    w8  w4  w2                      weight-only: integer weights, float activations
    w8a8@minmax                     integer weights and 8-bit activations, ranges calibrated by min-max
    w4a8-gptq@percentile99.99       4-bit weights rounded by GPTQ, activations clipped at a percentile
    w8a8-s8-tensor@mse              signed symmetric activations, one weight scale for the whole tensor

    scheme      := "float32" | "float16" | weight | weight "a8" options "@" calibration
    weight      := "w" ("8" | "4" | "2") options
    options     := ["-s8"] ["-tensor"] ["-gptq"]        (in this order)
    calibration := "minmax" | "ema" | "percentile" NUMBER | "entropy" | "mse"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from autoq.errors import JobError

Granularity = Literal["channel", "tensor"]
Rounding = Literal["nearest", "gptq"]
CalibrationMethod = Literal["minmax", "ema", "percentile", "entropy", "mse"]

WEIGHT_BITS = (8, 4, 2)
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "ema", "percentile", "entropy", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How the clipping range of an activation is chosen from its statistics.

    ``percentile`` is the share of values kept inside the range, in percent (50 < p < 100); it is given for the
    method ``"percentile"`` and for no other.
    """

    method: CalibrationMethod
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.method not in CALIBRATION_METHODS:
            raise JobError(f"unknown calibration {self.method!r}; known: {', '.join(CALIBRATION_METHODS)}")
        if (self.method == "percentile") != (self.percentile is not None):
            raise JobError("a percentile is given for the calibration 'percentile', and only for it")
        if self.percentile is not None and not 50 < self.percentile < 100:
            raise JobError(f"percentile {self.percentile:g} is not between 50 and 100")

    def __str__(self) -> str:
        if self.percentile is None:
            return self.method
        # repr, not :g: 99.99999 must not become 100, nor two percentiles one name.
        return f"percentile{float(self.percentile)!r}".removesuffix(".0")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """How weights are stored: ``bits`` 16 is float16, the others are symmetric integers.

    ``granularity`` ``"channel"`` is one scale per output channel.
    """

    bits: Literal[16, 8, 4, 2]
    granularity: Granularity = "channel"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.bits not in (16, *WEIGHT_BITS):
            raise JobError(f"{self.bits} weight bits are not supported; use 16 (float16), 8, 4 or 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSpec:
    """8-bit activations: unsigned asymmetric (``signed=False``) or signed symmetric, one scale per tensor."""

    calibration: Calibration
    signed: bool = False
    bits: Literal[8] = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The precision of one layer. ``weight`` and ``activation`` both ``None`` is float32."""

    weight: WeightSpec | None = None
    activation: ActivationSpec | None = None

    def __post_init__(self) -> None:
        if self.activation is not None and (self.weight is None or self.weight.bits == 16):
            raise JobError("8-bit activations need integer weights (w8a8, w4a8 or w2a8)")

    @property
    def weight_bits(self) -> int:
        """Bits per stored weight: 32, 16, 8, 4 or 2."""
        return 32 if self.weight is None else self.weight.bits

    @property
    def family(self) -> str:
        """The scheme less its options: ``float32``, ``float16``, ``w4``, ``w4a8``, …"""
        if self.weight is None:
            return "float32"
        if self.weight.bits == 16:
            return "float16"
        return f"w{self.weight.bits}" + ("a8" if self.activation else "")

    def __str__(self) -> str:
        if self.weight is None or self.weight.bits == 16:
            return self.family
        signed = "-s8" if self.activation and self.activation.signed else ""
        tensor = "-tensor" if self.weight.granularity == "tensor" else ""
        rounding = "" if self.weight.rounding == "nearest" else f"-{self.weight.rounding}"
        calibration = f"@{self.activation.calibration}" if self.activation else ""
        return f"{self.family}{signed}{tensor}{rounding}{calibration}"

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that ``text`` names; raises :class:`JobError` with the grammar's nearest rule."""
        if text == "float32":
            return cls()
        if text == "float16":
            return cls(weight=WeightSpec(bits=16))
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise JobError(
                f"{text!r} is no scheme; examples: float32, float16, w8, w4-gptq, w8a8@minmax, "
                "w4a8-gptq@percentile99.99, w8a8-s8-tensor@mse"
            )
        activation = None
        if match["a8"]:
            if match["method"] is None:
                raise JobError(f"{text!r} does not say how activations are calibrated; write {text}@minmax, for one")
            percentile = float(match["percentile"]) if match["percentile"] else None
            calibration = Calibration(method=match["method"], percentile=percentile)  # type: ignore[arg-type]
            activation = ActivationSpec(calibration=calibration, signed=bool(match["s8"]))
        elif match["method"] or match["s8"]:
            raise JobError(f"{text!r} has float activations: '-s8' and '@calibration' go with w8a8, w4a8 and w2a8")
        weight = WeightSpec(
            bits=int(match["bits"]),  # type: ignore[arg-type]
            granularity="tensor" if match["tensor"] else "channel",
            rounding="gptq" if match["gptq"] else "nearest",
        )
        return cls(weight=weight, activation=activation)


_PATTERN = re.compile(
    r"w(?P<bits>8|4|2)(?P<a8>a8)?(?P<s8>-s8)?(?P<tensor>-tensor)?(?P<gptq>-gptq)?"
    r"(?:@(?P<method>minmax|ema|percentile(?=\d)|entropy|mse)(?P<percentile>(?<=percentile)\d+(?:\.\d+)?)?)?"
)

FLOAT32 = Scheme()
