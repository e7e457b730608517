"""Health in words, in JSON, in the report and beside an exported model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from autoq.core.scheme import Scheme
from autoq.model.health import LayerHealth
from autoq.numerics.health import AccumulatorHealth, RangeHealth
from autoq.record.front import read_front
from autoq.record.health import health_html, health_json, health_record, point_health, warnings_of
from tests.cli.calls import call
from tests.small_job import shared_run

READS = RangeHealth(sqnr_db=40.0, saturated_low=0.0, saturated_high=0.0, clipping=0.0, zero_point=0.1, rounding=0.9)
SUMS = AccumulatorHealth(sum_possible=10**6, sum_seen=10**5, pair_possible=64770, pair_seen=20000)
WELL = LayerHealth(
    layer="<conv>", scheme=Scheme.parse("w8a8@minmax"), weight_sqnr_db=math.inf, output_sqnr_db=40.0, tensor="<x>",
    input=READS, accumulator=SUMS,
)  # fmt: skip


def test_nothing_to_say() -> None:
    assert warnings_of(WELL, narrow=False) == []
    assert warnings_of(LayerHealth(layer="c", scheme=Scheme.parse("w8")), narrow=True) == []


@pytest.mark.parametrize(
    ("changes", "narrow", "said"),
    [
        ({"input": dataclasses.replace(READS, saturated_high=0.12)}, False,
         "12 % of the values that <conv> reads (<x>) saturate"),
        ({"input": dataclasses.replace(READS, zero_point=0.4)}, False,
         "40 % of the error of what <conv> reads (<x>) is the rounding of its zero point"),
        ({"weight_sqnr_db": 2.04}, False, "the weights of <conv> keep 2.0 dB of their own under w8a8@minmax"),
        ({"output_sqnr_db": -1.0}, False,
         "the output of <conv> is -1.0 dB above its noise, that of earlier layers too"),
        ({"accumulator": dataclasses.replace(SUMS, sum_possible=2**31)}, False,
         "sums of <conv> may leave 32 bits; the largest seen is 0.0% of that"),
        ({"accumulator": dataclasses.replace(SUMS, sum_seen=2**31)}, False,
         "sums of <conv> left 32 bits on calibration rows"),
        ({}, True, "pairs of products of <conv> may saturate in 16 bits on a CPU without VNNI; they did not on "
         "calibration rows"),
        ({"accumulator": dataclasses.replace(SUMS, pair_seen=40000)}, True,
         "pairs of products of <conv> may saturate in 16 bits on a CPU without VNNI; they did on calibration rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes: dict[str, object], narrow: bool, said: str) -> None:
    assert warnings_of(dataclasses.replace(WELL, **changes), narrow=narrow) == [said]  # type: ignore[arg-type]


def test_a_search_leaves_its_fronts_health(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shared_run(tmp_path_factory) / "run"
    front = read_front(run / "front.json")
    document = json.loads((run / "health.json").read_text())
    assert document["version"] == 1 and set(document["points"]) == {point.id for point in front.points}
    for point in front.points:
        layers = document["points"][point.id]
        quantized = {name: str(scheme) for name, scheme in point.policy.items() if scheme.weight is not None}
        assert {layer["layer"]: layer["scheme"] for layer in layers} == quantized
        assert all(layer["weight_sqnr_db"] is None or layer["weight_sqnr_db"] > 0 for layer in layers)
    page = (run / "report.html").read_text()
    assert "Numerical health" in page and "zero point" in page
    done = call(capsys, "export", run, "--select", "best", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    exported = json.loads((tmp_path / "out" / "health.json").read_text())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert exported["id"] == manifest["id"] and exported["layers"] == document["points"][manifest["id"]]


def test_names_are_escaped_in_the_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    front = read_front(shared_run(tmp_path_factory) / "run" / "front.json")
    bad = dataclasses.replace(WELL, output_sqnr_db=0.0)
    page = health_html(front, {front.points[0].id: health_record([bad], narrow=False)})
    assert "&lt;conv&gt;" in page and "<conv>" not in page and "1 warning<" in page


def test_files(tmp_path: Path) -> None:
    assert point_health(tmp_path, "a") is None
    health = {"a": health_record([WELL], narrow=True)}
    (tmp_path / "health.json").write_text(health_json(health))
    text = point_health(tmp_path, "a")
    assert text is not None and json.loads(text)["layers"][0]["weight_sqnr_db"] is None
    assert point_health(tmp_path, "b") is None
    (tmp_path / "health.json").write_text("[]")
    assert point_health(tmp_path, "a") is None
