"""How well the proxies rank the truth: what they predict of every trial beside what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoq.core.objectives import metric_drop, trial_values
from autoq.core.proxy import ProxyTruth
from autoq.core.result import Trial
from autoq.numerics.bootstrap import spearman
from autoq.search.problem import Problem
from autoq.search.seeds import weight_bytes
from autoq.search.sensitivity import Sensitivity

FEWEST = 3
"""Two trials are always ranked quite right or quite wrong."""


def proxy_truths(problem: Problem, trials: Sequence[Trial], table: Sensitivity | None) -> tuple[ProxyTruth, ...]:
    """One for each objective of which :data:`FEWEST` trials or more have a prediction and a measurement.

    ``table`` has the layers' noise; without it nothing is predicted of the metric.
    """
    found = []
    for objective in problem.objectives:
        rows = []
        for trial in trials:
            if trial.failure is None:
                predicted, measured = _predicted(problem, trial, objective, table), _measured(problem, trial, objective)
                if predicted is not None and measured is not None and math.isfinite(predicted):
                    rows.append((trial.id, predicted, measured))
        if len(rows) >= FEWEST:
            ids, guesses, truths = zip(*rows, strict=True)
            found.append(
                ProxyTruth(
                    objective=objective,
                    ids=ids,
                    predicted=guesses,
                    measured=truths,
                    spearman=spearman(guesses, truths),
                )
            )
    return tuple(found)


def _predicted(problem: Problem, trial: Trial, objective: str, table: Sensitivity | None) -> float | None:
    if objective == "latency":
        return trial.latency_modelled
    schemes = dict(trial.policy)
    own = [entry.layer for entry in problem.candidates if entry.layer.tied_to is None]
    if objective != "metric":
        return float(sum(weight_bytes(layer, schemes[layer.name]) for layer in own))
    if table is None:
        return None
    try:
        return sum(table.noise(layer.name, schemes[layer.name]) for layer in own)
    except KeyError:  # a calibration taken over from another layer, which was not probed here
        return None


def _measured(problem: Problem, trial: Trial, objective: str) -> float | None:
    values = trial_values(trial)
    if objective == "metric":
        if values.metric is None or problem.baseline.metric is None:
            return None
        return metric_drop(values.metric, problem.baseline.metric, problem.direction)
    if objective == "latency":
        return values.latency_ratio
    return values.size_bytes if objective == "size" else values.peak_memory_bytes
