"""What the trials of one Optuna study have shown, for :mod:`autoq.search.sampler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoq.numerics.surrogate import Codes, Scales
from autoq.search.choose import Learned

Array = npt.NDArray[np.float64]

_MISSING = object()


class History:
    """A study's trials, each read once: a study of 10,000 is not read anew for every proposal.

    ``numbers`` ``[n]``, ``losses`` ``[n, d]`` (as they were told) and ``violations`` ``[n]`` are those of complete
    trials, by number. ``space`` holds the parameters that they have in common, ``taken`` the bytes of every finished
    trial's point. ``given`` is what the sampler gave to trials that run: another thread may ask before the study
    knows of it.
    """

    def __init__(self, study: Study | None) -> None:
        self.study = study
        self.space: dict[str, BaseDistribution] = {}
        self.numbers: list[int] = []
        self.losses: Array = np.zeros((0, len(study.directions) if study else 1))
        self.violations: Array = np.zeros(0)
        self.taken: set[bytes] = set()
        self.learned: tuple[tuple[int, ...], Learned] | None = None
        self.scales: tuple[tuple[int, ...], tuple[Scales, ...]] = (), ()
        self.nearest: tuple[tuple[int, ...], npt.NDArray[np.intp]] = (), np.zeros(0, np.intp)
        self.given: dict[int, dict[str, Any]] = {}
        self._index: dict[str, dict[Any, int]] = {}
        self._rows: dict[int, npt.NDArray[np.int16]] = {}
        self._finished: dict[int, FrozenTrial] = {}
        self._open: list[FrozenTrial] = []
        self._whole = 0  # all trials before this one are finished, and were read

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Reads what is new in ``trials``, which are all that the study has."""
        later = [each for each in trials[self._whole :] if each.number not in self._finished]
        done = [each for each in later if each.state.is_finished()]
        self._open = [each for each in later if each.state == TrialState.RUNNING]
        self._finished.update((each.number, each) for each in done)
        for each in done:
            self.given.pop(each.number, None)
        while self._whole < len(trials) and self._whole in self._finished:
            self._whole += 1
        complete = [each for each in done if each.state == TrialState.COMPLETE]
        if not complete:
            return
        for each in complete:
            self.space = _common(self.space, each.distributions) if self.numbers else dict(each.distributions)
            self.numbers.append(each.number)
        broken = [sum(max(0.0, value) for value in each.constraints.values()) for each in complete]
        self.losses = np.concatenate([self.losses, np.array([each.values for each in complete], np.float64)])
        self.violations = np.concatenate([self.violations, np.array(broken, np.float64)])
        order = np.argsort(self.numbers, kind="stable")  # trials that run at once may end in any order
        self.numbers = [self.numbers[i] for i in order]
        self.losses, self.violations = self.losses[order], self.violations[order]

    def points(self) -> dict[int, dict[str, Any]]:
        """The parameters of every trial that ran or runs, as far as they are known, by number."""
        running = {each.number: self.given.get(each.number, {}) | each.params for each in self._open}
        return {number: each.params for number, each in self._finished.items()} | self.given | running

    def encode(self, choices: Mapping[str, Sequence[Any]], besides: int) -> Codes:
        """Turns finished trials into codes of ``choices``; gives the points of those that run, but one: ``[p, L]``."""
        index = {name: {choice: code for code, choice in enumerate(each)} for name, each in choices.items()}
        if index != self._index:
            self._index, self._rows, self.taken, self.learned = index, {}, set(), None
        for number, each in self._finished.items() if len(self._rows) < len(self._finished) else ():
            if number not in self._rows:
                self._rows[number] = self._row(each.params)
                self.taken.add(self._rows[number].tobytes())
        running = [
            self._row(self.given.get(each.number, {}) | each.params) for each in self._open if each.number != besides
        ]
        return np.array([row for row in running if len(row)], np.int16).reshape(-1, len(choices))

    def codes(self, kept: npt.NDArray[np.intp]) -> Codes:
        """``[n, L]``: of the complete trials ``kept``."""
        return np.array([self._rows[self.numbers[i]] for i in kept], np.int16)

    def _row(self, params: Mapping[str, Any]) -> npt.NDArray[np.int16]:
        """``[L]``, or nothing where a parameter is missing, or has a value that it cannot have any more."""
        codes = [each.get(params.get(name, _MISSING), -1) for name, each in self._index.items()]
        return np.array(codes if -1 not in codes else [], np.int16)


def _common(
    space: Mapping[str, BaseDistribution], other: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    return {name: each for name, each in space.items() if name in other and _same(each, other[name])}


def _same(one: BaseDistribution, other: BaseDistribution) -> bool:
    if isinstance(one, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        return one is other or one.choices == other.choices or one == other  # the last alone knows NaN, and is slow
    return one == other
