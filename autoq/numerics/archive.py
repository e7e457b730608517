"""The non-dominated ones of points that come one by one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


class Archive(Generic[Item]):
    """Items whose losses no other item's dominate or equal; of equals the first. Every objective is a loss.

    What is dominated once is dominated for good, so a point costs one comparison with each of those that are left, and
    not with all there ever were. ``floor``, losses of nobody's, counts as an item that is never listed.
    """

    def __init__(self, floor: Sequence[float] | None = None) -> None:
        self._floor = None if floor is None else np.asarray(floor, np.float64)
        self._losses: list[tuple[float, ...]] = []  # in lexicographic order, as the items
        self._items: list[Item] = []
        self._rows: npt.NDArray[np.float64] | None = None

    @property
    def items(self) -> list[Item]:
        """Those that are left, in lexicographic order of their losses."""
        return list(self._items)

    @property
    def losses(self) -> list[tuple[float, ...]]:
        """Their losses."""
        return list(self._losses)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, losses: Sequence[float], item: Item) -> list[Item]:
        """Takes up ``item``; returns those that are no longer, or were never, among the non-dominated.

        Raises ``ValueError`` on a loss that is not finite, and on another number of losses than before.
        """
        row = np.asarray(losses, np.float64) + 0.0  # turns -0 into 0: they are one value
        if not np.isfinite(row).all():
            raise ValueError(f"the losses {tuple(losses)} are not all finite")
        if self._floor is not None and (self._floor <= row).all():
            return [item]
        if self._rows is None:
            self._rows = np.zeros((0, len(row)))
        if (self._rows <= row).all(axis=1).any():
            return [item]
        out = np.flatnonzero((row <= self._rows).all(axis=1)).tolist()
        lost = [self._items[index] for index in out]
        for index in reversed(out):
            del self._items[index], self._losses[index]
        self._rows = np.delete(self._rows, out, axis=0)
        place = bisect_left(self._losses, tuple(row.tolist()))
        self._items.insert(place, item)
        self._losses.insert(place, tuple(row.tolist()))
        self._rows = np.insert(self._rows, place, row, axis=0)
        return lost
