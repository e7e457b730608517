"""SmoothQuant: outliers of activations move, channel by channel, into weights that have room for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 2.0**16
"""Scales stay between this and its reciprocal, so that a channel with next to no weights overflows nothing."""


def smoothing_scales(
    inputs: npt.NDArray[np.floating[Any]], weights: npt.NDArray[np.floating[Any]], strength: float
) -> npt.NDArray[np.float32]:
    """``s_j = max|x_j|**strength / max|W_j|**(1 - strength)``: inputs are divided by it, weights multiplied; ``[K]``.

    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022),
    equation 4. ``inputs`` and ``weights`` are the largest magnitudes of each input channel and of the weights that it
    meets, ``[K]``. The scales have a geometric mean of 1, as far as limits allow: a common factor would change no
    rounding. A channel that is always 0, or meets no weight, keeps 1. ``strength`` lies between 0 and 1.
    """
    x, w = np.asarray(inputs, np.float64), np.asarray(weights, np.float64)
    live = (x > 0) & (w > 0)
    logs = strength * np.log(x, where=live, out=np.zeros_like(x))
    logs -= (1 - strength) * np.log(w, where=live, out=np.zeros_like(w))
    if live.any():
        logs[live] -= logs[live].mean()
    limit = float(np.log(LARGEST))
    return np.exp(np.clip(logs, -limit, limit)).astype(np.float32)
