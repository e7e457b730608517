"""Arithmetic of layers, and the latency it suggests. Modelled figures: they guide proposals and are never measurements.

A MAC is one multiplication and addition. Biases are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def conv_macs(weight_shape: Sequence[int], output_spatial: Sequence[int], groups: int = 1, *, batch: int = 1) -> int:
    """MACs of a Conv with weight ``[O, I / groups, k...]`` and output ``[batch, O, *output_spatial]``.

    Each output value takes ``I / groups * prod(k)``. Raises ``ValueError`` where the shapes do not fit.
    """
    _check_conv(weight_shape, output_spatial)
    if groups < 1 or weight_shape[0] % groups:
        raise ValueError(f"{weight_shape[0]} output channels do not split into {groups} groups")
    return batch * math.prod(weight_shape) * math.prod(output_spatial)


def conv_transpose_macs(
    weight_shape: Sequence[int], input_spatial: Sequence[int], groups: int = 1, *, batch: int = 1
) -> int:
    """MACs of a ConvTranspose with weight ``[I, O / groups, k...]`` and input ``[batch, I, *input_spatial]``.

    Each input value takes ``O / groups * prod(k)``; padding that crops the output is not taken off.
    Raises ``ValueError`` where the shapes do not fit.
    """
    _check_conv(weight_shape, input_spatial)
    if groups < 1 or weight_shape[0] % groups:
        raise ValueError(f"{weight_shape[0]} input channels do not split into {groups} groups")
    return batch * math.prod(weight_shape) * math.prod(input_spatial)


def matmul_macs(rows: int, k: int, n: int) -> int:
    """MACs of ``[rows, k] x [k, n]``, for MatMul and Gemm; ``rows`` is the product of all leading dimensions."""
    if min(rows, k, n) < 0:
        raise ValueError(f"a product [{rows}, {k}] x [{k}, {n}] has a negative dimension")
    return rows * k * n


def modelled_ratio(macs: Sequence[float], relative_cost: Sequence[float], other_share: float = 0.0) -> float:
    """Modelled latency relative to float32: the mean of ``relative_cost`` weighted by ``macs``.

    ``relative_cost`` is each layer's time relative to its float32 time; ``other_share``, in [0, 1], is the part of the
    float32 latency that no scheme changes. 1.0 where there is no arithmetic.
    Raises ``ValueError`` on unequal lengths or on negative or non-finite figures.
    """
    if len(macs) != len(relative_cost):
        raise ValueError(f"{len(macs)} layers have MACs and {len(relative_cost)} have a cost")
    if not 0 <= other_share <= 1:
        raise ValueError(f"other_share lies in [0, 1], not at {other_share}")
    if not all(math.isfinite(value) and value >= 0 for value in (*macs, *relative_cost)):
        raise ValueError("MACs and relative costs must be finite and not negative")
    total = math.fsum(macs)
    if total == 0:
        return 1.0
    layers = math.fsum(m * cost for m, cost in zip(macs, relative_cost, strict=True)) / total
    return other_share + (1 - other_share) * layers


def _check_conv(weight_shape: Sequence[int], spatial: Sequence[int]) -> None:
    if len(weight_shape) != len(spatial) + 2 or min(*weight_shape, *spatial) < 0:
        raise ValueError(f"a weight of shape {list(weight_shape)} does not fit spatial dimensions {list(spatial)}")
