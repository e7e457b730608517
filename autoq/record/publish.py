"""What a search leaves behind for people: pictures, the report, and the same in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoq.core.proxy import ProxyTruth
from autoq.core.result import Front, Trial
from autoq.model.target import Target
from autoq.record.evidence_plots import plot_importances, plot_proxies
from autoq.record.files import write_atomically
from autoq.record.health import HEALTH_FILE, Health, health_json
from autoq.record.importance import importances
from autoq.record.interactive import front_html
from autoq.record.plots import plot_front, png
from autoq.record.report import report_html
from autoq.record.tracking import Tracker

EXAMPLE_ROWS = 2


def publish(
    folder: Path,
    front: Front,
    trials: Sequence[Trial],
    extras: Mapping[str, Mapping[str, object]],
    tracker: Tracker,
    example: Mapping[str, np.ndarray],
    batch: int,
    health: Health,
    target: Target,
    proxies: Sequence[ProxyTruth] = (),
) -> None:
    """Writes the pictures, ``front.html``, ``report.html`` and ``health.json`` into the run folder; logs the report.

    The front's models are logged, too. ``example`` has a few rows for every input: the models' input example.
    ``proxies`` are what was predicted of the trials. Raises :class:`autoq.errors.RunError` when a file cannot be
    written; what MLflow refuses is remembered by the tracker.
    """
    write_atomically(folder / "front.png", png(plot_front(front, trials)))
    write_atomically(folder / "front.html", front_html(front, trials))
    if proxies:
        write_atomically(folder / "proxies.png", png(plot_proxies(front, proxies)))
    layers, found = importances(front, trials)
    if found:
        write_atomically(folder / "importances.png", png(plot_importances(layers, found)))
    write_atomically(folder / "report.html", report_html(front, trials, extras, health, proxies))
    write_atomically(folder / HEALTH_FILE, health_json(health))
    tracker.log_front(front, trials, folder, extras)
    for point in front.points:
        path = folder / point.model_path
        if target.runs_onnx:
            outputs = target.outputs(path, example, batch)
            tracker.log_model(point, path, input_example=example, outputs=outputs)
        else:
            tracker.log_model_file(point, path)
