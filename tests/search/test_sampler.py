"""The sampler, in Optuna studies that know nothing of autoq, and its choice of points."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import optuna
import pytest

from autoq.numerics.pareto import hypervolume
from autoq.search.choose import Space, learn, propose, random_point
from autoq.search.sampler import FrontSampler

LAYERS, CHOICES = 6, ("a", "b", "c")
ALL = np.array(list(itertools.product(range(3), repeat=LAYERS)), np.int16)


def truth(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses ``[729, 3]`` of every point, with interactions and noise, and the proxies ``[6, 3, 3]`` they come from."""
    rng = np.random.default_rng(seed)
    noise = np.array([1e-4, 0.02, 0.3]) * np.exp(rng.normal(0, 0.7, (LAYERS, 1)))
    time = np.array([0.5, 1.0, 0.5]) * rng.dirichlet(np.ones(LAYERS))[:, None]
    size = np.array([8.0, 8.0, 2.0]) * rng.dirichlet(np.ones(LAYERS))[:, None]
    proxies = np.stack([noise, time, size], axis=-1)
    sums = proxies[np.arange(LAYERS), ALL].sum(axis=1)
    boundaries = ((ALL == 1)[:, 1:] != (ALL == 1)[:, :-1]).sum(axis=1)
    drop = 1 - np.exp(-sums[:, 0] * np.exp(rng.normal(0, 0.2, len(ALL)))) + rng.normal(0, 0.002, len(ALL))
    return np.stack([drop, sums[:, 1] + 0.02 * boundaries, sums[:, 2]], axis=1), proxies


def ask_and_tell(sampler: optuna.samplers.BaseSampler, losses: np.ndarray, count: int) -> optuna.Study:
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    for choice in CHOICES:  # as a search does: the uniform points first
        study.enqueue_trial({f"layer{i}": choice for i in range(LAYERS)})
    for _ in range(count):
        trial = study.ask()
        codes = [CHOICES.index(trial.suggest_categorical(f"layer{i}", CHOICES)) for i in range(LAYERS)]
        study.tell(trial, list(losses[int((codes == ALL).all(axis=1).argmax())]))
    return study


def reached(study: optuna.Study, losses: np.ndarray) -> float:
    reference = [0.5, *losses.max(axis=0)[1:]]
    return hypervolume([trial.values for trial in study.trials], reference) / hypervolume(losses, reference)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_ahead_of_optunas_own(seed: int) -> None:
    losses, proxies = truth(seed)
    table = {f"layer{i}": proxies[i].tolist() for i in range(LAYERS)}
    reference = [0.5, *losses.max(axis=0)[1:]]
    own = reached(ask_and_tell(FrontSampler(proxies=table, reference=reference, seed=seed), losses, 30), losses)
    blind = reached(ask_and_tell(FrontSampler(reference=reference, seed=seed), losses, 30), losses)
    tpe = reached(ask_and_tell(optuna.samplers.TPESampler(multivariate=True, seed=seed), losses, 30), losses)
    assert own > 0.9
    assert own > blind and own > tpe


def test_nothing_is_proposed_twice_until_all_was() -> None:
    losses = np.add.outer(np.arange(3.0), [0.0, 0.1, 0.2]).reshape(-1)
    study = optuna.create_study(sampler=FrontSampler(seed=0))
    for _ in range(12):
        trial = study.ask()
        code = 3 * trial.suggest_categorical("x", [0, 1, 2]) + trial.suggest_categorical("y", [0, 1, 2])
        study.tell(trial, losses[code])
    points = [tuple(trial.params.values()) for trial in study.trials]
    # The first trial is asked before the study has any parameters.
    assert len(set(points[:10])) == 9
    assert study.best_params == {"x": 0, "y": 0}


def test_a_study_that_is_resumed_goes_on_as_it_would_have(tmp_path: Path) -> None:
    def run(storage: str | None, parts: list[int]) -> list[dict[str, str]]:
        for count in parts:
            study = optuna.create_study(
                directions=["maximize", "minimize"],
                sampler=FrontSampler(seed=5),
                storage=storage,
                study_name="s",
                load_if_exists=True,
            )
            for _ in range(count):
                trial = study.ask()
                codes = [CHOICES.index(trial.suggest_categorical(f"p{i}", CHOICES)) for i in range(4)]
                study.tell(trial, [float(np.dot(codes, [1, 2, 3, 4])), float(sum(codes))])
        return [trial.params for trial in study.trials]

    assert run(None, [12]) == run(f"sqlite:///{tmp_path}/study.db", [7, 5])


def test_infeasible_points_are_learned() -> None:
    study = optuna.create_study(sampler=FrontSampler(seed=1))
    for _ in range(40):
        trial = study.ask()
        x = [trial.suggest_categorical(f"p{i}", [0, 1, 2]) for i in range(5)]
        trial.set_constraint("c", 1.0 if x[0] == 0 else -1.0)
        study.tell(trial, float(sum(x)))
    late = [trial.params["p0"] for trial in study.trials[15:]]
    assert late.count(0) < len(late) / 4
    feasible = [trial.value for trial in study.trials if trial.params["p0"] != 0]
    assert min(value for value in feasible if value is not None) == 1.0


def test_other_parameters_are_refused() -> None:
    study = optuna.create_study(sampler=FrontSampler(seed=0))
    with pytest.raises(NotImplementedError, match="'x' is not categorical"):
        study.ask().suggest_float("x", 0, 1)


def test_pending_points_are_not_proposed_and_make_their_neighbours_worth_less() -> None:
    losses, proxies = truth(4)
    space, reference = Space([3] * LAYERS, proxies), np.array([0.5, *losses.max(axis=0)[1:]])
    learned = learn(space, ALL[::30], losses[::30], reference, np.zeros(len(ALL[::30])))
    rng = np.random.default_rng
    first = propose(learned, np.zeros((0, LAYERS), np.int16), set(), rng(0))
    assert first is not None
    second = propose(learned, first[None], {first.tobytes()}, rng(0))
    assert second is not None and not (first == second).all()


def test_parameters_of_different_sizes() -> None:
    rng = np.random.default_rng(0)
    space = Space([2, 5, 3], rng.random((3, 5, 2)))
    taken: set[bytes] = set()
    rows = []
    for _ in range(30):
        row = random_point(space, taken, rng)
        assert row is not None
        taken.add(row.tobytes())
        rows.append(row)
    codes = np.array(rows)
    assert (codes < [2, 5, 3]).all() and random_point(space, taken, rng) is None
    learned = learn(space, codes[:10], rng.random((10, 2)), np.ones(2), np.zeros(10))
    found = propose(learned, codes[10:12], {row.tobytes() for row in codes[:12]}, rng)
    assert found is not None and (found < [2, 5, 3]).all() and found.tobytes() not in {r.tobytes() for r in codes[:12]}
