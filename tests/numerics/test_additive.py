"""The fit of times that add, against the times that made the measurements."""

from __future__ import annotations

import numpy as np
import pytest

from autoq.numerics.additive import GRID, Spreads, fit_additive

GROUPS = np.array([0] * 6 + [1] * 6 + [2] * 4)
SCALE = np.full(16, 0.1)


def measured(rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which parts, what each takes (alike within a group), and the ratios."""
    rng = np.random.default_rng(seed)
    times = np.array([-0.05, 0.01, -0.02])[GROUPS] * rng.normal(1, 0.1, 16)
    present = (rng.random((rows, 16)) < 0.5).astype(float)
    ratios = (1.02 + present @ times) * np.exp(noise * rng.normal(size=rows))
    return present, times, ratios


def fit(present: np.ndarray, ratios: np.ndarray, **more):  # type: ignore[no-untyped-def]
    given = {"groups": GROUPS, "scale": SCALE, "guess": np.zeros(16)} | more
    return fit_additive(present, ratios, **given)


def test_without_noise_every_time_is_found() -> None:
    present, times, ratios = measured(200, 0.0)
    found = fit(present, ratios)
    assert found.base == pytest.approx(1.02, abs=5e-3)
    assert found.coefficients == pytest.approx(times, abs=2e-3)
    assert found.predict(present) == pytest.approx(ratios, abs=2e-3)
    assert found.spreads in GRID


def test_few_rows_do_where_parts_are_alike() -> None:
    present, times, ratios = measured(14, 0.003)
    alike, apart = fit(present, ratios), fit(present, ratios, groups=np.arange(16))
    unseen, _, truth = measured(300, 0.0)
    errors = [np.median(np.abs(each.predict(unseen) / truth - 1)) for each in (alike, apart)]
    assert errors[0] < 0.01 and errors[0] < 0.7 * errors[1]
    assert alike.coefficients == pytest.approx(times, abs=0.02)


def test_a_part_that_never_occurred_takes_what_its_group_does() -> None:
    present, times, ratios = measured(60, 0.003)
    unseen = present[:, 0] == 0
    found = fit(present[unseen], ratios[unseen])
    assert found.coefficients[0] == pytest.approx(times[1:6].mean(), abs=0.01)
    guess = np.full(16, -0.07)
    alone = fit(present[unseen], ratios[unseen], groups=np.arange(16), guess=guess)
    assert alone.coefficients[0] == -0.07


def test_other_work_on_the_machine_is_not_taken_for_a_parts_time() -> None:
    present, _, ratios = measured(100, 0.003)
    spoilt = np.random.default_rng(1).random(100) < 0.15
    found = fit(present, np.where(spoilt, 1.6 * ratios, ratios))
    clean, _, truth = measured(300, 0.0)
    assert np.median(np.abs(found.predict(clean) / truth - 1)) < 0.01
    assert found.weights[spoilt].max() < 0.2 < np.median(found.weights[~spoilt])


def test_the_order_of_rows_and_parts_changes_nothing() -> None:
    present, _, ratios = measured(40, 0.01)
    rows, parts = np.random.default_rng(2).permutation(40), np.random.default_rng(3).permutation(16)
    first = fit(present, ratios)
    second = fit(present[rows][:, parts], ratios[rows], groups=GROUPS[parts])
    assert second.coefficients == pytest.approx(first.coefficients[parts], abs=1e-9)
    assert second.base == pytest.approx(first.base)


def test_no_parts_at_all_leave_the_base() -> None:
    found = fit_additive(np.zeros((3, 0)), [0.9, 0.9, 0.9], groups=[], scale=[], guess=[], spreads=Spreads(1, 1, 0.01))
    assert found.base == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(
    ("present", "ratios", "changes", "why"),
    [
        (np.ones((2, 16)), [1.0], {}, "parts"),
        (np.ones((2, 15)), [1.0, 1.0], {}, "parts"),
        (np.ones((0, 16)), [], {}, "parts"),
        (np.ones((2, 16)), [1.0, 0.0], {}, "above 0"),
        (np.ones((2, 16)), [1.0, np.nan], {}, "finite"),
        (np.ones((2, 16)), [1.0, 1.0], {"scale": -SCALE}, "not below 0"),
    ],
)
def test_what_does_not_fit_is_refused(present, ratios, changes, why) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=why):
        fit(present, np.array(ratios), **changes)
