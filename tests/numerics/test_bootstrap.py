import numpy as np
import pytest
import scipy.stats

from autoq.numerics.bootstrap import interval, median_ratio, spearman


def test_median_ratio_by_hand():
    ratio, (low, high) = median_ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0], seed=0)
    assert ratio == 1.0  # 0.5, 1, 3
    assert (low, high) == (0.5, 3.0)  # each comes up thrice in 1 of 27 resamples, twice in 6 more
    assert median_ratio([3.0], [2.0], seed=0) == (1.5, (1.5, 1.5))


def test_noise_common_to_a_block_cancels():
    rng = np.random.default_rng(0)
    machine = rng.uniform(1, 3, 20)
    ratio, (low, high) = median_ratio(0.5 * machine, machine, seed=0)
    assert ratio == low == high == 0.5


def test_it_is_seeded():
    rng = np.random.default_rng(0)
    candidate, baseline = rng.lognormal(0, 0.1, 15), rng.lognormal(0, 0.1, 15)
    assert median_ratio(candidate, baseline, seed=1) == median_ratio(candidate, baseline, seed=1)
    assert median_ratio(candidate, baseline, seed=1) != median_ratio(candidate, baseline, seed=2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        _, (low, high) = median_ratio(rng.lognormal(0, 0.2, 25), np.ones(25), seed=trial, resamples=400, level=0.9)
        hits += low <= 1.0 <= high
    assert 0.84 <= hits / 300 <= 0.97


def test_interval_by_hand():
    assert interval(np.arange(101), 0.9) == pytest.approx((5.0, 95.0))


def test_spearman():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.normal(size=40)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [10, 20, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 2], [1, 3, 2]) == pytest.approx(3**0.5 / 2)  # ranks 1, 2.5, 2.5 and 1, 3, 2
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert spearman([1.0], [2.0]) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: median_ratio([1.0], [1.0, 2.0], seed=0), "pairs"),
        (lambda: median_ratio([], [], seed=0), "at least one"),
        (lambda: median_ratio([1.0], [0.0], seed=0), "baseline"),
        (lambda: median_ratio([np.nan], [1.0], seed=0), "candidate"),
        (lambda: interval([], 0.9), "samples"),
        (lambda: interval([1.0], 1.0), "level"),
        (lambda: spearman([1.0, np.nan], [1.0, 2.0]), "NaN"),
        (lambda: spearman([1.0], [1.0, 2.0]), "pairs"),
    ],
)
def test_bad_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
