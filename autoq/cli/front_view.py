"""The front for the terminal. Imports little: `autoq front` answers at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoq.core.objectives import Constraints
from autoq.core.result import FLOAT32_NAME, Front, FrontPoint
from autoq.errors import RunError
from autoq.record.choice import Choice, parse_weights, select
from autoq.record.choice_summary import choice_text, ties_text
from autoq.record.front import front_json
from autoq.record.polish_summary import polish_table, polish_text
from autoq.record.speed import estimator_of, reference_of
from autoq.record.summary import describe_gain, front_table, metric_unit, shipping_text


def console() -> Console:
    """The terminal; a file or pipe has no width, and tables are not cut there."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def wish(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options ``--max-…`` and ``--weights`` as arguments of :func:`autoq.record.choice.choose`."""
    bounds = Constraints(
        max_metric_drop=options["max_drop"],
        max_latency_ratio=options["max_latency_ratio"],
        max_size_ratio=options["max_size_ratio"],
        max_peak_memory_ratio=options["max_memory_ratio"],
    )
    weights = options["weights"]
    return {"bounds": bounds, "weights": None if weights is None else parse_weights(weights)}


def print_front(front: Front, choice: Choice | None = None) -> None:
    """The front as a table, and what it gains in a sentence; with ``choice``, the points that keep its bounds."""
    shown = choice.kept if choice else front
    factor, unit = metric_unit(shown)
    rows = front_table(shown)
    split = "final split" if rows[0].on_final else "search split"
    count = (
        f"{len(shown.points)} of {len(front.points)}" if len(shown.points) < len(front.points) else len(front.points)
    )
    reference, estimated = reference_of(shown), bool(estimator_of(shown))
    speed_head = "speed" + (f" of {reference}" if reference != FLOAT32_NAME else "") + (", est." if estimated else "")
    table = Table(title=f"{escape(front.name)}: {count} points ({split})", title_justify="left")
    for heading in ("point", "", escape(front.metric_name), f"drop ({escape(unit)})", speed_head, "size", "bits"):
        table.add_column(heading, justify="left" if heading in ("point", "") else "right")
    memory = "peak_memory" in front.objectives or (choice and choice.bounds.max_peak_memory_ratio is not None)
    if memory:
        table.add_column("peak memory", justify="right")
    table.add_column("layers")
    for row in rows:
        drop = f"{row.drop * factor:.2f}" if factor == 100 else f"{row.drop:.4g}"
        if row.drop_ci95:
            low, high = (value * factor for value in row.drop_ci95)
            drop += f" [{low:.2f}, {high:.2f}]" if factor == 100 else f" [{low:.3g}, {high:.3g}]"
        speed = "-"
        if row.speedup is not None:
            speed = f"{row.speedup:.2f}x"
            if row.speedup_ci95:
                speed += f" [{row.speedup_ci95[0]:.2f}, {row.speedup_ci95[1]:.2f}]"
        marks = [mark for mark in row.marks if mark != "float32"]
        if choice and row.id == choice.point.id:
            marks.insert(0, "chosen")
        table.add_row(
            row.id,
            ", ".join(marks),
            f"{row.metric:.4f}",
            escape(drop),
            escape(speed),
            f"{row.size_ratio:.3f} ({row.size_kb:,.0f} KB)",
            f"{row.weight_bits_mean:.1f}",
            *(["-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.1f} MB"] if memory else []),
            escape(row.policy),
            style="bold" if "chosen" in marks else None,
        )
    out = console()
    out.print(table)
    if choice:
        out.print(escape(choice_text(choice)), soft_wrap=True)
        _print_shipping(out, front, choice.point)
    else:
        out.print(escape(describe_gain(front)), soft_wrap=True)
        if front.points:
            _print_shipping(out, front, select(front, "knee"))
        for text in ties_text(front):
            out.print(escape(text), soft_wrap=True)
        _print_history(out, front)
    if not front.final:
        out.print("The search has not finished: this front has not been checked on the final split.", style="yellow")


def choice_json(choice: Choice) -> str:
    """``front.json`` with the points that keep the bounds only, and what was chosen of them."""
    over = choice.passed_over
    chosen = {
        "id": choice.point.id,
        "why": choice_text(choice),
        "left_out": choice.broken,
        "instead_of": None if over is None else over.id,
        "alike": [point.id for point in choice.alike],
    }
    return json.dumps({**json.loads(front_json(choice.kept)), "chosen": chosen}, indent=1, ensure_ascii=False) + "\n"


def refuse_empty(front: Front) -> None:
    """:class:`~autoq.errors.RunError` where a finished search has found nothing, with the reason."""
    if front.final and not front.points and front.why_empty:
        raise RunError(f"no point keeps the job's constraints: {front.why_empty}")


def _print_shipping(out: Console, front: Front, point: FrontPoint) -> None:
    if text := shipping_text(front, point):
        out.print(escape(text), soft_wrap=True)


def _print_history(out: Console, front: Front) -> None:
    for polished in polish_table(front):
        out.print(escape(polish_text(front, polished)), soft_wrap=True)
    for dropped in front.dropped:
        out.print(f"dropped {dropped.point.id}: {escape(dropped.why)}", style="dim", soft_wrap=True)
    for note in front.notes:
        out.print(f"note: {escape(note)}", style="dim", soft_wrap=True)
