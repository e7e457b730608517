from __future__ import annotations

import numpy as np
import pytest

from autoq.numerics.surrogate import Agreement, Scales, Surrogate, indicators

SCALES = Scales(additive=1.0, boundary=0.5, smooth=0.3, noise=0.1)


def points(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (count, 5)).astype(np.int16)
    return codes, rng.normal(size=(count, 2)), rng.normal(size=count)


def shares(seed: int = 5) -> np.ndarray:
    """How open the choices are: 5 parameters of 3 choices, on average 1 / 5."""
    found = np.random.default_rng(seed).uniform(0.1, 1.0, (5, 3))
    return np.asarray(found / found.mean(axis=1).sum())


EVEN = np.full((5, 3), 0.2)
EITHER = pytest.mark.parametrize("openness", [None, shares()], ids=["all alike", "by the choice"])


def covariance(
    a: np.ndarray, fa: np.ndarray, b: np.ndarray, fb: np.ndarray, openness: np.ndarray | None = None
) -> np.ndarray:
    """The formula of the module's docstring, one pair of points at a time."""
    share = EVEN if openness is None else openness
    out = np.zeros((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            same = x == y
            out[i, j] = 10 * (1 + fa[i, 0] * fb[j, 0] + 0.05 * fa[i, 1] * fb[j, 1])
            out[i, j] += 1.0 * share[np.arange(5), x][same].sum()
            out[i, j] += 0.25 * (same[1:] & same[:-1]).mean() + 0.09 * np.exp(4 * (same.mean() - 1))
    return out


@EITHER
def test_predictions_are_those_of_the_process(openness: np.ndarray | None) -> None:
    codes, features, values = points(12)
    new, new_features, _ = points(6, seed=1)
    model = Surrogate(codes, features, values, openness=openness, scales=SCALES)
    mean, spread = model.predict(new, new_features)

    centre, unit = features.mean(axis=0), features.std(axis=0)
    fa, fb = (new_features - centre) / unit, (features - centre) / unit
    inverse = np.linalg.inv(covariance(codes, fb, codes, fb, openness) + (0.01 + 1e-9) * np.eye(12))
    cross = covariance(new, fa, codes, fb, openness)
    expected = values.mean() + values.std() * cross @ inverse @ ((values - values.mean()) / values.std())
    variance = np.diagonal(covariance(new, fa, new, fa, openness) - cross @ inverse @ cross.T)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(spread, values.std() * np.sqrt(variance), rtol=1e-4)


@EITHER
def test_draws_have_the_mean_and_the_spread_of_the_posterior(openness: np.ndarray | None) -> None:
    codes, features, values = points(20)
    share = EVEN if openness is None else openness
    model = Surrogate(codes, features, values, openness=openness, scales=SCALES)
    draws = model.draw_additive(indicators(codes, np.array([3] * 5)), 20_000, np.random.default_rng(0))
    centre, unit = features.mean(axis=0), features.std(axis=0)
    standard = (features - centre) / unit
    inverse = np.linalg.inv(covariance(codes, standard, codes, standard, openness) + (0.01 + 1e-9) * np.eye(20))
    targets = (values - values.mean()) / values.std()
    for layer in range(5):
        for choice in range(3):
            has = share[layer, choice] * (
                codes[:, layer] == choice
            )  # covariance of this weight with each measured value
            assert draws[:, layer, choice].mean() == pytest.approx(values.std() * has @ inverse @ targets, abs=0.02)
            variance = share[layer, choice] - has @ inverse @ has
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


def test_agreement_is_weighed_and_extended() -> None:
    codes, _, _ = points(9)
    by_choice = shares()
    even, weighed = Agreement.among(codes, [None, by_choice])
    expected = [[by_choice[np.arange(5), x][x == y].sum() for y in codes] for x in codes]
    np.testing.assert_allclose(weighed.single, expected, rtol=1e-6)
    np.testing.assert_array_equal(weighed.pairs, even.pairs)
    early = Agreement.among(codes[:5], [None, by_choice])
    for whole, grown in zip(
        (even, weighed), Agreement.among(codes, [None, by_choice], (codes[:5], early)), strict=True
    ):
        for name in ("single", "pairs", "smooth"):
            np.testing.assert_allclose(getattr(grown, name), getattr(whole, name), rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    codes, features, values = points(4)
    with pytest.raises(ValueError, match="4 points, 4 rows of features, 3 values"):
        Surrogate(codes, features, values[:3])
    with pytest.raises(ValueError, match="must be finite"):
        Surrogate(codes, features, np.array([0.0, np.nan, 0.0, 1.0]))
