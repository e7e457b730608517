"""Cross-layer equalization: channels rescaled between layers so that all weights of a tensor need the same range.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1. Where layers
read what others wrote through operators with f(s x) = s f(x), s > 0, dividing output channel i of the first by s_i and
multiplying input channel i of the second by it changes nothing. The paper's equation 11, s_i = sqrt(r1_i r2_i) / r2_i,
makes the ranges r1_i and r2_i of the channel's weights on both sides equal; for a chain of layers it is repeated until
nothing moves. Where several layers write a tensor (a residual sum) or read it, r is the geometric mean of theirs,
which for one on each side is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SWEEPS = 200
_STILL = 1e-4  # largest change of a logarithm that counts as none
LARGEST = 2.0**8
"""Scales stay between this and its reciprocal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knot:
    """Tensors whose channels must be scaled alike; ``writers`` and ``readers`` name the layers on both sides.

    No scale falls below ``least``, float64 ``[channels]``: what is written is divided by it, biases too, and a channel
    with next to no weights but a bias would take the range of the whole tensor.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    least: Array | float = 0.0


def equalizing_scales(magnitudes: Mapping[str, Array], knots: Sequence[Knot]) -> list[Array]:
    """The scale s of each channel of each knot, float64 ``[channels]``: writers are divided by it, readers multiplied.

    ``magnitudes`` holds, for each layer, the largest magnitude of its weights between one output and one input channel,
    ``[groups, outputs / groups, inputs / groups]``; the channels of a knot are the outputs of its writers and the
    inputs of its readers, in that order over groups. A channel that has only zeros in a layer keeps 1. The scales that
    no limit holds have a geometric mean of 1: a common factor would change no rounding.
    """
    written = {name: index for index, knot in enumerate(knots) for name in knot.writers}
    read = {name: index for index, knot in enumerate(knots) for name in knot.readers}
    scales = [np.ones(_channels(magnitudes, knot)) for knot in knots]

    def scaled(name: str) -> Array:
        values = magnitudes[name]
        groups, outputs, inputs = values.shape
        if name in read:
            values = values * scales[read[name]].reshape(groups, 1, inputs)
        if name in written:
            values = values / scales[written[name]].reshape(groups, outputs, 1)
        return values

    def logarithms(ranges: list[Array]) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(ranges).mean(axis=0))

    for _ in range(SWEEPS):
        change = 0.0
        for index, knot in enumerate(knots):
            wrote = logarithms([scaled(name).max(axis=2).reshape(-1) for name in knot.writers])
            reads = logarithms([scaled(name).max(axis=1).reshape(-1) for name in knot.readers])
            usable = np.isfinite(wrote) & np.isfinite(reads)
            step = (np.where(usable, wrote, 0.0) - np.where(usable, reads, 0.0)) / 2
            following = _stepped(scales[index], step, usable, np.maximum(knot.least, 1 / LARGEST))
            change = max(change, float(np.abs(np.log(following / scales[index])).max()))
            scales[index] = following
        if change < _STILL:
            break
    return scales


def _stepped(scale: Array, step: Array, usable: npt.NDArray[np.bool_], least: Array) -> Array:
    """``scale`` moved by the logarithms ``step``, less their mean over the channels that no limit holds."""
    free = usable
    while free.any():
        wanted = np.where(usable, scale * np.exp(step - step[free].mean()), scale)
        limited = np.clip(wanted, least, LARGEST)
        still_free = free & (limited == wanted)
        if (still_free == free).all():
            return limited
        free = still_free
    return scale


def _channels(magnitudes: Mapping[str, Array], knot: Knot) -> int:
    groups, outputs, _ = magnitudes[knot.writers[0]].shape
    return groups * outputs
