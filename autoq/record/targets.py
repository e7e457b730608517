"""``targets.json`` and ``targets.html``: one job on several targets, version 1 of the format.

The file is the dataclasses of :mod:`autoq.core.targets` as JSON has them, and how to go on with the search.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from autoq.core.result import FLOAT32_NAME
from autoq.core.targets import OnTarget, TargetPoint, TargetResult, Targets
from autoq.errors import RunError
from autoq.record.files import write_atomically
from autoq.record.run_folder import TARGETS_FILE
from autoq.record.summary import unit_of

VERSION = 1
PAGE_FILE = "targets.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetsRecord:
    """What the folder keeps: ``hardware`` as the job names it, MLflow's run, and ``targets`` when all is done."""

    hardware: tuple[str, ...]
    tracking_uri: str = ""
    run_id: str = ""
    targets: Targets | None = None


_ADAPTER = TypeAdapter(TargetsRecord)


def write_targets(folder: Path, record: TargetsRecord) -> None:
    """Writes both files; raises :class:`RunError` where they cannot be."""
    document: dict[str, Any] = {"version": VERSION, **_ADAPTER.dump_python(record, mode="json")}
    write_atomically(folder / TARGETS_FILE, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if record.targets is not None:
        write_atomically(folder / PAGE_FILE, page(record.targets))


def read_targets_record(folder: Path) -> TargetsRecord:
    """Raises :class:`RunError` where there is none, or it is damaged or of a newer version."""
    path = folder / TARGETS_FILE
    try:
        document = json.loads(path.read_bytes())
    except OSError:
        raise RunError(f"{folder} holds no search for several targets: it has no {TARGETS_FILE}") from None
    except ValueError:
        raise RunError(f"{path} is damaged: it is not JSON; search again with another --out") from None
    version = document.pop("version", None) if isinstance(document, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise RunError(f"{path} is of version {version}; this autoq reads up to {VERSION}")
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise RunError(f"{path} is damaged at {where}; search again with another --out") from None


def headings(targets: Targets, target: TargetResult) -> tuple[str, ...]:
    """Of a target's table: :func:`point_row` says what is under them."""
    _, unit = unit_of(targets.metric_name, targets.metric_direction, target.baseline_metric)
    reference = "" if target.reference == FLOAT32_NAME else f" of {target.reference}"
    return ("file", "found for", targets.metric_name, f"drop ({unit})", f"speed{reference}", "size")


def point_row(targets: Targets, target: TargetResult, point: TargetPoint) -> tuple[str, ...]:
    """A file on one target, its 95 % intervals in brackets."""
    speed = "-" if point.latency_ratio is None else f"{1 / point.latency_ratio:.2f}x"
    if point.latency_ci95:
        low, high = point.latency_ci95
        speed += f" [{1 / high:.2f}, {1 / low:.2f}]"
    return (
        point.id,
        point.found_for,
        f"{point.metric:.4f}",
        _drop(targets, target, point),
        speed + (" (estimated)" if point.estimated else ""),
        f"{point.size_ratio:.3f} ({point.size_bytes / 1e3:,.0f} KB)",
    )


def _drop(targets: Targets, target: TargetResult, point: TargetPoint, *, interval: bool = True) -> str:
    factor, _ = unit_of(targets.metric_name, targets.metric_direction, target.baseline_metric)
    number, bound = (".2f", ".2f") if factor == 100 else (".4g", ".3g")
    text = f"{point.drop * factor:{number}}"
    if interval and point.drop_ci95:
        text += " [" + ", ".join(f"{value * factor:{bound}}" for value in point.drop_ci95) + "]"
    return text


def front_of(target: TargetResult) -> list[TargetPoint]:
    """The points on a target's front, the best metric first."""
    return sorted((point for point in target.points if point.on_front), key=lambda point: (point.drop, point.id))


def refused_texts(target: TargetResult) -> list[str]:
    """Which files do not run on a target, a sentence for each reason."""
    names: dict[str, list[str]] = {}
    for name, why in target.refused:
        names.setdefault(why, []).append(name)
    return [
        f"{', '.join(those)} {'do' if len(those) > 1 else 'does'} not run there: {why}." for why, those in names.items()
    ]


COMMON_HEADINGS = ("target", "best file there", "speed, size, drop", "one file for all", "speed, size, drop", "costs")


def common_rows(targets: Targets) -> list[tuple[str, ...]]:
    """What one file for all costs, target by target, under :data:`COMMON_HEADINGS`."""
    if targets.common is None:
        return []
    on = {target.profile: target for target in targets.targets}

    def figures(part: OnTarget, point: TargetPoint) -> str:
        speed = "-" if point.latency_ratio is None else f"{1 / point.latency_ratio:.2f}x"
        return f"{speed}, {point.size_ratio:.3f}, {_drop(targets, on[part.profile], point, interval=False)}"

    return [
        (
            part.profile,
            f"{part.best.id} ({part.best.found_for})",
            figures(part, part.best),
            f"{part.common.id} ({part.common.found_for})",
            figures(part, part.common),
            f"{part.cost:.2f}x the {targets.common.objective.replace('_', ' ')}",
        )
        for part in targets.common.on
    ]


def common_text(targets: Targets) -> str:
    """What one file for all costs, in a sentence."""
    common = targets.common
    if common is None:
        return f"There is no one file for all targets: {targets.why_no_common}."
    what = common.objective.replace("_", " ")
    if common.cost < 1.005:
        return f"One file serves all {len(common.on)} targets as well as one for each ({what})."
    return (
        f"One file for all {len(common.on)} targets costs {100 * (common.cost - 1):.0f} % more {what} on the geometric "
        "mean than the best one for each."
    )


def page(targets: Targets) -> str:
    """``targets.html``: each target's front over all files, those that do not run, and one file for all."""
    parts = [f"<h1>{html.escape(targets.name)}: {len(targets.targets)} targets</h1>"]
    parts.append(f"<p>{html.escape(common_text(targets))}</p>")
    parts.append(_table(COMMON_HEADINGS, common_rows(targets)))
    for target in targets.targets:
        against = f"speed is against {target.reference}; float32 has {targets.metric_name} {target.baseline_metric:.4f}"
        parts.append(
            f'<h2>{html.escape(target.profile)}</h2><p>{html.escape(against)}. <a href="{target.run}/report.html">'
        )
        parts.append("Its own search</a></p>")
        rows = [point_row(targets, target, point) for point in front_of(target)]
        parts.append(_table(headings(targets, target), rows))
        parts += [f"<p>{html.escape(text)}</p>" for text in refused_texts(target)]
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}"
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(targets.name)}</title><style>{style}</style>'
    return head + "\n".join(parts) + "\n"


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
