"""The numerical health of models in words, as JSON and in the report.

``health.json`` of a run folder, version 1::

    {"version": 1, "points": {point id: [{"layer", "scheme", "weight_sqnr_db", "output_sqnr_db", "tensor",
      "input": {"sqnr_db", "saturated_low", "saturated_high", "clipping", "zero_point", "rounding"} | null,
      "accumulator": {"sum_possible", "sum_seen", "pair_possible", "pair_seen", "headroom_bits"} | null,
      "warnings": [str]}]}}

An exported model has its own point's list under ``"layers"``. A ratio of ``null`` is infinite (no noise), or was not
taken.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoq.core.result import Front
from autoq.model.health import LayerHealth
from autoq.numerics.health import INT16_MAX, INT32_MAX
from autoq.record.summary import front_marks

HEALTH_FILE = "health.json"
VERSION = 1

Record = dict[str, Any]
Health = Mapping[str, Sequence[Record]]
"""Point id -> a record for each quantized layer."""

MOST_SATURATED = 0.01
"""Share of a tensor's values that may saturate without a warning: percentile 99 clips as many on purpose."""
LEAST_WEIGHT_DB, LEAST_OUTPUT_DB = 4.0, 5.0
"""Below, weights are hardly theirs any more (2 bits keep some 8 dB), and a third of an output's power is noise."""
MOST_ZERO_POINT = 0.25
"""Share of a tensor's error that the rounding of its zero point may have without a warning."""


def health_record(found: Sequence[LayerHealth], *, narrow: bool) -> list[Record]:
    """The records of one model; ``narrow`` says that the hardware adds pairs of products in 16 bits."""
    return [
        {
            "layer": layer.layer,
            "scheme": str(layer.scheme),
            "weight_sqnr_db": _finite(layer.weight_sqnr_db),
            "output_sqnr_db": _finite(layer.output_sqnr_db),
            "tensor": layer.tensor,
            "input": None if layer.input is None else _values(layer.input),
            "accumulator": None
            if layer.accumulator is None
            else {**_values(layer.accumulator), "headroom_bits": layer.accumulator.headroom_bits},
            "warnings": warnings_of(layer, narrow=narrow),
        }
        for layer in found
    ]


def warnings_of(layer: LayerHealth, *, narrow: bool) -> list[str]:
    """What is wrong with a layer, in sentences; empty where all is well."""
    said = []
    name, reads, sums = layer.layer, layer.input, layer.accumulator
    if layer.weight_sqnr_db is not None and layer.weight_sqnr_db < LEAST_WEIGHT_DB:
        said.append(f"the weights of {name} keep {layer.weight_sqnr_db:.1f} dB of their own under {layer.scheme}")
    if layer.output_sqnr_db is not None and layer.output_sqnr_db < LEAST_OUTPUT_DB:
        said.append(
            f"the output of {name} is {layer.output_sqnr_db:.1f} dB above its noise, that of earlier layers too"
        )
    if reads is not None and reads.saturated > MOST_SATURATED:
        said.append(f"{100 * reads.saturated:.2g} % of the values that {name} reads ({layer.tensor}) saturate")
    if reads is not None and reads.zero_point > MOST_ZERO_POINT:
        said.append(
            f"{100 * reads.zero_point:.0f} % of the error of what {name} reads ({layer.tensor}) is the rounding of its "
            "zero point"
        )
    if sums is not None and sums.sum_seen > INT32_MAX:
        said.append(f"sums of {name} left 32 bits on calibration rows")
    elif sums is not None and sums.sum_possible > INT32_MAX:
        said.append(f"sums of {name} may leave 32 bits; the largest seen is {sums.sum_seen / INT32_MAX:.1%} of that")
    if narrow and sums is not None and sums.pair_possible > INT16_MAX:
        seen = "did on calibration rows" if sums.pair_seen > INT16_MAX else "did not on calibration rows"
        said.append(f"pairs of products of {name} may saturate in 16 bits on a CPU without VNNI; they {seen}")
    return said


def health_json(health: Health) -> str:
    """The text of a run folder's ``health.json``."""
    return _dump({"version": VERSION, "points": health})


def point_health(run: Path, point: str) -> str | None:
    """The text of an exported point's ``health.json``; ``None`` where the run has none that can be read."""
    try:
        layers = json.loads((run / HEALTH_FILE).read_bytes())["points"][point]
    except (OSError, ValueError, KeyError, TypeError):  # of an older run, or damaged: the model is as good without
        return None
    return _dump({"version": VERSION, "id": point, "layers": layers})


def health_html(front: Front, health: Health) -> str:
    """A section of the report: each point's warnings and its layers' figures, folded up."""
    marks = front_marks(front)
    parts = ["<h2>Numerical health</h2>", f"<p>{html.escape(_INTRODUCTION)}</p>"]
    for point in front.points:
        records = health.get(point.id)
        if not records:
            continue
        said = [text for record in records for text in record["warnings"]]
        count = f"{len(said)} warning{'s' if len(said) != 1 else ''}" if said else "nothing to warn of"
        title = " ".join([point.id, *marks[point.id]])
        items = "".join(f'<li class="warning">{html.escape(text)}</li>' for text in said)
        parts.append(
            f"<details><summary><code>{html.escape(title)}</code>: {count}</summary><ul>{items}</ul>"
            f'<div class="wide"><table class="numbers"><tr>{_HEADS}</tr>{"".join(map(_row, records))}</table></div>'
            "</details>"
        )
    return "".join(parts)


_INTRODUCTION = (
    "Taken on a few calibration rows: how far weights and outputs are above their noise (outputs with that of all "
    "layers before), which share of the values read saturates, what the error of reading them is made of, and how many "
    "bits are left between the largest possible sum and 32."
)
_HEADS = "".join(
    f"<th>{head}</th>"
    for head in (
        "layer",
        "scheme",
        "weights, dB",
        "output, dB",
        "saturate",
        "clipping",
        "zero point",
        "rounding",
        "bits left",
    )
)


def _row(record: Record) -> str:
    reads, sums = record["input"], record["accumulator"]
    cells = [html.escape(record["layer"]), html.escape(record["scheme"])]
    cells += ["" if record[name] is None else f"{record[name]:.1f}" for name in ("weight_sqnr_db", "output_sqnr_db")]
    if reads is None:
        cells += [""] * 4
    else:
        cells.append(f"{reads['saturated_low'] + reads['saturated_high']:.3%}")
        cells += [f"{reads[name]:.0%}" for name in ("clipping", "zero_point", "rounding")]
    cells.append("" if sums is None else f"{sums['headroom_bits']:.1f}")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _values(figures: Any) -> Record:
    return {name: _finite(value) for name, value in dataclasses.asdict(figures).items()}


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
