"""The table and the sentence, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autoq.core.policy import Policy
from autoq.core.result import FormGain, Front, FrontPoint
from autoq.record.summary import (
    describe_gain,
    front_marks,
    front_table,
    loss_text,
    metric_unit,
    policy_summary,
    shipping_text,
)

MakePoint = Callable[..., FrontPoint]
MakeFront = Callable[..., Front]


@pytest.fixture
def gained(make_front: MakeFront, make_point: MakePoint) -> Front:
    baseline = make_point("base", search=0.9, final=0.88, size=1000, memory=8_000_000, scheme="float32")
    knee = make_point("kk", search=0.9, final=0.877, ratio=0.505, size=170, memory=4_000_000, drop_ci95=(0.0, 0.008))
    fast = make_point("ff", search=0.8, final=0.80, ratio=0.4, size=300, drop_ci95=(0.07, 0.09))
    return make_front(knee, fast, baseline=baseline, final=True)


def test_the_sentence_says_what_was_gained_and_lost(gained: Front) -> None:
    assert describe_gain(gained) == (
        "Knee and smallest (kk): 1.98x as fast and 0.17 of the size of float32 at 0.3 points of accuracy lost "
        "(95 % interval 0.0 to 0.8). "
        "Fastest (ff): 2.50x as fast and 0.30 of the size of float32 at 8.0 points of accuracy lost "
        "(95 % interval 7.0 to 9.0)."
    )


def test_a_gain_turns_the_interval_with_the_sign(gained: Front, make_point: MakePoint) -> None:
    better = make_point("gg", final=0.884, drop_ci95=(-0.009, 0.002))
    assert loss_text(gained, better) == "0.4 points of accuracy gained (95 % interval -0.2 to 0.9)"
    same = make_point("gg", final=0.8801, drop_ci95=(-0.0001, -0.0001))
    assert loss_text(gained, same) == "0.0 points of accuracy lost (95 % interval 0.0 to 0.0)"


def test_a_metric_that_is_no_share_keeps_its_unit(make_front: MakeFront, make_point: MakePoint) -> None:
    front = make_front(
        make_point("aa", search=2.5, ratio=0.5, size=10),
        baseline=make_point("base", search=2.0, scheme="float32"),
        metric_name="metrics.py:rmse",
        metric_direction="minimize",
    )
    assert metric_unit(front) == (1.0, "rmse")
    assert loss_text(front, front.points[0]) == "rmse 0.5 worse"
    assert loss_text(front, make_point("bb", search=1.5)) == "rmse 0.5 better"
    assert describe_gain(front) == (
        "Knee and fastest and smallest (aa): 2.00x as fast and 0.01 of the size of float32 at rmse 0.5 worse."
    )


def test_no_gain_is_said_plainly(make_front: MakeFront, make_point: MakePoint) -> None:
    slow = make_point("aa", search=0.9, ratio=1.25, size=500)
    text = describe_gain(make_front(slow))
    assert text.startswith("No point is faster than float32 on this machine (the fastest runs at 0.80x")
    assert "fastest (" not in text.lower().replace("(the fastest", "")
    assert "Knee and smallest (aa): 0.80x as fast and 0.50 of the size" in text
    # Faster by its median alone is not shown to be faster.
    unsure = make_point("aa", search=0.9, ratio=0.99, spread=0.05, size=2000)
    assert describe_gain(make_front(unsure)) == (
        "No point is faster than float32 on this machine (the fastest runs at 1.01x, 95 % interval 0.96 to 1.06). "
        "No point is smaller than float32."
    )
    nothing = "Nothing was gained: no quantized model is on the front."
    assert describe_gain(make_front()) == nothing
    assert describe_gain(make_front(make_point("aa", scheme="float32"))) == nothing


def test_where_nothing_was_timed_nothing_is_said_of_speed(make_front: MakeFront, make_point: MakePoint) -> None:
    front = make_front(make_point("aa", ratio=None, size=250), objectives=("metric", "size"))
    assert describe_gain(front) == "Knee and smallest (aa): 0.25 of the size of float32 at 0.0 points of accuracy lost."
    assert front_marks(front) == {"aa": ("knee", "best", "smallest")}


def test_the_gain_of_form_is_told_apart_from_that_of_precision(gained: Front, make_point: MakePoint) -> None:
    latency = make_point("f", ratio=0.9, spread=0.01).latency
    assert latency is not None
    formed = replace(gained, form=FormGain(names=("attention", "wide-input"), latency=latency))
    assert describe_gain(formed) == describe_gain(gained) + (
        " All points have the form attention, wide-input; float32 itself, written like that, runs at 1.11x (95 % "
        "interval 1.10 to 1.12)."
    )


def test_the_table_has_float32_first_and_ratios_as_speed(gained: Front) -> None:
    base, knee, fast = front_table(gained)
    assert base.marks == ("float32",) and base.speedup == 1.0 and base.drop == 0.0 and base.size_ratio == 1.0
    assert knee.marks == ("knee", "best", "smallest") and fast.marks == ("fastest",)
    assert knee.on_final and knee.metric == 0.877 and knee.drop == pytest.approx(0.003)
    assert knee.speedup == pytest.approx(1 / 0.505)
    assert knee.speedup_ci95 == pytest.approx((1 / (0.505 * 1.02), 1 / (0.505 * 0.98)))
    assert (knee.size_ratio, knee.size_kb, knee.peak_memory_mb) == (0.17, 0.17, 4.0)
    assert knee.policy == "2×w8a8" and fast.peak_memory_mb is None


def test_what_a_point_takes_to_send_and_to_open(gained: Front) -> None:
    base, point = gained.baseline, gained.points[0]
    assert shipping_text(gained, point) == ""
    point = replace(point, load_ms=12.34, zip_bytes=123_456)
    assert shipping_text(gained, point) == f"{point.id}: 123 KB zipped, loads in 12.3 ms."
    gained = replace(gained, baseline=replace(base, load_ms=9.0, zip_bytes=1_100_000))
    assert shipping_text(gained, point) == f"{point.id}: 123 KB zipped (float32 1,100), loads in 12.3 ms (float32 9.0)."
    assert shipping_text(gained, replace(point, load_ms=None)) == f"{point.id}: 123 KB zipped (float32 1,100)."


def test_a_running_front_shows_the_search_split(gained: Front, make_point: MakePoint) -> None:
    running = replace(gained, points=(make_point("aa", search=0.87, drop_ci95=(0.0, 0.1)),))
    row = front_table(running)[1]
    assert not row.on_final and row.metric == 0.87 and row.drop == pytest.approx(0.03)
    assert row.drop_ci95 is None and row.metric_ci95 is None


def test_a_policy_is_summed_up_by_kind_the_most_frequent_first() -> None:
    texts = ["w4a8@minmax"] * 3 + ["w8a8@mse", "w8a8-s8@minmax"] + ["float32"]
    policy = Policy.from_text({f"l{i}": text for i, text in enumerate(texts)})
    assert policy_summary(policy) == "3×w4a8 2×w8a8 1×float32"
