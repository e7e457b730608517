"""SmoothQuant's scales: the paper's formula, and what has no scale."""

from __future__ import annotations

import numpy as np
import pytest

from autoq.numerics.smoothing import LARGEST, smoothing_scales


def test_by_hand() -> None:
    """alpha = 0.5 makes both sides need the same range: sqrt(16 / 1) = 4 and sqrt(1 / 4) = 1/2, up to their mean."""
    found = smoothing_scales(np.array([16.0, 1.0]), np.array([1.0, 4.0]), 0.5)
    np.testing.assert_allclose(found, np.array([4.0, 0.5]) / np.sqrt(2.0), rtol=1e-6)
    np.testing.assert_allclose(np.array([16.0, 1.0]) / found, np.array([1.0, 4.0]) * found * 2, rtol=1e-6)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.8])
def test_the_papers_formula(strength: float) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.lognormal(0, 2, 30), rng.lognormal(0, 1, 30)
    expected = x**strength / w ** (1 - strength)
    found = smoothing_scales(x, w, strength)
    np.testing.assert_allclose(found / expected, found[0] / expected[0], rtol=1e-5)
    np.testing.assert_allclose(np.log(found).mean(), 0, atol=1e-6)


def test_channels_without_a_scale() -> None:
    """Always 0, or without weights; and one so large that it is held."""
    found = smoothing_scales(np.array([0.0, 2.0, 8.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0]), 0.5)
    assert found[0] == found[1] == 1
    np.testing.assert_allclose(found[2] / found[3], np.sqrt(8), rtol=1e-6)
    assert (smoothing_scales(np.zeros(3), np.ones(3), 0.5) == 1).all()
    held = smoothing_scales(np.array([1e-38, 1e38]), np.array([1e38, 1e-38]), 0.5)
    assert held.tolist() == [np.float32(1 / LARGEST), np.float32(LARGEST)]
