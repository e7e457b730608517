"""Which trials of a search of the same job for other hardware a search had best begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from autoq.core.result import Trial
from autoq.numerics.pareto import non_dominated
from autoq.search.problem import Problem, nearest_of
from autoq.search.seeds import Seed


def likeliest(problem: Problem, trials: Sequence[tuple[str, Trial]], count: int) -> list[Seed]:
    """At most ``count`` of ``trials``, each with its seed's name: first the front that they should have here.

    Their metric must be what it would be here, so that it is known as their size is; latency is modelled. Left out is
    what this hardware does not offer, and what breaks a constraint by these figures.
    """
    offered = problem.choices
    left: list[tuple[tuple[float, ...], Seed]] = []
    seen = set()
    for name, trial in trials:
        if trial.metric is None or trial.size_bytes is None or trial.policy in seen:
            continue
        seen.add(trial.policy)
        chosen = {
            layer: nearest_of(scheme, offered[layer]) for layer, scheme in trial.policy.items_ if layer in offered
        }
        if problem.complete(chosen) != trial.policy:
            continue
        here = dataclasses.replace(trial, latency_modelled=problem.modelled_latency(trial.policy))
        losses, excess = problem.proposer_losses(here)
        if excess == 0:
            left.append((losses, (name, chosen)))
    left.sort(key=lambda each: each[0])
    found: list[Seed] = []
    while left and len(found) < count:
        kept = non_dominated([losses for losses, _ in left])
        front = [seed for (_, seed), keep in zip(left, kept, strict=True) if keep]
        # Of more than there is room for, some from all along the front.
        places = np.linspace(0, len(front) - 1, min(len(front), count - len(found))).round().astype(int)
        found += [front[place] for place in places]
        left = [each for each, keep in zip(left, kept, strict=True) if not keep]
    return found
