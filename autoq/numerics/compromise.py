"""One row of a front by its distance from the ideal point. Every objective is a loss: smaller is better.

Each objective is scaled to [0, 1] over the rows given; the *ideal point* has every objective at its smallest, 0. Give
it a front: dominated rows would stretch the scale. Plain Python: a front has some dozens of rows, and the command line
need not wait for NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

AUGMENTATION = 0.01
"""The weight of the sum beside the maximum: enough to part equals, and so small that concave parts stay in reach."""


def knee(losses: Sequence[Sequence[float]]) -> int:
    """Row of the front ``losses`` ``[n, d]`` nearest to the ideal point, by Euclidean distance.

    That is compromise programming with p = 2 (Zeleny 1973). Objectives in which all rows agree are ignored; of
    equally near rows the first is taken. Raises ``ValueError`` on no rows or a number not finite.
    """
    return _least([sum(value * value for value in row) for row in _scaled(losses)])


def chebyshev(losses: Sequence[Sequence[float]], weights: Sequence[float]) -> int:
    """Row of the front ``losses`` ``[n, d]`` with the least augmented weighted Chebyshev distance from the ideal point.

    That is ``max(w * z) + AUGMENTATION * sum(w * z)`` over the scaled objectives ``z`` (Steuer and Choo 1983). Unlike a
    weighted sum, which no weights let take a point in a concave part of the front, it has weights for every point
    (Das and Dennis 1997; Marler and Arora 2004, sections 3.2 and 3.5). ``weights`` ``[d]``: only proportions matter,
    and 0 leaves an objective out, but for ties: of equally near rows, the one with the least sum of all objectives is
    taken. Raises ``ValueError`` on no rows, a number not finite, or weights that are negative, all zero or too few.
    """
    rows = _scaled(losses)
    if len(weights) != len(rows[0]) or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(f"weights must be {len(rows[0])} numbers, 0 or more and not all 0, not {weights!r}")
    shares = [weight / max(weights) for weight in weights]
    distances = []
    for row in rows:
        terms = [share * value for share, value in zip(shares, row, strict=True)]
        distances.append((max(terms) + AUGMENTATION * sum(terms), sum(row)))
    return _least(distances)


def _scaled(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    rows = [[float(value) for value in row] for row in losses]
    if not rows:
        raise ValueError("an empty front has no nearest row")
    if not all(math.isfinite(value) for row in rows for value in row):
        raise ValueError("the losses of a front must be finite")
    lows = [min(column) for column in zip(*rows, strict=True)]
    spans = [max(column) - low for column, low in zip(zip(*rows, strict=True), lows, strict=True)]
    return [
        [(value - low) / span if span > 0 else 0.0 for value, low, span in zip(row, lows, spans, strict=True)]
        for row in rows
    ]


def _least(distances: Sequence[float] | Sequence[tuple[float, float]]) -> int:
    return min(range(len(distances)), key=lambda index: distances[index])
