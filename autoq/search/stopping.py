"""When a search has seen enough: the front no longer widens, or a trial is all that was asked for."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from autoq.core.objectives import metric_drop
from autoq.core.policy import Policy
from autoq.core.result import Trial
from autoq.numerics.archive import Archive
from autoq.numerics.pareto import hypervolume
from autoq.search.fidelity import Hurdle
from autoq.search.problem import Problem

LEAST_GAIN = 1e-3
"""A front whose hypervolume grew by less than this share has not grown: single bytes widen a front without end."""


@dataclass(slots=True)
class Guide:
    """The front as proposals are guided by it (:meth:`autoq.search.problem.Problem.proposer_losses`).

    Its latencies are the modelled ones, so that it is the same in every run of a job.
    """

    problem: Problem
    _front: Archive[Trial] = field(default_factory=Archive)

    @property
    def trials(self) -> list[Trial]:
        """Those on the front."""
        return self._front.items

    def add(self, trial: Trial) -> None:
        """Takes up a finished trial, which may have failed or been pruned."""
        if not trial.complete:
            return
        losses, excess = self.problem.proposer_losses(trial)
        if excess <= 0:
            self._front.add(losses, trial)

    def hurdle(self, policy: Policy) -> Hurdle:
        """What a candidate may lose before these trials, or the constraint, leave it no place on the front.

        Latency counts as modelled: the search has no other reason to expect a candidate to be faster than another.
        """
        problem = self.problem
        own, direction, objectives = problem.baseline.metric, problem.direction, problem.objectives
        rivals = []
        if own is not None and "metric" in objectives:
            sized = not {"size", "peak_memory"}.isdisjoint(objectives)
            modelled = problem.modelled_latency(policy)
            for trial in self.trials:
                assert trial.metric is not None and trial.size_bytes is not None
                if "latency" not in objectives or (trial.latency_modelled or 0.0) <= modelled:
                    drop = metric_drop(trial.metric, own, direction)
                    rivals.append((trial.size_bytes if sized else 0, drop, trial.id))
        return Hurdle(rivals=tuple(rivals), max_drop=problem.constraints.max_metric_drop)

    def volume(self) -> float:
        """The hypervolume up to :meth:`~autoq.search.problem.Problem.reference`; 0 where no point is worth anything."""
        if not len(self._front):
            return 0.0
        # In these losses peak memory is size once more, which would only make the volume dear to compute.
        twice = {"size", "peak_memory"} <= set(self.problem.objectives)
        columns = [i for i, name in enumerate(self.problem.objectives) if not (twice and name == "peak_memory")]
        reference = np.array(self.problem.reference())
        return hypervolume(np.array(self._front.losses)[:, columns], reference[columns])


@dataclass(slots=True)
class Patience:
    """Tells when the last ``trials`` trials, taken together, have widened the front by less than :data:`LEAST_GAIN`.

    0 trials is patience without end. A front that is worth nothing yet is waited for without end, too.
    """

    trials: int
    _counts: list[int] = field(default_factory=list)
    _volumes: list[float] = field(default_factory=list)

    def spent(self, count: int, guide: Guide) -> bool:
        """Whether to stop after ``count`` trials that led to ``guide``; to be asked after every batch."""
        if not self.trials:
            return False
        volume = guide.volume()
        self._counts.append(count)
        self._volumes.append(volume)
        before = bisect_right(self._counts, count - self.trials) - 1
        return before >= 0 and 0 < volume <= self._volumes[before] * (1 + LEAST_GAIN)
