"""Importances and proxies: the right trials, the right numbers, and pictures that hold them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from autoq.core.policy import Policy
from autoq.core.proxy import ProxyTruth
from autoq.core.result import Front, Pruned, Trial
from autoq.core.scheme import Scheme
from autoq.record.evidence_plots import (
    MOST_LAYERS,
    most_important,
    plot_importances,
    plot_proxies,
    proxies_div,
    rank_text,
)
from autoq.record.importance import Importance, importances
from autoq.record.plots import png
from autoq.record.report import report_html
from tests.record.conftest import make_trial


def test_the_layer_that_the_metric_hangs_on_has_the_largest_share(front: Front) -> None:
    rng = random.Random(0)
    texts = ("w8a8@minmax", "w4", "float32")
    trials = []
    for number in range(60):
        chosen = {name: rng.choice(texts) for name in ("a", "b", "c")} | {"fixed": "w4"}
        trial = make_trial(number, Policy.of({k: Scheme.parse(v) for k, v in chosen.items()}), rng)
        trials.append(replace(trial, metric=texts.index(chosen["b"]) + 0.1 * texts.index(chosen["c"])))
    layers, found = importances(front, trials)
    assert layers == ("a", "b", "c")  # a layer with one scheme has nothing to explain
    metric = next(entry for entry in found if entry.objective == "metric")
    assert metric.explained == pytest.approx(1.0, abs=0.01)
    assert metric.shares[1] > 0.95 and metric.shares[2] == pytest.approx(0.01, abs=0.01)
    assert importances(front, trials[:7]) == ((), ())
    assert importances(front, [replace(trial, policy=trials[0].policy) for trial in trials]) == ((), ())


def test_the_report_has_both(front: Front, trials: list[Trial]) -> None:
    proxy = ProxyTruth(objective="metric", ids=("a", "b"), predicted=(0.1, 0.2), measured=(0.0, 0.01), spearman=1.0)
    text = report_html(front, trials, {}, None, [proxy])
    assert "Which layers it hangs on" in text and "% explained" in text
    assert "How well the proxies ranked the truth" in text and "metric 1.00" in text
    without = report_html(front, trials[:5], {})
    assert "Which layers" not in without and "How well" not in without


def test_proxies_are_drawn_each_in_its_unit(front: Front) -> None:
    on_front = front.points[0].id
    proxies = [
        ProxyTruth(objective="metric", ids=("x", on_front), predicted=(1e-4, 1e-2), measured=(0.0, 0.02), spearman=1.0),
        ProxyTruth(objective="latency", ids=("x",), predicted=(0.5,), measured=(0.6,), spearman=None),
        ProxyTruth(objective="size", ids=("x", "y"), predicted=(1e5, 2e5), measured=(2e5, 1e5), spearman=-1.0),
        ProxyTruth(objective="peak_memory", ids=("x",), predicted=(1e6,), measured=(3e6,), spearman=0.5),
    ]
    figure = plot_proxies(front, proxies)
    assert [axes.get_title() for axes in figure.axes] == [
        "metric: Spearman 1.00", "latency: Spearman undefined", "size: Spearman -1.00", "peak memory: Spearman 0.50"
    ]  # fmt: skip
    trials, points = figure.axes[0].collections
    assert np.asarray(trials.get_offsets()).tolist() == [[1e-4, 0.0]]
    assert np.asarray(points.get_offsets()).tolist() == [[1e-2, 2.0]]  # points of accuracy
    assert figure.axes[0].get_xscale() == "log" and figure.axes[1].get_xscale() == "linear"
    assert np.asarray(figure.axes[2].collections[0].get_offsets()).tolist() == [[100, 200], [200, 100]]
    assert png(figure)[:4] == b"\x89PNG" and "summed disturbance" in proxies_div(front, proxies)
    assert rank_text(proxies[3]) == "peak memory 0.50"


def test_of_many_layers_the_most_important_are_drawn() -> None:
    layers = tuple(f"layer$_{{{i}" for i in range(100))
    shares = tuple(i / 10_000 for i in range(100))
    found = [Importance(objective="metric", explained=sum(shares), shares=shares)]
    assert most_important(layers, found) == list(range(100 - MOST_LAYERS, 100))
    (axes,) = plot_importances(layers, found).axes
    assert len(axes.patches) == MOST_LAYERS
    assert axes.patches[-1].get_width() == pytest.approx(0.99)  # type: ignore[attr-defined]
    assert png(plot_importances(layers, found))


def test_what_was_dropped_on_the_way_is_left_out(front: Front, trials: list[Trial]) -> None:
    pruned = Pruned(rows=100, of=400, metric=0.5, bound=0.6, why="after 100 of 400 rows it loses <0.3>")
    complete = [trial for trial in trials if trial.complete]
    dropped = replace(complete[0], number=999, metric=None, latency=None, pruned=pruned)
    assert importances(front, [*trials, dropped]) == importances(front, trials)
    page = report_html(front, [*trials, dropped], {})
    assert "<h2>Dropped on the way</h2>" in page and "it loses &lt;0.3&gt;" in page
