"""Uncertainty of measured figures, by resampling. Seeded: the same samples and seed give the same interval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def median_ratio(
    candidate_ms: npt.ArrayLike,
    baseline_ms: npt.ArrayLike,
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, tuple[float, float]]:
    """How slow the candidate is against the baseline, and how sure that is.

    ``candidate_ms`` and ``baseline_ms`` are ``[blocks]``, taken in turn: block i of both ran under the same conditions.
    The ratio is the median over blocks of candidate / baseline (0.5 = twice as fast); the interval is the
    percentile bootstrap's over blocks (Efron and Tibshirani 1993, chapter 13) at ``level``. One block gives an
    interval of zero width. Raises ``ValueError`` on no blocks, unequal numbers, or a time not positive and finite.
    """
    candidate, baseline = np.asarray(candidate_ms, np.float64), np.asarray(baseline_ms, np.float64)
    if candidate.ndim != 1 or candidate.shape != baseline.shape or candidate.size == 0:
        raise ValueError(f"blocks must come in pairs, at least one; got {candidate.shape} and {baseline.shape}")
    for name, times in (("candidate", candidate), ("baseline", baseline)):
        if not (np.isfinite(times) & (times > 0)).all():
            raise ValueError(f"the {name}'s times must be positive and finite; the smallest is {times.min()}")
    ratios = candidate / baseline
    drawn = np.random.default_rng(seed).integers(ratios.size, size=(resamples, ratios.size))
    return float(np.median(ratios)), interval(np.median(ratios[drawn], axis=1), level)


def interval(samples: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The central ``level`` of ``samples`` ``[n]``: their ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles.

    Raises ``ValueError`` on no samples, a NaN, or a level not between 0 and 1.
    """
    values = np.asarray(samples, np.float64)
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not at {level}")
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(f"an interval needs samples, and none of them NaN; got {values.size}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Spearman's rank correlation of ``a`` and ``b`` ``[n]``, ties at mid-rank; ``None`` where it is undefined.

    Undefined: fewer than two pairs, or all of one side equal. Raises ``ValueError`` on unequal lengths or NaN.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"ranks must come in pairs; got shapes {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a NaN has no rank")
    if first.size < 2 or (first == first[0]).all() or (second == second[0]).all():
        return None
    from scipy.stats import spearmanr  # a second to import, and not needed to start

    return float(spearmanr(first, second).statistic)
