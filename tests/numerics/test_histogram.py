import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoq.numerics.histogram import BatchRange, Histogram, TensorStatistics, merge_all

# Small numbers of bins make the width change often.
BINS = 8
VALUES = st.lists(
    st.one_of(
        st.floats(-4, 4, width=32),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 2.0**-126, -(2.0**-126), 3.4e38, -3.4e38]),
    ),
    max_size=40,
)


def brute_force(values: np.ndarray, bins: int) -> tuple[dict[int, int], int]:
    """Bin -> count, and the exponent, in exact arithmetic."""
    peak = max((abs(Fraction(float(v))) for v in values), default=Fraction(0))
    exponent = -149 - (bins.bit_length() - 1)
    while not peak < bins * Fraction(2) ** exponent:
        exponent += 1
    counts: dict[int, int] = {}
    for value in values:
        index = Fraction(float(value)) / Fraction(2) ** exponent // 1
        counts[int(index)] = counts.get(int(index), 0) + 1
    return counts, exponent


def counts_of(histogram: Histogram) -> dict[int, int]:
    n = histogram.bins_per_side
    return {int(i) - n: int(histogram.counts[i]) for i in np.flatnonzero(histogram.counts)}


@settings(deadline=None)
@given(VALUES)
@example([-1e-45, 3.4e38])
def test_counts_are_those_of_exact_arithmetic(values):
    array = np.array(values, np.float32)
    histogram = Histogram.of(array, BINS)
    counts, exponent = brute_force(array, BINS)
    assert counts_of(histogram) == counts
    if values:
        assert histogram.exponent == max(exponent, Histogram.empty(BINS).exponent)
        assert (histogram.min, histogram.max) == (array.min(), array.max())


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_same_histogram(parts, random):
    whole = Histogram.of(np.concatenate([np.array(part, np.float32) for part in parts]), BINS)
    shuffled = random.sample(parts, len(parts))
    one_by_one = Histogram.empty(BINS)
    for part in shuffled:
        one_by_one = one_by_one.update(np.array(part, np.float32))
    tree = [Histogram.of(np.array(part, np.float32), BINS) for part in shuffled]
    while len(tree) > 1:
        first, second = (tree.pop(random.randrange(len(tree))) for _ in range(2))
        tree.append(first.merge(second))
    assert whole == one_by_one == tree[0]


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-3, 1.0, 3e4, 1e30])
def test_default_width_and_long_arrays(scale):
    values = (np.random.default_rng(0).normal(size=200_000) * scale).astype(np.float32)
    histogram = Histogram.of(values)
    edges = np.arange(-2048, 2049) * histogram.width
    expected, _ = np.histogram(values.astype(np.float64), edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert (
        histogram
        == merge_all(
            TensorStatistics.of(p, batch=i) for i, p in enumerate(np.split(values, 7 * [0] + [5, 99999]))
        ).histogram
    )
    peak = np.abs(values).max()
    assert 1024 * histogram.width <= peak < 2048 * histogram.width or peak < 2.0**-149 * 2048


def test_sums_are_close():
    values = np.random.default_rng(0).exponential(size=10_000).astype(np.float32)
    histogram = Histogram.of(values)
    assert histogram.count == 10_000
    assert abs(histogram.sum - values.sum(dtype=np.float64)) <= 10_000 * histogram.width / 2
    assert histogram.sum_of_squares == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-3)
    constant = Histogram.of(np.full(5, 3.0))
    assert (constant.sum, constant.sum_of_squares) == (15.0, 45.0)
    assert (Histogram.empty().sum, Histogram.empty().sum_of_squares) == (0.0, 0.0)


def test_zeros_widen_exactly():
    zeros = Histogram.of(np.zeros(3))
    assert zeros.merge(Histogram.of([5.0])) == Histogram.of([0.0, 0.0, 0.0, 5.0])
    assert Histogram.of([]) == Histogram.empty()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"value 2 of 3"):
        Histogram.of(np.array([0.0, 1.0, bad]))


def test_different_bins_do_not_merge():
    with pytest.raises(ValueError, match="8 and 16"):
        Histogram.empty(8).merge(Histogram.empty(16))
    with pytest.raises(ValueError, match="power of two"):
        Histogram.empty(12)


def test_other_dtypes_and_layouts():
    values = np.arange(-12, 12).reshape(4, 6)
    assert Histogram.of(values.T) == Histogram.of(values.astype(np.float16)) == Histogram.of(values.astype(np.float64))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9, width=32)), min_size=1, max_size=20), st.randoms())
def test_statistics_do_not_depend_on_who_saw_which_batch(seen, random):
    parts = [TensorStatistics.of([value], batch=batch) for batch, value in seen]
    merged = merge_all(random.sample(parts, len(parts)))
    expected = tuple(
        BatchRange(batch=b, low=min(v for c, v in seen if c == b), high=max(v for c, v in seen if c == b))
        for b in sorted({b for b, _ in seen})
    )
    assert merged.batches == expected
    assert merged.histogram == Histogram.of([value for _, value in seen])
    assert pickle.loads(pickle.dumps(merged)) == merged


def test_an_empty_batch_leaves_no_range():
    statistics = TensorStatistics.empty().update([], batch=0).update([1.0, 2.0], batch=1)
    assert statistics.batches == (BatchRange(batch=1, low=1.0, high=2.0),)
    with pytest.raises(ValueError, match="no statistics"):
        merge_all([])
