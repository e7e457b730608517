"""Pictures of a front (matplotlib, on the Agg canvas; no global state): for tracking, reports and README files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoq.core.result import Front, Trial
from autoq.record.plot_data import (
    BASELINE_COLOUR,
    BITS_COLOURS,
    KNEE_COLOUR,
    POINT_COLOUR,
    TRIAL_COLOUR,
    Mark,
    Panel,
    plot_panels,
)
from autoq.record.summary import front_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A name longer than this is cut in the middle of a picture's margin.
_LAYER_NAME_LENGTH = 40
_MOST_ANNOTATED_CELLS = 1500


def plot_front(front: Front, trials: Sequence[Trial]) -> Figure:
    """The front over all trials, 1200 x 600 pixels: metric drop against each other objective.

    Trials are faint; those outside the window that the front needs stand at its edge as triangles. Front points have
    their 95 % intervals, the knee is ringed, and float32 is a star.
    """
    figure = new_figure(12.0, 6.0)
    panels = plot_panels(front, trials)
    for index, panel in enumerate(panels):
        _draw_panel(figure.add_subplot(1, len(panels), index + 1), panel)
    state = "" if front.final else ", running"
    figure.suptitle(
        f"{shorten(front.name, 80)}{state}: {front.trials_complete} trials, {len(front.points)} points on the front",
        parse_math=False,
    )
    if panels:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def policy_heatmap(front: Front) -> Figure:
    """Layers (rows) by front points (columns), coloured by weight bits and labelled with the kind of scheme."""
    layers = list(front.baseline.policy) if not front.points else list(front.points[0].policy)
    points = front.points or (front.baseline,)
    marks = front_marks(front)
    height = min(60.0, 1.6 + 0.24 * len(layers))
    figure = new_figure(min(40.0, 3.5 + 0.75 * len(points)), height)
    axes = figure.add_subplot()
    annotated = len(layers) * len(points) <= _MOST_ANNOTATED_CELLS
    for column, point in enumerate(points):
        schemes = dict(point.policy.items_)
        for row, layer in enumerate(layers):
            if layer not in schemes:
                continue
            scheme = schemes[layer]
            fill, ink = BITS_COLOURS[scheme.weight_bits]
            xs, ys = [column, column + 1, column + 1, column], [row, row, row + 1, row + 1]
            axes.fill(xs, ys, fc=fill, ec="white", lw=1.0)
            if annotated:
                axes.text(column + 0.5, row + 0.5, scheme.family, ha="center", va="center", fontsize=7, color=ink)
    axes.set(xlim=(0, len(points)), ylim=(len(layers), 0))
    names = [shorten(layer, _LAYER_NAME_LENGTH) for layer in layers]
    axes.set_yticks([row + 0.5 for row in range(len(layers))], names, fontsize=7, parse_math=False)
    heads = ["\n".join([point.id[:6], *marks.get(point.id, ())]) for point in points]
    axes.set_xticks([column + 0.5 for column in range(len(points))], heads, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, 100 pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, at 100 pixels an inch."""
    # Figure and canvas as objects: pyplot would keep every figure alive and pick a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    inside = [mark for mark in panel.trials if not panel.off_scale(mark)]
    outside = [panel.at_edge(mark) for mark in panel.trials if panel.off_scale(mark)]
    _scatter(axes, [(mark.x, mark.y) for mark in inside], "o", TRIAL_COLOUR, 16, "trial (search split)", alpha=0.7)
    _scatter(axes, outside, "^", TRIAL_COLOUR, 22, "trial off scale", alpha=0.7, clip_on=False)
    axes.axhline(0, color=BASELINE_COLOUR, lw=0.6, ls=":", zorder=1)
    if panel.baseline is not None:
        axes.axvline(panel.baseline.x, color=BASELINE_COLOUR, lw=0.6, ls=":", zorder=1)
    for mark in panel.points:
        colour = KNEE_COLOUR if "knee" in mark.names else POINT_COLOUR
        axes.errorbar(
            mark.x, mark.y, xerr=_arms(mark.x, mark.x_ci95), yerr=_arms(mark.y, mark.y_ci95),
            fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5, alpha=0.75, zorder=3,
        )  # fmt: skip
    _scatter(axes, [(mark.x, mark.y) for mark in panel.points], "o", POINT_COLOUR, 42, "front, 95 % interval", zorder=4)
    knees = [(mark.x, mark.y) for mark in panel.points if "knee" in mark.names]
    _scatter(axes, knees, "D", KNEE_COLOUR, 60, "knee", zorder=5)
    if panel.baseline is not None:
        _scatter(axes, [(panel.baseline.x, panel.baseline.y)], "*", BASELINE_COLOUR, 190, "float32", zorder=5)
    _name_points(axes, panel.points)
    axes.set(xlim=panel.x_range, ylim=panel.y_range, xlabel=panel.x_label)
    axes.set_title(panel.title, fontsize=11)
    axes.set_ylabel(panel.y_label, parse_math=False)
    axes.grid(True, color="#e6e9ec", lw=0.6)
    axes.set_axisbelow(True)


def _scatter(
    axes: Axes, places: list[tuple[float, float]], marker: str, colour: str, size: float, label: str,
    *, alpha: float = 1.0, zorder: float = 2, clip_on: bool = True,
) -> None:  # fmt: skip
    # An empty series is drawn too, so that the legend of the first panel names everything any panel shows.
    xs, ys = [x for x, _ in places], [y for _, y in places]
    axes.scatter(
        xs, ys, marker=marker, c=colour, s=size, label=label, alpha=alpha, zorder=zorder, clip_on=clip_on, linewidths=0
    )


def _name_points(axes: Axes, points: Sequence[Mark]) -> None:
    for mark in points:
        names = [name for name in mark.names if name != "knee"]
        if names:
            axes.annotate(
                ", ".join(names), (mark.x, mark.y), xytext=(8, 8), textcoords="offset points", fontsize=8, zorder=6,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
            )  # fmt: skip


def _arms(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """The lengths of an error bar's arms; an interval need not hold the value it belongs to."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def shorten(text: str, length: int) -> str:
    """``text``, its middle left out where it is longer than ``length``."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
