"""The predicted front, against brute force on problems small enough for it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.numerics.pareto import hypervolume, non_dominated
from autoq.search.candidates import Candidates
from autoq.search.seeds import knapsack_seeds, opening, opening_seeds, predicted_front
from autoq.search.sensitivity import Sensitivity, disturbance, noise_power, probe_rows, probes, sensitivity
from autoq.spec.hardware import load_profile

SCHEMES = tuple(Scheme.parse(text) for text in ("float32", "w8", "w4", "w8a8@minmax", "w4a8@minmax"))
PROFILE = load_profile("cpu-x86-onnxruntime", Path())


def layer(index: int, side: int = 8) -> Layer:
    return Layer(
        name=f"l{index}",
        op_type="Conv",
        node=f"n{index}",
        weight=f"w{index}",
        weight_index=1,
        weight_shape=(side, side, 3, 3),
        channel_axis=0,
        input=f"x{index}",
        output=f"y{index}",
        macs=side * side * 9 * 16,
    )


def problem(noises: list[tuple[float, float, float]]) -> tuple[list[Candidates], Sensitivity]:
    """Layers with the given noise of w8, of w4, and of 8-bit activations."""
    entries = [Candidates(layer=layer(i, 8 * (i + 1)), schemes=SCHEMES) for i in range(len(noises))]
    weights, activations = {}, {}
    for entry, (w8, w4, a8) in zip(entries, noises, strict=True):
        weights[entry.layer.name, SCHEMES[1].weight] = w8
        weights[entry.layer.name, SCHEMES[2].weight] = w4
        activations[entry.layer.name, SCHEMES[3].activation] = a8
    return entries, Sensitivity(weights=weights, activations=activations)


def totals(entries: list[Candidates], table: Sensitivity, choice: dict[str, Scheme]) -> np.ndarray:
    rows = []
    for entry in entries:
        scheme, one = choice[entry.layer.name], entry.layer
        scales = 0 if scheme == FLOAT32 else 4 * one.channels
        size = one.parameters * scheme.weight_bits / 8 + scales
        rows.append([table.noise(one.name, scheme), size, one.macs * PROFILE.cost("Conv", scheme)])
    return np.sum(rows, axis=0)


noise = st.floats(1e-6, 1.0)


@given(st.lists(st.tuples(noise, noise, noise), min_size=1, max_size=3))
def test_no_choice_at_all_dominates_a_seed(noises: list[tuple[float, float, float]]) -> None:
    entries, table = problem(noises)
    seeds = knapsack_seeds(entries, table, PROFILE, 50)
    names = [entry.layer.name for entry in entries]
    every = [
        totals(entries, table, dict(zip(names, schemes, strict=True)))
        for schemes in itertools.product(SCHEMES, repeat=len(names))
    ]
    assert seeds
    for seed in seeds:
        own = totals(entries, table, seed)
        assert not any((other <= own).all() and (other < own * (1 - 1e-9)).any() for other in every)


def test_the_ends_of_the_front_are_among_the_seeds() -> None:
    entries, table = problem([(1e-4, 1e-2, 1e-3), (1e-5, 1e-3, 1e-2), (1e-4, 1e-1, 1e-3)])
    seeds = knapsack_seeds(entries, table, PROFILE, 50)
    # float32 itself is the baseline and no seed; the next best changes least.
    assert not any(all(scheme == FLOAT32 for scheme in seed.values()) for seed in seeds)
    assert any(sum(scheme != FLOAT32 for scheme in seed.values()) == 1 for seed in seeds)
    assert any(all(str(scheme) == "w4a8@minmax" for scheme in seed.values()) for seed in seeds)


def test_the_sensitive_layer_keeps_more_bits() -> None:
    entries, table = problem([(1e-6, 1e-5, 1e-4), (1e-6, 0.2, 1e-4)])
    seeds = [seed for _, seed in opening_seeds(entries, table, PROFILE, [], 50)[0]]
    # A layer that tolerates 4 bits has them before one that does not.
    at_four = [seed for seed in seeds if seed["l1"].weight_bits == 4]
    assert at_four
    assert all(seed["l0"].weight_bits == 4 for seed in at_four)
    assert any(seed["l0"].weight_bits == 4 and seed["l1"].weight_bits > 4 for seed in seeds)


def test_fewer_seeds_are_the_first_of_more_and_all_differ() -> None:
    entries, table = problem([(1e-4, 1e-2, 1e-3), (1e-5, 1e-3, 1e-2), (1e-4, 1e-1, 1e-3)])
    many = knapsack_seeds(entries, table, PROFILE, 12)
    assert many[:4] == knapsack_seeds(entries, table, PROFILE, 4)
    assert len({tuple(sorted((k, str(v)) for k, v in seed.items())) for seed in many}) == len(many)


def test_a_scheme_whose_probe_failed_is_in_no_seed() -> None:
    entries, table = problem([(float("inf"), 1e-3, 1e-3), (1e-4, 1e-2, float("inf"))])
    seeds = knapsack_seeds(entries, table, PROFILE, 50)
    assert seeds
    assert all(str(seed["l0"]) != "w8" and not str(seed["l1"]).endswith("minmax") for seed in seeds)


def test_probes_take_one_layer_at_a_time_and_fill_the_table() -> None:
    entries = [Candidates(layer=layer(i), schemes=SCHEMES) for i in range(2)]
    found = probes(entries, lambda policy: policy)
    # w8 and w4 weight-only, and the activations with the finest weights, for each of two layers
    assert [str(probe.policy[probe.layer]) for probe in found] == ["w8", "w4", "w8a8@minmax"] * 2
    for probe in found:
        others = [scheme for name, scheme in probe.policy.items_ if name != probe.layer]
        assert others == [FLOAT32]
    table = sensitivity(entries, found, [0.1, 0.2, 0.5, 0.01, None, 0.03])
    assert table.noise("l0", Scheme.parse("w4a8@minmax")) == pytest.approx(0.7)
    assert table.noise("l1", Scheme.parse("w4")) == float("inf")
    assert table.noise("l1", FLOAT32) == 0.0
    assert table.noise("l1", Scheme.parse("float16")) == 0.0


def test_weights_that_have_no_scheme_alone_are_probed_alone() -> None:
    """So that the noise of 8-bit activations, which may be the larger, does not hide theirs."""
    schemes = tuple(map(Scheme.parse, ("w7a8@mse", "w3a8-gptq@mse")))
    found = probes([Candidates(layer=layer(0), schemes=schemes)], lambda policy: policy)
    assert [probe.policy["l0"].activation is None for probe in found] == [True, True, False]
    assert [probe.weight and probe.weight.bits for probe in found] == [7, 3, None]
    assert str(found[2].policy["l0"]) == "w7a8@mse"


def test_answers_that_change_come_on_top_of_the_noise() -> None:
    before, after = {"y": np.array([[1.0, 0.0], [0.0, 1.0]])}, {"y": np.array([[1.0, 0.0], [2.0, 1.0]])}
    assert disturbance(None)(after, before) == noise_power(after, before) == pytest.approx(2.0)
    assert disturbance(("y", -1))(after, before) == pytest.approx(2.0 + 0.5 / 4)
    broken = {"y": np.full((2, 2), np.nan)}
    assert disturbance(("y", -1))(broken, before) is None


def test_no_layer_to_choose_for_gives_no_probe() -> None:
    fixed = Candidates(layer=layer(0), schemes=(FLOAT32,))
    assert probes([fixed], lambda policy: policy) == []
    assert Policy.of({"l0": FLOAT32}).to_text() == {"l0": "float32"}


@pytest.mark.parametrize(("macs", "rows"), [(0, 64), (10**6, 64), (25 * 10**9, 30), (10**15, 16)])
def test_large_models_are_probed_on_fewer_rows(macs: int, rows: int) -> None:
    """Four probes of 30 rows of 25e9 multiply-accumulates are the 3e12 that there may be."""
    entry = Candidates(layer=dataclasses.replace(layer(0), macs=macs), schemes=(FLOAT32, *SCHEMES[1:3]))
    found = probes([entry], lambda policy: policy)
    assert probe_rows([*found, *found], [entry]) == rows


def test_each_next_point_widens_the_predicted_front_most() -> None:
    """Against the exact hypervolume; random directions come near enough to it for points that differ clearly."""
    rng = np.random.default_rng(0)
    falling = [[0.0, 8.0, 2.0], [0.02, 2.0, 1.0], [0.1, 1.0, 0.5]]
    costs = [np.array(falling) * rng.uniform(0.5, 2, (3, 3)) * rng.uniform(0.2, 2, 3) for _ in range(4)]
    points = predicted_front(costs, 6)
    assert len(set(points)) == len(points) == 6 and predicted_front(costs, 3) == points[:3]
    every = list(itertools.product(range(3), repeat=4))
    losses = {point: sum(cost[i] for cost, i in zip(costs, point, strict=True)) for point in every}
    reference = np.array([0.3, *np.sum([cost[:, 1:].max(axis=0) for cost in costs], axis=0)])
    for count in range(1, 5):
        best = max(hypervolume([losses[p] for p in (*points[: count - 1], other)], reference) for other in every)
        assert hypervolume([losses[p] for p in points[:count]], reference) > 0.93 * best


def test_no_seed_is_in_a_dent_that_brute_force_finds_and_none_adds_too_little() -> None:
    """Unlike the hull alone, the joins have every point of a small front; and a share of gain ends the list."""
    rng = np.random.default_rng(4)
    costs = [rng.uniform(0.0, [0.02, 1.0, 1.0], (3, 3)) for _ in range(4)]
    every = list(itertools.product(range(3), repeat=4))
    losses = np.array([sum(cost[i] for cost, i in zip(costs, point, strict=True)) for point in every])
    front = {point for point, keep in zip(every, non_dominated(losses), strict=True) if keep}
    assert set(predicted_front(costs, len(every))) == front
    few, left = opening(costs, [], len(every))
    assert 1 < len(few) < len(front) and not left
    assert few == predicted_front(costs, len(few))
    reference = np.array([0.3, *np.sum([cost[:, 1:].max(axis=0) for cost in costs], axis=0)])
    volumes = [hypervolume(losses[[every.index(p) for p in few[:k]]], reference) for k in range(1, len(few) + 1)]
    assert all(later > 1.001 * before for before, later in itertools.pairwise(volumes))


def test_joins_of_many_layers_keep_a_grid_and_near_enough_the_front() -> None:
    rng = np.random.default_rng(5)
    falling = np.array([[0.0, 8.0, 3.0], [0.001, 4.0, 2.0], [0.004, 2.0, 1.5], [0.02, 1.0, 1.0]])
    costs = [falling * rng.uniform(0.3, 3, (4, 3)) for _ in range(30)]
    points = predicted_front(costs, 12)
    assert len(set(points)) == 12


def test_uniform_seeds_come_first_where_they_are_worth_it() -> None:
    entries, table = problem([(1e-6, 1e-5, 1e-4), (1e-6, 0.2, 1e-4)])
    uniform = [(str(s), {"l0": s, "l1": s}) for s in SCHEMES if s != FLOAT32]
    first, later = opening_seeds(entries, table, PROFILE, uniform, 3)
    names = [name for name, _ in first]
    assert [name for name in names if name.startswith("predicted")] == ["predicted front 1", "predicted front 2"][
        : sum(name.startswith("predicted") for name in names)
    ]
    assert sum(name.startswith("predicted") for name in names) <= 3
    assert {name for name, _ in later} | set(names) >= {name for name, _ in uniform}
    assert not {name for name, _ in later} & set(names)
    for name, seed in first:  # a seed that happens to be uniform has the name of its scheme
        assert name.startswith("predicted") != (len({str(s) for s in seed.values()}) == 1)


def test_points_beyond_all_worth_are_spread_all_the_same() -> None:
    falling = np.array([[5.0, 8.0, 2.0], [9.0, 4.0, 1.0], [20.0, 1.0, 0.5]])
    costs = [falling * scale for scale in (1.0, [3.0, 1.0, 2.0], [1.0, 2.0, 5.0])]
    points = predicted_front(costs, 4)
    assert len(set(points)) == 4
