import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.sittings import FLOOR, sittings_ratio


def test_by_hand():
    """Two sittings, means of logarithms 0 and 0.1: Student's with one degree of freedom."""
    ratio, (low, high) = sittings_ratio([[1.0, 1.0], np.exp([0.0, 0.1, 5.0])])
    assert ratio == pytest.approx(math.exp(0.05))
    half = scipy.stats.t.ppf(0.985, 1) * 0.1 / 2
    assert (low, high) == pytest.approx((math.exp(0.05 - half), math.exp(0.05 + half)))


def test_trimmed_as_yuen_says():
    """Ten sittings, one cut at each end: winsorized variance 9 / (8 * 7)."""
    values = [-9.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 4.0]
    ratio, (low, high) = sittings_ratio([[math.exp(value)] for value in np.random.default_rng(0).permutation(values)])
    winsorized = [0.0, *values[1:9], 0.7]
    half = scipy.stats.t.ppf(0.985, 7) * math.sqrt(np.var(winsorized, ddof=1) * 9 / (8 * 7))
    assert math.log(ratio) == pytest.approx(0.35)
    assert (math.log(low), math.log(high)) == pytest.approx((0.35 - half, 0.35 + half))


def test_sittings_that_agree_by_chance_have_a_floor():
    ratio, (low, high) = sittings_ratio([[0.5]] * 4)
    assert ratio == pytest.approx(0.5)
    assert math.log(high / low) == pytest.approx(2 * FLOOR)


def rounds(shortest: int = 1):
    return st.lists(st.floats(0.01, 100), min_size=shortest, max_size=4)


@given(st.lists(rounds(), min_size=2, max_size=20), st.floats(0.1, 10))
def test_the_ratio_lies_in_its_interval_and_scales(sittings, factor):
    ratio, (low, high) = sittings_ratio(sittings)
    assert low < ratio < high
    scaled, ends = sittings_ratio([[factor * each for each in sitting] for sitting in sittings])
    assert (scaled, *ends) == pytest.approx((factor * ratio, factor * low, factor * high))


@given(st.lists(rounds(), min_size=2, max_size=20))
def test_the_other_way_round_is_the_inverse(sittings):
    """What is called A/A is symmetric: which file came first decides nothing."""
    ratio, (low, high) = sittings_ratio(sittings)
    turned, (turned_low, turned_high) = sittings_ratio([[1 / each for each in sitting] for sitting in sittings])
    assert (turned, turned_low, turned_high) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def measured(rng: np.random.Generator, between: float, within: float, spoilt: float) -> tuple[float, float]:
    """Sittings until the interval is within 1 %, four at least and 16 at most; its ends. The truth is 1."""
    sittings: list[np.ndarray] = []
    while True:
        offset = rng.normal(0, between) + (rng.normal(0, 0.1) if rng.random() < spoilt else 0.0)
        sittings.append(np.exp(offset + rng.normal(0, within, 2)))
        if len(sittings) < 4:
            continue
        ratio, (low, high) = sittings_ratio(sittings)
        if (high - low) / 2 / ratio <= 0.01 or len(sittings) == 16:
            return low, high


@pytest.mark.parametrize(
    ("between", "within", "spoilt"),
    [(0.003, 0.002, 0.0), (0.005, 0.005, 0.0), (0.012, 0.005, 0.0), (0.02, 0.02, 0.0), (0.004, 0.004, 0.1)],
)
def test_the_truth_is_inside_as_often_as_said_although_timing_ends_when_the_interval_is_narrow(between, within, spoilt):
    """At least 94 % of 600, less what chance takes: 1.96 standard errors."""
    rng = np.random.default_rng(7)
    hits = sum(low <= 1 <= high for low, high in (measured(rng, between, within, spoilt) for _ in range(600)))
    assert hits / 600 >= 0.94 - 1.96 * math.sqrt(0.94 * 0.06 / 600)


@pytest.mark.parametrize(
    ("sittings", "message"),
    [
        ([[1.0]], "two at least, not 1"),
        ([[1.0], []], "row of positive numbers"),
        ([[1.0], [math.nan]], "nan"),
        ([[1.0], [0.0]], r"\[0.0\]"),
    ],
)
def test_bad_samples_are_refused(sittings, message):
    with pytest.raises(ValueError, match=message):
        sittings_ratio(sittings)
