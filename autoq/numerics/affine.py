"""Affine quantization exactly as ONNX defines it.

QuantizeLinear (ONNX operator specification, opset 13 and later)::

    y = saturate(round(x / y_scale) + y_zero_point)

with rounding half to even and saturation to the output type: [0, 255] for uint8, [-128, 127] for int8.
DequantizeLinear is ``(x - x_zero_point) * x_scale`` in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

ActivationDtype = Literal["uint8", "int8", "int16"]
LEVELS: dict[ActivationDtype, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-32768, 32767)}
"""Smallest and largest integer of each type."""

MIN_SCALE = np.finfo(np.float32).tiny
"""Smallest scale given out: the smallest normal float32, since runtimes may flush subnormal numbers to zero."""

_STORAGE = (np.int8, np.uint8, np.int16, np.uint16, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Affine:
    """Scale and zero point of one tensor.

    ``scale`` is float32 and ``zero_point`` an integer array of the same shape: ``()`` for one pair per tensor,
    ``[channels]`` along ``axis`` otherwise.
    """

    scale: npt.NDArray[np.float32]
    zero_point: IntArray
    dtype: ActivationDtype
    axis: int | None = None

    def __post_init__(self) -> None:
        scale, zero_point = np.asarray(self.scale), np.asarray(self.zero_point)
        if scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale >= MIN_SCALE).all()):
            raise ValueError(f"a scale must be float32, finite and at least {MIN_SCALE:g}, not {self.scale!r}")
        low, high = LEVELS[self.dtype]
        if scale.shape != zero_point.shape or (zero_point < low).any() or (zero_point > high).any():
            raise ValueError(f"zero point {self.zero_point!r} does not fit scale {self.scale!r} and {self.dtype}")

    @classmethod
    def of_range(cls, low: float, high: float, dtype: ActivationDtype) -> Affine:
        """The pair that :func:`activation_affine` gives for the range ``[low, high]``."""
        scale, zero_point = activation_affine(low, high, dtype)
        return cls(scale=np.asarray(scale), zero_point=np.asarray(zero_point, dtype), dtype=dtype)

    def quantize(self, x: FloatArray) -> IntArray:
        """``x`` as integers of ``dtype``."""
        return quantize(x, self.scale, self.zero_point, *LEVELS[self.dtype], axis=self.axis)

    def dequantize(self, q: IntArray) -> npt.NDArray[np.float32]:
        """``q`` as float32."""
        return dequantize(q, self.scale, self.zero_point, axis=self.axis)


def half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``values`` rounded to float16, as float32, if that moves none by more than 1 part in 512; else ``values``.

    In float16's normal range the step is 1 part in 1024 or less: beside a rounding to 8 bits, nothing. A file needs two
    bytes less for each.
    """
    with np.errstate(over="ignore"):
        short = values.astype(np.float16).astype(np.float32)
    return short if (np.abs(short - values) <= np.abs(values) / 512).all() else values


def activation_affine(low: float, high: float, dtype: ActivationDtype) -> tuple[np.float32, int]:
    """Scale (float32, normal, positive) and zero point of an activation with values in ``[low, high]``.

    uint8: asymmetric. The range is widened to include 0, so that zero (of padding, of Relu) is exact;
    scale = (high - low) / 255, zero point = round(-low / scale) (Jacob et al. 2018, section 2.1). When
    ``low >= 0`` the zero point is exactly 0, and a Relu before it is redundant. int8 and int16: symmetric, zero
    point 0, scale = max(|low|, |high|) / 127 or 32767. A range of zero width counts as one of width 1.
    Raises ``ValueError`` on a range that is empty or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is no range of finite values")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if dtype != "uint8":
        peak = max(-low, high)
        return _normal_scale((peak or 1.0) / LEVELS[dtype][1]), 0
    scale = _normal_scale(((high - low) or 1.0) / 255)
    return scale, min(round(-low / float(scale)), 255)


def _normal_scale(scale: float) -> np.float32:
    return max(np.float32(scale), MIN_SCALE)


def quantize(
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike,
    low_q: int,
    high_q: int,
    axis: int | None = None,
) -> IntArray:
    """QuantizeLinear of ``x`` (any shape, taken as float32), saturated to ``[low_q, high_q]``.

    ``scale`` and ``zero_point`` are scalars, or ``[x.shape[axis]]`` when ``axis`` is given. Returns the smallest of
    int8, uint8, int16, uint16 and int32 that holds the levels. Bit-exact with ONNX Runtime, which divides by the
    scale in float32 (multiplying by its reciprocal differs in the last place, hence at ties). Infinities saturate;
    NaN raises ``ValueError``.
    """
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):  # a quotient beyond float32 is an infinity, which saturates
        steps = np.rint(x / _along(np.asarray(scale, np.float32), x.ndim, axis)).astype(np.float64)
    if np.isnan(steps).any():
        raise ValueError("NaN cannot be quantized")
    # float64 holds every int32 exactly; float32 does not.
    steps = steps + _along(np.asarray(zero_point, np.float64), x.ndim, axis)
    dtype = next(t for t in _STORAGE if np.iinfo(t).min <= low_q and high_q <= np.iinfo(t).max)
    return np.asarray(np.clip(steps, low_q, high_q).astype(dtype))


def dequantize(
    q: npt.ArrayLike, scale: npt.ArrayLike, zero_point: npt.ArrayLike, axis: int | None = None
) -> npt.NDArray[np.float32]:
    """DequantizeLinear: ``(q - zero_point) * scale`` in float32; shapes as in :func:`quantize`."""
    q = np.asarray(q)
    steps = q.astype(np.int64) - _along(np.asarray(zero_point, np.int64), q.ndim, axis)
    return steps.astype(np.float32) * _along(np.asarray(scale, np.float32), q.ndim, axis)


def _along(parameter: npt.NDArray[Any], ndim: int, axis: int | None) -> npt.NDArray[Any]:
    """``parameter`` shaped to broadcast along ``axis`` of an array with ``ndim`` dimensions."""
    if axis is None:
        return parameter
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)
