"""Noise, decibels and divergences against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import entropy

from autoq.numerics.distortion import changed_answers, decibels, kl_divergence, relative_noise

RNG = np.random.default_rng(0)


def test_noise_by_hand() -> None:
    assert relative_noise(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(1 / 25)
    assert relative_noise(np.zeros(2), np.array([0.0, 2.0])) == 2.0  # of nothing, the noise itself
    assert relative_noise(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
    assert not np.isfinite(relative_noise(np.ones(2), np.array([1.0, np.nan])))
    # float32's largest number squared is no float32.
    assert relative_noise(np.array([3e38], np.float32), np.array([3e38], np.float32)) == 0.0


def test_changed_answers_by_hand() -> None:
    before = np.array([[1.0, 2.0, 0.0], [3.0, 0.0, 1.0], [0.0, 0.0, 5.0], [2.0, 1.0, 0.0]])
    after = before + np.array([[0, 0, 9], [9, 0, 0], [0, 0, 0], [-3, 0, 0]])
    assert changed_answers(before, after) == 0.5
    assert changed_answers(before.T, after.T, axis=0) == 0.5
    assert changed_answers(before[:, :1], after[:, :1]) == changed_answers(before[:, 0], after[:, 0]) == 0.0
    assert changed_answers(before[:0], after[:0]) == 0.0
    with pytest.raises(ValueError, match="cannot be compared"):
        changed_answers(before, after[:2])


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(1.0) == 0
    assert decibels(0.0) == math.inf


@pytest.mark.parametrize("axis", [1, -1])
def test_logits_as_scipy_has_them(axis: int) -> None:
    shape = (6, 5, 4)
    p, q = RNG.standard_normal(shape) * 4, RNG.standard_normal(shape) * 4
    expected = entropy(softmax(p, axis=axis), softmax(q, axis=axis), axis=axis).mean()
    assert kl_divergence(p, q, axis) == pytest.approx(expected)
    assert kl_divergence(p.astype(np.float32) + 100, q.astype(np.float32) - 50, axis) == pytest.approx(
        expected, rel=1e-4
    )


def test_probabilities_are_taken_as_such() -> None:
    p, q = (softmax(RNG.standard_normal((6, 5)), axis=1) for _ in range(2))
    assert kl_divergence(p, q) == pytest.approx(entropy(p, q, axis=1).mean())
    # A quantized softmax: sums are not quite 1, and some classes have nothing left.
    rough = np.round(q * 64) / 64
    rough[0, 0] = 0
    assert np.isfinite(kl_divergence(p, rough))


def test_one_column_is_the_second_of_two_classes() -> None:
    p, q = RNG.standard_normal((2, 7)) * 3
    pairs = [np.stack([1 - expit(x), expit(x)], axis=1) for x in (p, q)]
    expected = entropy(*pairs, axis=1).mean()
    assert kl_divergence(p, q) == pytest.approx(expected)
    assert kl_divergence(p[:, None], q[:, None]) == pytest.approx(expected)
    assert kl_divergence(expit(p), expit(q)) == pytest.approx(expected)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 4)))


@given(st.integers(0, 2**32 - 1), st.floats(0, 100))
def test_never_negative_and_zero_for_the_same(seed: int, scale: float) -> None:
    p, q = np.random.default_rng(seed).standard_normal((2, 3, 4)) * scale
    assert kl_divergence(p, q) >= 0
    assert kl_divergence(p, p) == 0
