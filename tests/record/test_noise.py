"""What two points can be told apart in, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autoq.core.result import Front, FrontPoint
from autoq.record.choice import choose
from autoq.record.choice_summary import choice_text, ties_text
from autoq.record.noise import alike, cheaper, nothing_ranked, shown_better
from autoq.record.summary import describe_gain

MakePoint = Callable[..., FrontPoint]
MakeFront = Callable[..., Front]


@pytest.fixture
def front(make_front: MakeFront, make_point: MakePoint) -> Front:
    def point(key: str, metric: float, size: int, **errors: float) -> FrontPoint:
        made = make_point(key, final=metric, ratio=0.5, size=size, memory=8_000_000)
        return replace(made, metric=replace(made.metric, gap_se=tuple(errors.items())))

    return make_front(
        point("aa", 0.90, 400),
        point("bb", 0.89, 300, aa=0.0049),
        point("cc", 0.88, 200, aa=0.0110, bb=0.01),
        baseline=make_point("base", final=0.9, size=1000, scheme="float32"),
        final=True,
    )


def test_metrics_are_told_apart_by_the_error_of_their_difference(front: Front) -> None:
    aa, bb, cc = front.points
    assert shown_better(front, aa, bb, "metric")  # .01 > 1.96 * .0049
    assert not shown_better(front, bb, aa, "metric")
    assert not shown_better(front, aa, cc, "metric")  # .02 < 1.96 * .011
    assert shown_better(front, aa, cc, "metric", z=1.0)
    lower_is_better = replace(front, metric_direction="minimize")
    assert shown_better(lower_is_better, bb, aa, "metric") and not shown_better(lower_is_better, aa, bb, "metric")


@pytest.mark.parametrize(
    ("ratios", "spread", "told"),
    [
        ((0.50, 0.504), 0.0001, False),
        ((0.50, 0.506), 0.0001, True),
        ((0.50, 0.52), 0.03, False),
        ((0.5, 0.6), 0.03, True),
    ],
)
def test_latencies_by_both_intervals_and_a_hundredth(
    front: Front, make_point: MakePoint, ratios: tuple[float, float], spread: float, told: bool
) -> None:
    fast, slow = (make_point(f"p{ratio}", ratio=ratio, spread=spread) for ratio in ratios)
    assert shown_better(front, fast, slow, "latency") is told
    assert not shown_better(front, slow, fast, "latency")
    assert not shown_better(front, fast, make_point("x", ratio=None), "latency")


def test_sizes_by_a_hundredth_and_memory_by_half_a_megabyte(front: Front, make_point: MakePoint) -> None:
    small, near, far = (make_point(f"p{size}", size=size) for size in (1000, 1009, 1011))
    assert not shown_better(front, small, near, "size") and shown_better(front, small, far, "size")
    low, close, high, unknown = (make_point(f"m{m}", memory=m) for m in (8_000_000, 8_400_000, 8_600_000, None))
    assert not shown_better(front, low, close, "peak_memory") and shown_better(front, low, high, "peak_memory")
    assert not shown_better(front, low, unknown, "peak_memory")


def test_cheaper_and_alike(front: Front) -> None:
    aa, bb, cc = front.points
    assert not cheaper(front, bb, aa) and cheaper(front, cc, aa) and not cheaper(front, cc, aa, z=1.0)
    assert alike(front, aa) == [cc] and alike(front, bb) == [cc] and alike(front, cc) == []
    unknown = replace(front, points=tuple(replace(p, metric=replace(p.metric, gap_se=())) for p in front.points))
    assert alike(unknown, aa) == []


def test_the_words_name_the_cheaper_ones_that_are_alike(front: Front) -> None:
    text = choice_text(choose(front, "best"))
    assert text == (
        "Chosen: aa, the best accuracy, of 3 points. The accuracy of aa cannot be told (95 %) from that of cheaper "
        "points: cc (2.0 ± 2.2 points of accuracy worse; 0.50 of its size)."
    )
    assert ties_text(front)[0].startswith("The accuracy of aa cannot be told (95 %)")


def test_the_words_say_what_was_passed_over(front: Front) -> None:
    aa, bb, _ = front.points
    near = replace(front, points=(aa, replace(bb, metric=replace(bb.metric, gap_se=(("aa", 0.02),)))))
    assert choice_text(choose(near, "best")) == (
        "Chosen: bb. The best accuracy, of 2 points, is aa; the point taken is within one standard error of its "
        "accuracy, with 0.75 of its size."
    )


def test_where_nothing_is_ranked_it_is_said(front: Front) -> None:
    assert not nothing_ranked(front) and "apart" not in describe_gain(front)
    blurred = replace(
        front,
        points=tuple(
            replace(p, metric=replace(p.metric, gap_se=tuple((key, 0.1) for key, _ in p.metric.gap_se)))
            for p in front.points
        ),
    )
    assert nothing_ranked(blurred)
    assert "The final split tells no two of these 3 points apart in accuracy (95 %): only what they cost" in (
        describe_gain(blurred)
    )
    assert not nothing_ranked(replace(blurred, points=blurred.points[:1]))
