"""Quantized weights: integers with one scale per output channel, per tensor, or per block of a channel's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.scheme import Rounding
from autoq.numerics import codebook
from autoq.numerics.adaround import adaround
from autoq.numerics.affine import MIN_SCALE, dequantize
from autoq.numerics.blocks import quantize_in_blocks, spread
from autoq.numerics.gptq import Factors, factorize, gptq, loss, uniform
from autoq.numerics.packing import pack_int2, pack_int4, unpack_int2, unpack_int4
from autoq.numerics.scales import WEIGHT_LEVELS, best_scales, nearest

__all__ = [
    "WEIGHT_LEVELS",
    "QuantizedWeight",
    "pack_int2",
    "pack_int4",
    "quantize_weight",
    "unpack_int2",
    "unpack_int4",
]

# Scales that GPTQ tries, relative to the best one for rounding to nearest. With errors made up for elsewhere,
# clipping a large weight and rounding a small one trade differently.
_GPTQ_CANDIDATES = {
    8: (1.0,),
    7: (1.0,),
    6: (0.95, 1.0, 1.05),
    5: (0.9, 0.95, 1.0, 1.05, 1.1),
    4: (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15),
    3: (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2),
    2: (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4),
}


ROUNDINGS: tuple[Rounding, ...] = ("nearest", "gptq", "adaround", "kmeans")
"""How a weight is rounded by itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedWeight:
    """``(values - zero_point) * scale`` stands for the weight.

    ``values`` is int8 in the weight's own shape, within ``WEIGHT_LEVELS[bits]``; ``scale`` is float32
    ``[values.shape[axis]]``, or ``[1]`` where ``axis`` is ``None``: one scale for the tensor. With ``block``, that many
    inputs of a channel (all axes but ``axis``, flattened) share a scale, which may be negative: ``scale`` is
    ``[values.shape[axis], blocks]``, and so is ``zero_point``, int8; ``None`` stands for 0. With a ``codebook``, int8
    ``[2**bits]`` in ascending order, the values are entries of it instead, and it is their indices that are stored.
    """

    values: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    axis: int | None
    bits: int
    block: int | None = None
    zero_point: npt.NDArray[np.int8] | None = None
    codebook: npt.NDArray[np.int8] | None = None

    @property
    def indices(self) -> npt.NDArray[np.uint8]:
        """Where each value stands in the codebook, in the weight's own shape."""
        assert self.codebook is not None
        return np.searchsorted(self.codebook, self.values).astype(np.uint8)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weight as the runtime will see it, float32."""
        if self.block is not None:
            assert self.axis is not None
            moved = np.moveaxis(self.values, self.axis, 0)
            rows = moved.reshape(len(moved), -1).astype(np.float32)
            if self.zero_point is not None:
                rows -= spread(self.zero_point, rows.shape[1], self.block)
            rows *= spread(self.scale, rows.shape[1], self.block)
            return np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), 0, self.axis))
        scale = self.scale[0] if self.axis is None else self.scale
        return dequantize(self.values, scale, 0 if self.axis is None else np.zeros(len(scale), np.int8), self.axis)


def quantize_weight(
    weight: npt.NDArray[np.float32],
    *,
    bits: int,
    axis: int | None,
    rounding: Rounding = "nearest",
    hessian: npt.NDArray[np.floating[Any]] | None = None,
    groups: int = 1,
    output_axis: int | None = None,
    block: int | None = None,
    symmetric: bool = True,
    factors: Factors | None = None,
) -> QuantizedWeight:
    """``weight`` as ``bits``-bit integers (2 to 8).

    ``axis`` is the axis of the scales, the layer's output channels: 0 for a Conv ``[O, I/groups, k...]``, 1 for a
    MatMul ``[K, N]`` or a ConvTranspose ``[I, O/groups, k...]``; ``None`` for one scale. All other axes, flattened, are
    the K inputs of a channel. ``output_axis`` names the channels where ``axis`` is ``None`` (default 0); it matters
    only with a ``hessian``.

    ``hessian`` is the sum (or mean) of x x^T over the layer's inputs, ``[K, K]``, or ``[groups, K, K]`` with the output
    channels split evenly over the groups; needed by ``"gptq"`` and ``"adaround"``, and used to weigh errors by its
    diagonal otherwise (below 8 bits).
    They do not fit a ConvTranspose, whose channels do not share their inputs so.

    ``factors`` are those of ``hessian`` (:func:`factors_of`), where several schemes share them.

    ``block`` gives each channel a scale for that many inputs, and a zero point where not ``symmetric``
    (:func:`autoq.numerics.blocks.quantize_in_blocks`).

    Scales minimise the (weighted) squared error; they are positive and normal. A channel of zeros gets scale 1. No
    channel's loss under ``hessian`` is higher after GPTQ than after rounding to nearest, nor, damped, after
    AdaRound than after GPTQ. ``rounding="kmeans"`` (4 or 2 bits) finds a codebook of the layer's own, and with a
    ``hessian`` makes up for errors in it.
    Raises ``ValueError``, naming the channel, on a NaN or an infinity, and on arguments that do not fit together.
    """
    if bits not in WEIGHT_LEVELS:
        raise ValueError(f"{bits} bits are not supported; use one of {sorted(WEIGHT_LEVELS)}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r} of one weight; known: {', '.join(ROUNDINGS)}")
    weight = np.asarray(weight, np.float32)
    channel_axis = axis if axis is not None else output_axis or 0
    if not -weight.ndim <= channel_axis < weight.ndim:
        raise ValueError(f"axis {channel_axis} is not an axis of a weight of shape {weight.shape}")
    moved = np.moveaxis(weight, channel_axis, 0)
    rows = np.ascontiguousarray(moved).reshape(len(moved), -1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"the weights of channel {int(np.argmin(finite))} (axis {channel_axis}) hold a NaN or an infinity"
        )
    shared = axis is None
    moments = None if hessian is None else _checked(hessian, groups, rows.shape)
    if rounding in ("gptq", "adaround") and moments is None:
        raise ValueError(f"rounding {rounding!r} needs a hessian: the second moment of the layer's inputs")
    if block is not None:
        if axis is None or groups != 1:
            raise ValueError("blocks divide the inputs of a channel, of a layer without groups")
        second = moments[0] if moments is not None and rounding == "gptq" else None
        found, scales, zeros = quantize_in_blocks(
            rows, bits=bits, block=block, symmetric=symmetric, hessian=second, factors=factors
        )
        values = np.ascontiguousarray(np.moveaxis(found.reshape(moved.shape), 0, channel_axis))
        return QuantizedWeight(values=values, scale=scales, axis=axis, bits=bits, block=block, zero_point=zeros)

    # Work on rows of largest magnitude 1, whose squares neither overflow nor vanish.
    peak = np.abs(rows).max(axis=1, initial=0.0)
    if shared:
        peak = peak.max(keepdims=True, initial=0.0)
    peak = np.where(peak > 0, peak, np.float32(1))
    unit = (rows / peak[:, None]).astype(np.float32)

    importance = np.ones((1, rows.shape[1]))
    if moments is not None and bits < 8:
        importance = _importance(moments, len(rows))
    book = None
    if rounding == "kmeans":
        if bits not in (4, 2):
            raise ValueError(f"codebooks have 4 or 2 bits, not {bits}")
        peak = peak.max(initial=0.0)
        levels, scale, book = _codebook_rows(rows / np.float64(peak), importance, moments, factors, bits, shared)
        grid = codebook.grid(book)
    else:
        scale = best_scales(unit, importance, bits=bits, shared=shared)
        levels = nearest(unit, scale, bits=bits)
        grid = uniform(*WEIGHT_LEVELS[bits])
    if rounding in ("gptq", "adaround"):
        assert moments is not None
        exact, soft = unit.astype(np.float64), rounding != "gptq"
        levels, scale = _gptq_rows(exact, moments, factors or factorize(moments), levels, scale, bits, shared, soft)

    real = scale * peak
    tiny = real < MIN_SCALE
    if tiny.any():
        real = np.maximum(real, float(MIN_SCALE))
        levels = np.where(tiny[:, None], grid(rows / real[:, None]), levels)
    values = np.moveaxis(levels.astype(np.int8).reshape(moved.shape), 0, channel_axis)
    return QuantizedWeight(
        values=np.ascontiguousarray(values),
        scale=real.astype(np.float32),
        axis=axis,
        bits=bits,
        codebook=None if book is None else book.astype(np.int8),
    )


def factors_of(hessian: npt.NDArray[np.floating[Any]]) -> Factors:
    """The factors of a ``hessian`` ``[groups, K, K]`` as :func:`quantize_weight` takes it; ``ValueError`` as there."""
    return factorize(_checked(hessian, len(hessian), (len(hessian), hessian.shape[-1])))


def _checked(hessian: npt.NDArray[np.floating[Any]], groups: int, rows: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The Hessian as float64 ``[groups, K, K]`` with a mean diagonal of 1 (or 0), or ``ValueError``."""
    channels, inputs = rows
    moments = np.asarray(hessian, np.float64)
    if moments.ndim == 2:
        moments = moments[None]
    if moments.shape != (groups, inputs, inputs) or channels % groups:
        raise ValueError(
            f"a hessian of shape {np.shape(hessian)} does not fit {channels} channels of {inputs} inputs in "
            f"{groups} groups; it should be {(groups, inputs, inputs)}"
        )
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    if not np.isfinite(moments).all() or (diagonal < 0).any():
        raise ValueError("a hessian must be finite, with no negative entry on its diagonal")
    # One factor for all groups: losses of different channels are added where they share a scale.
    mean = diagonal.mean()
    return moments / mean if mean > 0 else np.zeros_like(moments)


