"""Moments behind activations against the closed forms of the clipped normal, and against samples."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from autoq.numerics.normal import moments_of

MEAN, VARIANCE = np.array([-2.0, -0.3, 0.0, 0.7, 5.0, 1.0]), np.array([1.0, 0.25, 4.0, 1.0, 0.01, 0.0])


def test_the_clipped_normal_of_the_paper() -> None:
    """E[Relu(x)] = sd N(-m/sd) + m (1 - Phi(-m/sd)); Nagel et al. 2019, equation 31 with an infinite upper bound."""
    mean, _ = moments_of(lambda x: np.maximum(x, 0), MEAN, VARIANCE)
    deviation = np.sqrt(np.maximum(VARIANCE, 1e-30))
    ratio = -MEAN / deviation
    expected = deviation * norm.pdf(ratio) + MEAN * (1 - norm.cdf(ratio))
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_between_two_bounds_and_curves() -> None:
    rng = np.random.default_rng(0)
    x = MEAN + np.sqrt(VARIANCE) * rng.standard_normal((400_000, len(MEAN)))
    for function in (lambda x: np.clip(x, 0, 1.5), np.tanh, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)):
        mean, variance = moments_of(function, MEAN, VARIANCE)
        np.testing.assert_allclose(mean, function(x).mean(axis=0), atol=0.02)
        np.testing.assert_allclose(variance, function(x).var(axis=0), atol=0.04)


def test_the_identity_changes_nothing() -> None:
    mean, variance = moments_of(lambda x: x, MEAN, VARIANCE)
    np.testing.assert_allclose(mean, MEAN, atol=1e-9)
    np.testing.assert_allclose(variance, VARIANCE, rtol=1e-6, atol=1e-12)
