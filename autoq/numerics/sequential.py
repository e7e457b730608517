"""Lower bounds of a loss on all rows, from some of them: what tells early that a candidate cannot come up any more.

Rows are a sample without replacement, so a bound is of what the rest will give: its variance shrinks with the share of
rows that are still to come (the finite population correction, Cochran 1977, section 2.6).

Looks at growing samples are several tests. Each of n looks has an n-th of the probability to err (Bonferroni), so that
all together err no more often than a single one might, however they hang together.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_CONTINUITY = 0.5  # counts are whole, the normal distribution is not: half a row is given away
_STEPS = 50  # of a bisection: 2 / 2**50 is beyond what any number of rows can show


def least_lost_share(lost: int, gained: int, rows: int, level: float, open_share: float = 1.0) -> float:
    """Lower confidence bound, at ``1 - level``, of (rows lost - rows gained) / rows, in [-1, 1].

    Of ``rows`` rows, ``lost`` were right before and are wrong now, ``gained`` the other way round. ``open_share`` is a
    factor of the variance: ``1 - rows / all_rows`` for the share among all rows, 1 for that of where they came from.

    The score bound for the difference of paired proportions (Tango, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17, 1998): the smallest difference
    that the data do not reject. Unlike an interval of the difference plus or minus so many standard errors, it allows
    for rows gained of which none was seen yet. Raises ``ValueError`` for counts that cannot be.
    """
    if not (rows > 0 and lost >= 0 and gained >= 0 and lost + gained <= rows and 0 <= open_share <= 1):
        raise ValueError(f"{lost} lost and {gained} gained of {rows} rows, {open_share} open")
    limit = normal_quantile(1 - level)
    low, high = -1.0, max((lost - gained - _CONTINUITY) / rows, -1.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _score(lost, gained, rows, middle) > limit * math.sqrt(open_share):
            low = middle
        else:
            high = middle
    return low


def _score(lost: int, gained: int, rows: int, difference: float) -> float:
    """Tango's equation 3: how far the data are from ``difference``, in standard deviations under it."""
    b = -lost - gained + (2 * rows - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    likely_gained = (math.sqrt(max(b * b - 8 * rows * c, 0.0)) - b) / (4 * rows)
    variance = rows * (2 * likely_gained + difference * (1 - difference))
    missed = lost - gained - _CONTINUITY - rows * difference
    return missed / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, missed) if missed else 0.0


def least_of_jackknife(value: float, left_out: npt.ArrayLike, level: float, open_share: float = 1.0) -> float | None:
    """Lower confidence bound, at ``1 - level``, of a statistic whose ``value`` on all blocks is given.

    ``left_out`` ``[blocks]`` is the statistic without each of the blocks, which are of equal size and drawn at random.
    The delete-a-group jackknife (Kott, "The delete-a-group jackknife", Journal of Official Statistics 17, 2001) gives
    the variance of any smooth statistic, a mean or a rank correlation; Student's t with one degree of freedom less than
    blocks gives the bound (Tukey 1958). Approximate, since blocks are few and statistics bend.
    ``open_share`` as in :func:`least_lost_share`. ``None`` where all blocks say the same: that tells nothing of those
    to come. Raises ``ValueError`` on fewer than two blocks or a number that is not finite.
    """
    each = np.asarray(left_out, np.float64)
    if each.ndim != 1 or each.size < 2 or not (np.isfinite(each).all() and math.isfinite(value)):
        raise ValueError("a jackknife needs two finite values or more")
    if np.ptp(each) <= 1e-12 * max(1.0, abs(value)):
        return None
    count = each.size
    variance = (count - 1) / count * float(((each - each.mean()) ** 2).sum())
    return value - student_quantile(1 - level, count - 1) * math.sqrt(variance * open_share)


def normal_quantile(probability: float) -> float:
    """The standard normal distribution's quantile."""
    from scipy.special import ndtri  # scipy is not needed to start

    return float(ndtri(probability))


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
