"""Proposes policies with Optuna (its home, with :mod:`autoq.search.sampler`).

Proposals come from a study in memory, which costs milliseconds. What it is told of latency is a *model* of it
(:mod:`autoq.search.latency`), not the measurement: measurements differ a little from run to run, and a search must
propose the same candidates for the same job and seed, whatever evaluates them. What was *measured* goes into another
study, that of the run folder (:mod:`autoq.search.study_record`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import JobError
from autoq.search.sampler import FrontSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)

SamplerName = Literal["front", "nsga2", "tpe", "random"]
SAMPLERS: tuple[SamplerName, ...] = ("front", "tpe", "nsga2", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A canonical policy to evaluate, and who proposed it."""

    policy: Policy
    origin: str
    handle: int


class Proposer:
    """Asks Optuna for policies over per-layer categorical choices; never gives the same policy twice.

    ``choices`` maps each free layer to its schemes. ``complete`` turns the free choices into a canonical policy of all
    layers. ``seeds`` are proposed first, in order, and then one of ``later`` each time that is asked. ``proxies`` and
    ``reference`` are for the sampler ``"front"``: what each of a layer's schemes is believed to add to each loss, and
    the losses beyond which a candidate is worth nothing.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Scheme]],
        complete: Any,
        *,
        seeds: Sequence[tuple[str, Mapping[str, Scheme]]],
        objectives: int,
        sampler: SamplerName,
        seed: int,
        later: Sequence[tuple[str, Mapping[str, Scheme]]] = (),
        proxies: Mapping[str, Sequence[Sequence[float]]] | None = None,
        reference: Sequence[float] | None = None,
    ) -> None:
        self._by_text = {name: {str(scheme): scheme for scheme in schemes} for name, schemes in choices.items()}
        self._space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(tuple(texts)) for name, texts in self._by_text.items()
        }
        self._complete = complete
        own = FrontSampler(proxies=proxies, reference=reference, seed=seed) if sampler == "front" else None
        self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=own or _optunas(sampler, seed))
        self._name = sampler
        self._random = random.Random(seed)
        self._known: dict[Policy, tuple[tuple[float, ...], float] | None] = {}
        self._asked: set[Policy] = set()
        self._open: dict[int, optuna.Trial] = {}
        self._queue: deque[str] = deque()  # the names of the seeds that Optuna has in its own queue
        self._later = deque(later)
        for name, choice in seeds:
            self._enqueue(name, choice)

    def ask(self, count: int) -> list[Proposal]:
        """Up to ``count`` new policies; fewer, in the end none, when the space holds no more."""
        proposals: list[Proposal] = []
        misses = 0
        if self._later and not self._queue:
            self._enqueue(*self._later.popleft())
        while len(proposals) < count and misses < 200:
            seed = self._queue.popleft() if self._queue else None
            trial = self._study.ask(self._space)
            policy = self._policy(trial.params)
            if policy in self._asked:
                misses += 1
                self._tell_known(trial, policy)
                if seed is not None:
                    continue
                policy_or_none = self._neighbour(trial.params)
                if policy_or_none is None:
                    continue
                params, policy = policy_or_none
                self._study.enqueue_trial(params)
                trial = self._study.ask(self._space)
            self._asked.add(policy)
            self._open[trial.number] = trial
            origin = f"seed:{seed}" if seed else f"sampler:{self._name}"
            proposals.append(Proposal(policy=policy, origin=origin, handle=trial.number))
        return proposals

    def tell(self, proposal: Proposal, losses: Sequence[float] | None, violation: float = 0.0) -> None:
        """The outcome of a proposal: its losses, or ``None`` where it failed. ``violation`` > 0 is infeasible."""
        self._known[proposal.policy] = None if losses is None else (tuple(losses), violation)
        self._tell_known(self._open.pop(proposal.handle), proposal.policy)

    def _tell_known(self, trial: optuna.Trial, policy: Policy) -> None:
        known = self._known.get(policy)
        if known is None:  # failed, or still being evaluated: nothing to learn
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_constraint("constraints", known[1])
            self._study.tell(trial, list(known[0]))

    def _enqueue(self, name: str, choice: Mapping[str, Scheme]) -> None:
        self._study.enqueue_trial({layer: str(scheme) for layer, scheme in choice.items()})
        self._queue.append(name)

    def _policy(self, texts: Mapping[str, str]) -> Policy:
        return self._complete({name: self._by_text[name][texts[name]] for name in self._by_text})

    def _neighbour(self, texts: Mapping[str, str]) -> tuple[dict[str, str], Policy] | None:
        """A new policy a few choices away from ``texts``, with more changes the longer none is found."""
        open_layers = [name for name, known in self._by_text.items() if len(known) > 1]
        for attempt in range(64):
            changed = dict(texts)
            for name in self._random.sample(open_layers, min(len(open_layers), 1 + attempt // 16)):
                changed[name] = self._random.choice([text for text in self._by_text[name] if text != changed[name]])
            policy = self._policy(changed)
            if policy not in self._asked:
                return changed, policy
        return None


def _optunas(name: SamplerName, seed: int) -> optuna.samplers.BaseSampler:
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=24, seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, constant_liar=True, seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise JobError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
