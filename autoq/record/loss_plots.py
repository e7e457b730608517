"""The losses of single layers as heat maps, layer by scheme: a picture (matplotlib) and a page (plotly)."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoq.core.layer_loss import LayerLoss, LayerLosses
from autoq.record.interactive import figure_div, plotting_script
from autoq.record.plots import new_figure, shorten
from autoq.record.summary import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAYER_NAME_LENGTH = 44
_SCHEME_LENGTH = 30
_MOST_ANNOTATED_COLUMNS = 60
_BEST_DB = 60.0  # above, a layer's noise is that of float32 itself
_LEAST_DIVERGENCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """One heat map. ``shade`` [layers, schemes] is 0 for harmless to 1 for the worst, NaN where nothing was taken."""

    title: str
    shade: npt.NDArray[np.float64]
    labels: tuple[tuple[str, ...], ...]


def loss_maps(found: LayerLosses) -> list[Map]:
    """The metric's drop, the divergence (where that is another thing than the noise) and the SQNR."""
    factor, unit = unit_of(found.metric_name, found.direction, found.baseline)
    drops = [loss.drop * factor for loss in found.losses if loss.drop is not None]
    worst = max([*drops, 1e-9])
    largest = max([loss.divergence for loss in found.losses if loss.divergence is not None], default=1.0)
    span = max(math.log10(max(largest, 10 * _LEAST_DIVERGENCE) / _LEAST_DIVERGENCE), 1.0)

    def drop(loss: LayerLoss) -> tuple[float, str]:
        if loss.drop is None:
            return math.nan, ""
        value = loss.drop * factor
        # The root: losses of a tenth of the worst can still be told from none.
        return math.sqrt(max(0.0, value) / worst), _short(value, worst)

    def divergence(loss: LayerLoss) -> tuple[float, str]:
        if loss.divergence is None:
            return math.nan, ""
        shade = math.log10(max(loss.divergence, _LEAST_DIVERGENCE) / _LEAST_DIVERGENCE) / span
        return shade, f"{loss.divergence:.0e}".replace("e-0", "e-") if loss.divergence else "0"

    def sqnr(loss: LayerLoss) -> tuple[float, str]:
        if loss.sqnr_db is None:
            return math.nan, ""
        label = "∞" if math.isinf(loss.sqnr_db) else f"{loss.sqnr_db:.0f}"
        return min(max(1 - loss.sqnr_db / _BEST_DB, 0.0), 1.0), label

    maps = [_map(found, f"drop, {unit}", drop)]
    if found.divergence == "kl":
        maps.append(_map(found, "KL divergence from float32's outputs, nats", divergence))
    return [*maps, _map(found, "SQNR of the outputs, dB", sqnr)]


def plot_losses(found: LayerLosses) -> Figure:
    """The heat maps side by side: layers down, schemes across, darker for worse; numbers in the cells."""
    layers, schemes, maps = found.layers, found.schemes, loss_maps(found)
    # Sizes in inches that keep a cell readable, whatever their number.
    head = 0.5 + 0.062 * min(_SCHEME_LENGTH, max(len(str(scheme)) for scheme in schemes))
    names = 0.6 + 0.062 * min(_LAYER_NAME_LENGTH, max(map(len, layers)))
    width = names + len(maps) * max(2.6, 0.4 * len(schemes))
    figure = new_figure(min(60.0, width), min(80.0, 0.8 + head + 0.21 * len(layers)))
    shared = None
    for number, one in enumerate(maps):
        axes = figure.add_subplot(1, len(maps), number + 1, sharey=shared)
        shared = shared or axes
        _draw(axes, one, found, annotated=len(schemes) <= _MOST_ANNOTATED_COLUMNS)
        if number:
            axes.tick_params(labelleft=False)
    figure.suptitle(
        f"{shorten(found.name, 80)}: each layer alone, all others float32; {found.rows} rows", parse_math=False
    )
    return figure