def _importance(moments: npt.NDArray[np.float64], channels: int) -> npt.NDArray[np.float64]:
    """``diag(H)`` for each channel, ``[channels, K]`` or ``[1, K]``; an input that never fired counts a little."""
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    floor = 0.01 * diagonal.mean(axis=1, keepdims=True)
    diagonal = diagonal + np.where(floor > 0, floor, 1e-6)
    return diagonal if len(diagonal) == 1 else np.repeat(diagonal, channels // len(diagonal), axis=0)


def _gptq_rows(
    unit: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64],
    factors: Factors,
    levels: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    bits: int,
    shared: bool,
    soft: bool,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """GPTQ's levels and scales, or those given (rounded to nearest) for channels that it does not better; with
    ``soft``, AdaRound's for those that it betters further."""
    groups = len(moments)
    weight = _grouped(unit, groups)
    near, near_scale = _grouped(levels, groups), np.broadcast_to(scale, (len(unit),)).reshape(groups, -1)
    grid = uniform(*WEIGHT_LEVELS[bits])
    candidates = _GPTQ_CANDIDATES[bits]
    found, found_scale = gptq(
        weight, moments, near_scale, grid=grid, candidates=candidates, shared=shared, factors=factors
    )
    if soft:
        start = factors.ordered(found)
        improved, found_scale = adaround(
            factors.ordered(weight), factors.damped, found_scale, start, grid=grid, shared=shared
        )
        found = factors.restored(improved)
    near_loss = loss(weight - near * near_scale[:, None], moments)
    found_loss = loss(weight - found * found_scale[:, None], moments)
    better = found_loss <= near_loss
    if shared:
        better = np.broadcast_to(found_loss.sum() <= near_loss.sum(), better.shape)
    chosen = _ungrouped(np.where(better[:, None], found, near))
    chosen_scale = np.where(better, found_scale, near_scale).reshape(-1)
    return chosen, chosen_scale[:1] if shared else chosen_scale


def _codebook_rows(
    rows: npt.NDArray[np.float64],
    importance: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64] | None,
    factors: Factors | None,
    bits: int,
    shared: bool,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Levels ``[channels, K]``, scales ``[channels]`` or ``[1]`` and codebook ``[2**bits]``."""
    groups = 1 if moments is None else len(moments)
    weight = _grouped(rows, groups)
    weights = _grouped(importance, groups) if len(importance) > 1 else importance[:, :, None]
    book, scale = codebook.fit(weight, weights, count=2**bits, shared=shared)
    if moments is None:
        levels = codebook.grid(book)(weight / scale[:, None])
    else:
        levels, scale, book = codebook.compensated(weight, moments, book, scale, shared=shared, factors=factors)
    flat = scale.reshape(-1)
    return _ungrouped(levels), flat[:1] if shared else flat, book


def _grouped(rows: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    """``[channels, K]`` as ``[groups, K, rows of a group]``."""
    return np.ascontiguousarray(rows.reshape(groups, -1, rows.shape[1]).transpose(0, 2, 1))


def _ungrouped(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse of :func:`_grouped`."""
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1])
