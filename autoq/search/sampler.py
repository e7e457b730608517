"""An Optuna sampler for categorical parameters that starts from proxies and corrects them by what was measured.

It proposes what should widen the front most: see :mod:`autoq.search.choose`. Its proposals are functions of its seed,
the trial's number and the trials before it, so a study that is resumed goes on as it would have gone on.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from autoq.numerics.surrogate import Scales
from autoq.search.choose import Learned, Space, learn, nearest_to_front, propose, random_point, settled
from autoq.search.history import History

Array = npt.NDArray[np.float64]

_STARTUP = 4  # trials at random before anything can be learned, where there are no proxies
_GROWTH = 1.33  # the surrogates' scales are found anew whenever there are a third more trials


class FrontSampler(BaseSampler):
    """Proposes the points that should widen the front most; for one objective, those that should improve it most.

    ``proxies`` maps each parameter to one row for each of its choices, in the order of its distribution: what that
    choice is believed to add to each objective's value. Only proportions matter. ``reference`` bounds the hypervolume,
    one value for each objective: what is worse is worth nothing. By default it is the worst that was measured.
    Constraints of trials are learned, too: a point counts as far as it is likely to keep them.

    No point is proposed that a trial has or had, running, failed and pruned ones too, as long as there is another.
    Nothing is learned from failed and pruned trials.

    Raises ``NotImplementedError`` for parameters that are not categorical, ``ValueError`` for proxies or a reference
    that do not fit the study.
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
        self._history = History(None)
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """All but what was read of the study: a sampler that is loaded again reads it anew."""
        return {name: each for name, each in vars(self).items() if name not in ("_history", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, _history=History(None), _lock=threading.RLock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that the complete trials so far had in common."""
        with self._lock:
            return dict(self._read(study).space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next proposal, for parameters that all complete trials so far have."""
        choices = {name: _choices(name, each) for name, each in sorted(search_space.items()) if not each.single()}
        if not choices:
            return {}
        signs = np.array([-1.0 if each == StudyDirection.MAXIMIZE else 1.0 for each in study.directions])
        space = Space([len(each) for each in choices.values()], self._proxy(choices, signs))
        rng = np.random.default_rng([self._seed, trial.number])
        with self._lock:
            history = self._read(study)
            pending = history.encode(choices, besides=trial.number)
            taken = history.taken | {row.tobytes() for row in pending}
            found = None
            if len(history.numbers) >= (2 if space.unit is not None else _STARTUP):
                found = propose(self._learn(signs, space, history), pending, taken, rng)
            if found is None:
                found = random_point(space, taken, rng)
            if found is None:  # everything was proposed before
                found = rng.integers(space.sizes).astype(np.int16)
            given = {name: each[code] for (name, each), code in zip(choices.items(), found, strict=True)}
            history.given[trial.number] = given
        return given

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A choice for a parameter that not all trials so far have: one that fewest of the others took which agree
        with this trial so far, at random among equals. So the first trials differ, however many run at once."""
        choices = _choices(param_name, param_distribution)
        rng = np.random.default_rng([self._seed, trial.number, *param_name.encode()])
        with self._lock:
            history = self._read(study)
            points = history.points()
            mine = points.pop(trial.number, {}).items()
            alike = (each for each in points.values() if param_name in each and mine <= each.items())
            counts = Counter(each[param_name] for each in alike)
            fewest = min(counts[choice] for choice in choices)
            rare = [choice for choice in choices if counts[choice] == fewest]
            choice = rare[int(rng.integers(len(rare)))]
            history.given.setdefault(trial.number, {})[param_name] = choice
        return choice

    def _read(self, study: Study) -> History:
        if self._history.study is not study:
            self._history = History(study)
        self._history.update(study.get_trials(deepcopy=False))
        return self._history

    def _proxy(self, choices: Mapping[str, Sequence[Any]], signs: Array) -> Array | None:
        known = [name for name in choices if self._proxies and name in self._proxies]
        if not known:
            return None
        table = np.zeros((len(choices), max(len(each) for each in choices.values()), len(signs)))
        for row, (name, each) in zip(table, choices.items(), strict=True):
            if name in known:
                believed = np.asarray(self._proxies[name], np.float64)  # type: ignore[index]
                if believed.shape != (len(each), len(signs)):
                    raise ValueError(
                        f"the proxies of {name!r} have the shape {believed.shape}; it has {len(each)} choices, and the "
                        f"study {len(signs)} objectives"
                    )
                row[: len(each)] = signs * believed
        return table

    def _learn(self, signs: Array, space: Space, history: History) -> Learned:
        numbers = tuple(history.numbers)
        if history.learned is not None and history.learned[0] == numbers:
            return history.learned[1]  # asked for several proposals at once
        # The scales of the first so many trials, so that they do not hang on when the study was resumed.
        count = int(_GROWTH ** math.floor(math.log(len(numbers), _GROWTH) + 1e-9)) if len(numbers) > 3 else 0
        if count and history.scales[0] != numbers[:count]:
            history.scales = numbers[:count], self._fit(signs, space, history, count, None).scales
        learned = self._fit(signs, space, history, len(numbers), history.scales[1] if count else None)
        history.learned = numbers, learned
        return learned

    def _fit(
        self, signs: Array, space: Space, history: History, count: int, scales: tuple[Scales, ...] | None
    ) -> Learned:
        """What the first ``count`` complete trials teach."""
        losses = signs * history.losses[:count]
        reference = self._bound(signs, losses)
        kept, early = np.arange(count), settled(count)
        if early:
            first = tuple(history.numbers[:early])
            if history.nearest[0] != first:
                history.nearest = first, nearest_to_front(losses[:early], self._bound(signs, losses[:early]))
            kept = np.concatenate([history.nearest[1], kept[early:]])
        before = history.learned[1] if history.learned is not None else None
        return learn(space, history.codes(kept), losses[kept], reference, history.violations[kept], scales, before)

    def _bound(self, signs: Array, losses: Array) -> Array:
        """``[d]``: the reference as losses; where none was given, the worst of ``losses`` ``[n, d]``."""
        if self._reference is None:
            return np.asarray(losses.max(axis=0))
        if len(self._reference) != len(signs):
            raise ValueError(f"the reference has {len(self._reference)} values, the study {len(signs)} objectives")
        return signs * np.asarray(self._reference, np.float64)


def _choices(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    if not isinstance(distribution, CategoricalDistribution):
        raise NotImplementedError(f"parameter {name!r} is not categorical; FrontSampler chooses among categories only")
    return distribution.choices
