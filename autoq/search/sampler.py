"""An Optuna sampler for categorical parameters that starts from proxies and corrects them by what was measured.

It proposes what should widen the front most: see :mod:`autoq.search.choose`. Its proposals are functions of its seed,
the trial's number and the trials before it, so a study that is resumed goes on as it would have gone on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autoq.numerics.surrogate import Codes, Scales
from autoq.search.choose import Learned, Space, learn, propose, random_point

Array = npt.NDArray[np.float64]

_STARTUP = 4  # trials at random before anything can be learned, where there are no proxies
_GROWTH = 1.33  # the surrogates' scales are found anew whenever there are a third more trials


class FrontSampler(BaseSampler):
    """Proposes the points that should widen the front most; for one objective, those that should improve it most.

    ``proxies`` maps each parameter to one row for each of its choices, in the order of its distribution: what that
    choice is believed to add to each objective's value. Only proportions matter. ``reference`` bounds the hypervolume,
    one value for each objective: what is worse is worth nothing. By default it is the worst that was measured.
    Constraints of trials are learned, too: a point counts as far as it is likely to keep them.

    Raises ``NotImplementedError`` for parameters that are not categorical.
    """

    def __init__(
        self,
        *,
        proxies: Mapping[str, Sequence[Sequence[float]]] | None = None,
        reference: Sequence[float] | None = None,
        seed: int | None = None,
    ) -> None:
        self._proxies = proxies
        self._reference = reference
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._common = optuna.search_space.IntersectionSearchSpace()
        self._scales: dict[int, tuple[Scales, ...]] = {}
        self._learned: tuple[tuple[int, ...], Learned] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that the trials so far had in common."""
        return self._common.calculate(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next proposal, for parameters that all trials so far have."""
        choices = {name: _choices(name, each) for name, each in sorted(search_space.items()) if not each.single()}
        if not choices:
            return {}
        index = {name: {choice: code for code, choice in enumerate(each)} for name, each in choices.items()}
        signs = np.array([-1.0 if each == StudyDirection.MAXIMIZE else 1.0 for each in study.directions])
        space = Space([len(each) for each in choices.values()], self._proxy(choices, signs))

        def codes_of(trials: Sequence[FrozenTrial]) -> Codes:
            rows = [[index[name][each.params[name]] for name in choices] for each in trials]
            return np.array(rows, np.int16).reshape(-1, len(choices))

        known = [each for each in study.get_trials(deepcopy=False) if choices.keys() <= each.params.keys()]
        finished = [each for each in known if each.state == TrialState.COMPLETE]
        pending = [each for each in known if each.state == TrialState.RUNNING and each.number != trial.number]
        taken = {row.tobytes() for row in codes_of(known)}
        rng = np.random.default_rng([self._seed, trial.number])
        found = None
        if len(finished) >= (2 if self._proxies else _STARTUP):
            learned = self._learn(signs, space, finished, codes_of(finished))
            found = propose(learned, codes_of(pending), taken, rng)
        if found is None:
            found = random_point(space, taken, rng)
        if found is None:  # everything was proposed before
            found = rng.integers(space.sizes).astype(np.int16)
        return {name: each[code] for (name, each), code in zip(choices.items(), found, strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A choice at random, for a parameter that not all trials so far have."""
        choices = _choices(param_name, param_distribution)
        rng = np.random.default_rng([self._seed, trial.number, *param_name.encode()])
        return choices[int(rng.integers(len(choices)))]

    def _proxy(self, choices: Mapping[str, Sequence[Any]], signs: Array) -> Array | None:
        if self._proxies is None or not choices.keys() <= self._proxies.keys():
            return None
        table = np.zeros((len(choices), max(len(each) for each in choices.values()), len(signs)))
        for row, (name, each) in zip(table, choices.items(), strict=True):
            row[: len(each)] = signs * np.asarray(self._proxies[name], np.float64)
        return table

    def _learn(self, signs: Array, space: Space, finished: Sequence[FrozenTrial], codes: Codes) -> Learned:
        numbers = tuple(each.number for each in finished)
        if self._learned is not None and self._learned[0] == numbers:
            return self._learned[1]  # asked for several proposals at once
        losses = signs * np.array([each.values for each in finished], np.float64)
        violations = np.array([sum(max(0.0, value) for value in each.constraints.values()) for each in finished])
        reference = losses.max(axis=0) if self._reference is None else signs * np.asarray(self._reference, np.float64)
        # The scales of the first so many trials, so that they do not hang on when the study was resumed.
        count = int(_GROWTH ** math.floor(math.log(len(finished), _GROWTH) + 1e-9)) if len(finished) > 3 else 0
        if count and count not in self._scales:
            part = slice(0, count)
            self._scales[count] = learn(space, codes[part], losses[part], reference, violations[part]).scales
        learned = learn(space, codes, losses, reference, violations, self._scales.get(count))
        self._learned = numbers, learned
        return learned


def _choices(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    if not isinstance(distribution, CategoricalDistribution):
        raise NotImplementedError(f"parameter {name!r} is not categorical; FrontSampler chooses among categories only")
    return distribution.choices
