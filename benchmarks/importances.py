"""Shares of variance by layer: autoq's and Optuna's evaluators against the truth, on additive values.

    python benchmarks/importances.py [--fanova]

The truth is known: layer i has random effects of a random size, and its share is their variance. Printed are the rank
correlation (Spearman) of each evaluator's figures with it, the median over five seeds, and its seconds. --fanova takes
Optuna's fANOVA along, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from scipy.stats import spearmanr

from autoq.numerics.importance import variance_shares

SIZES = ((20, 8, 60), (20, 8, 200), (39, 10, 100), (39, 10, 200))
SEEDS = 5


def problem(layers: int, choices: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, values, and each layer's variance."""
    rng = np.random.default_rng(seed)
    effects = rng.random((layers, choices)) * rng.random((layers, 1)) ** 3
    codes = rng.integers(choices, size=(rows, layers))
    return codes, effects[np.arange(layers), codes].sum(axis=1), effects.var(axis=1)


def own(codes: np.ndarray, values: np.ndarray) -> list[float]:
    found = variance_shares(codes, values)
    return [0.0] * codes.shape[1] if found is None else list(found.shares)


def of_optuna(evaluator: optuna.importance.BaseImportanceEvaluator) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    def take(codes: np.ndarray, values: np.ndarray) -> list[float]:
        names = [f"l{index}" for index in range(codes.shape[1])]
        known = {name: CategoricalDistribution(range(int(codes.max()) + 1)) for name in names}
        study = optuna.create_study()
        study.add_trials(
            create_trial(value=float(value), params=dict(zip(names, map(int, row), strict=True)), distributions=known)
            for row, value in zip(codes, values, strict=True)
        )
        found = get_param_importances(study, evaluator=evaluator)
        return [found[name] for name in names]

    return take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fanova", action="store_true")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    evaluators = {"autoq": own, "PED-ANOVA": of_optuna(PedAnovaImportanceEvaluator())}
    if parser.parse_args().fanova:
        evaluators["fANOVA"] = of_optuna(FanovaImportanceEvaluator(seed=0))
    rows = []
    print(f"{'layers':>6} {'choices':>7} {'trials':>6}  {'evaluator':10} {'Spearman':>8} {'seconds':>8}")
    for layers, choices, count in SIZES:
        for name, take in evaluators.items():
            ranks, seconds = [], []
            for seed in range(SEEDS):
                codes, values, truth = problem(layers, choices, count, seed)
                start = time.perf_counter()
                found = take(codes, values)
                seconds.append(time.perf_counter() - start)
                # All equal (nothing explained) ranks nothing.
                ranks.append(float(spearmanr(found, truth).statistic) if np.ptp(found) > 0 else 0.0)
            row = {"layers": layers, "choices": choices, "trials": count, "evaluator": name}
            row |= {"spearman": statistics.median(ranks), "seconds": statistics.median(seconds)}
            rows.append(row)
            print(
                f"{layers:6} {choices:7} {count:6}  {name:10} {row['spearman']:8.2f} {row['seconds']:8.3f}", flush=True
            )
    out = Path(__file__).parent / "out" / "importances.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
