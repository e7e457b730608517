"""The least-squares correction: by hand, against NumPy's least squares, and the errors it claims by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from autoq.numerics.asymmetric import JointMoments, best_bias, corrected


def moments(x: np.ndarray, y: np.ndarray, *, centred: bool, parts: int = 1) -> JointMoments:
    """Of ``x`` [groups, positions, K] and ``y`` [groups, positions, rows], in ``parts``."""
    found = JointMoments.empty(len(x), x.shape[2], y.shape[2], centred=centred)
    for own, wanted in zip(np.array_split(x, parts, axis=1), np.array_split(y, parts, axis=1), strict=True):
        found.update(own.astype(np.float32), wanted.astype(np.float32))
    return found


def test_one_weight_by_hand() -> None:
    """x^ is 1 and 2 where x is 2 and 4; w = 3. Covariances: cov(y, x^) = 1.5, var(x^) = 0.25, so that
    V = 3 + (1.5 - 3 * 0.25) / (0.25 + d * 0.25) = 3 + 3 / (1 + d)."""
    found = moments(np.array([[[1.0], [2.0]]]), np.array([[[6.0], [12.0]]]), centred=True)
    for damping in (0.0, 0.5):
        weight, hessian = corrected(np.array([[[3.0]]]), found, damping)
        assert weight[0, 0, 0] == pytest.approx(3 + 3 / (1 + damping))
        assert hessian[0, 0, 0] == pytest.approx(0.25 * (1 + damping))
    # V = 6 explains y whole, and leaves nothing to the bias: E[y] - 6 E[x^] = 9 - 9.
    assert best_bias(np.array([[[6.0]]]), found)[0, 0] == pytest.approx(0.0)
    assert best_bias(np.array([[[5.0]]]), found)[0, 0] == pytest.approx(1.5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_without_damping_it_is_least_squares(groups: int, centred: bool) -> None:
    rng = np.random.default_rng(groups)
    x = rng.normal(0.5, 1, (groups, 400, 5))
    y = x @ rng.normal(size=(groups, 5, 2)) + rng.normal(0.3, 0.2, (groups, 400, 2))
    found = moments(x, y, centred=centred, parts=3)
    weight, _ = corrected(rng.normal(size=(groups, 2, 5)), found, 0.0)
    for group in range(groups):
        inputs = np.column_stack([x[group], np.ones(400)]) if centred else x[group]
        exact = np.linalg.lstsq(inputs, y[group], rcond=None)[0]
        np.testing.assert_allclose(weight[group], exact[:5].T, atol=1e-5)
        if centred:
            np.testing.assert_allclose(best_bias(weight, found)[group], exact[5], atol=1e-5)


def test_the_error_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (2, 50, 4)), rng.normal(-1, 2, (2, 50, 3))
    weight, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3))
    exact = ((y - x @ weight.transpose(0, 2, 1) - bias[:, None]) ** 2).mean(axis=1)
    for centred in (False, True):
        np.testing.assert_allclose(moments(x, y, centred=centred).error(weight, bias), exact, rtol=1e-5)


def test_rounding_the_target_is_rounding_for_the_outputs() -> None:
    """The errors of any two Q differ by what ``(V - Q) H (V - Q)^T`` says, with the bias that is best for each."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(0.2, 1, (1, 300, 6)), rng.normal(size=(1, 4, 6))
    got = x + rng.normal(0, 0.3, x.shape)
    found = moments(got, x @ weight.transpose(0, 2, 1), centred=True)
    target, hessian = corrected(weight, found, 0.0)
    one, other = (target + rng.normal(0, 0.1, weight.shape) for _ in range(2))
    errors = [found.error(each, best_bias(each, found)) for each in (one, other)]
    losses = [np.einsum("grk,gkl,grl->gr", target - each, hessian, target - each) for each in (one, other)]
    np.testing.assert_allclose(errors[0] - errors[1], losses[0] - losses[1], rtol=1e-4)


def test_inputs_that_never_vary_keep_their_weights() -> None:
    x = np.zeros((1, 20, 3))
    x[:, :, 0] = np.linspace(-1, 1, 20)
    weight = np.array([[[1.0, 2.0, 3.0]]])
    found, hessian = corrected(weight, moments(x, 2 * x[:, :, :1], centred=True), 0.01)
    np.testing.assert_allclose(found[0, 0, 1:], [2, 3])
    assert found[0, 0, 0] == pytest.approx(2, abs=0.05)
    assert np.isfinite(np.linalg.inv(hessian)).all()
    dead, _ = corrected(weight, moments(0 * x, np.ones((1, 20, 1)), centred=True), 0.01)
    np.testing.assert_array_equal(dead, weight)


def test_large_means_do_not_drown_small_variances() -> None:
    rng = np.random.default_rng(2)
    small = rng.normal(0, 0.01, (1, 500, 3))
    small[..., 2] = 0
    found = moments(small + 50, small[..., :1] - 30, centred=True, parts=4)
    hessian, cross = found.covariances()
    np.testing.assert_allclose(hessian[0], np.cov(small[0].T, bias=True), atol=2e-7)
    assert hessian[0, 2, 2] == 0
    np.testing.assert_allclose(cross[0, 0, 0], small[0, :, 0].var(), rtol=1e-2)
    assert found.power() == pytest.approx(np.square(small[..., 0] - 30).mean(), rel=1e-5)
