from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autoq.numerics.sequential import least_lost_share, least_of_jackknife

LEVEL, LOOKS, ROWS = 0.05, (100, 200, 500, 1000), 2000


def brute_force_bound(lost: int, gained: int, rows: int, level: float) -> float:
    """The smallest difference on a grid that a score test accepts; its likelihood is maximised by trying all."""
    limit = stats.norm.ppf(1 - level)
    for difference in np.arange(-0.6, 0.6, 1e-4):
        q = np.linspace(max(0.0, -difference), (1 - difference) / 2, 4001)[1:-1]
        with np.errstate(divide="ignore"):
            likelihood = (
                (lost * np.log(q + difference) if lost else 0)
                + (gained * np.log(q) if gained else 0)
                + (rows - lost - gained) * np.log(1 - 2 * q - difference)
            )
        best = q[np.argmax(likelihood)]
        deviation = math.sqrt(rows * (2 * best + difference - difference**2))
        if (lost - gained - 0.5 - rows * difference) / deviation <= limit:
            return float(difference)
    raise AssertionError("none")


@pytest.mark.parametrize(("lost", "gained", "rows"), [(30, 5, 100), (12, 3, 200), (0, 0, 50), (0, 6, 100), (7, 0, 64)])
def test_the_bound_is_the_smallest_difference_that_the_data_accept(lost: int, gained: int, rows: int) -> None:
    expected = brute_force_bound(lost, gained, rows, 0.0125)
    assert least_lost_share(lost, gained, rows, 0.0125) == pytest.approx(expected, abs=6e-4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(121, 3000), st.floats(0.001, 0.2), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_bound_moves_as_it_should(lost: int, gained: int, rows: int, level: float, left: float) -> None:
    bound = least_lost_share(lost, gained, rows, level, left)
    assert -1 <= bound <= (lost - gained) / rows
    assert least_lost_share(lost + 1, gained, rows, level, left) >= bound - 1e-12
    assert least_lost_share(lost, gained + 1, rows, level, left) <= bound + 1e-12
    assert least_lost_share(lost, gained, rows, level / 2, left) <= bound + 1e-12
    assert least_lost_share(lost, gained, rows, level, left / 2) >= bound - 1e-12


def test_counts_that_cannot_be_are_refused() -> None:
    for lost, gained, rows in ((1, 0, 0), (-1, 0, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match="lost and"):
            least_lost_share(lost, gained, rows, 0.05)


@pytest.mark.parametrize(
    ("lost", "gained"), [(0.01, 0.01), (0.05, 0.0), (0.0, 0.01), (0.03, 0.02), (0.2, 0.05), (0.002, 0.02), (0.6, 0.01)]
)
def test_several_looks_err_less_often_than_the_level(lost: float, gained: float) -> None:
    """A lot of 2,000 rows in random order, looked at four times against what all of them lose: the hardest hurdle."""
    bound = functools.lru_cache(None)(least_lost_share)
    lot = np.zeros(ROWS, int)
    ones, minus = round(lost * ROWS), round(gained * ROWS)
    lot[:ones], lot[ones : ones + minus] = 1, -1
    rng = np.random.default_rng(7)
    wrong, runs = 0, 800
    for _ in range(runs):
        rng.shuffle(lot)
        wrong += any(
            bound(int((lot[:n] == 1).sum()), int((lot[:n] == -1).sum()), n, LEVEL / len(LOOKS), 1 - n / ROWS)
            > lot.mean() + 1e-12
            for n in LOOKS
        )
    assert wrong / runs <= LEVEL


def test_the_jackknife_of_a_mean_is_the_t_interval_of_block_means() -> None:
    blocks = np.random.default_rng(0).normal(3.0, 2.0, (20, 6))
    left_out = [np.delete(blocks, i, axis=0).mean() for i in range(20)]
    means = blocks.mean(axis=1)
    expected = stats.t.interval(0.96, 19, means.mean(), stats.sem(means))[0]
    assert least_of_jackknife(blocks.mean(), left_out, 0.02) == pytest.approx(expected)
    half = least_of_jackknife(blocks.mean(), left_out, 0.02, 0.25)
    assert half == pytest.approx((expected + blocks.mean()) / 2)


def test_blocks_that_agree_tell_nothing() -> None:
    assert least_of_jackknife(0.1, [0.1] * 20, 0.05) is None
    with pytest.raises(ValueError, match="a jackknife needs two"):
        least_of_jackknife(0.1, [0.1], 0.05)


def test_the_jackknife_of_a_rank_correlation_errs_less_often_than_the_level() -> None:
    """What a noisy model's Spearman correlation loses against a better one's, on rows that both rank."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=600)
    better, worse = truth + rng.normal(0, 0.5, 600), truth + rng.normal(0, 0.8, 600)

    def drop(rows: np.ndarray) -> float:
        ranks = [np.argsort(np.argsort(values[rows])) for values in (truth, better, worse)]
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1] - np.corrcoef(ranks[0], ranks[2])[0, 1])

    whole = drop(np.arange(600))
    wrong, runs = 0, 80
    for _ in range(runs):
        order = rng.permutation(600)
        for count in (150, 300):
            rows = order[:count]
            left_out = [drop(np.delete(rows, block)) for block in np.array_split(np.arange(count), 20)]
            bound = least_of_jackknife(drop(rows), left_out, LEVEL / 2, 1 - count / 600)
            if bound is not None and bound > whole:
                wrong += 1
                break
    assert wrong / runs <= LEVEL
