from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoq.core.result import Front, FrontPoint
from autoq.errors import RunError
from autoq.record.front import front_json
from autoq.record.running_front import RunningFront


def several(front: Front, count: int) -> tuple[FrontPoint, ...]:
    return tuple(replace(front.points[0], id=f"p{i}", size_bytes=1000 + i) for i in range(count))


def test_the_file_is_what_is_written_at_once(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    running = RunningFront(path)
    points = several(front, 6)
    # Points come, go, and change under their name: what is kept of earlier ones must not show.
    changed = (replace(points[2], size_bytes=7), *points[3:])
    for number, members in enumerate(((), points[:1], points[:4], points[:4], points[2:], changed, ())):
        now = replace(front, points=members, trials_complete=number)
        running.write(now)
        assert path.read_text() == front_json(now)


def test_one_that_cannot_be_written_is_named(front: Front, tmp_path: Path) -> None:
    running = RunningFront(tmp_path / "absent" / "front.json")
    with pytest.raises(RunError, match="cannot be written"):
        running.write(front)
