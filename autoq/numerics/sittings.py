"""A ratio of times and its interval, from sittings: rounds of one sitting are alike, and are one sample together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FLOOR = 0.004
"""The least spread (standard deviation, as a share) that sittings are taken to have.

A few sittings can agree by chance. A float32 ResNet-20's have 0.3 to 0.5 % on a quiet machine.
"""

_QUANTILE = 0.985
"""Of Student's distribution. A 95 % interval would want 0.975: this pays for ending with the first one narrow enough.

In simulation the truth is inside in 94.4 to 99.7 % of measurements then, whatever the spread (tests, benchmarks).
"""

_TRIM = 8
"""Of that many sittings, the lowest and the highest count as much as their neighbours do."""


def sittings_ratio(ratios: Sequence[npt.ArrayLike], *, floor: float = FLOOR) -> tuple[float, tuple[float, float]]:
    """How slow a candidate is against the baseline, and a 95 % interval.

    ``ratios`` has for each sitting its rounds' candidate / baseline ``[rounds]``. A sitting's value is the median of
    their logarithms. The ratio is the mean over sittings, trimmed by one at each end for every eight, and its interval
    Student's with the winsorized variance (Tukey and McLaughlin 1963; Yuen 1974), and no narrower than ``floor`` says.
    It holds for the stopping rule "sittings until the interval is narrow enough, at least four".
    Raises ``ValueError`` on fewer than two sittings, an empty one, or a ratio not positive and finite.
    """
    if len(ratios) < 2:
        raise ValueError(f"one sitting says nothing of the next: an interval needs two at least, not {len(ratios)}")
    values = np.array([_value(sitting) for sitting in ratios])
    values.sort()
    count, cut = len(values), len(values) // _TRIM
    kept = count - 2 * cut
    centre = float(values[cut : count - cut].mean())
    winsorized = np.clip(values, values[cut], values[count - 1 - cut])
    error = float(np.sqrt(winsorized.var(ddof=1) * (count - 1) / (kept * (kept - 1))))
    half = max(_student(kept - 1) * error, 2 * floor / np.sqrt(count))
    return float(np.exp(centre)), (float(np.exp(centre - half)), float(np.exp(centre + half)))


def _value(sitting: npt.ArrayLike) -> float:
    rounds = np.asarray(sitting, np.float64)
    if rounds.ndim != 1 or rounds.size == 0 or not (np.isfinite(rounds) & (rounds > 0)).all():
        raise ValueError(f"a sitting's ratios must be a row of positive numbers, not {rounds.tolist()}")
    return float(np.median(np.log(rounds)))


def _student(freedom: int) -> float:
    from scipy.special import stdtrit  # not needed to start

    return float(stdtrit(freedom, _QUANTILE))
