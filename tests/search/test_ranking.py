"""What was predicted beside what was measured, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from autoq.core.policy import Policy
from autoq.core.result import Failure
from autoq.core.scheme import FLOAT32, Scheme
from autoq.search.ranking import proxy_truths
from autoq.search.sensitivity import Sensitivity
from tests.search.problems import make_problem, make_trial

W8, W4 = Scheme.parse("w8"), Scheme.parse("w4")


def test_each_objective_has_its_proxy_and_its_truth() -> None:
    problem = make_problem(("a", "b", "c"), tied={"c": "a"}, objectives=("metric", "latency", "size", "peak_memory"))
    assert W8.weight is not None and W4.weight is not None
    table = Sensitivity(
        weights={("a", W8.weight): 0.1, ("b", W8.weight): 0.2, ("a", W4.weight): 1.0, ("b", W4.weight): 2.0},
        activations={},
    )
    trials = [
        make_trial(0, Policy.of({"a": W8, "b": W8, "c": W8}), metric=0.89, ratio=0.9, size=400, memory=100),
        make_trial(1, Policy.of({"a": W4, "b": W8, "c": W4}), metric=0.85, ratio=0.8, size=300, memory=300),
        make_trial(2, Policy.of({"a": W4, "b": W4, "c": W4}), metric=0.86, ratio=0.7, size=200, memory=200),
    ]
    failed = dataclasses.replace(trials[0], number=3, failure=Failure(reason="load", message="no"))
    metric, latency, size, memory = proxy_truths(problem, [*trials, failed], table)
    assert metric.ids == tuple(trial.id for trial in trials)
    # The tied layer has no noise and no bytes of its own.
    assert metric.predicted == pytest.approx((0.3, 1.2, 3.0))
    assert metric.measured == pytest.approx((0.01, 0.05, 0.04)) and metric.spearman == pytest.approx(0.5)
    assert (latency.measured, latency.spearman) == ((0.9, 0.8, 0.7), 1.0)
    # 288 weights and 8 scales of two bytes in each of two layers.
    assert size.predicted == (2 * (288 + 16), 288 + 144 + 32, 2 * (144 + 16))
    assert size.measured == (400, 300, 200) and size.spearman == 1.0
    assert memory.predicted == size.predicted and memory.spearman == pytest.approx(-0.5)


def test_what_cannot_be_predicted_is_left_out() -> None:
    problem = make_problem(("a",))
    trials = [make_trial(n, Policy.of({"a": scheme}), 0.9, 0.5, 100) for n, scheme in enumerate((FLOAT32, W8, W4))]
    # No table, and one without this layer's scheme: nothing is said of the metric.
    for table in (None, Sensitivity(weights={}, activations={})):
        assert [entry.objective for entry in proxy_truths(problem, trials, table)] == ["latency", "size"]
    latency, _ = proxy_truths(problem, trials, None)
    assert latency.spearman is None  # all are as fast
    assert proxy_truths(problem, trials[:2], None) == ()
