"""The pictures: what is drawn is what was measured, and what is off scale is not lost."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autoq.core.result import Front, FrontPoint, Trial
from autoq.record.plot_data import BITS_COLOURS, _range, plot_panels
from autoq.record.plots import plot_front, png, policy_heatmap
from autoq.spec.schemes import all_schemes


def size_of(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_picture_has_its_size_and_a_panel_for_each_objective(front: Front, trials: list[Trial]) -> None:
    figure = plot_front(front, trials)
    assert size_of(png(figure)) == (1200, 600)
    assert [axes.get_title() for axes in figure.axes] == ["Speed", "Size"]
    assert figure.axes[0].get_xlabel() == "latency, ratio to float32 (measured; less is faster)"
    assert figure.axes[0].get_ylabel() == "drop against float32, points of accuracy (final split)"


@pytest.mark.parametrize(
    ("objectives", "titles"),
    [
        (("metric", "size"), ["Size"]),
        (("metric", "latency", "size", "peak_memory"), ["Speed", "Size", "Memory"]),
        (("metric",), ["Size"]),
    ],
)
def test_only_the_objectives_of_the_search_are_shown(
    front: Front, trials: list[Trial], objectives: tuple[str, ...], titles: list[str]
) -> None:
    changed = replace(front, objectives=objectives)
    assert [panel.title for panel in plot_panels(changed, trials)] == titles
    assert [axes.get_title() for axes in plot_front(changed, trials).axes] == titles


def test_every_complete_trial_and_every_point_is_there(front: Front, trials: list[Trial]) -> None:
    complete = [trial for trial in trials if trial.failure is None]
    for panel in plot_panels(front, trials):
        assert [mark.id for mark in panel.trials] == [trial.id for trial in complete]
        assert [mark.id for mark in panel.points] == [point.id for point in front.points]
    speed, size = plot_panels(front, trials)
    first = front.points[0]
    assert first.latency is not None and first.metric.final is not None and first.metric.drop_ci95 is not None
    mark = speed.points[0]
    assert mark.x == first.latency.ratio and mark.x_ci95 == first.latency.ratio_ci95
    assert mark.y == pytest.approx(100 * (0.88 - first.metric.final))
    assert mark.y_ci95 == pytest.approx(tuple(100 * end for end in first.metric.drop_ci95))
    assert size.points[0].x == first.size_bytes / 1000 and size.points[0].x_ci95 is None
    # A trial's drop is on the search split, against float32 on the same rows.
    assert complete[1].metric is not None
    assert speed.trials[1].y == pytest.approx(100 * (0.8842 - complete[1].metric))


def test_the_window_holds_the_front_and_the_far_trials_stand_at_its_edge(front: Front, trials: list[Trial]) -> None:
    for panel in plot_panels(front, trials):
        for mark in [panel.baseline, *panel.points]:
            assert not panel.off_scale(mark)
            ends = mark.y_ci95 or (mark.y, mark.y)
            assert panel.y_range[0] <= ends[0] and ends[1] <= panel.y_range[1]
        # All layers at 2 bits lose 40 points: shown at that scale, the front would be a line.
        far = [mark for mark in panel.trials if panel.off_scale(mark)]
        assert far and max(mark.y for mark in far) > 30 and panel.y_range[1] < 10
        assert all(panel.at_edge(mark)[1] == panel.y_range[1] for mark in far if mark.y > 30)
    collections = plot_front(front, trials).axes[0].collections
    drawn = {str(c.get_label()): len(np.asarray(c.get_offsets())) for c in collections}
    assert drawn["trial (search split)"] + drawn["trial off scale"] == 57
    assert (drawn["front, 95 % interval"], drawn["knee"], drawn["float32"]) == (len(front.points), 1, 1)


def test_fronts_without_points_times_or_trials_are_drawn(
    make_front: Callable[..., Front], make_point: Callable[..., FrontPoint]
) -> None:
    empty = make_front()
    assert size_of(png(plot_front(empty, []))) == (1200, 600)
    assert png(policy_heatmap(empty))
    untimed = make_front(make_point("aa", ratio=None), baseline=make_point("b", ratio=None), objectives=("metric",))
    assert [panel.title for panel in plot_panels(untimed, [])] == ["Size"]
    assert png(plot_front(untimed, []))


def test_names_from_outside_are_drawn_as_they_are(
    front: Front, make_front: Callable[..., Front], make_point: Callable[..., FrontPoint]
) -> None:
    # A lone dollar sign would start mathematics, and a bad formula stop the drawing.
    named = replace(front, name="a $\\frac{ b", metric_name="$x^{")
    assert png(plot_front(named, []))
    layers = {"$\\bad{": "w8", "x" * 300: "w4"}
    from autoq.core.policy import Policy

    point = replace(make_point("aa"), policy=Policy.from_text(layers))
    assert png(policy_heatmap(make_front(point)))


def test_the_heat_map_has_a_cell_for_each_layer_and_point(front: Front) -> None:
    (axes,) = policy_heatmap(front).axes
    assert len(axes.patches) == 20 * len(front.points)
    texts = [text.get_text() for text in axes.texts]
    schemes = [dict(point.policy.items_) for point in front.points]
    assert texts == [column[layer].family for column in schemes for layer in column]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(front.points[0].policy)


def test_a_front_without_points_has_a_range_all_the_same() -> None:
    # All trials are smaller than float32, the one thing that is always shown.
    low, high = _range([46.0], [13.0, 7.0])
    assert low < 46.0 < high
    assert _range([0.0], []) == (-0.008, 0.008)


def test_every_number_of_bits_has_a_colour() -> None:
    """And no two the same."""
    assert {scheme.weight_bits for scheme in all_schemes()} == set(BITS_COLOURS)
    assert len(set(BITS_COLOURS.values())) == len(BITS_COLOURS)
