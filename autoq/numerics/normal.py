"""Mean and variance of functions of normal variables, by integration over a grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_REACH, _POINTS = 8.0, 2001


def moments_of(function: Callable[[Array], Array], mean: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of ``function(x)`` for normal x of each ``mean`` and ``variance``, float64 ``[channels]``.

    With a Relu that is the clipped normal distribution of Nagel et al. 2019, appendix C. The grid reaches 8 standard
    deviations; what a kink between two of its 2,001 points adds is below a millionth of the deviation.
    """
    z = np.linspace(-_REACH, _REACH, _POINTS)
    density = np.exp(-z * z / 2)
    density /= density.sum()
    values = function(mean[:, None] + np.sqrt(variance)[:, None] * z)
    first = values @ density
    return first, np.maximum(np.square(values - first[:, None]) @ density, 0.0)
