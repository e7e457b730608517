"""The sampler, in Optuna studies that know nothing of autoq, and its choice of points."""

from __future__ import annotations

import itertools
import pickle
import threading
from pathlib import Path

import numpy as np
import optuna
import pytest

from autoq.numerics.pareto import hypervolume
from autoq.search.choose import MOST_POINTS, Space, learn, nearest_to_front, propose, random_point, settled
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


def suggest(trial: optuna.Trial, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(trial.suggest_categorical(f"p{i}", list(range(size))) for i, size in enumerate(sizes))


@pytest.mark.parametrize("pending", [1, 4, 12])
@pytest.mark.parametrize("sizes", [(3, 4), (12,), (2, 3, 2)])
def test_nothing_is_proposed_twice_until_all_was(sizes: tuple[int, ...], pending: int) -> None:
    """Whatever came of it: a third fails, a third is pruned. At first so many are out that nothing is known yet."""
    study = optuna.create_study(sampler=FrontSampler(seed=0))
    points = []
    for start in range(0, 24, pending):
        asked = [study.ask() for _ in range(pending)]
        points += [suggest(trial, sizes) for trial in asked]
        for trial in asked:
            states = (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED, None)
            state = states[trial.number % 3]
            study.tell(trial, None if state else float(sum(points[trial.number])), state=state)
        if start + pending == 12:
            assert set(points) == set(itertools.product(*map(range, sizes)))
    # An exhausted space gives what there is, again and again.
    assert len(points) == 24 and all((np.array(point) < sizes).all() for point in points)


def test_threads_of_one_study_differ_from_the_first_trial_on() -> None:
    together = threading.Barrier(4)

    def objective(trial: optuna.Trial) -> float:
        if trial.number < 4:
            together.wait(10)
        return float(sum(suggest(trial, (3, 3, 3))))

    study = optuna.create_study(sampler=FrontSampler(seed=3))
    study.optimize(objective, n_trials=26, n_jobs=4)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 26


def test_a_space_of_one_point_and_one_without_parameters() -> None:
    for sizes in ((1, 1), ()):
        study = optuna.create_study(sampler=FrontSampler(seed=0))
        study.optimize(lambda trial, sizes=sizes: float(len(suggest(trial, sizes))), n_trials=6)  # type: ignore[misc]
        assert {tuple(trial.params.values()) for trial in study.trials} == {(0,) * len(sizes)}


def test_failed_and_pruned_trials_teach_nothing() -> None:
    """A study in which bad points fail goes on as one from which they are merely taken."""
    taught, rng = [], np.random.default_rng(0)
    losses = {
        point: float(value) for point, value in zip(itertools.product(range(3), repeat=4), rng.random(81), strict=True)
    }
    for end in (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED):
        study = optuna.create_study(sampler=FrontSampler(seed=0))
        for _ in range(30):
            trial = study.ask()
            point = suggest(trial, (3, 3, 3, 3))
            study.tell(trial, *([None, end] if losses[point] > 0.7 else [losses[point]]))
        taught.append([trial.params for trial in study.trials])
        assert len({tuple(params.values()) for params in taught[-1]}) == 30
        assert sum(trial.state == end for trial in study.trials) > 2
    assert taught[0] == taught[1]


def test_a_pickled_sampler_goes_on_as_it_would_have() -> None:
    losses, proxies = truth(1)
    table = {f"layer{i}": proxies[i].tolist() for i in range(LAYERS)}

    def run(study: optuna.Study, count: int) -> None:
        for _ in range(count):
            trial = study.ask()
            codes = [CHOICES.index(trial.suggest_categorical(f"layer{i}", CHOICES)) for i in range(LAYERS)]
            study.tell(trial, list(losses[int((codes == ALL).all(axis=1).argmax())]))

    storage = optuna.storages.InMemoryStorage()
    whole, halves = (
        optuna.create_study(directions=["minimize"] * 3, sampler=FrontSampler(proxies=table, seed=2), storage=each)
        for each in (None, storage)
    )
    run(whole, 20)
    run(halves, 9)
    sampler = pickle.loads(pickle.dumps(halves.sampler))
    run(optuna.load_study(study_name=halves.study_name, storage=storage, sampler=sampler), 11)
    assert [trial.params for trial in halves.trials] == [trial.params for trial in whole.trials]


def test_one_sampler_may_serve_two_studies() -> None:
    sampler = FrontSampler(seed=0)
    first, second = (optuna.create_study(sampler=sampler) for _ in range(2))
    for _ in range(10):
        for study, sizes in ((first, (2, 3, 4)), (second, (5, 4))):
            trial = study.ask()
            study.tell(trial, float(sum(suggest(trial, sizes))))
    assert len({tuple(trial.params.values()) for trial in first.trials}) == 10
    assert len({tuple(trial.params.values()) for trial in second.trials}) == 10


def test_proxies_and_references_that_do_not_fit_are_refused() -> None:
    for given, message in (
        ({"proxies": {"p0": [[1.0], [2.0]]}}, r"'p0' have the shape \(2, 1\); it has 3 choices, and the study 1 obj"),
        ({"reference": [1.0, 2.0]}, "the reference has 2 values, the study 1 objectives"),
    ):
        study = optuna.create_study(sampler=FrontSampler(**given))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            study.optimize(lambda trial: float(sum(suggest(trial, (3, 3)))), n_trials=8)


def test_weeding_keeps_what_is_near_the_front() -> None:
    rng = np.random.default_rng(0)
    front = np.stack([np.linspace(0, 1, 20), np.linspace(1, 0, 20)], axis=1)
    losses = np.concatenate([rng.random((600, 2)) + 1, front])
    kept = nearest_to_front(losses, np.array([3.0, 3.0]))
    assert len(kept) == MOST_POINTS and (np.diff(kept) > 0).all() and set(range(600, 620)) <= set(kept)
    assert settled(MOST_POINTS) == 0 and settled(620) == 608
    left = np.setdiff1d(np.arange(600), kept)
    # How much better a point must get in both losses to be on the front, a straight line here.
    behind = (losses.sum(axis=1) - 1) / 2
    assert np.mean(behind[left]) > np.mean(behind[np.intersect1d(kept, np.arange(600))])


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


def test_the_example_of_the_documentation(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (repo_root / "docs" / "search-spaces.md").read_text(encoding="utf-8")
    code = page.split("\n## The sampler\n")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(compile(code, "docs/search-spaces.md", "exec"), names)
    study = names["study"]
    assert isinstance(study, optuna.Study) and len(study.trials) == 30
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 30
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(study.best_trials) > 5
    # Of 81 points, 30 trials have nearly all that the front is worth.
    every = [names["objective"](optuna.trial.FixedTrial(dict(zip(names["WEIGHTS"], bits, strict=True))))  # type: ignore
             for bits in itertools.product((8, 4, 2), repeat=4)]  # fmt: skip
    reference = np.array([0.5, 66_000])
    found = hypervolume([trial.values for trial in study.trials], reference)
    assert found > 0.99 * hypervolume(every, reference)
