"""How far a quantized model's outputs are from the float model's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SMALLEST = 1e-12  # a probability below this counts as this much: a quantized softmax may give exactly 0


def relative_noise(reference: Array, found: Array) -> float:
    """``E|found - reference|^2 / E|reference|^2``, arrays of one shape; of a reference of zeros, the noise itself.

    Not finite where ``found`` is not. 0 where both are empty.
    """
    exact = np.asarray(reference, np.float64)
    if not exact.size:
        return 0.0
    power = float(np.square(exact).mean())
    return float(np.square(np.asarray(found, np.float64) - exact).mean()) / (power if power > 0 else 1.0)


def changed_answers(reference: Array, found: Array, axis: int = -1) -> float:
    """The share of rows in which another class, along ``axis``, has the largest value; further axes count as rows.

    0 where there is one class (also one value a row) or no row. Raises ``ValueError`` on arrays of different shapes.
    """
    if reference.shape != found.shape:
        raise ValueError(f"outputs of shapes {reference.shape} and {found.shape} cannot be compared")
    if not reference.size or reference.ndim < 2:
        return 0.0
    return float((reference.argmax(axis) != found.argmax(axis)).mean())


def decibels(noise: float) -> float:
    """The signal-to-quantization-noise ratio, in dB, of a relative noise power: ``inf`` where there is no noise."""
    return math.inf if noise == 0 else -10.0 * math.log10(noise)


def kl_divergence(reference: Array, found: Array, axis: int = -1) -> float:
    """The Kullback-Leibler divergence ``sum p ln(p / q)`` of class probabilities, in nats, the mean over rows.

    ``reference`` gives p and ``found`` q, of one shape, with the classes along ``axis``; further axes count as rows.
    Values whose sums over the classes are 1 are taken as probabilities, others as logits, as the reference has them. A
    single column is the second of two classes: its probability where all values lie in [0, 1], else its logit.
    Kullback and Leibler 1951, "On Information and Sufficiency", equation 2.4. Raises ``ValueError`` on other shapes.
    """
    p, q = (np.asarray(values, np.float64) for values in (reference, found))
    if p.shape != q.shape or not p.ndim:
        raise ValueError(f"outputs of shapes {p.shape} and {q.shape} cannot be compared")
    if p.ndim == 1 or p.shape[axis] == 1:
        p, q = p.reshape(-1, 1), q.reshape(-1, 1)
        if p.min(initial=0) >= 0 and p.max(initial=0) <= 1:
            p, q = (np.concatenate([1 - values, values], axis=1) for values in (p, q))
        else:
            p, q = (np.concatenate([np.zeros_like(values), values], axis=1) for values in (p, q))
        axis = 1
    # Tolerant, since the softmax of a float32 or a quantized model is not exact.
    sums_to_one = p.min(initial=0) >= -1e-3 and bool(np.all(np.abs(p.sum(axis=axis) - 1) < 1e-2))
    log = _log_of if sums_to_one else _log_softmax
    log_p, log_q = log(p, axis), log(q, axis)
    # Never below 0 but for rounding (Gibbs' inequality).
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=axis).mean()))


def _log_softmax(values: Array, axis: int) -> Array:
    shifted = values - values.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _log_of(probabilities: Array, axis: int) -> Array:
    positive = np.maximum(probabilities, _SMALLEST)
    return np.asarray(np.log(positive / positive.sum(axis=axis, keepdims=True)))
