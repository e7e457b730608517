from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoq.core.objectives import Constraints
from autoq.core.policy import Policy
from autoq.core.result import Failure, Trial
from autoq.errors import RunError
from autoq.search.loop import Limits, Search
from autoq.search.problem import Problem
from autoq.search.stopping import Guide
from autoq.search.store import TrialLog
from tests.search.problems import SCHEMES, TableExecutor, bits, make_problem, make_proposer
from tests.small_job import small_disk

LAYERS = ("a", "b", "c")


class Clock:
    """Every reading is a second later."""

    def __init__(self) -> None:
        self.seconds = itertools.count()

    def __call__(self) -> float:
        return float(next(self.seconds))


def make_search(
    folder: Path,
    *,
    problem: Problem | None = None,
    executor: TableExecutor | None = None,
    on_trial: Callable[[Trial, Search], None] = lambda trial, search: None,
    step_rows: int | None = None,
) -> Search:
    problem = problem or make_problem(LAYERS, objectives=("metric", "size"))
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    return Search(
        problem=problem,
        proposer=make_proposer(problem),
        executor=executor or TableExecutor(),
        log=TrialLog(folder / "trials.jsonl"),
        models=models,
        clock=Clock(),
        on_trial=on_trial,
        step_rows=step_rows,
    )


def front_files(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "models").iterdir()}


class Stop(Exception):
    """A search that is ended from outside."""


def stop_after(count: int) -> Callable[[Trial, Search], None]:
    """An ``on_trial`` that ends the search after so many trials."""

    def stop(trial: Trial, search: Search) -> None:
        if len(search.trials) == count:
            raise Stop

    return stop


def plain(trials: Sequence[Trial]) -> list[Trial]:
    """Without the seconds that steps took."""
    return [dataclasses.replace(trial, seconds={}) for trial in trials]


