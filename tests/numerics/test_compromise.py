"""Distances from the ideal point: by hand, by NumPy, and what they can reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.compromise import AUGMENTATION, chebyshev, knee
from autoq.numerics.pareto import non_dominated


def front_of(seed: int, objectives: int) -> np.ndarray:
    points = np.random.default_rng(seed).random((40, objectives))
    return points[non_dominated(points)]


def test_knee_by_hand() -> None:
    # Scaled: (0, 1), (0.2, 0.3), (1, 0).
    assert knee([[10.0, 200.0], [12.0, 130.0], [20.0, 100.0]]) == 1
    # The third objective says nothing, whatever its size.
    assert knee([[10.0, 200.0, 7.0], [12.0, 130.0, 7.0], [20.0, 100.0, 7.0]]) == 1
    assert knee([[1.0, 5.0], [1.0, 4.0]]) == 1
    assert knee([[3.0, 3.0]]) == 0
    assert knee([[0.0, 1.0], [1.0, 0.0]]) == 0


def test_chebyshev_by_hand() -> None:
    rows = [[10.0, 200.0], [12.0, 130.0], [20.0, 100.0]]  # scaled: (0, 1), (0.2, 0.3), (1, 0)
    assert chebyshev(rows, [1, 1]) == 1
    assert chebyshev(rows, [1, 0]) == 0 and chebyshev(rows, [0, 5]) == 2
    # Against the first: the larger of 0.2 w and 0.3 must be less than 1.
    assert chebyshev(rows, [6, 1]) == 0 and chebyshev(rows, [4, 1]) == 1


def test_a_weight_of_nothing_still_parts_equals() -> None:
    assert chebyshev([[1.0, 9.0], [1.0, 4.0], [2.0, 0.0]], [1, 0]) == 1


@given(st.integers(0, 200), st.integers(1, 4), st.data())
def test_both_agree_with_numpy_and_do_not_depend_on_units(seed: int, objectives: int, data: st.DataObject) -> None:
    rows = front_of(seed, objectives)
    weights = data.draw(st.lists(st.integers(0, 9), min_size=objectives, max_size=objectives).filter(any))
    scaled = (rows - rows.min(axis=0)) / np.where(np.ptp(rows, axis=0) > 0, np.ptp(rows, axis=0), 1)
    assert knee(rows) == np.linalg.norm(scaled, axis=1).argmin()
    terms = scaled * weights / max(weights)
    distance = terms.max(axis=1) + AUGMENTATION * terms.sum(axis=1)
    assert distance[chebyshev(rows, weights)] == pytest.approx(distance.min())
    units = 2.0 ** np.arange(3, 3 + objectives)
    assert knee(rows) == knee(rows * units)
    assert chebyshev(rows, weights) == chebyshev(rows * units, [8 * weight for weight in weights])


def test_a_point_in_a_concave_part_has_weights_and_a_weighted_sum_has_none_for_it() -> None:
    # On the concave arc between (0, 1) and (1, 0) a weighted sum takes an end, whatever the weights.
    angles = np.linspace(0, math.pi / 2, 13)
    rows = np.stack([1 - np.cos(angles), 1 - np.sin(angles)], axis=1)[::-1]
    concave = 1 - rows[:, ::-1]
    shares = np.linspace(0.01, 0.99, 99)
    by_sum = {int((concave @ [share, 1 - share]).argmin()) for share in shares}
    by_chebyshev = {chebyshev(concave, [share, 1 - share]) for share in shares}
    assert by_sum == {0, 12}
    assert by_chebyshev == set(range(13))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knee(np.zeros((0, 2))), "empty"),
        (lambda: knee([[np.inf, 1.0]]), "finite"),
        (lambda: chebyshev([[1.0, 2.0]], [1.0]), "weights must be 2 numbers"),
        (lambda: chebyshev([[1.0, 2.0]], [0.0, 0.0]), "not all 0"),
        (lambda: chebyshev([[1.0, 2.0]], [1.0, -1.0]), "0 or more"),
        (lambda: chebyshev([[1.0, 2.0]], [1.0, math.nan]), "0 or more"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
