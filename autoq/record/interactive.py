"""The front as an interactive page (plotly): opens offline, shows every model's policy and numbers on hover."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoq.core.result import Front, Trial
from autoq.record.plot_data import (
    BASELINE_COLOUR,
    KNEE_COLOUR,
    POINT_COLOUR,
    TRIAL_COLOUR,
    Mark,
    Panel,
    plot_panels,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def front_html(front: Front, trials: Sequence[Trial]) -> str:
    """A whole HTML page with the plot and the plotting library in it (about 5 MB)."""
    name = html.escape(front.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: front</title></head>\n'
        f"<body>{plotting_script()}{front_div(front, trials)}</body></html>\n"
    )


def plotting_script() -> str:
    """The plotting library as a ``<script>`` element; a page needs it once, before any :func:`front_div`."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>\n"


def front_div(front: Front, trials: Sequence[Trial]) -> str:
    """The plot as a ``<div>`` element, without the library."""
    return figure_div(_figure(front, trials))


def figure_div(figure: Figure) -> str:
    """Any figure as a ``<div>`` element, without the library."""
    from plotly.io import to_html

    text: str = to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        # A local page offers no button that would send the data to somebody's server.
        config={"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""},
    )
    return text


def _figure(front: Front, trials: Sequence[Trial]) -> Figure:
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    panels = plot_panels(front, trials)
    if not panels:
        return Figure()
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=[panel.title for panel in panels])
    for column, panel in enumerate(panels, start=1):
        for trace in _traces(panel, first=column == 1):
            figure.add_trace(Scatter(**trace), row=1, col=column)
        figure.update_xaxes(title_text=html.escape(panel.x_label), range=list(panel.x_range), row=1, col=column)
        figure.update_yaxes(title_text=html.escape(panel.y_label), range=list(panel.y_range), row=1, col=column)
    figure.update_layout(
        template="plotly_white",
        height=600,
        title=html.escape(f"{front.name}: {front.trials_complete} trials, {len(front.points)} points on the front"),
        legend={"orientation": "h", "y": -0.18},
        hoverlabel={"align": "left"},
    )
    return figure


def _traces(panel: Panel, *, first: bool) -> list[dict[str, Any]]:
    knees = [mark for mark in panel.points if "knee" in mark.names]
    others = [mark for mark in panel.points if "knee" not in mark.names]
    series = [
        ("trial (search split)", panel.trials, TRIAL_COLOUR, "circle", 6, 0.45),
        ("front, 95 % interval", others, POINT_COLOUR, "circle", 9, 1.0),
        ("knee", knees, KNEE_COLOUR, "diamond", 12, 1.0),
        ("float32", [panel.baseline] if panel.baseline else [], BASELINE_COLOUR, "star", 15, 1.0),
    ]
    traces = []
    for name, marks, colour, symbol, size, opacity in series:
        trace: dict[str, Any] = {
            "x": [mark.x for mark in marks],
            "y": [mark.y for mark in marks],
            "mode": "markers",
            "name": name,
            # One entry in the legend hides and shows a series in every panel.
            "legendgroup": name,
            "showlegend": first,
            "marker": {"color": colour, "symbol": symbol, "size": size, "opacity": opacity},
            "text": [_hover(mark) for mark in marks],
            "hovertemplate": "%{text}<extra></extra>",
        }
        if any(mark.x_ci95 for mark in marks):
            trace["error_x"] = _arms([(mark.x, mark.x_ci95) for mark in marks], colour)
        if any(mark.y_ci95 for mark in marks):
            trace["error_y"] = _arms([(mark.y, mark.y_ci95) for mark in marks], colour)
        traces.append(trace)
    return traces


def _arms(marks: Sequence[tuple[float, tuple[float, float] | None]], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, ci[1] - value) if ci else 0.0 for value, ci in marks],
        "arrayminus": [max(0.0, value - ci[0]) if ci else 0.0 for value, ci in marks],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _hover(mark: Mark) -> str:
    # The library reads a little HTML in hover texts, so names from outside are escaped.
    title = f"{mark.id} {', '.join(mark.names)}".strip()
    return "<br>".join([f"<b>{html.escape(title)}</b>", *(html.escape(line) for line in mark.lines)])