def test_what_runs_meanwhile_is_told_when_the_scoring_is_over(tmp_path: Path) -> None:
    search, ends = make_search(tmp_path), []

    def meanwhile(over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not over() and time.monotonic() < deadline:
            time.sleep(0.001)
        ends.append(over())

    search.meanwhile = meanwhile
    search.run(Limits(trials=24))
    assert ends == [True] * 3


def test_it_stops_after_as_many_trials_as_asked(tmp_path: Path) -> None:
    reported: list[int] = []
    search = make_search(tmp_path, on_trial=lambda trial, search: reported.append(trial.number))
    assert search.run(Limits(trials=19)) == "trials"
    assert [trial.number for trial in search.trials] == reported == list(range(19))
    assert search.log.read() == search.trials
    assert {trial.id for trial in search.front} == front_files(tmp_path)
    # 32 bits everywhere cannot be measured: a failure, told, and never on the front.
    assert all(trial.failure is None for trial in search.front)


def test_it_stops_when_the_space_is_exhausted(tmp_path: Path) -> None:
    search = make_search(tmp_path, problem=make_problem(("a",), objectives=("metric", "size")))
    assert search.run(Limits(trials=100)) == "space exhausted"
    assert len(search.trials) == 5


@pytest.mark.parametrize("deadline", [0.0, 5.0, 20.0])
def test_it_stops_at_the_deadline_and_keeps_what_is_finished(tmp_path: Path, deadline: float) -> None:
    executor = TableExecutor()
    search = make_search(tmp_path, executor=executor)
    assert search.run(Limits(trials=1000, deadline=deadline)) == "time"
    assert (len(search.trials) == 0) == (deadline == 0.0)
    assert len(search.trials) < 20
    assert search.log.read() == search.trials
    if deadline == 0.0:
        assert executor.scored == []


def test_a_batch_is_scored_before_any_of_it_is_measured(tmp_path: Path) -> None:
    executor = TableExecutor()
    seen: list[tuple[int, int]] = []
    search = make_search(
        tmp_path,
        executor=executor,
        on_trial=lambda trial, search: seen.append((len(executor.scored), len(executor.measured))),
    )
    search.run(Limits(trials=16))
    assert [scored for scored, _ in seen] == [8] * 8 + [16] * 8
    assert [measured for _, measured in seen] == list(range(1, 17))


@pytest.mark.parametrize("stopped_after", [1, 5, 8, 13])
def test_a_resumed_search_is_the_uninterrupted_one(tmp_path: Path, stopped_after: int) -> None:
    whole = make_search(tmp_path / "whole")
    whole.run(Limits(trials=24))

    with pytest.raises(Stop):
        make_search(tmp_path / "cut", on_trial=stop_after(stopped_after)).run(Limits(trials=24))
    executor = TableExecutor()
    resumed = make_search(tmp_path / "cut", executor=executor)
    finished = resumed.log.read()
    assert len(finished) == stopped_after
    resumed.run(Limits(trials=24), finished)
    assert plain(resumed.trials) == plain(whole.trials)
    assert plain(resumed.log.read()) == plain(whole.log.read())
    assert len(executor.scored) == 24 - stopped_after
    assert front_files(tmp_path / "cut") >= {trial.id for trial in whole.front} - {trial.id for trial in finished}


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    whole = make_search(tmp_path / "whole")
    whole.run(Limits(trials=32))
    first = make_search(tmp_path / "two")
    first.run(Limits(trials=16))
    second = make_search(tmp_path / "two")
    second.run(Limits(trials=32), second.log.read())
    assert [trial.policy for trial in second.trials] == [trial.policy for trial in whole.trials]


def test_fewer_trials_than_are_finished_lose_none(tmp_path: Path) -> None:
    first = make_search(tmp_path)
    first.run(Limits(trials=20))
    executor = TableExecutor()
    second = make_search(tmp_path, executor=executor)
    assert second.run(Limits(trials=4), second.log.read()) == "trials"
    assert sorted(trial.number for trial in second.trials) == list(range(20))
    assert plain(second.front) == plain(first.front)
    assert executor.scored == []
    assert {trial.id for trial in first.front} == front_files(tmp_path)


def test_trials_that_another_version_would_not_propose_are_kept(tmp_path: Path) -> None:
    policies = make_problem(LAYERS).complete(
        {name: make_problem(LAYERS).choices[name][index] for index, name in enumerate(LAYERS)}
    )
    first = make_search(tmp_path)
    first.run(Limits(trials=8))
    stranger = dataclasses.replace(first.trials[-1], policy=policies, metric=0.899, size_bytes=1, number=8)
    first.log.append(stranger)
    second = make_search(tmp_path)
    second.run(Limits(trials=12), second.log.read())
    assert stranger in second.trials
    assert stranger in second.front
    numbers = [trial.number for trial in second.trials]
    assert len(set(numbers)) == len(numbers)


def test_what_the_machine_did_is_tried_again_and_what_the_candidate_did_is_not(tmp_path: Path) -> None:
    def failing(reason: str, every: int) -> Callable[[Policy], Failure | None]:
        return lambda policy: (
            Failure(reason=reason, message="x") if bits(policy) % every == 0 else None  # type: ignore[arg-type]
        )

    lost = make_search(tmp_path / "lost", executor=TableExecutor(failing("worker_lost", 12)))
    lost.run(Limits(trials=16))
    gone = [trial for trial in lost.trials if trial.failure and trial.failure.reason == "worker_lost"]
    assert gone
    executor = TableExecutor()
    reports: list[tuple[int, int]] = []
    again = make_search(
        tmp_path / "lost",
        executor=executor,
        on_trial=lambda trial, search: reports.append((trial.number, len(search.trials))),
    )
    again.run(Limits(trials=16), again.log.read())
    assert set(executor.scored) >= {trial.policy for trial in gone}
    assert not any(trial.failure and trial.failure.reason == "worker_lost" for trial in again.trials)
    # Under their own numbers, and reported only once the recorded front is whole again.
    assert {number for number, _ in reports} >= {trial.number for trial in gone}
    assert len({trial.number for trial in again.trials}) == 16
    assert [trial.policy for trial in again.log.read()] == [trial.policy for trial in lost.trials]

    own = make_search(tmp_path / "own", executor=TableExecutor(failing("load", 12)))
    own.run(Limits(trials=16))
    executor = TableExecutor()
    make_search(tmp_path / "own", executor=executor).run(Limits(trials=16), own.log.read())
    assert executor.scored == []


def test_no_file_that_a_report_names_is_missing(tmp_path: Path) -> None:
    """What is interrupted after a report leaves a front whose files are all there."""

    def check(trial: Trial, search: Search) -> None:
        missing = {point.id for point in search.front} - front_files(tmp_path)
        assert not missing
        before = {point.id for point in TrialLog(tmp_path / "trials.jsonl").read()[:-1]}
        # Also those that this trial drives away are still there: the last report names them.
        named.append(before & front_files(tmp_path))

    named: list[set[str]] = []
    search = make_search(tmp_path, on_trial=check)
    search.run(Limits(trials=24))
    assert len(named) == 24
    assert {trial.id for trial in search.front} == front_files(tmp_path)


def test_constraints_empty_the_front_and_not_the_search(tmp_path: Path) -> None:
    problem = make_problem(LAYERS, objectives=("metric", "size"), max_size_ratio=0.0001)
    search = make_search(tmp_path, problem=problem)
    assert search.run(Limits(trials=12)) == "trials"
    assert search.front == []
    assert front_files(tmp_path) == set()
    assert problem.nearest_miss(search.trials).startswith("max_size_ratio binds")


def test_a_full_disk_ends_the_search_and_keeps_the_finished_trials(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=36) as disk:
        search = make_search(disk)
        with pytest.raises(RunError, match=r"the disk is full: .* free space and --resume"):
            search.run(Limits(trials=100))
        finished = search.log.read()
        assert 0 < len(finished) < 100
        assert [trial.number for trial in finished] == list(range(len(finished)))


# Ending before the budget is spent ------------------------------------------------------------------------------------


def test_it_stops_with_the_first_trial_that_meets_the_target(tmp_path: Path) -> None:
    bounds = Constraints(max_latency_ratio=0.45, max_metric_drop=0.3)
    whole = make_search(tmp_path / "whole")
    whole.run(Limits(trials=60))
    wanted = next(trial for trial in whole.trials if trial.latency and trial.latency.ratio <= 0.45)
    search = make_search(tmp_path / "until")
    assert search.run(Limits(trials=60, until=bounds)) == "target met"
    assert search.trials[-1].policy == wanted.policy
    assert plain(search.trials) == plain(whole.trials[: len(search.trials)])
    # And says so again when it is resumed, without evaluating anything.
    executor = TableExecutor()
    again = make_search(tmp_path / "until", executor=executor)
    assert again.run(Limits(trials=60, until=bounds), again.log.read()) == "target met"
    assert executor.scored == [] and plain(again.trials) == plain(search.trials)


def test_a_target_that_a_constraint_forbids_does_not_end_it(tmp_path: Path) -> None:
    problem = make_problem(LAYERS, objectives=("metric", "size"), max_size_ratio=0.0001)
    search = make_search(tmp_path, problem=problem)
    assert search.run(Limits(trials=12, until=Constraints(max_latency_ratio=0.9))) == "trials"


@pytest.mark.parametrize("stopped_after", [3, 30])
def test_it_stops_when_the_front_no_longer_widens(tmp_path: Path, stopped_after: int) -> None:
    limits = Limits(trials=125, patience=40)
    whole = make_search(tmp_path / "whole")
    assert whole.run(limits) == "no gain"
    count = len(whole.trials)
    # By brute force over all batches: the first at which the last 40 trials gained less than a thousandth.
    volumes = [0.0]
    for end in range(8, count + 1, 8):
        guide = Guide(whole.problem)
        for trial in whole.trials[:end]:
            guide.add(trial)
        volumes.append(guide.volume())
    still = [i >= 6 and 0 < volumes[i] <= volumes[i - 5] * 1.001 for i in range(len(volumes))]
    assert count % 8 == 0 and still.index(True) == count // 8
    # A resumed search ends there, too.
    make_search(tmp_path / "cut").run(dataclasses.replace(limits, trials=stopped_after))
    resumed = make_search(tmp_path / "cut")
    assert resumed.run(limits, resumed.log.read()) == "no gain"
    assert plain(resumed.trials) == plain(whole.trials)


def test_nothing_feasible_is_no_reason_to_stop(tmp_path: Path) -> None:
    problem = make_problem(LAYERS, objectives=("metric", "size"), max_size_ratio=0.0001)
    search = make_search(tmp_path, problem=problem)
    assert search.run(Limits(trials=60, patience=8)) == "trials"


# Candidates that are dropped on the way -------------------------------------------------------------------------------


def dropping(folder: Path, executor: TableExecutor | None = None, **options: Any) -> Search:
    """A search with a bound that many candidates break, so that they are dropped."""
    problem = make_problem(LAYERS, objectives=("metric", "size"), max_metric_drop=0.3)
    executor = executor or TableExecutor(drops=True)
    return make_search(folder, problem=problem, executor=executor, step_rows=100 if executor.drops else None, **options)


def test_only_what_may_be_on_the_front_is_timed_exactly(tmp_path: Path) -> None:
    """Above the ratio that the meter is given, a candidate is off the front; at it, another is as good in all."""
    problem = make_problem(LAYERS, objectives=("metric", "latency", "size"))
    executor = TableExecutor()
    search = make_search(tmp_path / "steps", problem=problem, executor=executor, step_rows=100)
    search.run(Limits(trials=48))
    limits = executor.idle_above
    timed = [trial for trial in search.trials if trial.latency is not None and trial.id in limits]
    assert any(math.isfinite(limits[trial.id]) for trial in timed)
    for number, trial in enumerate(timed):
        before = timed[:number]
        assert trial.metric is not None and trial.size_bytes is not None and trial.latency is not None
        rivals = [
            other.latency.ratio
            for other in before
            if other.latency and other.metric >= trial.metric and other.size_bytes <= trial.size_bytes  # type: ignore
        ]
        own = problem.baseline
        if own.metric >= trial.metric and own.size_bytes <= trial.size_bytes:  # type: ignore[operator]
            rivals.append(1.0)
        assert limits[trial.id] == min(rivals, default=math.inf)
        if trial.latency.ratio > limits[trial.id]:
            assert trial not in search.front
    full = TableExecutor()
    make_search(tmp_path / "full", problem=problem, executor=full).run(Limits(trials=48))
    assert set(full.idle_above.values()) == {math.inf}


def test_dropped_candidates_are_told_kept_and_never_on_the_front(tmp_path: Path) -> None:
    search = dropping(tmp_path / "steps")
    told: list[Any] = []
    tell = search.proposer.tell
    search.proposer.tell = lambda proposal, *rest: (told.append(rest[0]), tell(proposal, *rest))[1]  # type: ignore
    assert search.run(Limits(trials=48)) == "trials"
    pruned = [trial for trial in search.trials if trial.pruned is not None]
    rows = [trial.pruned.rows for trial in pruned if trial.pruned is not None]
    assert rows.count(50) > 3 and rows.count(100) > 3 and len(rows) < 45
    for trial, losses in zip(search.trials, told, strict=True):
        if trial.pruned is not None:
            assert losses == (-trial.pruned.metric, trial.size_bytes)
            assert trial.latency is None and not trial.complete
            assert trial.metric == (None if trial.pruned.rows < 100 else trial.pruned.metric)
            assert trial not in search.front
    executor = search.executor
    assert isinstance(executor, TableExecutor)
    assert len(executor.measured) == sum(trial.pruned is None for trial in search.trials)
    assert front_files(tmp_path / "steps") == {trial.id for trial in search.front}
    assert plain(search.log.read()) == plain(search.trials)
    # What a table tells is exact, so nothing that all rows would have kept is lost.
    whole = dropping(tmp_path / "full", TableExecutor())
    whole.run(Limits(trials=48))
    assert [trial.policy for trial in search.trials] == [trial.policy for trial in whole.trials]
    assert plain(search.front) == plain(whole.front)


@pytest.mark.parametrize("stopped_after", [5, 13])
def test_a_resumed_search_drops_the_same(tmp_path: Path, stopped_after: int) -> None:
    whole = dropping(tmp_path / "whole")
    whole.run(Limits(trials=32))

    with pytest.raises(Stop):
        dropping(tmp_path / "cut", on_trial=stop_after(stopped_after)).run(Limits(trials=32))
    executor = TableExecutor(drops=True)
    resumed = dropping(tmp_path / "cut", executor)
    resumed.run(Limits(trials=32), resumed.log.read())
    assert plain(resumed.trials) == plain(whole.trials)
    assert len(executor.scored) == 32 - stopped_after


def test_a_search_of_which_everything_was_dropped_names_the_nearest_miss(tmp_path: Path) -> None:
    problem = make_problem(("a",), objectives=("metric", "size"), own={"a": SCHEMES[2:3] * 2}, max_metric_drop=0.01)
    search = make_search(tmp_path, problem=problem, executor=TableExecutor(drops=True), step_rows=100)
    search.run(Limits(trials=5))
    assert all(trial.pruned for trial in search.trials) and search.trials
    assert problem.nearest_miss(search.trials).startswith("max_metric_drop binds: no trial keeps max_metric_drop 0.01")
