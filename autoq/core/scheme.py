"""What a layer may become: a :class:`Scheme`, and the short text that names it.

Grammar (defaults are left out of the text, so that one scheme has one name)::

    float32                         untouched
    float16                         weights stored as float16, computed as before
    bf16  fp16                      weights and inputs rounded to bfloat16 or float16, multiplied as such
    fp8                             weights and inputs in 8-bit floats (e4m3): a scale a channel, a scale a row
    w8  w4  w2                      weight-only: integer weights, float activations
    w4-b32-asym                     weight-only in blocks of 32 inputs, each with a scale and a zero point
    w8a8@minmax                     integer weights and 8-bit activations, ranges calibrated by min-max
    w8a8@dynamic                    the same, ranges found at run time
    w4a8-gptq@percentile99.99       4-bit weights rounded by GPTQ, activations clipped at a percentile
    w8a8-s8-tensor@mse              signed symmetric activations, one weight scale for the whole tensor
    w8a16@minmax                    16-bit activations, signed and symmetric
    w3a8-gptq@mse                   3-bit weights, for hardware whose compiler packs them: no ONNX type holds them
    w4a8-kmeans-bc-smooth0.5@mse    weights from a codebook of 16 values, bias corrected, inputs smoothed

    scheme      := floats | weight options | weight ("a8" ["-s8"] | "a16") options "@" calibration
    floats      := "float32" | "float16" | "bf16" | "fp16" | "fp8"
    weight      := "w" ("8" | "7" | "6" | "5" | "4" | "3" | "2")
    options     := ["-tensor" | "-b32" | "-b64" | "-b128"] ["-asym"] [rounding] ["-bc" | "-bca"] ["-smooth" NUMBER]
    rounding    := "-gptq" | "-adaround" | "-gptaq" | "-brecq" | "-kmeans" | "-pq"
    calibration := "minmax" | "ema" | "percentile" NUMBER | "entropy" | "mse" | "dynamic"

Which options go together is checked on construction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from autoq.errors import JobError

Granularity = Literal["channel", "tensor", "b32", "b64", "b128"]
Rounding = Literal["nearest", "gptq", "adaround", "gptaq", "brecq", "kmeans", "pq"]
BiasCorrection = Literal["empirical", "analytic"]
CalibrationMethod = Literal["minmax", "ema", "percentile", "entropy", "mse", "dynamic"]

Floats = Literal["bf16", "fp16", "fp8"]

FLOATS: dict[Floats, int] = {"bf16": 16, "fp16": 16, "fp8": 8}
"""What products of short floats are called, and the bits of their weights. Sums are float32's."""

BY_BLOCK: dict[Rounding, Rounding] = {"gptaq": "gptq", "brecq": "adaround"}
"""Roundings for what a layer gets from others rounded likewise, and how each rounds the layer in the end."""

