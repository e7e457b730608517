"""Bias correction, by hand and by averaging over inputs one at a time."""

from __future__ import annotations

import numpy as np

from autoq.numerics.correction import centered, mean_shift


def test_by_hand() -> None:
    """y = 1.4 a - 0.6 b, rounded to 1 a - 1 b, with a = 2 and b = 5 on average: 0.8 + 2 is missing."""
    shift = mean_shift(np.array([[1.4, -0.6]]), np.array([[1.0, -1.0]]), np.array([[2.0, 5.0]]), axis=0)
    np.testing.assert_allclose(shift, [0.8 + 2.0], rtol=1e-6)
    assert shift.dtype == np.float32


def test_channels_along_either_axis() -> None:
    rng = np.random.default_rng(0)
    weight, rounded, mean = rng.standard_normal((5, 3)), rng.standard_normal((5, 3)), rng.standard_normal((1, 5))
    expected = [sum((weight[k, c] - rounded[k, c]) * mean[0, k] for k in range(5)) for c in range(3)]
    np.testing.assert_allclose(mean_shift(weight, rounded, mean, axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(mean_shift(weight.T, rounded.T, mean, axis=0), expected, rtol=1e-5)


def test_groups_have_inputs_of_their_own() -> None:
    """Four channels of a convolution in two groups: the first two read the first group's patch."""
    rng = np.random.default_rng(1)
    weight, rounded = rng.standard_normal((4, 2, 3)), rng.standard_normal((4, 2, 3))
    mean = rng.standard_normal((2, 6))
    expected = [((weight[c] - rounded[c]).reshape(-1) * mean[c // 2]).sum() for c in range(4)]
    np.testing.assert_allclose(mean_shift(weight, rounded, mean, axis=0), expected, rtol=1e-5)


def test_no_correction_overflows() -> None:
    huge = np.array([[3e38, 3e38]], np.float32)
    assert np.isfinite(mean_shift(huge, -huge, np.array([[1.0, 1.0]]), axis=0)).all()


def test_centered_moments_are_the_covariance() -> None:
    x = np.random.default_rng(2).standard_normal((2, 50, 4)) + 3
    moments = x.transpose(0, 2, 1) @ x / 50
    expected = [np.cov(group.T, bias=True) for group in x]
    np.testing.assert_allclose(centered(moments, x.mean(axis=1)), expected, rtol=1e-9, atol=1e-12)


def test_the_corrected_error_is_what_the_covariance_says() -> None:
    """E[((W - Wq) x - b)^2], averaged over the inputs, with b the correction."""
    rng = np.random.default_rng(3)
    x, weight, rounded = rng.standard_normal((200, 6)) + 1, rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
    shift = mean_shift(weight, rounded, x.mean(axis=0, keepdims=True), axis=0)
    errors = x @ (weight - rounded).T - shift
    covariance = centered((x.T @ x / 200)[None], x.mean(axis=0, keepdims=True))[0]
    error = weight - rounded
    np.testing.assert_allclose(np.square(errors).mean(axis=0), np.diag(error @ covariance @ error.T), rtol=1e-5)


def test_a_constant_input_has_no_variance_left() -> None:
    """Not even a negative one, of rounding."""
    mean = np.full((1, 3), 0.1)
    assert (np.diagonal(centered(mean[:, :, None] * mean[:, None, :] * (1 - 1e-15), mean)[0]) >= 0).all()
