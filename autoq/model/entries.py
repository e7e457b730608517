"""What the bank holds of a layer under a weight scheme, and the arrays that it is in a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.numerics.blocks import blocks_of
from autoq.numerics.product import CENTROIDS, ProductCodes, width
from autoq.numerics.weights import QuantizedWeight

Entry = QuantizedWeight | ProductCodes


def axis_of(layer: Layer, spec: WeightSpec) -> int | None:
    """The axis of the scales, or ``None`` where there is one for the tensor."""
    return None if spec.granularity == "tensor" else layer.channel_axis


def arrays_of(entry: Entry) -> dict[str, np.ndarray]:
    """The arrays that :func:`entry_of` makes the entry of again."""
    if isinstance(entry, ProductCodes):
        return {"codes": entry.codes, "centroids": entry.centroids, "scale": entry.scale}
    optional = {"zero_point": entry.zero_point, "codebook": entry.codebook}
    given = {name: values for name, values in optional.items() if values is not None}
    return {"values": entry.values, "scale": entry.scale, **given}


def entry_of(layer: Layer, spec: WeightSpec, arrays: Mapping[str, np.ndarray]) -> Entry | None:
    """The entry, or ``None`` where the arrays are not those of one; raises ``KeyError`` where one is missing."""
    if spec.rounding == "pq":
        return _product_codes(layer, spec, arrays)
    values, scale = arrays["values"], arrays["scale"]
    zeros = None if spec.symmetric else arrays["zero_point"]
    codebook = arrays["codebook"] if spec.rounding == "kmeans" else None
    axis = axis_of(layer, spec)
    expected: tuple[int, ...] = (layer.channels,) if axis is not None else (1,)
    if spec.block is not None:
        expected = (layer.channels, blocks_of(layer.parameters // layer.channels, spec.block))
    if values.shape != layer.weight_shape or values.dtype != np.int8 or scale.shape != expected:
        return None
    if scale.dtype != np.float32 or not (np.isfinite(scale).all() and scale.all()):
        return None
    if zeros is not None and (zeros.shape != expected or zeros.dtype != np.int8):
        return None
    if codebook is not None and not _is_codebook(codebook, spec.bits):
        return None
    return QuantizedWeight(
        values=values,
        scale=scale,
        axis=axis,
        bits=spec.bits,
        block=spec.block,
        zero_point=zeros,
        codebook=codebook,
    )


def _is_codebook(values: np.ndarray, bits: int) -> bool:
    return values.shape == (2**bits,) and values.dtype == np.int8 and bool((values[1:] >= values[:-1]).all())


def _product_codes(layer: Layer, spec: WeightSpec, arrays: Mapping[str, np.ndarray]) -> ProductCodes | None:
    codes, centroids, scale = arrays["codes"], arrays["centroids"], arrays["scale"]
    rows, columns = layer.weight_shape
    sub = width(spec.bits)
    parts = -(-columns // sub)
    if codes.dtype != np.uint8 or centroids.dtype != np.int8 or scale.dtype != np.float32:
        return None
    if codes.shape != (rows, parts) or scale.shape != (rows,) or centroids.ndim != 3:
        return None
    if centroids.shape[::2] != (parts, sub) or not 0 < centroids.shape[1] <= CENTROIDS:
        return None
    if not (np.isfinite(scale).all() and (scale >= 0).all()) or codes.max(initial=0) >= centroids.shape[1]:
        return None
    return ProductCodes(codes=codes, centroids=centroids, scale=scale, columns=columns)