def losses_html(found: LayerLosses) -> str:
    """A whole page with the heat maps, all figures of a cell on hover, and the plotting library (about 5 MB)."""
    name = html.escape(found.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: sensitivity</title></head>\n'
        f"<body>{plotting_script()}{losses_div(found)}</body></html>\n"
    )


def losses_div(found: LayerLosses) -> str:
    """The heat maps as a ``<div>``, without the library."""
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    layers, schemes, maps = found.layers, [html.escape(str(scheme)) for scheme in found.schemes], loss_maps(found)
    hover = {(loss.layer, loss.scheme): _hover(loss) for loss in found.losses}
    texts = [[hover.get((layer, scheme), "") for scheme in found.schemes] for layer in layers]
    titles = [html.escape(one.title) for one in maps]
    figure = make_subplots(rows=1, cols=len(maps), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.01)
    for column, one in enumerate(maps, start=1):
        figure.add_trace(
            Heatmap(
                z=[[None if math.isnan(value) else value for value in row] for row in one.shade.tolist()],
                x=schemes,
                y=[html.escape(layer) for layer in layers],
                text=texts,
                hovertemplate="%{text}<extra></extra>",
                zmin=0,
                zmax=1,
                colorscale="YlOrRd",
                showscale=False,
                xgap=1,
                ygap=1,
            ),
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 10})
    figure.update_xaxes(tickangle=-60, tickfont={"size": 10})
    figure.update_layout(
        template="plotly_white",
        height=220 + 18 * len(layers),
        title=html.escape(f"{found.name}: each layer alone, all others float32; {found.rows} rows"),
        hoverlabel={"align": "left"},
    )
    return figure_div(figure)


def _map(found: LayerLosses, title: str, look: Callable[[LayerLoss], tuple[float, str]]) -> Map:
    rows = {layer: index for index, layer in enumerate(found.layers)}
    columns = {scheme: index for index, scheme in enumerate(found.schemes)}
    shade = np.full((len(rows), len(columns)), np.nan)
    labels = [["" for _ in columns] for _ in rows]
    for loss in found.losses:
        place = rows[loss.layer], columns[loss.scheme]
        shade[place], labels[place[0]][place[1]] = look(loss)
    return Map(title=title, shade=shade, labels=tuple(map(tuple, labels)))


def _draw(axes: Axes, one: Map, found: LayerLosses, *, annotated: bool) -> None:
    from matplotlib import colormaps

    colours = colormaps["YlOrRd"].with_extremes(bad="#eef1f4")
    axes.imshow(np.ma.masked_invalid(one.shade), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none")
    for row, labels in enumerate(one.labels if annotated else ()):
        for column, label in enumerate(labels):
            ink = "white" if one.shade[row, column] > 0.6 else "#333333"
            axes.text(column, row, label, ha="center", va="center", fontsize=6, color=ink)
    layers = [shorten(layer, _LAYER_NAME_LENGTH) for layer in found.layers]
    axes.set_yticks(range(len(layers)), layers, fontsize=7, parse_math=False)
    schemes = [shorten(str(scheme), _SCHEME_LENGTH) for scheme in found.schemes]
    axes.set_xticks(range(len(schemes)), schemes, fontsize=7, rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel(one.title, fontsize=9, parse_math=False)
    # White lines between the cells.
    axes.set_xticks(np.arange(-0.5, len(schemes)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(layers)), minor=True)
    axes.grid(which="minor", color="white", lw=0.8)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(value: float, worst: float) -> str:
    """Few characters; 0 for what is nothing beside the worst."""
    if abs(value) < 0.002 * worst or (abs(value) < 0.05 and worst >= 1):
        return "0"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def _hover(loss: LayerLoss) -> str:
    lines = [f"<b>{html.escape(loss.layer)}</b>", html.escape(f"{loss.scheme} ({loss.kind})")]
    for name in ("metric", "drop", "divergence", "sqnr_db"):
        value = getattr(loss, name)
        if value is not None:
            lines.append(f"{name.replace('sqnr_db', 'SQNR, dB')}: {value:.4g}")
    return "<br>".join([*lines, html.escape(loss.problem)] if loss.problem else lines)
