"""How much of the variance of a value each of several categorical parameters explains.

The value is modelled as a sum of effects, one for each choice of each parameter, by ridge regression (Hoerl and Kennard
1970) whose penalty is the one with the least squared leave-one-out error (Allen 1974; in closed form, from one
eigendecomposition). A parameter's share is the covariance of its effect with the value over the value's variance
(Pratt 1987): shares add up to what the model explains. They are scaled to add up to what it explains of trials that it
has not seen, since with as many effects as trials any model explains those it was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_ROWS = 1000
"""Of more rows, so many at even distances are used: the eigendecomposition is cubic in them."""

_PENALTIES = np.logspace(-4, 4, 25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """``explained``: share of the variance that is explained of rows left out, 0 to 1; ``shares`` ``[L]`` add to it."""

    explained: float
    shares: tuple[float, ...]


def variance_shares(codes: npt.ArrayLike, values: npt.ArrayLike) -> Shares | None:
    """Shares of the parameters in the variance of ``values`` ``[n]``, at the choices ``codes`` ``[n, L]`` (integers).

    ``None`` where there are fewer than four rows, all values agree, or the model explains nothing. Raises
    ``ValueError`` on shapes that do not fit or values that are not finite.
    """
    table, y = np.asarray(codes), np.asarray(values, np.float64)
    if table.ndim != 2 or not table.shape[1] or y.shape != (len(table),) or not np.isfinite(y).all():
        raise ValueError(f"codes [n, L] and finite values [n] are needed, not {table.shape} and {y.shape}")
    if len(y) > MOST_ROWS:
        kept = np.linspace(0, len(y) - 1, MOST_ROWS).round().astype(int)
        table, y = table[kept], y[kept]
    if len(y) < 4 or not np.ptp(y) > 0:
        return None
    centred = y - y.mean()
    indicators = [_indicators(column) for column in table.T]
    every = np.concatenate(indicators, axis=1) / np.sqrt(table.shape[1])
    eigenvalues, vectors = np.linalg.eigh(every @ every.T)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    rotated = vectors.T @ centred
    errors = []
    for penalty in _PENALTIES:
        kept_share = eigenvalues / (eigenvalues + penalty)
        leverage = 1 / len(y) + (vectors**2) @ kept_share
        residual = centred - vectors @ (kept_share * rotated)
        errors.append(float((residual**2 / np.maximum(1 - leverage, 1e-9) ** 2).sum()))
    # Left out, the mean of the others is what to beat.
    blind = float((centred**2).sum() * (len(y) / (len(y) - 1)) ** 2)
    explained = 1 - min(errors) / blind
    if explained <= 0:
        return None
    penalty = _PENALTIES[int(np.argmin(errors))]
    weights = vectors @ (rotated / (eigenvalues + penalty))
    own = np.array([max(0.0, float((weights @ each) @ (each.T @ centred))) for each in indicators])
    if not own.sum() > 0:
        return None
    return Shares(explained=explained, shares=tuple(map(float, own / own.sum() * explained)))


def _indicators(column: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """``[n, choices]``: 1 where a row has the choice, less the share of rows that have it."""
    found = (column[:, None] == np.unique(column)).astype(np.float64)
    return np.asarray(found - found.mean(axis=0))
