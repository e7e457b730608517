"""``front.json`` while a search runs: there after every trial, and cheap to keep up however many points it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from autoq.core.result import Front, FrontPoint
from autoq.record.files import write_atomically
from autoq.record.front import front_json, point_json

LONGEST_S = 1.0
"""Where the front stays as it is, only the number of trials changes: the file says it this often."""


class RunningFront:
    """Writes the front's file when its points change, or after :data:`LONGEST_S`. ``clock`` gives seconds.

    A point's text is made once: of a front of hundreds of points, one trial changes a few.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._members: tuple[Hashable, ...] | None = None
        self._written_at = 0.0
        self._texts: dict[str, tuple[FrontPoint, str]] = {}

    def due(self, members: Sequence[Hashable]) -> bool:
        """Whether a front of these ``members``, whatever names them, should be written now."""
        return self._members != tuple(members) or self._clock() - self._written_at >= LONGEST_S

    def write(self, front: Front, members: Sequence[Hashable]) -> None:
        """Replaces the file. Raises :class:`~autoq.errors.RunError` as :func:`autoq.record.front.write_front` does."""
        self._texts = {point.id: (point, self._text(point)) for point in front.points}
        write_atomically(self._path, front_json(front, [self._texts[point.id][1] for point in front.points]))
        self._members, self._written_at = tuple(members), self._clock()

    def _text(self, point: FrontPoint) -> str:
        known = self._texts.get(point.id)
        return known[1] if known is not None and known[0] is point else point_json(point)
