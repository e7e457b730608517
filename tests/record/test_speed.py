"""Speeds, measured and estimated: in JSON, in words, in pictures, in the report and in MLflow's fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autoq.core.result import Conditions, Estimate, Front, FrontPoint, Trial
from autoq.errors import RunError
from autoq.record.front import front_json, read_front, write_front
from autoq.record.json_reader import Node
from autoq.record.noise import cost_ratio, shown_better
from autoq.record.plot_data import plot_panels
from autoq.record.plots import plot_front, png
from autoq.record.report import report_html
from autoq.record.speed import estimator_of, latency_document, read_latency, reference_of, speed_text
from autoq.record.summary import describe_gain, front_table
from autoq.record.tracking_fields import trial_metrics
from autoq.search.store import TrialLog
from tests.record.conftest import make_latency

VELA = Estimate(ms=1.25, ratio=0.5, reference="w8a8", by="Vela 5.2.0, ethos-u55-256", figures={"cycles": 625_000})


@pytest.fixture
def estimated(front: Front) -> Front:
    """The front as of a device that cannot run float32, where nothing can be timed."""

    def of(point: FrontPoint) -> FrontPoint:
        assert point.latency is not None
        return dataclasses.replace(point, latency=dataclasses.replace(VELA, ratio=point.latency.ratio))

    return dataclasses.replace(
        front,
        baseline=dataclasses.replace(front.baseline, latency=None, peak_memory_bytes=None),
        points=tuple(map(of, front.points)),
        dropped=(),
    )


MEASURED = make_latency(0.5)
BUSY = Conditions(disturbed=True, foreign_load=0.9, slowdown=1.2, load_average=2.0, cpus=(1,), sittings=8, left_out=3)


@pytest.mark.parametrize(
    "latency",
    [
        MEASURED,
        dataclasses.replace(MEASURED, reference="w8a8"),
        dataclasses.replace(MEASURED, conditions=BUSY),
        dataclasses.replace(MEASURED, conditions=dataclasses.replace(BUSY, mhz=2600.0, governor="powersave")),
        dataclasses.replace(MEASURED, by="the command ssh"),
        VELA,
    ],
    ids=["float32", "w8a8", "disturbed", "clock", "command", "estimate"],
)
def test_json_gives_back_what_it_was_given(latency) -> None:
    document = latency_document(latency)
    found = read_latency(Node(document, "front.json", "latency"))
    if not isinstance(latency, Estimate):  # raw samples are left out
        latency = dataclasses.replace(latency, blocks_ms=(), baseline_blocks_ms=())
    assert found == latency
    # Who looks for a measured ratio to float32 must never find another.
    assert ("ratio_to_float32" in document) == (latency.reference == "float32")
    assert ("ratio_ci95" in document) == (not isinstance(latency, Estimate))


@pytest.mark.parametrize("change", [{"ms": 0}, {"ratio": -1}, {"estimated": "yes"}, {"figures": {"cycles": "many"}}])
def test_a_damaged_estimate_is_named(change) -> None:
    with pytest.raises(RunError, match=rf"front.json is damaged: latency.*|{next(iter(change))}"):
        read_latency(Node(latency_document(VELA) | change, "front.json", "latency"))


def test_an_estimate_that_is_none(front: Front) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        dataclasses.replace(VELA, ms=float("nan"))


def test_words() -> None:
    assert speed_text(make_latency(0.5)) == "2.00x as fast"
    assert speed_text(VELA) == "2.00x as fast as w8a8 (estimated)"


def test_a_front_of_estimates(estimated: Front, front: Front, tmp_path: Path) -> None:
    write_front(estimated, tmp_path / "front.json")
    assert read_front(tmp_path / "front.json") == estimated
    assert (reference_of(estimated), estimator_of(estimated)) == ("w8a8", VELA.by)
    assert (reference_of(front), estimator_of(front)) == ("float32", "")
    baseline, *rows = front_table(estimated)
    assert baseline.speedup is None and all(row.speedup and row.speedup_ci95 is None for row in rows)
    text = describe_gain(estimated)
    assert "x as fast as w8a8 (estimated) and" in text and "nothing was timed" in text
    assert "estimate" not in describe_gain(front)
    assert "ratio_to_float32" not in front_json(estimated)


def test_nothing_is_faster_by_estimate(estimated: Front) -> None:
    slow = tuple(dataclasses.replace(p, latency=dataclasses.replace(VELA, ratio=1.25)) for p in estimated.points)
    text = describe_gain(dataclasses.replace(estimated, points=slow))
    assert "No point is faster than w8a8 (the fastest runs at 0.80x, estimated)." in text


def test_pictures_and_the_report_say_so(estimated: Front, trials: list[Trial]) -> None:
    panel = next(panel for panel in plot_panels(estimated, ()) if panel.title == "Speed")
    assert panel.baseline is None and panel.x_label == "latency, ratio to w8a8 (estimated; less is faster)"
    assert all(mark.x_ci95 is None and "(estimated), 1.25 ms" in " ".join(mark.lines) for mark in panel.points)
    assert len(png(plot_front(estimated, ()))) > 10_000
    page = report_html(estimated, [], {}, {}, ())
    assert "speed, x w8a8, estimated" in page and "estimated by Vela 5.2.0, ethos-u55-256" in page
    assert "x float32" not in page


def test_estimates_are_told_apart_exactly(estimated: Front) -> None:
    a, b = (
        dataclasses.replace(point, latency=dataclasses.replace(VELA, ratio=ratio))
        for point, ratio in zip(estimated.points, (0.5, 0.6), strict=False)
    )
    assert cost_ratio(b, a, "latency") == pytest.approx(1.2) and shown_better(estimated, a, b, "latency")
    assert not shown_better(estimated, b, a, "latency")


def test_fields_of_tracking_and_the_log(trials: list[Trial], tmp_path: Path) -> None:
    trial = next(trial for trial in trials if trial.latency is not None)
    other = dataclasses.replace(trial, number=900, latency=VELA)
    found = trial_metrics(other)
    assert found["latency_estimated_ratio"] == 0.5 and found["estimated.cycles"] == 625_000
    assert "latency_ratio" not in found and "latency_ratio_low" not in found
    against = dataclasses.replace(make_latency(0.5), reference="w8a8")
    log = TrialLog(tmp_path / "trials.jsonl")
    for each in (other, dataclasses.replace(trial, latency=against)):
        log.path.unlink(missing_ok=True)
        log.append(each)
        assert log.read() == [each]
        assert b"ratio_to_float32" not in log.path.read_bytes()


def test_a_point_timed_beside_other_work_says_so(front: Front) -> None:
    assert not any("disturbed" in row.marks for row in front_table(front))
    first = front.points[0]
    busy = dataclasses.replace(first, latency=dataclasses.replace(make_latency(0.5), conditions=BUSY))
    shown = dataclasses.replace(front, points=(busy, *front.points[1:]))
    assert [row.id for row in front_table(shown) if "disturbed" in row.marks] == [first.id]
    page = report_html(shown, [], {})
    assert "disturbed</b>" in page and "90% to 90%" in page and "2.00 to 2.00" in page
