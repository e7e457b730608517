from __future__ import annotations

import numpy as np
import pytest

from autoq.numerics.surrogate import Agreement, Scales, Surrogate, indicators

SCALES = Scales(additive=1.0, boundary=0.5, smooth=0.3, noise=0.1)


def points(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (count, 5)).astype(np.int16)
    return codes, rng.normal(size=(count, 2)), rng.normal(size=count)


def covariance(a: np.ndarray, fa: np.ndarray, b: np.ndarray, fb: np.ndarray) -> np.ndarray:
    """The formula of the module's docstring, one pair of points at a time."""
    out = np.zeros((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            same = x == y
            out[i, j] = 10 * (1 + fa[i] @ fb[j])
            out[i, j] += 1.0 * same.mean() + 0.25 * (same[1:] & same[:-1]).mean() + 0.09 * np.exp(4 * (same.mean() - 1))
    return out


def test_predictions_are_those_of_the_process() -> None:
    codes, features, values = points(12)
    new, new_features, _ = points(6, seed=1)
    model = Surrogate(codes, features, values, scales=SCALES)
    mean, spread = model.predict(new, new_features)

    centre, unit = features.mean(axis=0), features.std(axis=0)
    fa, fb = (new_features - centre) / unit, (features - centre) / unit
    inverse = np.linalg.inv(covariance(codes, fb, codes, fb) + (0.01 + 1e-9) * np.eye(12))
    cross = covariance(new, fa, codes, fb)
    expected = values.mean() + values.std() * cross @ inverse @ ((values - values.mean()) / values.std())
    variance = np.diagonal(covariance(new, fa, new, fa) - cross @ inverse @ cross.T)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(spread, values.std() * np.sqrt(variance), rtol=1e-5)


def test_draws_have_the_mean_and_the_spread_of_the_posterior() -> None:
    codes, features, values = points(20)
    model = Surrogate(codes, features, values, scales=SCALES)
    draws = model.draw_additive(indicators(codes, np.array([3] * 5)), 20_000, np.random.default_rng(0))
    centre, unit = features.mean(axis=0), features.std(axis=0)
    standard = (features - centre) / unit
    inverse = np.linalg.inv(covariance(codes, standard, codes, standard) + (0.01 + 1e-9) * np.eye(20))
    targets = (values - values.mean()) / values.std()
    for layer in range(5):
        for choice in range(3):
            has = 0.2 * (codes[:, layer] == choice)  # covariance of this weight with each measured value
            assert draws[:, layer, choice].mean() == pytest.approx(values.std() * has @ inverse @ targets, abs=0.02)
            variance = 0.2 - has @ inverse @ has
            assert draws[:, layer, choice].std() == pytest.approx(values.std() * np.sqrt(variance), rel=0.03)


def test_scales_are_found_that_suit_the_values() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, (80, 6)).astype(np.int16)
    nothing = np.zeros((80, 1))
    additive = rng.normal(size=(6, 3))[np.arange(6), codes].sum(axis=1)
    assert Surrogate(codes, nothing, additive).scales.noise == 1e-3
    assert Surrogate(codes, nothing, rng.normal(size=80)).scales.noise >= 0.5
    held_out = rng.integers(0, 3, (50, 6)).astype(np.int16)
    weights = rng.normal(size=(6, 3))
    model = Surrogate(codes, nothing, weights[np.arange(6), codes].sum(axis=1))
    truth = weights[np.arange(6), held_out].sum(axis=1)
    assert np.corrcoef(model.predict(held_out, nothing[:50])[0], truth)[0, 1] > 0.999


def test_agreement_counts_single_parameters_and_neighbours() -> None:
    a = np.array([[0, 1, 2, 2]], np.int16)
    b = np.array([[0, 1, 2, 2], [0, 1, 0, 2], [1, 1, 2, 0]], np.int16)
    found = Agreement.between(a, b)
    np.testing.assert_allclose(found.single, [[1, 0.75, 0.5]])
    np.testing.assert_allclose(found.pairs, [[1, 1 / 3, 1 / 3]])


def test_what_does_not_fit_is_refused() -> None:
    codes, features, values = points(4)
    with pytest.raises(ValueError, match="4 points, 4 rows of features, 3 values"):
        Surrogate(codes, features, values[:3])
    with pytest.raises(ValueError, match="must be finite"):
        Surrogate(codes, features, np.array([0.0, np.nan, 0.0, 1.0]))
