"""Weights that make up for changed inputs.

A layer of weights W should give ``z`` but reads ``x``; the weights of least error with a ridge towards W are
``W + E[d x^T] (E[x x^T] + r)^-1`` where ``d = z - W x`` is what W misses (normal equations; Li et al., "GPTAQ:
Efficient Finetuning-Free Quantization for Asymmetric Calibration", 2025, round for the same error).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

_RIDGE = 0.01  # of the mean of diag(E[x x^T]), as GPTQ damps; more with fewer samples than inputs


def retargeted(
    rows: npt.NDArray[np.floating[Any]],
    hessian: npt.NDArray[np.float64],
    cross: npt.NDArray[np.float64],
    samples: int,
) -> npt.NDArray[np.float64]:
    """The weights ``[channels, K]`` fitted, float64.

    ``hessian`` ``[groups, K, K]`` is E[x x^T], ``cross`` ``[groups, K, channels of a group]`` E[x d^T], both over
    ``samples`` positions. A group whose inputs never fired keeps its weights.
    """
    groups, inputs, _ = hessian.shape
    fitted = rows.astype(np.float64).reshape(groups, -1, inputs)
    for group, own in enumerate(hessian):
        mean = float(np.diagonal(own).mean())
        if mean > 0:
            ridge = (_RIDGE + inputs / max(samples, 1)) * mean
            fitted[group] += cho_solve(cho_factor(own + ridge * np.eye(inputs), lower=True), cross[group]).T
    return fitted.reshape(rows.shape)
