"""The study in the run folder: what was measured, in an SQLite file that ``optuna-dashboard`` opens.

It is a copy: ``trials.jsonl`` has every finished trial before this file has it, and ``--resume`` adds what a crash kept
from it. Optuna's own ``add_trial`` writes a parameter at a time, with queries before each: 22 ms a trial of 20 layers,
more as trials become many. So Optuna makes the file, and trials are added to its tables (of the layout
:data:`LAYOUT`, which Optuna writes into the file) many in one transaction: below 1 ms each. In a file of another
layout, by another Optuna, they are added by Optuna itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sqlite3
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import TrialState, create_trial

from autoq.core.objectives import Direction
from autoq.core.result import Trial
from autoq.errors import RunError

LAYOUT = "v3.2.0.a"
"""What Optuna calls the tables' layout, from 3.2 on, in the file's table ``alembic_version``."""

Row = tuple[Trial, Sequence[float] | None]
"""A finished trial, and its objectives' values, or ``None`` where they were not measured."""

_PATIENCE_S = 60.0  # a dashboard that reads the file holds a writer up, for milliseconds


class StudyRecord:
    """The finished trials of a search, once each. ``layers`` are those whose schemes are parameters.

    ``schemes`` is everything that a canonical policy can hold: every parameter's choices, which Optuna fixes.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        directions: Sequence[Direction],
        metric_names: Sequence[str],
        *,
        layers: Sequence[str],
        schemes: Sequence[object],
    ) -> None:
        self._path = path
        self._layers = tuple(layers)
        self._choice = CategoricalDistribution(tuple(map(str, schemes)))
        self._index = {text: float(index) for index, text in enumerate(self._choice.choices)}
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{path}", study_name=name, directions=[*directions], load_if_exists=True
            )
            with warnings.catch_warnings():  # the names are for the dashboard; it does without them
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(list(metric_names))
            with self._database() as database:
                self._known = database.execute("SELECT version_num FROM alembic_version").fetchall() == [(LAYOUT,)]
                (self._id,) = database.execute("SELECT study_id FROM studies WHERE study_name = ?", (name,)).fetchone()
            self._written = self._read()
        except Exception as error:  # SQLAlchemy's, SQLite's and Optuna's errors share no base
            raise RunError(f"the Optuna study {path} cannot be opened: {error}") from None

    def add(self, trials: Iterable[Row]) -> None:
        """Writes those of ``trials`` that are not there yet, all or none.

        Raises :class:`~autoq.errors.RunError` when the file cannot be written, for one on a full disk.
        """
        new = {(trial.id, _state(trial, values)): (trial, values) for trial, values in trials}
        new = {key: row for key, row in new.items() if key not in self._written}
        try:
            if not self._known:
                for (_, state), row in new.items():
                    self._study.add_trial(self._as_optunas(state, *row))
            elif new:
                self._insert([(state, *row) for (_, state), row in new.items()])
        except Exception as error:  # as above; a full disk, for one
            cause = error.__cause__ or error
            reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]  # SQLAlchemy wraps the database's own
            raise RunError(
                f"the Optuna study {self._path} cannot be written: {reason}. Finished trials are kept; --resume goes on"
            ) from None
        self._written |= new.keys()

    def _insert(self, rows: Sequence[tuple[TrialState, Trial, Sequence[float] | None]]) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        distribution = distribution_to_json(self._choice)
        trials, params, objectives, attributes = [], [], [], []
        with self._database() as database:
            database.execute("BEGIN IMMEDIATE")
            (first,) = database.execute("SELECT COALESCE(MAX(trial_id), 0) + 1 FROM trials").fetchone()
            (number,) = database.execute("SELECT COUNT(*) FROM trials WHERE study_id = ?", (self._id,)).fetchone()
            for offset, (state, trial, values) in enumerate(rows):
                key, texts = first + offset, trial.policy.to_text()
                trials.append((key, number + offset, self._id, state.name, now, now))
                params += [(key, layer, self._index[texts[layer]], distribution) for layer in self._layers]
                objectives += [(key, i, float(value), "FINITE") for i, value in enumerate(values or ())]
                attributes += [(key, name, json.dumps(value)) for name, value in _attributes(trial).items()]
            for table, columns, found in (
                ("trials", "trial_id, number, study_id, state, datetime_start, datetime_complete", trials),
                ("trial_params", "trial_id, param_name, param_value, distribution_json", params),
                ("trial_values", "trial_id, objective, value, value_type", objectives),
                ("trial_user_attributes", "trial_id, key, value_json", attributes),
            ):
                places = ", ".join("?" * (1 + columns.count(",")))
                database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", found)
            database.execute("COMMIT")

    def _as_optunas(self, state: TrialState, trial: Trial, values: Sequence[float] | None) -> optuna.trial.FrozenTrial:
        texts = trial.policy.to_text()
        return create_trial(
            state=state,
            values=None if values is None else list(values),
            params={name: texts[name] for name in self._layers},
            distributions=dict.fromkeys(self._layers, self._choice),
            user_attrs=_attributes(trial),
        )

    def _read(self) -> set[tuple[str, TrialState]]:
        """Which trials the file has: their policies' ids and states."""
        with self._database() as database:
            found = database.execute(
                "SELECT value_json, state FROM trials JOIN trial_user_attributes USING (trial_id) "
                "WHERE key = 'policy_id' AND study_id = ?",
                (self._id,),
            ).fetchall()
        return {(json.loads(text), TrialState[state]) for text, state in found}

    def _database(self) -> contextlib.closing[sqlite3.Connection]:
        """A connection that leaves transactions to us, and takes back one that was not committed."""
        return contextlib.closing(sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None))


def _state(trial: Trial, values: Sequence[float] | None) -> TrialState:
    if trial.pruned is not None:
        return TrialState.PRUNED
    return TrialState.FAIL if values is None else TrialState.COMPLETE


def _attributes(trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = {"policy_id": trial.id, "origin": trial.origin, "number": trial.number}
    if trial.failure is not None:
        found["failure"] = f"{trial.failure.reason}: {trial.failure.message}"
    if trial.pruned is not None:
        found |= {f"pruned.{name}": value for name, value in dataclasses.asdict(trial.pruned).items()}
    return found
