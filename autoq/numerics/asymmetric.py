"""Weights for the inputs that a layer really gets.

A layer of a quantized model reads x^ where the float model's reads x, and should still give ``y = W x + b``. The least
squares correction (Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration", 2025; the
bias is that of Nagel et al., "Data-Free Quantization", 2019, section 4.2) minimises ``E|y - V x^ - c|^2 + d|V - W|^2``:

    V = W + (cov(y, x^) - W cov(x^, x^)) (cov(x^, x^) + d)^-1,   c = E[y] - V E[x^]

With little data d keeps V near W. The error of a Q is ``(V - Q) H (V - Q)^T`` with ``H = cov(x^, x^) + d``, and a
constant: rounding V under H is rounding W for what it should give.

Arrays are ``[groups, rows, K]`` for weights: ``rows`` output channels of each group, which share their K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.float64]

DAMPINGS = (0.03, 0.5)
"""``d`` as a share of the mean variance of x^: what serves with many positions, and what to try with few."""


@dataclass(slots=True, kw_only=True)
class JointMoments:
    """Sums over positions of ``x^`` ``[groups, K]`` and ``y`` ``[groups, rows]``, and of their products.

    Without ``centred`` there is no bias to take up means: the covariances are second moments, and means are 0. With it
    sums are of differences from the first position, ``x0`` and ``y0``, or large means would drown small variances.
    """

    count: int
    x0: Array
    y0: Array
    x: Array
    y: Array
    xx: Array
    yx: Array
    yy: Array
    centred: bool

    @classmethod
    def empty(cls, groups: int, inputs: int, rows: int, *, centred: bool) -> JointMoments:
        """Sums over nothing."""
        zeros = np.zeros
        return cls(
            count=0,
            x0=zeros((groups, inputs)),
            y0=zeros((groups, rows)),
            x=zeros((groups, inputs)),
            y=zeros((groups, rows)),
            xx=zeros((groups, inputs, inputs)),
            yx=zeros((groups, rows, inputs)),
            yy=zeros((groups, rows)),
            centred=centred,
        )

    def update(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> None:
        """Adds ``x`` ``[groups, positions, K]`` and ``y`` ``[groups, positions, rows]`` of the same positions."""
        if self.centred:
            if not self.count:
                self.x0, self.y0 = x[:, 0].astype(np.float64), y[:, 0].astype(np.float64)
            x, y = x - self.x0[:, None].astype(np.float32), y - self.y0[:, None].astype(np.float32)
        self.count += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.xx += np.matmul(x.transpose(0, 2, 1), x)
        self.yx += np.matmul(y.transpose(0, 2, 1), x)
        self.yy += np.einsum("gpr,gpr->gr", y, y, dtype=np.float64)

    def means(self) -> tuple[Array, Array]:
        """``E[x^]`` ``[groups, K]`` and ``E[y]`` ``[groups, rows]``, or zeros."""
        if not self.centred:
            return np.zeros_like(self.x), np.zeros_like(self.y)
        return self.x0 + self.x / max(self.count, 1), self.y0 + self.y / max(self.count, 1)

    def covariances(self) -> tuple[Array, Array]:
        """``cov(x^, x^)`` ``[groups, K, K]`` and ``cov(y, x^)`` ``[groups, rows, K]``."""
        count = max(self.count, 1)
        xx, yx = self.xx / count, self.yx / count
        if self.centred:
            x, y = self.x / count, self.y / count
            xx, yx = xx - x[:, :, None] * x[:, None], yx - y[:, :, None] * x[:, None]
        index = np.arange(xx.shape[1])
        xx[:, index, index] = np.maximum(xx[:, index, index], 0.0)
        return xx, yx

    def power(self) -> float:
        """Mean of ``y^2``, summed over rows."""
        count = max(self.count, 1)
        return float((self.yy + 2 * self.y0 * self.y).sum() / count + np.square(self.y0).sum())

    def error(self, weight: Array, bias: Array) -> Array:
        """Mean of ``(y - weight x^ - bias)^2`` of each row, ``[groups, rows]``; ``bias`` is ``[groups, rows]``."""
        x, y = self.x / max(self.count, 1), self.y / max(self.count, 1)
        xx, yx, yy = (total / max(self.count, 1) for total in (self.xx, self.yx, self.yy))
        bias = bias + np.einsum("grk,gk->gr", weight, self.x0) - self.y0
        outputs = np.einsum("grk,gk->gr", weight, x)
        squares = np.einsum("grk,grk->gr", weight @ xx, weight) + 2 * bias * outputs + bias**2
        products = np.einsum("grk,grk->gr", weight, yx) + bias * y
        return np.asarray(np.maximum(yy - 2 * products + squares, 0.0))


def corrected(weight: Array, moments: JointMoments, damping: float) -> tuple[Array, Array]:
    """V and H of the module's equations for W = ``weight`` ``[groups, rows, K]``; H is ``[groups, K, K]``.

    Directions in which x^ never varies keep what W has there.
    """
    hessian, cross = moments.covariances()
    residual = cross - weight @ hessian
    found = weight.copy()
    for group, own in enumerate(hessian):
        mean = float(np.diagonal(own).mean())
        if mean > 0:
            own[np.diag_indices_from(own)] += damping * mean
            found[group] += cho_solve(cho_factor(own, lower=True), residual[group].T).T
    return found, hessian


def best_bias(weight: Array, moments: JointMoments) -> Array:
    """The bias ``[groups, rows]`` of least error beside ``weight``: E[y] - weight E[x^]."""
    mean_x, mean_y = moments.means()
    return np.asarray(mean_y - np.einsum("grk,gk->gr", weight, mean_x))
