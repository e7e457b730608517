"""What rounding its weights shifts a layer's mean output by, and the second moments that matter once that is undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mean_shift(
    weight: npt.NDArray[np.floating[Any]],
    rounded: npt.NDArray[np.floating[Any]],
    mean: npt.NDArray[np.floating[Any]],
    *,
    axis: int,
) -> npt.NDArray[np.float32]:
    """``(W - Wq) E[x]``: what to add to each output channel so that its mean is what it was, float32 ``[channels]``.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), equation 16.
    ``weight`` and ``rounded`` have the layer's shape with the output channels along ``axis``; ``mean`` is
    ``[groups, K]``, the mean input of a channel of each group, in the order of the weight's other axes.
    """
    error = np.moveaxis(np.asarray(weight, np.float64) - rounded, axis, 0).reshape(weight.shape[axis], -1)
    groups, inputs = mean.shape
    shift = np.einsum("gok,gk->go", error.reshape(groups, -1, inputs), mean.astype(np.float64)).reshape(-1)
    limit = float(np.finfo(np.float32).max)
    return np.clip(shift, -limit, limit).astype(np.float32)


def centered(moments: npt.NDArray[np.float64], mean: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The covariance ``E[x x^T] - E[x] E[x]^T`` of ``moments`` ``[groups, K, K]`` and ``mean`` ``[groups, K]``.

    With the bias free, the least error ``E[((W - Wq) x - b)^2]`` over b is ``(W - Wq) Cov (W - Wq)^T``, at the b of
    :func:`mean_shift`: what rounding should minimise where the bias is corrected afterwards.
    """
    mean = np.asarray(mean, np.float64)
    covariance = moments - mean[:, :, None] * mean[:, None, :]
    diagonal = np.arange(covariance.shape[1])
    covariance[:, diagonal, diagonal] = np.maximum(covariance[:, diagonal, diagonal], 0.0)
    return covariance