WEIGHT_BITS = (8, 7, 6, 5, 4, 3, 2)
IN_BYTES = (7, 6, 5, 3)
"""Bits that no ONNX type has: such weights are stored as int8, of which they use fewer levels. 7 bits leave room in
16-bit sums; 6, 5 and 3 are for targets that pack weights themselves (``PACKED``)."""
PACKED = (6, 5, 3)
"""Bits that gain only where the target packs weights by what they hold."""
BLOCKS: dict[str, int] = {"b32": 32, "b64": 64, "b128": 128}
"""Granularities by blocks of consecutive inputs, and how many each block has."""
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "ema", "percentile", "entropy", "mse", "dynamic")
WIDE_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "ema", "percentile")
"""Calibrations of 16-bit activations: the others weigh clipping against 255 steps."""


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
    """How weights are stored: ``bits`` 16 is float16, the others are integers, :data:`IN_BYTES` in 8 bits.

    ``granularity`` ``"channel"`` is one scale per output channel, ``"b32"`` one per 32 consecutive inputs of a channel.
    ``symmetric`` integers have no zero point. ``rounding`` ``"kmeans"`` stores indices into a codebook of the layer's
    own, ``"pq"`` (product quantization) indices of whole sub-vectors, ``bits`` a weight. ``bias_correction`` takes the
    mean error of the rounded weights out of the bias, for mean inputs that data show (``"empirical"``) or that follow
    from the model (``"analytic"``). ``smoothing``, between 0 and 1, is the share of the activations'
    outliers that input channels hand over to the weights (SmoothQuant's alpha), or ``None``.
    """

    bits: Literal[16, 8, 7, 6, 5, 4, 3, 2]
    granularity: Granularity = "channel"
    rounding: Rounding = "nearest"
    symmetric: bool = True
    bias_correction: BiasCorrection | None = None
    smoothing: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (16, *WEIGHT_BITS):
            raise JobError(f"{self.bits} weight bits are not supported; use 16 (float16), or 8 to 2")
        if self.rounding in ("kmeans", "pq") and self.bits not in (4, 2):
            raise JobError(f"codebooks ('-{self.rounding}') have 4 or 2 bits, not {self.bits}")
        if self.rounding == "pq" and self.granularity != "channel":
            raise JobError("product quantization ('-pq') has one scale a row, so none per tensor or block")
        if self.granularity in BLOCKS and (self.rounding not in ("nearest", "gptq") or self.bits in IN_BYTES):
            raise JobError(f"blocks ('-{self.granularity}') have 8, 4 or 2 bits, rounded to nearest or by '-gptq'")
        if not self.symmetric and self.granularity not in BLOCKS:
            raise JobError("zero points of weights ('-asym') come with blocks only: '-b32', '-b64' or '-b128'")
        if self.smoothing is not None and not 0 < self.smoothing < 1:
            raise JobError(f"a smoothing of {self.smoothing:g} is not between 0 and 1")

    @property
    def block(self) -> int | None:
        """Inputs that share a scale, or ``None`` where a whole channel or the tensor does."""
        return BLOCKS.get(self.granularity)

    @property
    def stored_bits(self) -> int:
        """Bits that a weight takes in an ONNX file."""
        return 8 if self.bits in IN_BYTES else self.bits


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSpec:
    """Integer activations: unsigned asymmetric (``signed=False``) or signed symmetric, one scale per tensor.

    Those of 16 ``bits`` are signed, as TFLite's quantization specification has them. ``smoothing`` is that of the
    weights they are multiplied with (see :class:`WeightSpec`).
    """

    calibration: Calibration
    signed: bool = False
    bits: Literal[8, 16] = 8
    smoothing: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise JobError(f"{self.bits} activation bits are not supported; use 8 or 16")
        if self.bits == 16 and not self.signed:
            raise JobError("16-bit activations are signed")
        if self.bits == 16 and (self.calibration.method not in WIDE_METHODS or self.smoothing is not None):
            raise JobError(
                "16-bit activations have steps to spare for all that was seen: use @minmax, @ema or @percentile, and "
                "no smoothing"
            )
        if self.dynamic and self.signed:
            raise JobError("dynamic activations are unsigned: '-s8' goes with calibrated ones")

    @property
    def dtype(self) -> Literal["uint8", "int8", "int16"]:
        """The type of the integers."""
        return "int16" if self.bits == 16 else "int8" if self.signed else "uint8"

    @property
    def dynamic(self) -> bool:
        """Whether ranges are found at run time, so that nothing is calibrated."""
        return self.calibration.method == "dynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The precision of one layer. All ``None`` is float32; ``floats`` are products of short floats, and stand alone."""

    weight: WeightSpec | None = None
    activation: ActivationSpec | None = None
    floats: Floats | None = None

    def __post_init__(self) -> None:
        if self.floats is not None and (self.weight is not None or self.activation is not None):
            raise JobError(f"{self.floats} is a scheme by itself: it goes with no integers")
        if self.activation is not None and (self.weight is None or self.weight.bits == 16):
            raise JobError("integer activations need integer weights (w8a8, w4a8, w8a16, ...)")
        if self.weight is None:
            return
        if self.activation is not None and (self.weight.granularity in BLOCKS or self.weight.rounding == "pq"):
            raise JobError("blocks ('-b32', ...) and '-pq' are weight-only: they have no integer activations")
        if self.weight.smoothing != (self.activation and self.activation.smoothing):
            raise JobError("smoothing moves outliers of 8-bit activations into the weights: both have it, or none")

    @property
    def calibrated(self) -> ActivationSpec | None:
        """The integer activations whose range calibration fixes, hence those that Q/DQ pairs are placed for."""
        return None if self.activation is None or self.activation.dynamic else self.activation

    @property
    def weight_bits(self) -> int:
        """Bits of a weight on its target: 32, 16, 8, 4 or 2, and 6, 5 or 3 where that packs them; 7 take 8."""
        if self.floats is not None:
            return FLOATS[self.floats]
        if self.weight is None:
            return 32
        return self.weight.bits if self.weight.bits in PACKED else self.weight.stored_bits

    @property
    def activation_bits(self) -> int:
        """Bits of a value that the layer reads to compute with: 32, 16 or 8."""
        if self.floats is not None:
            return FLOATS[self.floats]
        return 32 if self.activation is None else self.activation.bits

    @property
    def family(self) -> str:
        """The scheme less its options: ``float32``, ``float16``, ``w4``, ``w4a8``, ``w8a16``, …"""
        if self.floats is not None:
            return self.floats
        if self.weight is None:
            return "float32"
        if self.weight.bits == 16:
            return "float16"
        return f"w{self.weight.bits}" + (f"a{self.activation.bits}" if self.activation else "")

    def __str__(self) -> str:
        if self.weight is None or self.weight.bits == 16:
            return self.family
        signed = "-s8" if self.activation and self.activation.dtype == "int8" else ""
        granularity = "" if self.weight.granularity == "channel" else f"-{self.weight.granularity}"
        rounding = "" if self.weight.rounding == "nearest" else f"-{self.weight.rounding}"
        calibration = f"@{self.activation.calibration}" if self.activation else ""
        asymmetric = "" if self.weight.symmetric else "-asym"
        corrected = next((text for text, kind in _CORRECTIONS.items() if kind == self.weight.bias_correction), "")
        smooth = "" if self.weight.smoothing is None else f"-smooth{self.weight.smoothing!r}"
        return f"{self.family}{signed}{granularity}{asymmetric}{rounding}{corrected}{smooth}{calibration}"

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that ``text`` names; raises :class:`JobError` with the grammar's nearest rule."""
        if text == "float32":
            return cls()
        if text == "float16":
            return cls(weight=WeightSpec(bits=16))
        if text in FLOATS:
            return cls(floats=text)
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise JobError(
                f"{text!r} is no scheme; examples: float32, float16, w8, w4-gptq, w8a8@minmax, "
                "w4a8-gptq@percentile99.99, w8a8-s8-tensor@mse"
            )
        smoothing = float(match["smooth"]) if match["smooth"] else None
        activation = None
        if match["a"]:
            if match["method"] is None:
                raise JobError(f"{text!r} does not say how activations are calibrated; write {text}@minmax, for one")
            if match["a"] == "16" and match["s8"]:
                raise JobError(f"{text!r}: '-s8' goes with 8-bit activations; those of 16 bits are always signed")
            percentile = float(match["percentile"]) if match["percentile"] else None
            calibration = Calibration(method=match["method"], percentile=percentile)  # type: ignore[arg-type]
            activation = ActivationSpec(
                calibration=calibration,
                signed=bool(match["s8"]) or match["a"] == "16",
                bits=int(match["a"]),  # type: ignore[arg-type]
                smoothing=smoothing,
            )
        elif match["method"] or match["s8"] or smoothing is not None:
            raise JobError(
                f"{text!r} has float activations: '-s8', '-smooth' and '@calibration' go with w8a8, w4a8 and the like"
            )
        # Here, not on construction: what such weights cost is probed with all activations left float.
        if activation is None and int(match["bits"]) in IN_BYTES:
            raise JobError(_not_alone(int(match["bits"])))
        weight = WeightSpec(
            bits=int(match["bits"]),  # type: ignore[arg-type]
            granularity=match["granularity"] or "channel",  # type: ignore[arg-type]
            rounding=match["rounding"] or "nearest",  # type: ignore[arg-type]
            symmetric=not match["asym"],
            bias_correction=_CORRECTIONS[match["bc"]] if match["bc"] else None,
            smoothing=smoothing,
        )
        return cls(weight=weight, activation=activation)


def _not_alone(bits: int) -> str:
    if bits in PACKED:
        return f"{bits}-bit weights pay on hardware that packs them, beside 8-bit activations; alone, use w8 or w4"
    return f"{bits}-bit weights leave room in 16-bit sums with 8-bit activations; alone, use w8"


_CORRECTIONS: dict[str, BiasCorrection] = {"-bc": "empirical", "-bca": "analytic"}

_PATTERN = re.compile(
    r"w(?P<bits>[2-8])(?:a(?P<a>16|8))?(?P<s8>-s8)?(?:-(?P<granularity>tensor|b32|b64|b128))?(?P<asym>-asym)?"
    r"(?:-(?P<rounding>gptq|adaround|gptaq|brecq|kmeans|pq))?(?P<bc>-bca?)?(?:-smooth(?P<smooth>\d+(?:\.\d+)?))?"
    r"(?:@(?P<method>minmax|ema|percentile(?=\d)|entropy|mse|dynamic)"
    r"(?P<percentile>(?<=percentile)\d+(?:\.\d+)?)?)?"
)

FLOAT32 = Scheme()
