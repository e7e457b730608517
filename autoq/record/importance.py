"""Which layers the objectives hang on: each layer's share of the variance over the evaluated trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoq.core.objectives import trial_losses
from autoq.core.result import Front, Trial
from autoq.numerics.importance import variance_shares

FEWEST_TRIALS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """One objective: what share of its variance the layers' schemes explain, of trials left out, and each layer's part.

    ``shares`` add up to ``explained``, in the order of the layers that have a choice.
    """

    objective: str
    explained: float
    shares: tuple[float, ...]


def importances(front: Front, trials: Sequence[Trial]) -> tuple[tuple[str, ...], tuple[Importance, ...]]:
    """The layers with more than one scheme among the complete trials, and an entry for each objective they explain.

    Both are empty where there are fewer than :data:`FEWEST_TRIALS` trials or nothing varies. A layer that always has
    the schemes of another (tied weights) shares with it.
    """
    complete = [trial for trial in trials if trial.complete]
    if len(complete) < FEWEST_TRIALS:
        return (), ()
    texts = [trial.policy.to_text() for trial in complete]
    layers = [layer for layer in texts[0] if len({text.get(layer) for text in texts}) > 1]
    if not layers:
        return (), ()
    codes = np.stack([np.unique([text[layer] for text in texts], return_inverse=True)[1] for layer in layers], axis=1)
    found = []
    for objective in front.objectives:
        values = [trial_losses(trial, [objective], front.metric_direction)[0] for trial in complete]
        shares = variance_shares(codes, values)
        if shares is not None:
            found.append(Importance(objective=objective, explained=shares.explained, shares=shares.shares))
    return tuple(layers), tuple(found)
