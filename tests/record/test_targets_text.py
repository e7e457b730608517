"""How several targets read: intervals, units, and what does not run, by hand."""

from __future__ import annotations

import dataclasses

from autoq.core.targets import TargetPoint, TargetResult, Targets
from autoq.record.targets import headings, page, point_row, refused_texts

POINT = TargetPoint(
    id="abc", sha256="0" * 64, found_for="b", file="b/models/abc.onnx", metric=0.88, drop=0.0125, size_bytes=250_000,
    size_ratio=0.25, latency_ratio=0.5, metric_ci95=(0.86, 0.9), drop_ci95=(-0.0025, 0.02), latency_ci95=(0.4, 0.625),
    on_front=True,
)  # fmt: skip
TARGET = TargetResult(
    profile="a", run="a", reference="float32", baseline_metric=0.8925, baseline_ms=1.0, points=(POINT,),
    refused=(("x of b", "no room"), ("y of c", "a reads .onnx files"), ("z of c", "a reads .onnx files")),
)  # fmt: skip
TARGETS = Targets(name="job", objectives=("metric", "latency"), metric_name="accuracy", targets=(TARGET,))


def test_a_row_has_intervals_and_the_unit_of_the_metric() -> None:
    assert headings(TARGETS, TARGET)[2:5] == ("accuracy", "drop (points of accuracy)", "speed")
    assert point_row(TARGETS, TARGET, POINT) == (
        "abc", "b", "0.8800", "1.25 [-0.25, 2.00]", "2.00x [1.60, 2.50]", "0.250 (250 KB)",
    )  # fmt: skip


def test_an_estimate_has_none_and_says_so_and_a_loss_keeps_its_own_unit() -> None:
    point = dataclasses.replace(POINT, estimated=True, latency_ci95=None, drop_ci95=None)
    target = dataclasses.replace(TARGET, reference="w8a8@minmax")
    found = dataclasses.replace(TARGETS, metric_name="rmse", metric_direction="minimize")
    assert headings(found, target)[3:5] == ("drop (rmse)", "speed of w8a8@minmax")
    assert point_row(found, target, point)[3:5] == ("0.0125", "2.00x (estimated)")


def test_files_that_do_not_run_are_told_by_reason() -> None:
    assert refused_texts(TARGET) == [
        "x of b does not run there: no room.",
        "y of c, z of c do not run there: a reads .onnx files.",
    ]
    assert all(text in page(TARGETS) for text in refused_texts(TARGET))
