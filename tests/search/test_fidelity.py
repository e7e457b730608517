from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from autoq.core.result import Pruned
from autoq.runtime.metric import Metric
from autoq.search.fidelity import LEVEL, Hurdle, Steps, plan_steps, planned_looks, score_in_steps
from autoq.search.stopping import Guide
from tests.search.problems import make_problem, make_trial

ROWS = 1600
ACCURACY = Metric.from_spec({"name": "accuracy"}, ".")
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class Model:
    """Looks its answers up; ``rows`` counts those that it was asked for, ``sizes`` how many at once."""

    def __init__(self, answers: np.ndarray) -> None:
        self.answers, self.rows = answers, 0
        self.sizes: set[int] = set()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.rows += len(inputs["x"])
        self.sizes.add(len(inputs["x"]))
        return {"y": self.answers[inputs["x"]]}


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[labels]


def spoilt(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """``labels`` with exactly this share of them wrong."""
    rng = np.random.default_rng(seed)
    out = labels.copy()
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    out[rows] = (out[rows] + 1 + rng.integers(9, size=len(rows))) % 10
    return out


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(10, size=ROWS)


def steps_for(truth: np.ndarray, float32: np.ndarray, seed: int = 0) -> Steps:
    steps = plan_steps(ACCURACY, {"y": one_hot(float32)}, truth, group=1, chunk=100, seed=seed)
    assert steps is not None
    return steps


def scored(model: Model, steps: Steps, truth: np.ndarray, most: float) -> tuple[dict[str, np.ndarray], Pruned | None]:
    return score_in_steps(model, ACCURACY, {"x": np.arange(len(truth))}, truth, steps, (most, "trial a loses"))


@pytest.mark.parametrize(
    ("rows", "group", "chunk", "looks"),
    [
        (2000, 1, 100, (100, 200, 500, 1000)),
        (1200, 2, 100, (300, 600)),
        (450, 1, 100, (100, 200)),
        (4000, 1, 32, (224, 480, 992, 1984)),
        (100_000, 1, 100, (6200, 12_500, 25_000, 50_000)),
        (390, 1, 10, ()),  # one look alone is not worth its trouble
        (2000, 1, 1500, ()),
        (10, 1, 100, ()),
    ],
)
def test_when_to_look(rows: int, group: int, chunk: int, looks: tuple[int, ...]) -> None:
    assert planned_looks(rows, group, chunk) == looks


def test_rows_are_scored_in_a_seeded_order_of_whole_groups() -> None:
    values = np.random.default_rng(1).normal(size=1200)
    metric = Metric.from_spec({"name": "r2"}, ".")
    first, again, other = (
        plan_steps(metric, {"y": values}, values + 1, group=3, chunk=25, seed=seed) for seed in (5, 5, 6)
    )
    assert first is not None and again is not None and other is not None
    assert sorted(first.order) == list(range(1200))
    groups = first.order.reshape(-1, 3)
    assert (groups[:, 0] % 3 == 0).all() and (np.diff(groups, axis=1) == 1).all()
    assert (first.order == again.order).all() and (first.order != other.order).any()
    assert all(look.rows % 75 == 0 for look in first.looks)
    assert first.hits is None


def test_what_is_not_dropped_is_scored_as_ever(truth: np.ndarray) -> None:
    steps = steps_for(truth, spoilt(truth, 0.1, 1))
    for most in (float("inf"), 0.5):
        model = Model(one_hot(spoilt(truth, 0.2, 2)))
        outputs, pruned = scored(model, steps, truth, most)
        assert pruned is None and model.rows == ROWS and model.sizes == {100}
        np.testing.assert_array_equal(outputs["y"], model.answers)


def test_what_is_hopeless_is_dropped_at_the_first_look(truth: np.ndarray) -> None:
    float32 = spoilt(truth, 0.1, 1)
    steps = steps_for(truth, float32)
    model = Model(one_hot(spoilt(truth, 0.6, 2)))
    outputs, pruned = scored(model, steps, truth, 0.02)
    assert outputs == {} and pruned is not None
    assert model.rows == pruned.rows == 100 and pruned.of == ROWS
    # By hand: float32's accuracy on all rows, less what these hundred lose.
    rows = steps.order[:100]
    lost = (float32[rows] == truth[rows]).mean() - (model.answers.argmax(1)[rows] == truth[rows]).mean()
    assert pruned.metric == pytest.approx(0.9 - lost)
    assert pruned.metric < pruned.bound < 0.88
    assert pruned.why.startswith("after 100 of 1600 rows it loses 0.") and "trial a loses 0.02" in pruned.why


def test_candidates_are_dropped_wrongly_less_often_than_the_level(truth: np.ndarray) -> None:
    """Against the hardest hurdle: what the candidate itself loses on all rows."""
    wrong, runs = 0, 150
    for seed in range(runs):
        steps = steps_for(truth, spoilt(truth, 0.1, seed), seed)
        answers = spoilt(spoilt(truth, 0.1, seed), 0.03, 999 - seed)
        drop = 0.9 - (answers == truth).mean()
        _, pruned = scored(Model(one_hot(answers)), steps, truth, drop)
        wrong += pruned is not None
    assert wrong / runs <= LEVEL


def test_what_is_a_little_worse_is_dropped_before_half_of_the_rows(truth: np.ndarray) -> None:
    seen = []
    for seed in range(20):
        steps = steps_for(truth, spoilt(truth, 0.1, seed), seed)
        model = Model(one_hot(spoilt(spoilt(truth, 0.1, seed), 0.15, 99 + seed)))  # loses some 13 points
        _, pruned = scored(model, steps, truth, 0.01)
        assert pruned is not None
        seen.append(pruned.rows)
    assert np.median(seen) <= 200


def test_a_function_over_all_rows(tmp_path: Path) -> None:
    """Spearman of pairs of rows, as of sentences: there is no value of a single row to average."""
    (tmp_path / "own.py").write_text(
        "import numpy as np\n\n"
        "def score(outputs, targets):\n"
        "    rank = lambda v: np.argsort(np.argsort(v))\n"
        "    both = outputs['y'].reshape(-1, 2).sum(axis=1), targets.reshape(-1, 2).sum(axis=1)\n"
        "    return np.corrcoef(rank(both[0]), rank(both[1]))[0, 1]\n"
    )
    metric = Metric.from_spec({"function": "own.py:score"}, tmp_path)
    rng = np.random.default_rng(2)
    targets = rng.normal(size=ROWS)
    float32 = targets + rng.normal(0, 0.4, ROWS)
    steps = plan_steps(metric, {"y": float32}, targets, group=2, chunk=50, seed=1)
    assert steps is not None and steps.hits is None
    inputs = {"x": np.arange(ROWS)}
    near, far = Model(float32 + rng.normal(0, 0.02, ROWS)), Model(float32 + rng.normal(0, 0.9, ROWS))
    outputs, pruned = score_in_steps(near, metric, inputs, targets, steps, (0.02, "max_metric_drop allows"))
    assert pruned is None and (outputs["y"] == near.answers).all()
    _, pruned = score_in_steps(far, metric, inputs, targets, steps, (0.02, "max_metric_drop allows"))
    assert pruned is not None and far.rows == pruned.rows <= ROWS // 4 and "max_metric_drop allows 0.02" in pruned.why
    whole = metric({"y": far.answers}, targets)
    assert abs(pruned.metric - whole) < 0.1 and pruned.bound > whole


def test_a_look_at_which_the_metric_has_no_value_is_left_out(truth: np.ndarray) -> None:
    """One row of the rarer class: most looks, or these without a block, do not see it."""
    metric = Metric.from_spec({"name": "roc_auc"}, ".")
    rare = np.zeros(ROWS, int)
    rare[7] = 1
    answers = np.random.default_rng(0).random(ROWS)
    assert plan_steps(metric, {"y": answers}, rare, group=1, chunk=100, seed=0) is None
    rare[:800] = 1
    assert plan_steps(metric, {"y": answers}, rare, group=1, chunk=100, seed=0) is not None


def test_a_hurdle_is_set_by_what_is_as_small() -> None:
    hurdle = Hurdle(rivals=((100, 0.05, "small"), (200, 0.01, "large"), (300, 0.02, "worse")), max_drop=0.04)
    assert hurdle.for_size(99) == (0.04, "max_metric_drop allows")
    assert hurdle.for_size(100) == (0.04, "max_metric_drop allows")
    limit, whose = hurdle.for_size(250)
    assert limit == 0.01 and whose.startswith("large, ")
    assert Hurdle().for_size(10**9)[0] == float("inf")
    # With all rows scored: what a rival equals is not timed, what the constraint just allows is.
    assert hurdle.not_taken(250, 0.009) == "" != hurdle.not_taken(250, 0.01)
    assert hurdle.not_taken(99, 0.04) == "" == Hurdle().not_taken(1, 9.0)
    assert "it loses 0.041 against float32, and max_metric_drop allows 0.04" in hurdle.not_taken(99, 0.041)


@pytest.mark.parametrize("objectives", [("metric", "latency", "size"), ("metric", "size"), ("metric", "latency")])
def test_rivals_are_finished_feasible_trials_that_are_predicted_to_be_as_fast(objectives: tuple[str, ...]) -> None:
    problem = make_problem(objectives=objectives, max_metric_drop=0.1)  # type: ignore[arg-type]
    uniform = {str(name): problem.complete(choice) for name, choice in problem.uniform_seeds()}
    fast, slow = uniform["w8a8@minmax"], uniform["w8"]
    guide = Guide(problem)
    guide.add(make_trial(0, slow, metric=0.89, ratio=problem.modelled_latency(slow), size=300))
    guide.add(make_trial(1, fast, metric=0.85, ratio=problem.modelled_latency(fast), size=250))
    guide.add(make_trial(2, uniform["w4"], metric=0.7, ratio=0.2, size=10))  # breaks the constraint
    found = {name for _, _, name in guide.hurdle(fast).rivals}
    assert found == ({fast.id} if "latency" in objectives else {slow.id, fast.id})
    assert {name for _, _, name in guide.hurdle(slow).rivals} == {slow.id, fast.id}
    assert guide.hurdle(slow).max_drop == 0.1
    sizes = {size for size, _, _ in guide.hurdle(slow).rivals}
    assert sizes == ({300, 250} if "size" in objectives else {0})
