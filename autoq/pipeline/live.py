"""What is kept up to date while a search runs: the front's file, and the copies of its trials elsewhere."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable

from autoq.core.result import FormGain, FrontPoint, Trial
from autoq.pipeline.exchange import Events
from autoq.pipeline.front import directions, front_of, point_of, study_values
from autoq.pipeline.notes import why_empty
from autoq.record.run_folder import RunFolder
from autoq.record.running_front import RunningFront
from autoq.record.tracking import Tracker
from autoq.search.loop import Search
from autoq.search.problem import Problem
from autoq.search.study_record import StudyRecord
from autoq.setting import Setting

LAST_COPIES_S = 5.0
"""How long a search that was ended goes on telling the tracking server of its trials; ``--resume`` tells the rest."""


class Live:
    """Told of every finished trial; the front's file follows at once, the study and the tracking server when asked."""

    def __init__(
        self,
        setting: Setting,
        folder: RunFolder,
        problem: Problem,
        baseline: FrontPoint,
        form: FormGain | None,
        tracker: Tracker,
        started: float,
        events: Events,
    ) -> None:
        self._setting, self._folder, self._baseline, self._form = setting, folder, baseline, form
        self._tracker, self._started, self._events = tracker, started, events
        self._study = StudyRecord(
            folder.study,
            setting.job.name,
            directions(setting),
            setting.job.objectives,
            layers=list(problem.choices),
            schemes=problem.schemes(),
        )
        self._running = RunningFront(folder.front)
        self._points: dict[int, FrontPoint] = {}
        self._why, self._why_after = "", 0
        self._new: deque[Trial] = deque()
        self._untracked: deque[Trial] = deque()

    def on_trial(self, trial: Trial, search: Search) -> None:
        """A new one: the front's file, and whoever watches."""
        self._new.append(trial)
        self.write_front(search)
        self._events.trial(trial, search)

    def write_front(self, search: Search) -> None:
        """The front so far, as it is before the final check."""
        for trial in search.front:
            if trial.number not in self._points:
                self._points[trial.number] = point_of(trial, search.model_path(trial.id), self._folder)
        found = [self._points[trial.number] for trial in search.front]
        # To find the nearest miss, all trials are looked at: not after every one of thousands.
        if not found and len(search.trials) >= 1.05 * self._why_after:
            self._why, self._why_after = why_empty(search, found), len(search.trials)
        front = front_of(self._setting, self._baseline, search, found, self._started)
        self._running.write(dataclasses.replace(front, form=self._form, why_empty="" if found else self._why))

    def copy_trials(self, over: Callable[[], bool] = lambda: False) -> None:
        """The study and the tracking server get their copies while workers score, so that no trial waits for them.

        What the server was not told when it is ``over`` comes with the next call.
        """
        copied = [self._new.popleft() for _ in range(len(self._new))]
        self._untracked.extend(copied)
        self._study.add((trial, study_values(trial, self._setting)) for trial in copied)
        while self._untracked and not over():
            self._tracker.log_trial(self._untracked.popleft())

    def copy_all(self, search: Search, earlier: int) -> None:
        """The rest, and what a crash kept from them of the ``earlier`` trials that the search went on from."""
        self.copy_trials()
        self._study.add((trial, study_values(trial, self._setting)) for trial in search.trials)
        for trial in search.trials:
            if trial.number < earlier:
                self._tracker.log_trial(trial)

    def copy_last(self) -> None:
        """As much of the rest as :data:`LAST_COPIES_S` allow."""
        ended = time.monotonic()
        self.copy_trials(lambda: time.monotonic() - ended > LAST_COPIES_S)
