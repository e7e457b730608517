"""Losses and bounds, against hand calculations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.objectives import (
    OBJECTIVES,
    Constraints,
    Values,
    constraint_excesses,
    constraint_violations,
    losses,
    metric_drop,
    point_losses,
    trial_losses,
)
from autoq.core.policy import Policy
from autoq.core.result import Failure, FrontPoint, Latency, MetricPair, Trial
from autoq.core.scheme import FLOAT32
from autoq.errors import JobError

POLICY = Policy.uniform(["a"], FLOAT32)
LATENCY = Latency(median_ms=2.0, ratio=0.5, ratio_ci95=(0.4, 0.6), batch=1, threads=1)
BASELINE = Values(metric=0.884, latency_ratio=1.0, size_bytes=1000, peak_memory_bytes=4000)


def test_every_objective_is_minimised_in_the_order_asked() -> None:
    values = Values(metric=0.9, latency_ratio=0.5, size_bytes=300, peak_memory_bytes=7)
    assert losses(values, OBJECTIVES, "maximize") == (-0.9, 0.5, 300.0, 7.0)
    assert losses(values, ("size", "metric"), "minimize") == (300.0, 0.9)


@pytest.mark.parametrize("missing", OBJECTIVES)
def test_a_missing_measurement_has_no_loss(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        losses(Values(), (missing,), "maximize")


def test_an_infinite_value_and_an_unknown_objective_have_no_loss() -> None:
    with pytest.raises(ValueError, match="no finite value"):
        losses(Values(latency_ratio=math.inf), ("latency",), "maximize")
    with pytest.raises(ValueError, match="unknown objective 'speed'"):
        losses(Values(), ("speed",), "maximize")


def test_a_modelled_latency_is_no_measurement() -> None:
    trial = Trial(number=0, policy=POLICY, origin="", metric=0.5, latency_modelled=0.1, size_bytes=1)
    assert trial_losses(trial, ("metric", "size"), "maximize") == (-0.5, 1.0)
    with pytest.raises(ValueError, match="latency"):
        trial_losses(trial, ("latency",), "maximize")


def test_a_failed_trial_has_no_losses() -> None:
    trial = Trial(number=0, policy=POLICY, origin="", failure=Failure(reason="load", message=""))
    with pytest.raises(ValueError, match="metric"):
        trial_losses(trial, ("metric", "latency"), "maximize")


def test_a_point_is_judged_on_the_split_asked_for() -> None:
    point = FrontPoint(
        id="p", policy=POLICY, metric=MetricPair(search=0.9, final=0.8), latency=LATENCY, size_bytes=10,
        peak_memory_bytes=None, weight_bits_mean=8, model_path="", sha256="",
    )  # fmt: skip
    assert point_losses(point, ("metric", "latency"), "maximize", use_final=True) == (-0.8, 0.5)
    assert point_losses(point, ("metric", "latency"), "maximize", use_final=False) == (-0.9, 0.5)
    with pytest.raises(ValueError, match="peak_memory"):
        point_losses(point, ("peak_memory",), "maximize", use_final=True)


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6))
def test_a_drop_is_positive_exactly_when_the_metric_is_worse(a: float, b: float) -> None:
    assert (metric_drop(a, b, "maximize") > 0) == (a < b)
    assert (metric_drop(a, b, "minimize") > 0) == (a > b)


def test_a_bound_met_in_decimal_is_kept() -> None:
    # In binary 0.884 - 0.864 is 0.020000000000000018.
    values = Values(metric=0.864)
    assert constraint_violations(values, Constraints(max_metric_drop=0.02), BASELINE, "maximize") == []


def test_each_broken_bound_is_told_with_its_value() -> None:
    values = Values(metric=0.834, latency_ratio=1.25, size_bytes=600, peak_memory_bytes=5000)
    bounds = Constraints(max_metric_drop=0.02, max_latency_ratio=1.0, max_size_ratio=0.5, max_peak_memory_ratio=1.5)
    assert constraint_violations(values, bounds, BASELINE, "maximize") == [
        "the metric drop 0.05 is above max_metric_drop 0.02",
        "the latency ratio to float32 1.25 is above max_latency_ratio 1",
        "the size ratio to float32 0.6 is above max_size_ratio 0.5",
    ]
    excesses = constraint_excesses(values, bounds, BASELINE, "maximize")
    assert excesses == pytest.approx(
        {"max_metric_drop": 0.03, "max_latency_ratio": 0.25, "max_size_ratio": 0.1, "max_peak_memory_ratio": -0.25}
    )


def test_a_minimised_metric_drops_when_it_grows() -> None:
    bounds = Constraints(max_metric_drop=0.1)
    baseline = Values(metric=1.0)
    assert constraint_violations(Values(metric=0.5), bounds, baseline, "minimize") == []
    assert constraint_violations(Values(metric=1.2), bounds, baseline, "minimize") != []


def test_a_bound_on_what_was_not_measured_is_not_kept() -> None:
    sentences = constraint_violations(Values(), Constraints(max_latency_ratio=0.8), BASELINE, "maximize")
    assert sentences == [
        "the latency ratio to float32 was not measured, so max_latency_ratio 0.8 cannot be shown to hold"
    ]


def test_bounds_are_checked_on_construction() -> None:
    for field, value in [
        ("max_metric_drop", -0.1), ("max_metric_drop", math.nan), ("max_latency_ratio", 0.0),
        ("max_size_ratio", math.inf), ("max_peak_memory_ratio", -1.0),
    ]:  # fmt: skip
        with pytest.raises(JobError, match=field):
            Constraints(**{field: value})
