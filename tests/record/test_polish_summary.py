"""Before and after, wherever a front is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autoq.core.result import Front, FrontPoint, Polish
from autoq.errors import RunError
from autoq.record.front import read_front, write_front
from autoq.record.polish_summary import polish_table, polish_text
from autoq.record.report import report_html
from autoq.record.tracking_fields import polish_metrics


@pytest.fixture
def polished(make_front: Callable[..., Front], make_point: Callable[..., FrontPoint]) -> Front:
    before = make_point("pp", search=0.85, final=0.84, ratio=0.5, size=200)
    polish = Polish(
        kind="sequential", measure="KL divergence", held_out=(0.25, 0.1), layers=7, seconds=12.4, before=before
    )
    after = make_point("pp", search=0.87, final=0.86, ratio=0.48, size=201)
    baseline = make_point("base", search=0.9, final=0.88, scheme="float32")
    return make_front(
        replace(after, polish=polish), make_point("qq", final=0.8, ratio=0.4), baseline=baseline, final=True
    )


def test_the_table_and_the_sentence(polished: Front) -> None:
    (row,) = polish_table(polished)
    assert row.on_final and row.metric == (0.84, 0.86) and row.speedup == (2.0, 1 / 0.48)
    assert polish_text(polished, row) == (
        "pp polished (sequential): accuracy 0.8400 -> 0.8600 on the final split; KL divergence to float32 on "
        "calibration rows held out 0.25 -> 0.1; speed 2.00x -> 2.08x; 7 layers in 12 s"
    )
    searched = replace(
        polished, points=(replace(polished.points[0], metric=replace(polished.points[0].metric, final=None)),)
    )
    (row,) = polish_table(searched)
    assert not row.on_final and row.metric == (0.85, 0.87)


def test_front_json_keeps_it(polished: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    write_front(polished, path)
    found = read_front(path).points[0].polish
    expected = polished.points[0].polish
    assert found is not None and expected is not None
    latency = expected.before.latency
    assert latency is not None
    bare = replace(expected.before, latency=replace(latency, blocks_ms=(), baseline_blocks_ms=()))
    assert found == replace(expected, before=bare)
    document = json.loads(path.read_text())
    document["points"][0]["polish"]["held_out"] = [0.1]
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"points\[0\]\.polish\.held_out"):
        read_front(path)


def test_the_report_has_it_only_where_there_is_one(polished: Front, front: Front) -> None:
    page = report_html(polished, [], {})
    assert "<h2>Polished</h2>" in page and "0.8400 → 0.8600" in page and "2.00 → 2.08" in page
    assert "<h2>Polished</h2>" not in report_html(front, [], {})


def test_what_tracking_gets(polished: Front) -> None:
    polish = polished.points[0].polish
    assert polish is not None
    assert polish_metrics(polish) == {
        "polish.before.metric": 0.85,
        "polish.before.final_metric": 0.84,
        "polish.before.final_latency_ratio": 0.5,
        "polish.held_out_before": 0.25,
        "polish.held_out_after": 0.1,
        "seconds.polish": 12.4,
    }
