import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.sittings import FLOOR, sittings_ratio


def test_by_hand():
    """Two sittings, means of logarithms 0 and 0.1: Student's with one degree of freedom."""
    ratio, (low, high) = sittings_ratio(np.exp([0.0, 0.1]))
    assert ratio == pytest.approx(math.exp(0.05))
    half = scipy.stats.t.ppf(0.985, 1) * 0.1 / 2
    assert (low, high) == pytest.approx((math.exp(0.05 - half), math.exp(0.05 + half)))


def test_trimmed_as_yuen_says():
    """Ten sittings, one cut at each end: winsorized variance 9 / (8 * 7)."""
    values = [-9.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 4.0]
    ratio, (low, high) = sittings_ratio(np.exp(np.random.default_rng(0).permutation(values)))
    winsorized = [0.0, *values[1:9], 0.7]
    half = scipy.stats.t.ppf(0.985, 7) * math.sqrt(np.var(winsorized, ddof=1) * 9 / (8 * 7))
    assert math.log(ratio) == pytest.approx(0.35)
    assert (math.log(low), math.log(high)) == pytest.approx((0.35 - half, 0.35 + half))


def test_sittings_that_agree_by_chance_have_a_floor():
    ratio, (low, high) = sittings_ratio([0.5] * 4)
    assert ratio == pytest.approx(0.5)
    assert math.log(high / low) == pytest.approx(2 * FLOOR)


SITTINGS = st.lists(st.floats(0.01, 100), min_size=2, max_size=20)


@given(SITTINGS, st.floats(0.1, 10))
def test_the_ratio_lies_in_its_interval_and_scales(sittings, factor):
    ratio, (low, high) = sittings_ratio(sittings)
    assert low < ratio < high
    scaled, ends = sittings_ratio([factor * each for each in sittings])
    assert (scaled, *ends) == pytest.approx((factor * ratio, factor * low, factor * high))


@given(SITTINGS)
def test_the_other_way_round_is_the_inverse(sittings):
    """What is called A/A is symmetric: which file came first decides nothing."""
    ratio, (low, high) = sittings_ratio(sittings)
    turned, (turned_low, turned_high) = sittings_ratio([1 / each for each in sittings])
    assert (turned, turned_low, turned_high) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def measured(rng: np.random.Generator, between: float, spoilt: float) -> tuple[float, float]:
    """Sittings until the interval is within 1 %, four at least and 16 at most; its ends. The truth is 1."""
    spoil = rng.normal(0, 0.1, 16) * (rng.random(16) < spoilt)
    sittings = np.exp(rng.normal(0, between, 16) + spoil)
    for count in range(4, 17):
        ratio, (low, high) = sittings_ratio(sittings[:count])
        if (high - low) / 2 / ratio <= 0.01:
            break
    return low, high


@pytest.mark.parametrize(
    ("between", "spoilt"), [(0.003, 0.0), (0.005, 0.0), (0.012, 0.0), (0.02, 0.0), (0.04, 0.0), (0.005, 0.1)]
)
def test_the_truth_is_inside_as_often_as_said_although_timing_ends_when_the_interval_is_narrow(between, spoilt):
    """At least 94 % of 600, less what chance takes: 1.96 standard errors."""
    rng = np.random.default_rng(7)
    hits = sum(low <= 1 <= high for low, high in (measured(rng, between, spoilt) for _ in range(600)))
    assert hits / 600 >= 0.94 - 1.96 * math.sqrt(0.94 * 0.06 / 600)


@pytest.mark.parametrize(
    ("sittings", "message"),
    [
        ([1.0], "two at least, not 1"),
        ([1.0, math.nan], "positive and finite, not .*nan"),
        ([1.0, 0.0], r"positive and finite, not \[1.0, 0.0\]"),
    ],
)
def test_bad_samples_are_refused(sittings, message):
    with pytest.raises(ValueError, match=message):
        sittings_ratio(sittings)
