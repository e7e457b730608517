from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from autoq.core.policy import Policy
from autoq.core.result import Failure, Pruned, Trial
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.search import study_record
from autoq.search.study_record import StudyRecord
from tests.search.problems import make_trial
from tests.small_job import small_disk

LAYERS = [f"l{i}" for i in range(6)]
SCHEMES = [Scheme.parse(text) for text in ("float32", "w8", "w4", "w8a8@minmax")]
NOTHING = optuna.trial.TrialState.FAIL


def record(path: Path) -> StudyRecord:
    return StudyRecord(path, "small", ["maximize", "minimize"], ["metric", "size"], layers=LAYERS[:5], schemes=SCHEMES)


def trials(count: int) -> list[Trial]:
    """Each another policy; every fifth one failed, every seventh pruned."""
    found = []
    for number in range(count):
        policy = Policy.of({layer: SCHEMES[number // 4**i % 4] for i, layer in enumerate(LAYERS)})
        trial = make_trial(number, policy, 0.5 + number / 1000, 0.5, 100 + number)
        if number % 5 == 4:
            trial = Trial(
                number=number, policy=policy, origin="x", failure=Failure(reason="worker_lost", message="died")
            )
        elif number % 7 == 6:
            pruned = Pruned(rows=10, of=20, metric=0.5, bound=0.6, why="dominated by it")
            trial = Trial(number=number, policy=policy, origin="x", pruned=pruned)
        found.append(trial)
    return found


def rows(given: Sequence[Trial]) -> list[tuple[Trial, list[float] | None]]:
    return [
        (trial, [trial.metric, float(trial.size_bytes or 0)] if trial.complete and trial.metric is not None else None)
        for trial in given
    ]


def loaded(path: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="small", storage=f"sqlite:///{path}").trials


def told(trial: optuna.trial.FrozenTrial) -> tuple[object, ...]:
    return (
        trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.user_attrs,
        trial.system_attrs, trial.intermediate_values,
    )  # fmt: skip


def test_a_batch_reads_as_if_optuna_had_added_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(trials(40))
    ours = record(tmp_path / "ours.db")
    for start in (0, 1, 17):
        ours.add(given[start : {0: 1, 1: 17, 17: 40}[start]])
    # In a file of another layout Optuna itself adds them.
    monkeypatch.setattr(study_record, "LAYOUT", "v0")
    record(tmp_path / "optunas.db").add(given)
    found, expected = loaded(tmp_path / "ours.db"), loaded(tmp_path / "optunas.db")
    assert [told(trial) for trial in found] == [told(trial) for trial in expected]
    assert len({trial.state for trial in found}) == 3
    for one, other in zip(found, expected, strict=True):
        for when in ("datetime_start", "datetime_complete"):
            assert abs((getattr(one, when) - getattr(other, when)).total_seconds()) < 60


def test_optuna_goes_on_with_the_file(tmp_path: Path) -> None:
    record(tmp_path / "study.db").add(rows(trials(12)))
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path}/study.db")
    study.add_trial(optuna.create_trial(state=NOTHING))
    record(tmp_path / "study.db").add(rows(trials(14)))
    assert [trial.number for trial in loaded(tmp_path / "study.db")] == list(range(15))
    assert len(study.best_trials) > 0


def test_the_study_has_each_trial_once_however_often_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    given = [trial for trial in trials(12) if trial.complete]
    lost = Trial(
        number=given[3].number, policy=given[3].policy, origin="x",
        failure=Failure(reason="worker_lost", message="node died"),
    )  # fmt: skip
    record(path).add(rows([*given[:3], lost]))
    study = record(path)  # as after a crash
    for _ in range(2):
        study.add(rows([*given, *given]))
    complete = [trial for trial in loaded(path) if trial.state == optuna.trial.TrialState.COMPLETE]
    assert [trial.user_attrs["number"] for trial in complete] == [trial.number for trial in given]
    (failed,) = [trial for trial in loaded(path) if trial.state == NOTHING]
    assert failed.user_attrs["failure"] == "worker_lost: node died"
    for found, trial in zip(complete, given, strict=True):
        assert found.params == {layer: str(trial.policy[layer]) for layer in LAYERS[:5]}
        assert found.values == [trial.metric, trial.size_bytes]


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    study = record(path)
    other = make_trial(9, Policy.uniform(LAYERS, Scheme.parse("w2")), 0.5, 0.5, 100)  # no choice of this study
    with pytest.raises(RunError, match=r"study\.db cannot be written"):
        study.add([*rows(trials(4)), (other, [0.5, 100.0])])
    assert loaded(path) == []
    study.add(rows(trials(4)))
    assert len(loaded(path)) == 4


def test_a_reader_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    study = record(path)
    study.add(rows(trials(3)))
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT COUNT(*) FROM trials").fetchone() == (3,)
        study.add(rows(trials(6)))
    reader.close()
    assert len(loaded(path)) == 6


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(RunError, match=r"the Optuna study .*study\.db cannot be opened"):
        record(tmp_path / "study.db")


def test_a_full_disk_under_the_study_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=196) as disk:
        study = record(disk / "study.db")
        with pytest.raises(
            RunError, match=r"the Optuna study .*study\.db cannot be written: (database or )?disk is full"
        ):
            for trial in trials(200):
                study.add(rows([trial]))
