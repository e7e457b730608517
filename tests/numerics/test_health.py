"""Shares of errors and the largest sums, by hand and by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.affine import activation_affine, dequantize, quantize
from autoq.numerics.health import INT16_MAX, INT32_MAX, accumulator_health, range_health


def test_values_on_the_levels_have_no_error() -> None:
    found = range_health(np.arange(0, 256) * 0.5, 0.5, 0, 0, 255)
    assert (found.sqnr_db, found.saturated) == (math.inf, 0)
    assert (found.clipping, found.zero_point, found.rounding) == (0, 0, 0)


def test_saturation_by_hand() -> None:
    # Steps of 1 from -10 to 245: one value of four is too low, one too high, and one is 0.25 off.
    found = range_health(np.array([-13.0, 255.0, 7.25, 9.0]), 1.0, 10, 0, 255)
    assert (found.saturated_low, found.saturated_high) == (0.25, 0.25)
    # Errors of 3, 10 and 0.25; with the levels half a step higher, of 3.5, 9.5, 0.25 and 0.5.
    whole, left = 9 + 100 + 0.0625, 12.25 + 90.25 + 0.0625 + 0.25
    assert found.zero_point == pytest.approx((whole - left) / whole)
    assert found.clipping == pytest.approx((12.25 + 90.25) / whole)
    assert found.rounding == pytest.approx(0.3125 / whole)
    assert found.sqnr_db == pytest.approx(10 * math.log10((13**2 + 255**2 + 7.25**2 + 81) / (9 + 100 + 0.0625)))


def test_what_a_rounded_zero_point_costs() -> None:
    """All values lie half a step beside the grid: a zero point between two integers would meet every one."""
    found = range_health(np.arange(20) + 0.5, 1.0, 0, 0, 255)
    assert (found.zero_point, found.rounding, found.clipping) == (1.0, 0.0, 0.0)
    found = range_health(np.arange(2000) / 8, 1.0, 0, 0, 255)  # spread evenly: no shift is better
    assert found.zero_point < 0.05 < found.rounding


@given(
    seed=st.integers(0, 2**32 - 1),
    signed=st.booleans(),
    offset=st.floats(-3, 3),
    share=st.floats(0.05, 2),
)
def test_as_quantize_and_dequantize_have_it(seed: int, signed: bool, offset: float, share: float) -> None:
    values = np.random.default_rng(seed).standard_normal(300) + offset
    dtype = "int8" if signed else "uint8"
    scale, zero = (
        activation_affine(values.min() * share, values.max() * share, dtype)
        if (values.min() * share <= values.max() * share)
        else activation_affine(-1.0, 1.0, dtype)
    )
    low, high = (-128, 127) if signed else (0, 255)
    found = range_health(values, float(scale), zero, low, high)
    integers = quantize(values, scale, zero, low, high)
    error = dequantize(integers, scale, zero).astype(np.float64) - values
    assert found.sqnr_db == pytest.approx(10 * math.log10(np.square(values).sum() / np.square(error).sum()), abs=0.01)
    assert found.clipping + found.zero_point + found.rounding == pytest.approx(1)
    assert min(found.clipping, found.zero_point, found.rounding) >= 0
    beyond = (np.rint(values / float(scale)) + zero < low) | (np.rint(values / float(scale)) + zero > high)
    assert found.saturated == pytest.approx(beyond.mean())


def test_nothing_has_no_health() -> None:
    with pytest.raises(ValueError, match="empty"):
        range_health(np.zeros(0), 1.0, 0, 0, 255)


def test_sums_by_brute_force() -> None:
    weight = np.random.default_rng(1).integers(-127, 128, (1, 3, 4))
    corners = np.array(list(itertools.product((0, 255), repeat=4)))
    sums = np.abs(corners @ weight[0].T)
    pairs = [
        abs(int(a * row[i] + b * row[j]))
        for row in weight[0]
        for i, j in itertools.combinations(range(4), 2)
        for a, b in itertools.product((0, 255), repeat=2)
    ]
    found = accumulator_health(weight, corners[None])
    assert found.sum_possible == found.sum_seen == sums.max()
    assert found.pair_possible == max(pairs)
    neighbours = np.abs((corners[:, None, :] * weight[0][None]).reshape(-1, 3, 2, 2).sum(axis=-1))
    assert found.pair_seen == neighbours.max() <= found.pair_possible
    assert found.headroom_bits == pytest.approx(math.log2(INT32_MAX / sums.max()))


def test_groups_see_their_own_inputs_alone() -> None:
    weight = np.array([[[100, 100]], [[1, 1]]])
    found = accumulator_health(weight, np.array([[[1, 1]], [[255, 255]]]))
    assert (found.sum_seen, found.pair_seen) == (510, 510)
    assert (found.sum_possible, found.pair_possible) == (51_000, 51_000)


@pytest.mark.parametrize(("level", "safe"), [(127, False), (65, False), (64, True), (8, True), (2, True)])
def test_pairs_and_16_bits(level: int, safe: bool) -> None:
    weight = np.full((1, 1, 5), -level)
    found = accumulator_health(weight, np.full((1, 1, 5), 255))
    assert (found.pair_possible <= INT16_MAX) == safe
    assert found.pair_seen == found.pair_possible == 510 * level


def test_one_input_has_no_neighbour() -> None:
    found = accumulator_health(np.array([[[127]]]), np.array([[[255]]]))
    assert (found.pair_possible, found.pair_seen, found.sum_seen) == (255 * 127, 0, 255 * 127)
