"""The losses of single layers as files: a table, JSON, a picture and a page; and in a few words."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from autoq.core.layer_loss import LayerLosses
from autoq.errors import RunError
from autoq.record.files import write_atomically
from autoq.record.loss_plots import losses_html, plot_losses
from autoq.record.plots import png
from autoq.record.summary import unit_of

VERSION = 1
COLUMNS = ("layer", "kind", "scheme", "metric", "drop", "divergence", "noise", "sqnr_db", "problem")


def loss_rows(found: LayerLosses) -> list[dict[str, Any]]:
    """A row for each layer and scheme, by :data:`COLUMNS`; ``sqnr_db`` is ``inf`` where there is no noise."""
    return [
        {name: str(loss.scheme) if name == "scheme" else getattr(loss, name) for name in COLUMNS}
        for loss in found.losses
    ]


def losses_json(found: LayerLosses) -> str:
    """All of it. A ``sqnr_db`` of null with a ``noise`` of 0 is an infinite one, which JSON cannot hold."""
    rows = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in loss_rows(found)
    ]
    document = {
        "version": VERSION,
        "name": found.name,
        "metric": {"name": found.metric_name, "direction": found.direction, "float32": found.baseline},
        "rows": found.rows,
        "divergence": found.divergence,
        "losses": rows,
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def losses_csv(found: LayerLosses) -> str:
    """The rows as a table; what could not be taken is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(loss_rows(found))
    return buffer.getvalue()


def write_losses(found: LayerLosses, folder: Path) -> None:
    """Writes ``sensitivity.csv``, ``.json``, ``.png`` and ``.html`` into ``folder``, which is made.

    Raises :class:`RunError` where that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror or error}; give another --out") from None
    write_atomically(folder / "sensitivity.csv", losses_csv(found))
    write_atomically(folder / "sensitivity.json", losses_json(found))
    write_atomically(folder / "sensitivity.png", png(plot_losses(found)))
    write_atomically(folder / "sensitivity.html", losses_html(found))


def describe_losses(found: LayerLosses) -> str:
    """Which layer suffers most, how many hardly notice, and what was taken on what, in a few sentences."""
    factor, unit = unit_of(found.metric_name, found.direction, found.baseline)
    taken = [loss for loss in found.losses if loss.divergence is not None]
    kind = "KL divergence, in nats" if found.divergence == "kl" else "relative noise power of the outputs"
    text = f"On {found.rows} rows, where float32's {found.metric_name} is {found.baseline:.4g}; divergence: {kind}."
    if taken:
        worst = max(taken, key=lambda loss: loss.divergence or 0.0)
        drop = "" if worst.drop is None else f", and loses {worst.drop * factor:.3g} {unit}"
        text = f"{worst.layer} under {worst.scheme} changes the outputs most ({worst.divergence:.3g}){drop}. {text}"
    failed = len(found.losses) - len(taken)
    return text + (f" {failed} could not be taken." if failed else "")
