from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.numerics.pareto import hypervolume, non_dominated

# Few distinct values: ties and duplicates are common.
POINTS = hnp.arrays(np.int64, st.tuples(st.integers(0, 8), st.integers(1, 4)), elements=st.integers(0, 4))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(POINTS)
def test_non_dominated_against_all_pairs(points):
    expected = np.array([not any(dominates(b, a) for b in points) for a in points], dtype=bool)
    np.testing.assert_array_equal(non_dominated(points, keep_duplicates=True), expected)
    first = [not any((points[j] == points[i]).all() for j in range(i)) for i in range(len(points))]
    np.testing.assert_array_equal(non_dominated(points), expected & np.array(first, dtype=bool))


def test_minus_zero_is_zero_and_infinity_a_loss():
    assert non_dominated([[0.0, 1.0], [-0.0, 1.0]]).tolist() == [True, False]
    assert non_dominated([[-0.0, 2.0], [0.0, 1.0]]).tolist() == [False, True]
    assert non_dominated([[np.inf, 0.0], [0.0, np.inf], [np.inf, 1.0]]).tolist() == [True, True, False]


@given(POINTS)
def test_hypervolume_against_inclusion_and_exclusion(points):
    reference = np.full(points.shape[1], 3)
    inside = np.maximum(reference - points, 0)  # side lengths of the boxes; a box with a side 0 is empty
    expected = 0
    for size in range(1, len(points) + 1):
        for chosen in combinations(range(len(points)), size):
            expected += (-1) ** (size + 1) * int(inside[list(chosen)].min(axis=0).prod())
    assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_against_random_points(objectives):
    rng = np.random.default_rng(objectives)
    front = rng.random((12, objectives))
    samples = rng.random((200_000, objectives)) * 1.1
    covered = np.zeros(len(samples), dtype=bool)
    for point in front:
        covered |= (samples >= point).all(axis=1)
    assert hypervolume(front, [1.1] * objectives) == pytest.approx(covered.mean() * 1.1**objectives, abs=0.01)


def test_hypervolume_by_hand():
    assert hypervolume([[1.0, 2.0], [2.0, 1.0]], [3.0, 3.0]) == 3.0
    assert hypervolume(np.zeros((0, 3)), [1.0, 1.0, 1.0]) == 0.0
    assert hypervolume([[0.5, 2.0], [np.inf, 0.0]], [1.0, 1.0]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: non_dominated([[1.0, 2.0], [np.nan, 1.0]]), "row 1"),
        (lambda: non_dominated([1.0, 2.0]), "shape"),
        (lambda: hypervolume([[1.0]], [1.0, 2.0]), "reference"),
        (lambda: hypervolume([[-np.inf]], [1.0]), "infinite"),
    ],
)
def test_bad_losses_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
