"""Choosing a point: every rule against brute force or by hand, every refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.objectives import Constraints
from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, Front, FrontPoint, Latency, MetricPair
from autoq.core.scheme import FLOAT32
from autoq.errors import JobError, RunError
from autoq.record.choice import choose, parse_weights, select
from autoq.record.figures import drop_of, metric_of, uses_final

MakePoint = Callable[..., FrontPoint]
MakeFront = Callable[..., Front]


def within(drop: float | None = None, ratio: float | None = None, size: float | None = None) -> Constraints:
    return Constraints(max_metric_drop=drop, max_latency_ratio=ratio, max_size_ratio=size)


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
    assert select(four, "smallest", bounds=within(0.05)).id == "bb33"
    assert select(four, "smallest", bounds=within(0.02)).id == "aa22"
    assert select(four, "best", bounds=within(ratio=0.5)).id == "aa22"
    assert select(four, "fastest", bounds=within(0.0)).id == "aa11"
    assert select(four, "knee", bounds=within(0.005, 0.95)).id == "aa11"


def test_the_binding_bound_is_named_with_the_nearest_miss(four: Front) -> None:
    with pytest.raises(
        RunError,
        match=r"no point .* --max-latency-ratio 0\.3 \(the nearest, bb33, has the latency ratio 0\.4, 0\.1 too",
    ):
        select(four, "best", bounds=within(0.5, 0.3))
    with pytest.raises(RunError, match="loosen a bound") as caught:
        select(four, "best", bounds=within(0.5, 0.3))
    assert "--max-drop" not in str(caught.value)


def test_bounds_that_only_bind_together_are_both_named(four: Front) -> None:
    # aa11 keeps the drop, bb33 the ratio, and no point both.
    with pytest.raises(RunError) as caught:
        select(four, "best", bounds=within(0.005, 0.45))
    text = str(caught.value)
    assert "--max-drop 0.005 (the nearest, bb33, loses 0.05, 0.045 too much)" in text
    assert "--max-latency-ratio 0.45 (the nearest, aa11, has the latency ratio 0.9, 0.45 too much)" in text


def test_a_point_named_by_id_must_keep_the_bounds_too(four: Front) -> None:
    with pytest.raises(RunError, match=r"the point cc44 breaks --max-drop 0\.02 \(it loses 0\.1, 0\.08 too much\)"):
        select(four, "cc44", bounds=within(0.02))


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
        select(front, "best", bounds=within(ratio=0.5))


def test_bounds_that_are_no_bounds_are_refused(four: Front) -> None:
    with pytest.raises(JobError, match="max_metric_drop is -1"):
        select(four, "best", bounds=within(-1.0))


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
        latency = Latency(median_ms=1, ratio=ratio, ratio_ci95=(ratio, ratio), batch=1, threads=1)
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
    bounds = within(max_drop, max_ratio)
    for how in ("best", "fastest", "smallest", "knee"):
        if not kept:
            with pytest.raises(RunError, match="keeps"):
                select(front, how, bounds=bounds)
            continue
        chosen = select(front, how, bounds=bounds)
        assert int(chosen.id[1:]) in [index for index, _ in kept]
        metric, ratio, size = rows[int(chosen.id[1:])]
        if how == "best":
            assert (metric, -ratio) == max((row[0], -row[1]) for _, row in kept)
        elif how == "fastest":
            assert (ratio, -metric) == min((row[1], -row[0]) for _, row in kept)
        elif how == "smallest":
            assert (size, -metric) == min((row[2], -row[0]) for _, row in kept)


# By weights ----------------------------------------------------------------------------------------------------------


def test_weights_choose_and_their_proportions_alone_matter(four: Front) -> None:
    # Normalised losses (metric, ratio, size): aa11 (0, 1, 1), aa22 (.18, .2, .29), bb33 (.55, 0, .21), cc44 (1, .4, 0).
    assert select(four, weights={"metric": 1, "latency": 1, "size": 1}).id == "aa22"
    assert select(four, weights={"metric": 10, "latency": 1, "size": 1}).id == "aa11"
    assert select(four, weights={"metric": 1, "latency": 9}).id == "bb33"
    assert select(four, weights={"size": 0.2, "metric": 0}).id == "cc44"
    for scale in (0.01, 7):  # size alone: .29 * 3 against .21 * 3
        assert select(four, weights={"metric": scale, "latency": 2 * scale, "size": 3 * scale}).id == "bb33"
    choice = choose(four, weights={"metric": 1, "size": 2})
    assert "(metric 1, latency 0, size 2)" in choice.rule


def test_weights_are_of_the_points_that_keep_the_bounds(four: Front) -> None:
    assert select(four, weights={"latency": 1}, bounds=within(drop=0.02)).id == "aa22"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"speed": 1}, r"'speed' is no objective of this front .* it has metric, latency, size"),
        ({"peak_memory": 1}, "'peak_memory' is no objective of this front"),
        ({"metric": -1}, r"the weight of 'metric' is -1; it must be a finite number, 0 or more"),
        ({"metric": float("inf")}, "the weight of 'metric' is inf"),
        ({"metric": 0, "size": 0}, "all weights are 0"),
        ({}, "all weights are 0"),
    ],
)
def test_weights_that_are_none(four: Front, weights: dict[str, float], message: str) -> None:
    with pytest.raises(RunError, match=message):
        select(four, weights=weights)


def test_weights_and_a_rule_are_not_both_taken(four: Front) -> None:
    with pytest.raises(RunError, match="leave out either them or 'knee'"):
        select(four, "knee", weights={"metric": 1})


def test_weights_as_text() -> None:
    assert parse_weights("metric=1, latency = 2,size=0.5") == {"metric": 1.0, "latency": 2.0, "size": 0.5}
    for text, message in [
        ("metric", "'metric' is no weight; write objective=number"),
        ("metric=", "is no weight"),
        ("metric=much", "'metric=much' is no weight"),
        ("=1", "is no weight"),
        ("", "is no weight"),
        ("metric=1,", "is no weight"),
        ("metric=1,metric=2", "'metric' has two weights"),
    ]:
        with pytest.raises(RunError, match=message):
            parse_weights(text)


# What cannot be told apart -------------------------------------------------------------------------------------------


@pytest.fixture
def noisy(make_front: MakeFront, make_point: MakePoint) -> Front:
    """Metrics .900, .896, .880 (standard error .005 each); the second is smaller and as fast, the third far smaller."""

    def point(key: str, metric: float, ratio: float, size: int, *before: str) -> FrontPoint:
        made = make_point(key, final=metric, ratio=ratio, size=size)
        return replace(made, metric=replace(made.metric, gap_se=tuple((other, 0.005) for other in before)))

    return make_front(
        point("aa", 0.900, 0.500, 400),
        point("bb", 0.896, 0.505, 300, "aa"),
        point("cc", 0.880, 0.500, 100, "aa", "bb"),
        baseline=make_point("base", final=0.9, size=1000),
        final=True,
    )


def test_within_one_standard_error_the_cheaper_is_taken(noisy: Front) -> None:
    choice = choose(noisy, "best")
    assert choice.point.id == "bb" and choice.passed_over is noisy.points[0]
    # Unless it is named, or dearer in something that was shown.
    assert select(noisy, "aa").id == "aa"
    latency = replace(noisy.points[1].latency, ratio=0.6, ratio_ci95=(0.59, 0.61))  # type: ignore[type-var]
    slow = replace(noisy.points[1], latency=latency)
    assert select(replace(noisy, points=(noisy.points[0], slow, noisy.points[2])), "best").id == "aa"


def test_the_fastest_is_of_those_that_cannot_be_told_from_it(noisy: Front) -> None:
    # All three are as fast: the best of them, and again the cheaper of two that are alike.
    assert select(noisy, "fastest").id == "bb"
    (aa, bb, cc) = noisy.points
    shown = replace(cc.latency, ratio=0.4, ratio_ci95=(0.39, 0.41))  # type: ignore[type-var]
    assert select(replace(noisy, points=(aa, bb, replace(cc, latency=shown))), "fastest").id == "cc"


def test_without_errors_metrics_are_ranked_as_they_stand(noisy: Front) -> None:
    points = tuple(replace(point, metric=replace(point.metric, gap_se=())) for point in noisy.points)
    assert select(replace(noisy, points=points), "best").id == "aa"
