"""What quantizing does to one tensor and to the sums of one layer: saturation, shares of the error, head-room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INT32_MAX, INT16_MAX = 2**31 - 1, 2**15 - 1
LARGEST_ACTIVATION = 255
"""Kernels on x86 read activations as uint8, signed ones shifted by 128, and take zero points off afterwards."""

_SHIFTS = np.linspace(-0.5, 0.5, 17)  # of the zero point, in steps; 0 is among them


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeHealth:
    """What a scale and a zero point do to the values of one tensor.

    ``saturated_low`` and ``saturated_high`` are the shares of the values that lie beyond the first and the last level.
    ``clipping``, ``zero_point`` and ``rounding`` are shares of the error's power and add to 1 (all 0 where there is no
    error): ``zero_point`` is what a zero point between two integers would save at the same scale, and of the error that
    is left there, ``clipping`` is that of saturated values and ``rounding`` that of the others.
    """

    sqnr_db: float
    saturated_low: float
    saturated_high: float
    clipping: float
    zero_point: float
    rounding: float

    @property
    def saturated(self) -> float:
        """The share of values that saturate at either end."""
        return self.saturated_low + self.saturated_high


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulatorHealth:
    """The largest magnitudes of a layer's integer sums: possible whatever the activations, and seen on data.

    ``sum`` is over all inputs of a channel, to be held against int32; ``pair`` over two neighbouring inputs, which x86
    without VNNI adds in int16 (``vpmaddubsw``). Kernels choose which inputs are neighbours: ``pair_possible`` is for
    any two, ``pair_seen`` for the weight's own order.
    """

    sum_possible: int
    sum_seen: int
    pair_possible: int
    pair_seen: int

    @property
    def headroom_bits(self) -> float:
        """How many more bits the largest possible sum could have before it leaves int32; negative where it may."""
        return math.log2(INT32_MAX / max(self.sum_possible, 1))


def range_health(values: Array, scale: float, zero_point: int, low_q: int, high_q: int) -> RangeHealth:
    """``values`` (any shape) quantized to the levels ``low_q`` to ``high_q``, as QuantizeLinear has it.

    The split of the error into overload (clipping) and granular (rounding) distortion is Gray and Neuhoff's 1998,
    "Quantization", section II-B. Raises ``ValueError`` on an empty tensor.
    """
    exact = np.asarray(values, np.float64).reshape(-1)
    if not exact.size:
        raise ValueError("an empty tensor has no health")
    steps = exact / scale
    level = np.rint(steps) + zero_point
    errors = [_squared_error(steps, zero_point + shift, low_q, high_q) for shift in _SHIFTS]
    own = errors[len(_SHIFTS) // 2]
    total = float(own.sum())
    # Equal errors: the zero point as it is.
    best = min(range(len(errors)), key=lambda index: (float(errors[index].sum()), abs(_SHIFTS[index])))
    position = np.rint(steps + _SHIFTS[best]) + zero_point
    outside = (position < low_q) | (position > high_q)
    clipping = float(errors[best][outside].sum())
    rounding = float(errors[best][~outside].sum())
    shares = [part / total if total > 0 else 0.0 for part in (clipping, total - clipping - rounding, rounding)]
    power = float(np.square(steps).sum())
    return RangeHealth(
        sqnr_db=math.inf if total == 0 else 10 * math.log10(max(power, 1e-300) / total),
        saturated_low=float((level < low_q).mean()),
        saturated_high=float((level > high_q).mean()),
        clipping=shares[0],
        zero_point=shares[1],
        rounding=shares[2],
    )


def accumulator_health(weight: Array, activations: Array) -> AccumulatorHealth:
    """Sums of integer ``weight`` ``[groups, channels, K]`` with uint8 ``activations`` ``[groups, rows, K]``.

    Intel, Architectures Software Developer's Manual, volume 2, PMADDUBSW, for pairs.
    """
    levels = np.asarray(weight, np.int64)
    positive, negative = np.maximum(levels, 0), np.maximum(-levels, 0)
    largest = max(int(part.sum(axis=-1).max(initial=0)) for part in (positive, negative))
    pair = 0
    for part in (positive, negative):
        count = min(2, part.shape[-1])
        two = np.partition(part, part.shape[-1] - count, axis=-1)[..., -count:] if count else part
        pair = max(pair, int(two.sum(axis=-1).max(initial=0)))
    x = np.asarray(activations, np.float64)
    # float64 holds every int32 exactly: a matrix product of integers, at the speed of floats.
    sums = x @ levels.astype(np.float64).transpose(0, 2, 1)
    return AccumulatorHealth(
        sum_possible=LARGEST_ACTIVATION * largest,
        sum_seen=int(np.abs(sums).max(initial=0)),
        pair_possible=LARGEST_ACTIVATION * pair,
        pair_seen=_largest_pair(levels, np.asarray(activations, np.int32)),
    )


def _squared_error(steps: Array, zero_point: float, low_q: int, high_q: int) -> Array:
    """Squared error in steps, for a zero point that need not be whole."""
    level = np.clip(np.rint(steps + zero_point), low_q, high_q)
    return np.asarray(np.square(level - zero_point - steps))


def _largest_pair(weight: Array, activations: Array) -> int:
    even = weight.shape[-1] // 2 * 2
    narrow = weight[..., :even].astype(np.int32)
    largest = 0
    for group, rows in zip(narrow, activations[..., :even], strict=True):
        for row in rows:  # one at a time: all products at once would be large
            products = group * row
            largest = max(largest, int(np.abs(products[:, 0::2] + products[:, 1::2]).max(initial=0)))
    return largest
