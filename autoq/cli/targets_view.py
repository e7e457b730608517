"""Several targets for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from autoq.cli.front_view import console
from autoq.core.targets import Targets
from autoq.record.targets import COMMON_HEADINGS, common_rows, common_text, front_of, headings, point_row, refused_texts


def print_targets(targets: Targets, folder: Path) -> None:
    """Each target's front over all files, what one file for all costs, and what to do next."""
    out = console()
    for target in targets.targets:
        front = front_of(target)
        title = f"{escape(targets.name)} on {escape(target.profile)}: {len(front)} points (final split)"
        out.print(_table(title, headings(targets, target), [point_row(targets, target, point) for point in front]))
        out.print(
            f"Speed is against {target.reference}; float32 has {targets.metric_name} {target.baseline_metric:.4f}.",
            style="dim",
        )
        for text in refused_texts(target):
            out.print(escape(text), style="dim", soft_wrap=True)
    rows = common_rows(targets)
    if rows:
        out.print(_table("One file for all targets", COMMON_HEADINGS, rows))
    out.print(escape(common_text(targets)), soft_wrap=True)
    run = escape(str(folder))
    out.print(f"Everything is in {run} (open targets.html).", soft_wrap=True)
    out.print(f"Export a point:  autoq export {run}/{targets.targets[0].run} --select ID --out DIR", soft_wrap=True)


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(escape(heading))
    for row in rows:
        table.add_row(*map(escape, row))
    return table
