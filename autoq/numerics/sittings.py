"""A ratio of times and its interval, from sittings: rounds of one sitting are alike, and are one sample together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FLOOR = 0.004
"""The least spread (standard deviation, as a share) that sittings are taken to have.

A few sittings can agree by chance. A float32 ResNet-20's have 0.3 to 0.5 % on a quiet machine.
"""

_QUANTILE = 0.985
"""Of Student's distribution. A 95 % interval would want 0.975: this pays for ending with the first one narrow enough.

In simulation the truth is inside in at least 94 % of measurements then, whatever the spread (the tests do it).
"""

_TRIM = 8
"""Of that many sittings, the lowest and the highest count as much as their neighbours do."""


def sittings_ratio(ratios: npt.ArrayLike, *, floor: float = FLOOR) -> tuple[float, tuple[float, float]]:
    """How slow a candidate is against the baseline, and a 95 % interval.

    ``ratios`` ``[sittings]``: each sitting's candidate / baseline. The ratio is the mean of their logarithms, trimmed
    by one at each end for every eight, and its interval Student's with the winsorized variance (Tukey and McLaughlin
    1963; Yuen 1974), and no narrower than ``floor`` says. It holds for the stopping rule "sittings until the interval
    is narrow enough, at least four". Raises ``ValueError`` on fewer than two, or a ratio not positive and finite.
    """
    values = np.asarray(ratios, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"one sitting says nothing of the next: an interval needs two at least, not {values.size}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"the ratios of sittings must be positive and finite, not {values.tolist()}")
    values = np.sort(np.log(values))
    count, cut = len(values), len(values) // _TRIM
    kept = count - 2 * cut
    centre = float(values[cut : count - cut].mean())
    winsorized = np.clip(values, values[cut], values[count - 1 - cut])
    error = float(np.sqrt(winsorized.var(ddof=1) * (count - 1) / (kept * (kept - 1))))
    half = max(_student(kept - 1) * error, 2 * floor / np.sqrt(count))
    return float(np.exp(centre)), (float(np.exp(centre - half)), float(np.exp(centre + half)))


def _student(freedom: int) -> float:
    from scipy.special import stdtrit  # not needed to start

    return float(stdtrit(freedom, _QUANTILE))
