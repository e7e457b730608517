from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoq.core.result import Front, FrontPoint
from autoq.errors import RunError
from autoq.record.front import front_json
from autoq.record.running_front import LONGEST_S, RunningFront


def several(front: Front, count: int) -> tuple[FrontPoint, ...]:
    return tuple(replace(front.points[0], id=f"p{i}", size_bytes=1000 + i) for i in range(count))


def test_the_file_is_what_is_written_at_once(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    running = RunningFront(path, lambda: 0.0)
    points = several(front, 6)
    # Points come, go, and change under their name: what is kept of earlier ones must not show.
    changed = (replace(points[2], size_bytes=7), *points[3:])
    for members in ((), points[:1], points[:4], points[2:], changed, ()):
        now = replace(front, points=members)
        running.write(now, [point.id for point in members])
        assert path.read_text() == front_json(now)


def test_it_is_due_with_another_front_and_now_and_then(front: Front, tmp_path: Path) -> None:
    time = 0.0
    running = RunningFront(tmp_path / "front.json", lambda: time)
    assert running.due([])  # there is no file yet
    running.write(replace(front, points=()), [])
    assert not running.due([])
    assert running.due([3])
    running.write(front, [3, 4])
    assert not running.due([3, 4])
    assert running.due([4, 3])
    assert running.due([3])
    time = LONGEST_S
    assert running.due([3, 4])


def test_a_front_that_cannot_be_written_is_due_again(front: Front, tmp_path: Path) -> None:
    running = RunningFront(tmp_path / "absent" / "front.json", lambda: 0.0)
    with pytest.raises(RunError, match="cannot be written"):
        running.write(front, [1])
    assert running.due([1])
