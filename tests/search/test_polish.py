"""The polish of a front: order, what is kept, what a second run does again, and what is told."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.core.policy import Policy
from autoq.core.result import Failure, Trial
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.model.polish import LayerPolish
from autoq.runtime.gauge import Measurement
from autoq.search.evaluate import Scored
from autoq.search.polish import Polished, most_promising_first, polish_front
from autoq.search.polish_log import PolishLog
from autoq.search.polish_point import PolishResult, PolishWork
from tests.search.problems import TableExecutor, make_latency, make_problem, make_trial
from tests.small_job import small_disk

WORK = PolishWork(kind="sequential", inputs={"x": np.zeros(8)}, unit=1)


class PolishExecutor(TableExecutor):
    """Polishes as told, by the first layer's scheme: ``"better"``, ``"worse"``, or a failure; last item first."""

    def __init__(self, outcomes: dict[str, str | Failure], stored: int | None = None) -> None:
        super().__init__()
        self.outcomes, self.stored = outcomes, stored
        self.polished: list[str] = []

    def run(self, task: Any, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for position in reversed(range(len(items))):
            policy: Policy = items[position].policy
            outcome = self.outcomes[str(policy["a"])]
            self.polished.append(policy.id)
            if isinstance(outcome, Failure):
                yield position, outcome
                continue
            model = f"polished {policy.id}".encode()
            better = outcome == "better"
            yield (
                position,
                PolishResult(
                    measure="KL divergence",
                    held_out=(0.2, 0.1 if better else 0.3),
                    layers=(LayerPolish(layer="a", before=1.0, after=0.5, kept=True), LayerPolish(layer="b")),
                    seconds=1.5,
                    why="" if better else "no nearer",
                    scored=Scored(
                        model=model, metric=0.88, sha256=hashlib.sha256(model).hexdigest(), weight_bits_mean=4.0
                    )
                    if better
                    else None,
                ),
            )

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement | Failure:
        self.measured.append(model.name)
        return Measurement(latency=make_latency(0.5), peak_memory_bytes=4321, load_ms=1.0, size_bytes=self.stored)


def front_of(**metrics: float) -> list[Trial]:
    policies = [Policy.of({"a": Scheme.parse(a), "b": Scheme.parse("w8")}) for a in metrics]
    return [
        make_trial(number, policy, metric, 0.9 - metric / 2, int(1000 * metric))
        for number, (policy, metric) in enumerate(zip(policies, metrics.values(), strict=True))
    ]


def polish(folder: Path, front: Sequence[Trial], executor: PolishExecutor, **options: Any) -> Any:
    (folder / "models").mkdir(exist_ok=True, parents=True)
    log = PolishLog(folder / "polish.jsonl", folder / "models")
    return polish_front(
        front, WORK, problem=make_problem(("a", "b")), executor=executor, log=log, limit_s=60, **options
    )


FRONT = {"w8": 0.89, "w4": 0.86, "w2": 0.70}


def test_what_is_better_is_kept_and_the_rest_is_told(tmp_path: Path) -> None:
    front = front_of(**FRONT)
    executor = PolishExecutor({"w8": "worse", "w4": "better", "w2": Failure(reason="timeout", message="late")})
    steps: list[str] = []
    found, notes = polish(tmp_path, front, executor, step=steps.append)
    assert set(found) == {front[1].id}
    own: Polished = found[front[1].id]
    assert own.path.read_bytes() == f"polished {front[1].id}".encode()
    assert (own.record.metric, own.record.layers, own.peak_memory_bytes) == (0.88, 1, 4321)
    assert own.size_bytes == own.path.stat().st_size
    stored = PolishExecutor(dict.fromkeys(FRONT, "better"), stored=12)  # as Vela packs it
    assert {each.size_bytes for each in polish(tmp_path / "npu", front, stored)[0].values()} == {12}
    assert executor.measured == [own.path.name]
    assert notes[0].startswith("1 of 3 points were polished")
    assert any(front[0].id in note and "no nearer" in note for note in notes)
    assert any(front[2].id in note and "search.polish_time" in note and "--resume" in note for note in notes)
    assert steps[0] == "polishing 3 models (sequential), 60 s at the most"
    assert len(steps) == 4 and all(f"polished {i} of 3" in step for i, step in enumerate(steps[1:], start=1))


def test_a_second_run_does_only_what_is_not_done(tmp_path: Path) -> None:
    front = front_of(**FRONT)
    first = PolishExecutor({"w8": "worse", "w4": "better", "w2": Failure(reason="worker_lost", message="gone")})
    before, _ = polish(tmp_path, front, first)
    again = PolishExecutor(dict.fromkeys(FRONT, "better"))
    after, notes = polish(tmp_path, front, again)
    assert again.polished == [front[2].id]
    assert set(after) == {front[1].id, front[2].id}
    assert after[front[1].id] == before[front[1].id]
    assert any("no nearer" in note for note in notes)
    # A file that was damaged, and another file to polish, are done anew.
    after[front[1].id].path.write_bytes(b"half")
    third = PolishExecutor(dict.fromkeys(FRONT, "better"))
    polish(tmp_path, front, third)
    assert third.polished == [front[1].id]


def test_files_of_points_that_left_the_front_go(tmp_path: Path) -> None:
    front = front_of(**FRONT)
    polish(tmp_path, front, PolishExecutor(dict.fromkeys(FRONT, "better")))
    assert len(list((tmp_path / "models").iterdir())) == 3
    found, _ = polish(tmp_path, front[:1], PolishExecutor({}))
    assert [path.name for path in (tmp_path / "models").iterdir()] == [found[front[0].id].path.name]


def test_a_line_cut_short_or_damaged_is_done_again(tmp_path: Path) -> None:
    front = front_of(**FRONT)
    polish(tmp_path, front, PolishExecutor(dict.fromkeys(FRONT, "better")))
    lines = (tmp_path / "polish.jsonl").read_bytes().splitlines(keepends=True)
    damaged = json.dumps({**json.loads(lines[0]), "held_out": [1]}).encode() + b"\n"
    other = json.dumps({**json.loads(lines[1]), "version": 99}).encode() + b"\n"
    (tmp_path / "polish.jsonl").write_bytes(damaged + other + lines[2][:30])
    again = PolishExecutor(dict.fromkeys(FRONT, "better"))
    assert len(polish(tmp_path, front, again)[0]) == 3
    assert len(again.polished) == 3
    text = (tmp_path / "polish.jsonl").read_text()
    assert text.endswith("\n") and len(text.splitlines()) == 5


def test_the_knee_first_then_what_loses_most() -> None:
    front = front_of(w8=0.89, w4=0.88, w2=0.5)
    assert [trial.metric for trial in most_promising_first(front, make_problem(("a", "b")))] == [0.88, 0.5, 0.89]
    assert most_promising_first([], make_problem()) == []


def test_an_empty_front(tmp_path: Path) -> None:
    assert polish(tmp_path, [], PolishExecutor({})) == ({}, ())


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        (disk / "models").mkdir()
        (disk / "filler").write_bytes(b"x" * 12 * 1024)
        with pytest.raises(RunError, match=r"disk is full.*--resume"):
            polish(disk, front_of(**FRONT), PolishExecutor(dict.fromkeys(FRONT, "better")))
