"""Shares of variance: against the truth of additive values, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from autoq.numerics.importance import MOST_ROWS, variance_shares


def additive(rows: int, layers: int, choices: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, values, and the true share of each parameter in the variance of the values."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(layers, choices)) * np.arange(layers)[:, None]
    codes = rng.integers(choices, size=(rows, layers))
    variances = effects.var(axis=1)
    return codes, effects[np.arange(layers), codes].sum(axis=1), variances / variances.sum()


def test_an_additive_value_is_explained_and_shared_out_as_it_is() -> None:
    codes, values, truth = additive(600, 5, 3)
    found = variance_shares(codes, values)
    assert found is not None
    assert found.explained == pytest.approx(1.0, abs=1e-3)
    assert sum(found.shares) == pytest.approx(found.explained)
    assert found.shares == pytest.approx(truth, abs=0.06)
    moved = variance_shares(codes, 1e6 - 50 * values)
    assert moved is not None and moved.shares == pytest.approx(found.shares)


def test_by_hand_two_balanced_parameters() -> None:
    # y = 3 a + b over all four corners, many times: variances 9 and 1.
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 50)
    found = variance_shares(codes, 3.0 * codes[:, 0] + codes[:, 1])
    assert found is not None and found.shares == pytest.approx((0.9, 0.1), abs=1e-3)


def test_with_more_effects_than_rows_the_largest_still_come_first() -> None:
    codes, values, truth = additive(60, 12, 8)
    found = variance_shares(codes, values)
    assert found is not None and 0.1 < found.explained < 0.9
    assert spearmanr(found.shares, truth).statistic > 0.6


def test_what_hangs_on_nothing_is_not_explained() -> None:
    rng = np.random.default_rng(1)
    explained = []
    for _ in range(20):
        found = variance_shares(rng.integers(4, size=(50, 10)), rng.normal(size=50))
        explained.append(0.0 if found is None else found.explained)
    # Fitted to its own rows, this model would explain nearly all of it.
    assert np.mean(explained) < 0.05


def test_many_rows_are_thinned_out() -> None:
    codes, values, _ = additive(3 * MOST_ROWS, 3, 2)
    kept = np.linspace(0, len(values) - 1, MOST_ROWS).round().astype(int)
    assert variance_shares(codes, values) == variance_shares(codes[kept], values[kept])


def test_nothing_where_nothing_varies() -> None:
    codes = np.zeros((9, 2), int)
    assert variance_shares(codes, np.arange(9.0)) is None
    assert variance_shares(codes + np.arange(9)[:, None], np.ones(9)) is None
    assert variance_shares(np.eye(3, dtype=int), np.arange(3.0)) is None


@pytest.mark.parametrize(
    ("codes", "values"), [(np.zeros(3), np.zeros(3)), (np.zeros((3, 2)), np.zeros(2)), (np.zeros((2, 1)), [0, np.nan])]
)
def test_bad_input_is_refused(codes: np.ndarray, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite values"):
        variance_shares(codes, values)
