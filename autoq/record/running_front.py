"""``front.json`` while a search runs: right after every trial, and cheap to keep so however many points it has."""

from __future__ import annotations

from pathlib import Path

from autoq.core.result import Front, FrontPoint
from autoq.record.files import write_atomically
from autoq.record.front import front_json, point_json


class RunningFront:
    """Writes the front's file.

    A point's text is made once: of a front of hundreds of points, one trial changes a few. Where it changes none, only
    the number of trials is new: the disk is then not waited for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts: dict[str, tuple[FrontPoint, str]] | None = None

    def write(self, front: Front) -> None:
        """Replaces the file. Raises :class:`~autoq.errors.RunError` as :func:`autoq.record.front.write_front` does."""
        before = self._texts
        texts = {point.id: self._text(point) for point in front.points}
        text = front_json(front, [texts[point.id][1] for point in front.points])
        write_atomically(self._path, text, durable=before is None or before.keys() != texts.keys())
        self._texts = texts

    def _text(self, point: FrontPoint) -> tuple[FrontPoint, str]:
        known = (self._texts or {}).get(point.id)
        return known if known is not None and known[0] is point else (point, point_json(point))
