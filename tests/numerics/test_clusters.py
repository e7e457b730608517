"""k-means on a line: against every partition there is, and against scikit-learn's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.numerics.clusters import centers


def error(values: np.ndarray, weights: np.ndarray, found: np.ndarray) -> float:
    return float((weights * ((values[:, None] - found) ** 2).min(axis=1)).sum())


def least_error(values: np.ndarray, weights: np.ndarray, count: int) -> float:
    """Over all ways to name a cluster for each value, intervals or not."""
    best = np.inf
    for names in itertools.product(range(count), repeat=len(values)):
        total = 0.0
        for name in set(names):
            inside = np.array(names) == name
            if weights[inside].sum() > 0:
                mean = np.average(values[inside], weights=weights[inside])
                total += float((weights[inside] * (values[inside] - mean) ** 2).sum())
        best = min(best, total)
    return best


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 4), (6, 2), (7, 3), (6, 4), (5, 5)])
@pytest.mark.parametrize("kind", ["normal", "repeated", "far from zero", "without weight"])
def test_brute_force(size: int, count: int, kind: str) -> None:
    rng = np.random.default_rng(size * 10 + count)
    values, weights = rng.standard_normal(size), rng.random(size)
    if kind == "repeated":
        values = np.rint(values)
    elif kind == "far from zero":
        values += 1e6
    elif kind == "without weight":
        weights[::2] = 0
    found = centers(values, weights, count)
    assert 1 <= len(found) <= count
    assert (np.diff(found) > 0).all()
    assert error(values, weights, found) == pytest.approx(least_error(values, weights, count), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [300, 5000])
@pytest.mark.parametrize("count", [4, 16])
def test_scikit_learn_finds_nothing_better(size: int, count: int) -> None:
    """5,000 values are more than the program is solved for outright."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(size)
    for values in (
        rng.standard_normal(size),
        rng.standard_t(2, size),
        rng.integers(0, 9, size) + rng.normal(0, 0.1, size),
    ):
        weights = rng.random(size)
        theirs = KMeans(count, n_init=3, random_state=0).fit(values[:, None], sample_weight=weights)
        assert error(values, weights, centers(values, weights, count)) <= theirs.inertia_ * (1 + 1e-9)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_centers_lie_within_and_are_means(values: list[float], count: int) -> None:
    points = np.array(values)
    found = centers(points, np.ones(len(points)), count)
    assert points.min() - 1e-6 <= found[0]
    assert found[-1] <= points.max() + 1e-6
    nearest = np.abs(points[:, None] - found).argmin(axis=1)
    moved = [points[nearest == i].mean() for i in range(len(found)) if (nearest == i).any()]
    assert error(points, np.ones(len(points)), found) <= error(points, np.ones(len(points)), np.array(moved)) + 1e-6


def test_nothing_to_find() -> None:
    assert centers(np.arange(5.0), np.zeros(5), 4).tolist() == [0.0]
    assert centers(np.full(9, 2.5), np.ones(9), 4).tolist() == [2.5]
    assert centers(np.array([[3.0, -1.0]]), np.ones((1, 2)), 4).tolist() == [-1.0, 3.0]
