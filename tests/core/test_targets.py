"""One file for all targets, by hand."""

from __future__ import annotations

import math

import pytest

from autoq.core.targets import TargetPoint, TargetResult, common_file


def point(digest: str, ratio: float, *, size: float = 0.5, breaks: tuple[str, ...] = ()) -> TargetPoint:
    return TargetPoint(
        id=digest, sha256=digest, found_for="a", file=f"a/models/{digest}.onnx", metric=0.9, drop=0.0,
        size_bytes=int(1000 * size), size_ratio=size, latency_ratio=ratio, breaks=breaks,
    )  # fmt: skip


def target(profile: str, *points: TargetPoint) -> TargetResult:
    return TargetResult(
        profile=profile, run=profile, reference="float32", baseline_metric=0.9, baseline_ms=1.0, points=points
    )


def test_the_least_geometric_mean_over_targets_wins() -> None:
    a = target("a", point("x", 0.4), point("y", 0.5), point("z", 0.8))
    b = target("b", point("x", 0.9), point("y", 0.45), point("z", 0.3))
    found, why = common_file([a, b], ("metric", "latency"))
    assert found is not None and why == ""
    # x: 1 * 3, y: 1.25 * 1.5, z: 2 * 1
    assert [part.common.id for part in found.on] == ["y", "y"]
    assert [part.best.id for part in found.on] == ["x", "z"]
    assert [part.cost for part in found.on] == pytest.approx([1.25, 1.5])
    assert found.cost == pytest.approx(math.sqrt(1.875))


def test_a_file_that_breaks_a_constraint_anywhere_serves_nobody() -> None:
    a = target("a", point("x", 0.4), point("y", 0.5))
    b = target("b", point("x", 0.2, breaks=("too inexact",)), point("y", 0.9))
    found, _ = common_file([a, b], ("metric", "latency"))
    assert found is not None
    assert [(part.common.id, part.best.id) for part in found.on] == [("y", "x"), ("y", "y")]
    alone = target("b", point("x", 0.2, breaks=("too inexact",)), point("w", 0.9))
    found, why = common_file([a, alone], ("metric", "latency"))
    assert found is None
    assert why == "none of the 1 files that run on all keeps the constraints on all; x on b: too inexact"


def test_without_latency_the_size_decides() -> None:
    a = target("a", point("x", 0.4, size=0.5), point("y", 0.5, size=0.25))
    found, _ = common_file([a, a], ("metric", "size"))
    assert found is not None and (found.objective, found.on[0].common.id, found.cost) == ("size", "y", 1.0)


@pytest.mark.parametrize(
    ("others", "says"),
    [((point("w", 0.3),), "no file runs on all of them"), ((), "on b no file keeps the constraints")],
)
def test_why_there_is_none(others: tuple[TargetPoint, ...], says: str) -> None:
    found, why = common_file([target("a", point("x", 0.4)), target("b", *others)], ("metric", "latency"))
    assert found is None and says in why
