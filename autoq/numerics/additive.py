"""Latencies that add: what each part of a candidate takes, from measurements of whole candidates.

A ratio to float32 is modelled as ``base + sum of the coefficients of the parts present``. Beforehand a coefficient is
Gaussian around a guess: what parts of its group have in common, and what it has of its own, each with a spread in
proportion to the part's ``scale``. Given measurements that is a linear regression in closed form (Rasmussen and
Williams, "Gaussian Processes for Machine Learning", 2006, section 2.1). How wide the spreads are is what makes the
measurements likeliest (equation 5.8) over a fixed grid. A busy machine makes single measurements far too slow: each is
weighed as under a Student-t distribution (Lange, Little and Taylor 1989, "Robust statistical modeling using the t
distribution", section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.float64]

_BASE = 1.0  # prior spread of the base, in ratios: vague
_SHARED = (0.0, 0.3, 1.0, 3.0)
_OWN = (0.03, 0.1, 0.3, 1.0)
_NOISE = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1)
_FREEDOM = 4.0  # of the t distribution
_ROUNDS = 4


class Spreads(NamedTuple):
    """Prior spreads: of what a group shares, of a part's own, in scales; and of noise, as a share of the ratio."""

    shared: float
    own: float
    noise: float


_STIFF = Spreads(1.0, 0.03, 0.025)

GRID = tuple(Spreads(*each) for each in product(_SHARED, _OWN, _NOISE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """``base`` and ``coefficients`` [P], float64 ratios; ``weights`` [n], below 1 for rows that stood out."""

    base: float
    coefficients: Array
    spreads: Spreads
    weights: Array

    def predict(self, present: npt.ArrayLike) -> Array:
        """Ratios [m] of candidates with the parts ``present`` [m, P]."""
        return np.asarray(self.base + np.asarray(present, np.float64) @ self.coefficients)


def fit_additive(
    present: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    groups: npt.ArrayLike,
    scale: npt.ArrayLike,
    guess: npt.ArrayLike,
    spreads: Spreads | None = None,
) -> Fit:
    """The fit to ``values`` [n], ratios above 0, of candidates with the parts ``present`` [n, P], counts.

    ``groups`` [P] numbers what parts have in common; ``scale`` [P] is how large a coefficient may be, in ratios, and
    ``guess`` [P] what it is believed to be. ``spreads`` are found where they are not given.
    Raises ``ValueError`` where shapes do not fit or a number is not finite or out of range.
    """
    x, y = np.asarray(present, np.float64), np.asarray(values, np.float64)
    group, s, mu = np.asarray(groups, np.intp), np.asarray(scale, np.float64), np.asarray(guess, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y) or {group.shape, s.shape, mu.shape} != {x.shape[1:]}:
        raise ValueError(f"parts {x.shape}, values {y.shape}, groups {group.shape}, scale {s.shape}, guess {mu.shape}")
    if not all(np.isfinite(each).all() for each in (x, y, s, mu)) or (y <= 0).any() or (s < 0).any():
        raise ValueError("ratios must be above 0, scales not below 0, and all finite")
    own = x * s
    # Parts of one group share a coefficient in units of their scale.
    shared = np.zeros((len(y), int(group.max(initial=-1)) + 1))
    np.add.at(shared.T, group, own.T)
    kernels = shared @ shared.T, own @ own.T
    rest = y - 1.0 - x @ mu  # float32 itself has ratio 1
    weights = np.ones(len(y))
    # At first what stands out must not be taken for a part's own time.
    best = spreads or _STIFF
    alpha = np.zeros(len(y))
    for number in range(_ROUNDS):
        noise = y**2 / weights
        if spreads is None and number:
            best = max(GRID, key=lambda each: _evidence(_covariance(kernels, noise, each), rest))
        covariance = _covariance(kernels, noise, best)
        alpha = cho_solve(cho_factor(covariance, lower=True), rest)
        # What the fit leaves of a row is its noise's share of the covariance.
        residual = best.noise**2 * noise * alpha
        weights = (_FREEDOM + 1) / (_FREEDOM + (residual / (best.noise * y)) ** 2)
        weights = np.minimum(weights, 1.0)
    coefficients = mu + best.own**2 * s * (own.T @ alpha) + best.shared**2 * s * (shared.T @ alpha)[group]
    base = 1.0 + _BASE**2 * float(alpha.sum())
    return Fit(base=base, coefficients=coefficients, spreads=best, weights=weights)


def _covariance(kernels: tuple[Array, Array], noise: Array, spreads: Spreads) -> Array:
    shared, own = kernels
    covariance = _BASE**2 + spreads.shared**2 * shared + spreads.own**2 * own
    covariance[np.diag_indices_from(covariance)] += spreads.noise**2 * noise
    return np.asarray(covariance)


def _evidence(covariance: Array, rest: Array) -> float:
    """The logarithm of the marginal likelihood, less a constant."""
    factor = cho_factor(covariance, lower=True)
    return float(-0.5 * rest @ cho_solve(factor, rest) - np.log(np.diag(factor[0])).sum())
