from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from autoq.core.objectives import OBJECTIVES, constraint_violations, losses, trial_values
from autoq.core.policy import Policy
from autoq.core.result import Failure, Trial
from autoq.core.scheme import FLOAT32, Scheme
from autoq.search.problem import Problem
from tests.search.problems import BASELINE, SCHEMES, make_problem, make_trial


def scheme(text: str) -> Scheme:
    return Scheme.parse(text)


def front_of(problem: Problem, trials: list[Trial]) -> list[Trial]:
    """As the search makes it, trial by trial."""
    front = problem.empty_front()
    there: list[Trial] = []
    for trial in trials:
        lost = problem.add_to_front(front, trial)
        there = [each for each in [*there, trial] if each not in lost]
    assert sorted(there, key=lambda each: each.number) == sorted(front.items, key=lambda each: each.number)
    return front.items


def random_trials(count: int, seed: int, *, steps: int = 4) -> list[Trial]:
    """Coarse values, so that ties and duplicates occur."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        policy = Policy.of({f"l{i}": rng.choice([scheme("w8"), scheme("w4"), FLOAT32]) for i in range(8)})
        trial = make_trial(
            number,
            policy,
            metric=0.8 + rng.randrange(steps) / 20,
            ratio=0.4 + rng.randrange(steps) / 5,
            size=300 + 300 * rng.randrange(steps),
            memory=4000 + 500 * rng.randrange(steps),
        )
        if rng.random() < 0.1:
            trial = dataclasses.replace(trial, metric=None, failure=Failure(reason="load", message="no"))
        found.append(trial)
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("objectives", [("metric", "latency", "size"), ("metric", "size"), OBJECTIVES, ("latency",)])
@pytest.mark.parametrize("bounds", [{}, {"max_metric_drop": 0.05, "max_size_ratio": 0.9}])
def test_front_is_what_brute_force_finds(seed: int, objectives: tuple, bounds: dict) -> None:  # type: ignore[type-arg]
    problem = make_problem(objectives=objectives, **bounds)
    trials = random_trials(60, seed)

    def feasible(trial: Trial) -> bool:
        return trial.failure is None and not constraint_violations(
            trial_values(trial), problem.constraints, BASELINE, "maximize"
        )

    values = {t.number: losses(trial_values(t), objectives, "maximize") for t in trials if feasible(t)}
    own = losses(BASELINE, objectives, "maximize")

    def beaten(row: tuple[float, ...]) -> bool:
        others = [own, *values.values()]
        return row == own or any(
            all(a <= b for a, b in zip(other, row, strict=True)) and other != row for other in others
        )

    expected = {row for row in values.values() if not beaten(row)}
    front = front_of(problem, trials)
    assert [values[trial.number] for trial in front] == sorted(expected)


def test_a_minimised_metric_turns_the_front_round() -> None:
    policies = [Policy.of({"a": scheme("w8")}), Policy.of({"a": scheme("w4")})]
    trials = [make_trial(0, policies[0], 0.5, 0.5, 500), make_trial(1, policies[1], 0.7, 0.5, 500)]
    assert front_of(make_problem(objectives=("metric",)), trials) == []
    assert front_of(make_problem(objectives=("metric",), direction="minimize"), trials) == [trials[0]]


def test_nearest_miss_names_the_bound_and_the_trial() -> None:
    problem = make_problem(max_metric_drop=0.01, max_latency_ratio=0.5)
    near = make_trial(0, Policy.of({"a": scheme("w8")}), metric=0.88, ratio=0.4, size=100)
    far = make_trial(1, Policy.of({"a": scheme("w4")}), metric=0.5, ratio=0.2, size=100)
    text = problem.nearest_miss([far, near])
    assert text == (
        f"max_metric_drop binds: no trial keeps max_metric_drop 0.01 (the nearest, {near.id} (seed:test), loses 0.02, "
        "0.01 too much)"
    )
    together = make_problem(max_metric_drop=0.03, max_latency_ratio=0.3).nearest_miss([far, near])
    assert together == (
        "max_metric_drop and max_latency_ratio bind: no trial keeps max_metric_drop 0.03 "
        f"(the nearest, {far.id} (seed:test), loses 0.4, 0.37 too much) and max_latency_ratio 0.3 "
        f"(the nearest, {near.id} (seed:test), has the latency ratio 0.4, 0.1 too much)"
    )


def test_nearest_miss_where_nothing_is_broken_or_complete() -> None:
    failed = Trial(
        number=0, policy=Policy.of({"a": FLOAT32}), origin="x", failure=Failure(reason="build", message="no")
    )
    worse = make_trial(1, Policy.of({"a": scheme("w8")}), metric=0.9, ratio=1.2, size=2000)
    assert make_problem().nearest_miss([]) == "no trial was completed"
    assert make_problem().nearest_miss([failed]) == "no trial was completed"
    assert "dominated by float32 itself" in make_problem().nearest_miss([failed, worse])
    # One trial breaks a bound, another keeps all but gains nothing: no bound is to blame.
    broken = make_trial(2, Policy.of({"a": scheme("w4")}), metric=0.5, ratio=0.5, size=100)
    assert "dominated by float32 itself" in make_problem(max_metric_drop=0.1).nearest_miss([broken, worse])


def test_a_seed_becomes_the_nearest_scheme_that_a_layer_can_have() -> None:
    problem = make_problem(
        ("plain", "weights only", "nothing", "product"),
        own={
            "weights only": [scheme(text) for text in ("float32", "float16", "w8", "w4-gptq")],
            "nothing": [FLOAT32],
            "product": [*SCHEMES, scheme("w8a8@dynamic")],
        },
        seeds=[scheme(text) for text in ("float32", "w8a8@minmax", "w4a8@mse", "w4", "w8a8@dynamic")],
    )
    seeds = problem.uniform_seeds()
    # float32 is the baseline, and a layer without a choice is no parameter.
    # What only one of three layers can have is no seed of all.
    assert [name for name, _ in seeds] == ["w8a8@minmax", "w4a8@mse", "w4"]
    chosen = {name: {layer: str(found) for layer, found in choice.items()} for name, choice in seeds}
    assert chosen["w8a8@minmax"] == {"plain": "w8a8@minmax", "weights only": "w8", "product": "w8a8@minmax"}
    assert chosen["w4a8@mse"] == {"plain": "w4a8@mse", "weights only": "w4-gptq", "product": "w4a8@mse"}
    assert chosen["w4"] == {"plain": "w4", "weights only": "w4-gptq", "product": "w4"}


def test_integer_activations_with_another_range_are_nearer_than_float_ones() -> None:
    dynamic = [scheme(text) for text in ("float32", "w8", "w8a8@dynamic")]
    problem = make_problem(("a", "b", "c"), own={"c": dynamic}, seeds=[scheme("w8a8@minmax")])
    ((_, chosen),) = problem.uniform_seeds()
    assert {name: str(found) for name, found in chosen.items()} == {
        "a": "w8a8@minmax",
        "b": "w8a8@minmax",
        "c": "w8a8@dynamic",
    }


def test_complete_gives_tied_layers_their_owners_scheme_and_the_others_their_only_one() -> None:
    problem = make_problem(
        ("a", "only", "twin"), tied={"twin": "a"}, own={"only": [scheme("w8")], "twin": [scheme("w4")]}
    )
    assert list(problem.choices) == ["a"]
    policy = problem.complete({"a": scheme("w4a8@mse")})
    assert policy.to_text() == {"a": "w4a8@mse", "only": "w8", "twin": "w4a8@mse"}


def test_proposer_losses_do_not_depend_on_measurements() -> None:
    problem = make_problem(objectives=OBJECTIVES, max_metric_drop=0.01, max_peak_memory_ratio=0.5)
    trial = make_trial(0, Policy.of({"a": scheme("w8")}), metric=0.87, ratio=0.7, size=800, memory=4000)
    assert trial.latency is not None
    again = dataclasses.replace(trial, latency=dataclasses.replace(trial.latency, ratio=0.9), peak_memory_bytes=9999)
    assert problem.proposer_losses(trial) == problem.proposer_losses(again)
    found, excess = problem.proposer_losses(trial)
    assert found == (-0.87, 0.7, 800.0, 800.0)
    # 0.02 of the metric, and 0.8 - 0.5 of the size, which stands for the memory.
    assert excess == pytest.approx(0.02 + 0.3)


def test_modelled_latency_weighs_the_profiles_costs_by_macs() -> None:
    problem = make_problem(("a", "b"))
    uniform = {
        text: problem.modelled_latency(Policy.uniform(["a", "b"], scheme(text))) for text in ("float32", "w8a8@minmax")
    }
    assert uniform["float32"] == 1.0
    assert 0 < uniform["w8a8@minmax"] < 1
    half = problem.modelled_latency(Policy.of({"a": FLOAT32, "b": scheme("w8a8@minmax")}))
    assert half == pytest.approx((1 + uniform["w8a8@minmax"]) / 2)


def test_schemes_holds_whatever_canonicalization_can_give() -> None:
    problem = make_problem(schemes=[scheme(text) for text in ("w8", "w8a8@minmax", "w4a8@mse")])
    texts = {str(found) for found in problem.schemes()}
    bits, calibrations = ("w8a8", "w4a8"), ("minmax", "mse")
    assert {f"{a}@{b}" for a, b in itertools.product(bits, calibrations)} | {"w8", "float32"} == texts
