"""Pictures of what steered the search: proxies against the truth, and the layers that the objectives hang on."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoq.core.proxy import ProxyTruth
from autoq.core.result import Front
from autoq.record.importance import Importance
from autoq.record.interactive import figure_div
from autoq.record.plot_data import POINT_COLOUR, TRIAL_COLOUR
from autoq.record.plots import new_figure, shorten
from autoq.record.summary import metric_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LAYERS = 40

_LAYER_NAME_LENGTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One objective: places of the trials and of those on the front, and what the axes say."""

    title: str
    x_label: str
    y_label: str
    logarithmic: bool
    trials: tuple[tuple[float, float], ...]
    points: tuple[tuple[float, float], ...]


def rank_text(proxy: ProxyTruth) -> str:
    """How well one proxy ranked the truth: ``metric 0.93``."""
    return f"{_title(proxy)} {_rank(proxy)}"


def plot_proxies(front: Front, proxies: Sequence[ProxyTruth]) -> Figure:
    """Predicted against measured, a panel for each objective; the trials on the front stand out."""
    figure = new_figure(max(4.0, 4.0 * len(proxies)), 4.2)
    for index, panel in enumerate(_panels(front, proxies)):
        axes = figure.add_subplot(1, len(proxies), index + 1)
        for places, colour, size, label in (
            (panel.trials, TRIAL_COLOUR, 16, "trial"),
            (panel.points, POINT_COLOUR, 36, "on the front"),
        ):
            axes.scatter([x for x, _ in places], [y for _, y in places], c=colour, s=size, label=label, linewidths=0)
        axes.set(xlabel=panel.x_label, xscale="log" if panel.logarithmic else "linear")
        axes.set_ylabel(panel.y_label, parse_math=False)
        axes.set_title(panel.title, fontsize=11)
        axes.grid(True, color="#e6e9ec", lw=0.6)
        axes.set_axisbelow(True)
    if proxies:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def proxies_div(front: Front, proxies: Sequence[ProxyTruth]) -> str:
    """The same as an interactive ``<div>``, without the library."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = _panels(front, proxies)
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=[html.escape(panel.title) for panel in panels])
    for column, panel in enumerate(panels, start=1):
        for name, places, colour in (
            ("trial", panel.trials, TRIAL_COLOUR),
            ("on the front", panel.points, POINT_COLOUR),
        ):
            trace = Scatter(
                x=[x for x, _ in places],
                y=[y for _, y in places],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": colour},
            )
            figure.add_trace(trace, row=1, col=column)
        axis = "log" if panel.logarithmic else "linear"
        figure.update_xaxes(title_text=html.escape(panel.x_label), type=axis, row=1, col=column)
        figure.update_yaxes(title_text=html.escape(panel.y_label), row=1, col=column)
    figure.update_layout(template="plotly_white", height=420, legend={"orientation": "h", "y": -0.25})
    return figure_div(figure)


def plot_importances(layers: Sequence[str], found: Sequence[Importance]) -> Figure:
    """Bars: each layer's share of the variance, a panel for each objective; at most :data:`MOST_LAYERS` layers."""
    shown = most_important(layers, found)
    figure = new_figure(3.5 + 2.8 * max(1, len(found)), 1.6 + 0.24 * len(shown))
    first: Axes | None = None
    for index, entry in enumerate(found):
        axes = figure.add_subplot(1, len(found), index + 1, sharey=first)
        axes.barh(range(len(shown)), [100 * entry.shares[place] for place in shown], color=POINT_COLOUR)
        axes.set_title(f"{_title(entry)}: {entry.explained:.0%} explained", fontsize=10)
        axes.set_xlabel("% of the variance", fontsize=9)
        axes.grid(True, axis="x", color="#e6e9ec", lw=0.6)
        axes.set_axisbelow(True)
        if first is None:
            names = [shorten(layers[place], _LAYER_NAME_LENGTH) for place in shown]
            axes.set_yticks(range(len(shown)), names, fontsize=7, parse_math=False)
            axes.set_ylim(len(shown) - 0.5, -0.5)
            first = axes
        else:
            axes.tick_params(labelleft=False)
    return figure


def most_important(layers: Sequence[str], found: Sequence[Importance]) -> list[int]:
    """The places of the layers to show, in the model's order: those with the largest share of any objective."""
    order = sorted(range(len(layers)), key=lambda place: -max((entry.shares[place] for entry in found), default=0.0))
    return sorted(order[:MOST_LAYERS])


def _title(figure: ProxyTruth | Importance) -> str:
    return figure.objective.replace("_", " ")


def _rank(proxy: ProxyTruth) -> str:
    return "undefined" if proxy.spearman is None else format(proxy.spearman, ".2f")


def _panels(front: Front, proxies: Sequence[ProxyTruth]) -> list[_Panel]:
    on_front = {point.id for point in front.points}
    factor, unit = metric_unit(front)
    panels = []
    for proxy in proxies:
        x_factor, x_label, y_factor, y_label = {
            "metric": (1.0, "predicted: summed disturbance", factor, f"measured: drop, {unit}"),
            "latency": (1.0, "predicted: modelled ratio", 1.0, "measured: latency ratio to float32"),
            "size": (1e-3, "predicted: KB of weights", 1e-3, "measured: KB of the file"),
            "peak_memory": (1e-6, "predicted: MB of weights", 1e-6, "measured: peak memory, MB"),
        }[proxy.objective]
        rows = list(zip(proxy.ids, proxy.predicted, proxy.measured, strict=True))
        places = [(key in on_front, (x_factor * x, y_factor * y)) for key, x, y in rows]
        panels.append(
            _Panel(
                title=f"{_title(proxy)}: Spearman {_rank(proxy)}",
                x_label=x_label,
                y_label=y_label,
                logarithmic=proxy.objective == "metric" and min(proxy.predicted) > 0,
                trials=tuple(place for kept, place in places if not kept),
                points=tuple(place for kept, place in places if kept),
            )
        )
    return panels
