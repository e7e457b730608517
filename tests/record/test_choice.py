"""Choosing a point: every rule against brute force or by hand, every refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, Front, FrontPoint, Latency, MetricPair
from autoq.core.scheme import FLOAT32
from autoq.errors import JobError, RunError
from autoq.record.choice import drop_of, knee_point, metric_of, select, uses_final

MakePoint = Callable[..., FrontPoint]
MakeFront = Callable[..., Front]


@pytest.fixture
def four(make_front: MakeFront, make_point: MakePoint) -> Front:
    """Float32 has 0.90; the points trade metric for speed and size."""
    return make_front(
        make_point("aa11", search=0.91, ratio=0.9, size=800),
        make_point("aa22", search=0.89, ratio=0.5, size=300),
        make_point("bb33", search=0.85, ratio=0.4, size=250),
        make_point("cc44", search=0.80, ratio=0.6, size=100),
    )


@pytest.mark.parametrize(
    ("how", "key"), [("best", "aa11"), ("fastest", "bb33"), ("smallest", "cc44"), ("aa22", "aa22"), ("c", "cc44")]
)
def test_a_rule_or_an_id_names_a_point(four: Front, how: str, key: str) -> None:
    assert select(four, how).id == key


def test_the_knee_is_nearest_the_utopia_point(four: Front) -> None:
    # Normalised losses (metric, ratio, size): aa11 (0, 1, 1), aa22 (.18, .2, .29), bb33 (.55, 0, .21), cc44 (1, .4, 0).
    assert select(four, "knee").id == "aa22"
    assert knee_point(four).id == "aa22"


def test_a_beaten_point_is_no_knee_and_does_not_stretch_the_scale(four: Front, make_point: MakePoint) -> None:
    beaten = make_point("dd55", search=0.1, ratio=9.0, size=9000)
    assert select(replace(four, points=(*four.points, beaten)), "knee").id == "aa22"


def test_ties_go_to_the_faster_and_to_the_better(make_front: MakeFront, make_point: MakePoint) -> None:
    front = make_front(
        make_point("slow", search=0.9, ratio=0.8, size=100),
        make_point("fast", search=0.9, ratio=0.5, size=200),
        make_point("good", search=0.95, ratio=0.9, size=100),
        make_point("poor", search=0.5, ratio=0.5, size=200),
    )
    assert select(replace(front, points=front.points[:2]), "best").id == "fast"
    assert select(front, "smallest").id == "good"
    assert select(front, "fastest").id == "fast"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_best_and_drop_follow_the_direction(four: Front, direction: str) -> None:
    front = replace(four, metric_direction=direction)
    best, worst = ("aa11", "cc44") if direction == "maximize" else ("cc44", "aa11")
    assert select(front, "best").id == best
    drops = {point.id: drop_of(front, point) for point in front.points}
    assert min(drops, key=drops.__getitem__) == best and max(drops, key=drops.__getitem__) == worst
    assert drops["cc44"] == pytest.approx(0.1 if direction == "maximize" else -0.1)


def test_bounds_are_kept_before_the_rule_chooses(four: Front) -> None:
    assert select(four, "smallest", max_drop=0.05).id == "bb33"
    assert select(four, "smallest", max_drop=0.02).id == "aa22"
    assert select(four, "best", max_latency_ratio=0.5).id == "aa22"
    assert select(four, "fastest", max_drop=0.0).id == "aa11"
    assert select(four, "knee", max_drop=0.005, max_latency_ratio=0.95).id == "aa11"


def test_the_binding_bound_is_named_with_the_nearest_miss(four: Front) -> None:
    with pytest.raises(
        RunError, match=r"no point .* --max-latency-ratio 0\.3 \(the nearest, bb33, has the ratio 0\.4\)"
    ):
        select(four, "best", max_drop=0.5, max_latency_ratio=0.3)
    with pytest.raises(RunError, match="loosen a bound") as caught:
        select(four, "best", max_latency_ratio=0.3, max_drop=0.5)
    assert "--max-drop" not in str(caught.value)


def test_bounds_that_only_bind_together_are_both_named(four: Front) -> None:
    # aa11 keeps the drop, bb33 the ratio, and no point both.
    with pytest.raises(RunError) as caught:
        select(four, "best", max_drop=0.005, max_latency_ratio=0.45)
    text = str(caught.value)
    assert "--max-drop 0.005 (the nearest, bb33, loses 0.05)" in text
    assert "--max-latency-ratio 0.45 (the nearest, aa11, has the ratio 0.9)" in text


def test_a_point_named_by_id_must_keep_the_bounds_too(four: Front) -> None:
    with pytest.raises(RunError, match=r"the point cc44 breaks --max-drop 0\.02 \(it loses 0\.1\)"):
        select(four, "cc44", max_drop=0.02)


def test_an_id_that_names_no_point_or_several_lists_the_ids(four: Front, make_point: MakePoint) -> None:
    with pytest.raises(RunError, match=r"'aa' is the beginning of 2 ids: aa11, aa22"):
        select(four, "aa")
    with pytest.raises(RunError, match=r"'zz' is no point .* aa11, aa22, bb33, cc44"):
        select(four, "zz")
    with pytest.raises(RunError, match="'' is no point"):
        select(four, "")
    off = replace(four, dropped=(DroppedPoint(point=make_point("ee77"), why="slower when timed again"),))
    with pytest.raises(RunError, match="ee77 was taken off the front: slower when timed again"):
        select(off, "ee77")


def test_a_whole_id_wins_over_being_a_beginning(make_front: MakeFront, make_point: MakePoint) -> None:
    assert select(make_front(make_point("aa"), make_point("aab")), "aa").id == "aa"


def test_an_empty_front_says_why(make_front: MakeFront, make_point: MakePoint) -> None:
    empty = make_front(dropped=(DroppedPoint(point=make_point("x"), why="metric fell by 0.3"),))
    with pytest.raises(RunError, match=r"is empty.*metric fell by 0\.3"):
        select(empty, "knee")
    with pytest.raises(RunError, match="0 trials were complete"):
        select(make_front(), "best")


def test_speed_is_not_guessed_where_it_was_not_measured(make_front: MakeFront, make_point: MakePoint) -> None:
    front = make_front(
        make_point("aa", ratio=None, size=5), make_point("bb", ratio=None, size=4), objectives=("metric", "size")
    )
    assert select(front, "smallest").id == "bb"
    with pytest.raises(RunError, match="latency was not measured"):
        select(front, "fastest")
    with pytest.raises(RunError, match=r"--max-latency-ratio 0\.5 \(it was not measured\)"):
        select(front, "best", max_latency_ratio=0.5)


def test_bounds_that_are_no_bounds_are_refused(four: Front) -> None:
    with pytest.raises(JobError, match="max_metric_drop is -1"):
        select(four, "best", max_drop=-1.0)


def test_final_metrics_are_compared_only_among_themselves(make_front: MakeFront, make_point: MakePoint) -> None:
    baseline = make_point("base", search=0.90, final=0.80)
    both = make_front(
        make_point("aa", search=0.95, final=0.70), make_point("bb", search=0.85, final=0.79), baseline=baseline
    )
    assert uses_final(both) and select(both, "best").id == "bb"
    assert drop_of(both, both.points[0]) == pytest.approx(0.10)
    half = replace(both, points=(both.points[0], make_point("cc", search=0.85)))
    assert not uses_final(half) and metric_of(half, half.points[0]) == 0.95
    assert drop_of(half, half.points[1]) == pytest.approx(0.05)


rows = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8, unique=True
)


@settings(max_examples=150, deadline=None)
@given(rows=rows, max_drop=st.none() | st.integers(0, 12), max_ratio=st.none() | st.integers(1, 20))
def test_select_agrees_with_brute_force(
    rows: list[tuple[int, int, int]], max_drop: int | None, max_ratio: int | None
) -> None:
    def point(index: int, metric: float, ratio: float, size: int) -> FrontPoint:
        latency = Latency(median_ms=1, ratio_to_float32=ratio, ratio_ci95=(ratio, ratio), batch=1, threads=1)
        return FrontPoint(
            id=f"p{index}", policy=Policy.uniform(["a"], FLOAT32), metric=MetricPair(search=metric), latency=latency,
            size_bytes=size, peak_memory_bytes=None, weight_bits_mean=8, model_path="", sha256="",
        )  # fmt: skip

    front = Front(
        name="n", objectives=("metric", "latency", "size"), metric_name="m", metric_direction="maximize",
        baseline=point(99, 12, 1, 20), points=tuple(point(i, *row) for i, row in enumerate(rows)),
    )  # fmt: skip
    kept = [
        (index, row)
        for index, row in enumerate(rows)
        if (max_drop is None or 12 - row[0] <= max_drop) and (max_ratio is None or row[1] <= max_ratio)
    ]
    bounds = {"max_drop": max_drop, "max_latency_ratio": max_ratio}
    for how in ("best", "fastest", "smallest", "knee"):
        if not kept:
            with pytest.raises(RunError, match="keeps"):
                select(front, how, **bounds)
            continue
        chosen = select(front, how, **bounds)
        assert int(chosen.id[1:]) in [index for index, _ in kept]
        metric, ratio, size = rows[int(chosen.id[1:])]
        if how == "best":
            assert (metric, -ratio) == max((row[0], -row[1]) for _, row in kept)
        elif how == "fastest":
            assert (ratio, -metric) == min((row[1], -row[0]) for _, row in kept)
        elif how == "smallest":
            assert (size, -metric) == min((row[2], -row[0]) for _, row in kept)
