"""Which bound leaves nothing over, and who comes nearest to keeping it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Excesses = Mapping[str, float | None]
"""Bound -> how far a candidate is beyond it (:func:`autoq.core.objectives.constraint_excesses`)."""

_WHAT = {
    "max_metric_drop": "loses",
    "max_latency_ratio": "has the latency ratio",
    "max_size_ratio": "has the size ratio",
    "max_peak_memory_ratio": "has the peak memory ratio",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A bound (its name in :class:`autoq.core.objectives.Constraints`) and the candidate that comes nearest to it.

    ``nearest`` is the candidate's place, ``excess`` how far it is beyond the bound, in the bound's unit; ``None``
    where what the bound needs was not measured of any.
    """

    bound: str
    nearest: int | None
    excess: float | None

    def text(self, name: str, bound: float, who: str) -> str:
        """In words: ``--max-drop 0.01 (the nearest, 1ef38d, loses 0.012, 0.002 too much)``."""
        if self.excess is None:
            return f"{name} {bound:g} (it was not measured)"
        return f"{name} {bound:g} ({who} {_WHAT[self.bound]} {bound + self.excess:.4g}, {self.excess:.2g} too much)"


def keeps(excesses: Excesses) -> bool:
    """Whether every bound is kept, and shown to be."""
    return all(excess is not None and excess <= 0 for excess in excesses.values())


def near_misses(candidates: Sequence[Excesses]) -> list[Miss]:
    """The bounds that bind, each with its nearest miss; empty where some candidate keeps all bounds, or there is none.

    Bounds that no candidate keeps bind by themselves. Where each is kept by some candidate, the fewest bounds that none
    keeps together bind; the nearest miss of one is then among the candidates that keep the others.
    """
    if not candidates:
        return []
    names = list(candidates[0])
    for count in range(1, len(names) + 1):
        sets = [some for some in combinations(names, count) if not any(_keeps(each, some) for each in candidates)]
        if sets and count == 1:
            return [_nearest(candidates, name, ()) for (name,) in sets]
        if sets:
            return [_nearest(candidates, name, [other for other in sets[0] if other != name]) for name in sets[0]]
    return []


def _keeps(excesses: Excesses, names: Sequence[str]) -> bool:
    return keeps({name: excesses[name] for name in names})


def _nearest(candidates: Sequence[Excesses], name: str, others: Sequence[str]) -> Miss:
    known = [
        (excess, i) for i, each in enumerate(candidates) if (excess := each[name]) is not None and _keeps(each, others)
    ]
    excess, nearest = min(known, default=(None, None))
    return Miss(bound=name, nearest=nearest, excess=excess)
