"""Tables and sentences for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoq.core.layer_loss import LayerLosses
from autoq.core.result import Front
from autoq.model.source import SourceModel
from autoq.pipeline import Outcome
from autoq.record.layer_losses import describe_losses
from autoq.record.polish_summary import polish_table, polish_text
from autoq.record.summary import describe_gain, front_table, metric_unit, unit_of
from autoq.record.verify import Verification
from autoq.search.candidates import Candidates
from autoq.spec.hardware import Profile


def _console() -> Console:
    console = Console(highlight=False)
    # A file or pipe has no width; do not cut tables there.
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_front(front: Front) -> None:
    """The front as a table, and what it gains in a sentence."""
    factor, unit = metric_unit(front)
    rows = front_table(front)
    split = "final split" if rows[0].on_final else "search split"
    table = Table(title=f"{escape(front.name)}: {len(front.points)} points ({split})", title_justify="left")
    for heading in ("point", "", escape(front.metric_name), f"drop ({escape(unit)})", "speed", "size", "bits"):
        table.add_column(heading, justify="left" if heading in ("point", "") else "right")
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
        table.add_row(
            row.id,
            ", ".join(mark for mark in row.marks if mark != "float32"),
            f"{row.metric:.4f}",
            escape(drop),
            escape(speed),
            f"{row.size_ratio:.3f} ({row.size_kb:,.0f} KB)",
            f"{row.weight_bits_mean:.1f}",
            escape(row.policy),
        )
    console = _console()
    console.print(table)
    console.print(escape(describe_gain(front)), soft_wrap=True)
    for polished in polish_table(front):
        console.print(escape(polish_text(front, polished)), soft_wrap=True)
    for dropped in front.dropped:
        console.print(f"dropped {dropped.point.id}: {escape(dropped.why)}", style="dim", soft_wrap=True)
    for note in front.notes:
        console.print(f"note: {escape(note)}", style="dim", soft_wrap=True)
    if not front.final:
        console.print(
            "The search has not finished: this front has not been checked on the final split.", style="yellow"
        )


def print_next_steps(outcome: Outcome) -> None:
    """Where everything lies and what to do with it."""
    front = outcome.front
    failed = f", {front.trials_failed} failed" if front.trials_failed else ""
    console = _console()
    console.print(
        f"{front.trials_complete} trials{failed} in {front.wall_s:.0f} s; stopped by: {front.stop_reason}. "
        f"Everything is in {escape(str(outcome.path))} (open report.html).",
        soft_wrap=True,
    )
    console.print(f"Export a point:  autoq export {escape(str(outcome.path))} --select knee --out DIR", soft_wrap=True)
    console.print(f"Review in MLflow: mlflow ui --backend-store-uri {escape(outcome.tracking_uri)}", soft_wrap=True)


def print_losses(found: LayerLosses, folder: Path) -> None:
    """A row for each layer and scheme, what it comes to, and where the files lie."""
    factor, unit = unit_of(found.metric_name, found.direction, found.baseline)
    divergence = "KL, nats" if found.divergence == "kl" else "noise"
    table = Table(title=f"{escape(found.name)}: each layer alone, all others float32", title_justify="left")
    for heading in ("layer", "op", "scheme"):
        table.add_column(heading, overflow="fold")
    for heading in (f"drop ({escape(unit)})", divergence, "SQNR, dB"):
        table.add_column(heading, justify="right")
    troubled = any(loss.problem for loss in found.losses)
    if troubled:
        table.add_column("")
    for layer in found.layers:
        rows = [loss for loss in found.losses if loss.layer == layer]
        for number, loss in enumerate(rows):
            table.add_row(
                "" if number else escape(layer),
                "" if number else loss.kind,
                escape(str(loss.scheme)),
                "-" if loss.drop is None else f"{loss.drop * factor:.2f}" if factor == 100 else f"{loss.drop:.4g}",
                "-" if loss.divergence is None else f"{loss.divergence:.2g}",
                "-" if loss.sqnr_db is None else f"{loss.sqnr_db:.1f}",
                *([escape(loss.problem)] if troubled else []),
                end_section=number == len(rows) - 1,
            )
    console = _console()
    console.print(table)
    console.print(escape(describe_losses(found)), soft_wrap=True)
    console.print(f"Table and heat maps: {escape(str(folder))} (open sensitivity.html).", soft_wrap=True)


def print_verification(found: Verification) -> None:
    """Every layer with how it was asked to run and how it runs, then every check."""
    console = _console()
    if found.layers:
        table = Table()
        for heading in ("layer", "asked", "runs in", "kernel", ""):
            table.add_column(heading)
        for layer in found.layers:
            mark = f"[red]{escape(layer.problem)}[/red]" if layer.problem else ""
            kernel = layer.executed.kernel or "(fused away)"
            table.add_row(
                escape(layer.layer), escape(layer.asked), layer.executed.precision or "-", escape(kernel), mark
            )
        console.print(table)
    styles = {"ok": "green", "failed": "red", "skipped": "yellow"}
    for check in found.checks:
        console.print(
            f"[{styles[check.status]}]{check.status:8}[/] {check.name}: {escape(check.found)}", soft_wrap=True
        )


def print_layers(source: SourceModel, found: Sequence[Candidates], profile: Profile, space: str) -> None:
    """The layers, and for each what it may become."""
    table = Table(title=f"{escape(str(source.path))}, opset {source.opset}: {len(found)} layers", title_justify="left")
    for heading in ("layer", "op", "weight", "may become", "may not, because"):
        table.add_column(heading, overflow="fold")
    for entry in found:
        layer = entry.layer
        reasons: dict[str, list[str]] = {}
        for scheme, why in entry.refused:
            reasons.setdefault(why, []).append(str(scheme))
        refused = "\n".join(f"{', '.join(schemes)}: {why}" for why, schemes in reasons.items())
        tied = f" (as {layer.tied_to})" if layer.tied_to else ""
        shape = "x".join(map(str, layer.weight_shape))
        table.add_row(
            escape(layer.name + tied), layer.kind, shape, escape(" ".join(map(str, entry.schemes))), escape(refused)
        )
    console = _console()
    console.print(table)
    console.print(f"profile {escape(profile.name)}, space {escape(space)}")
    for family, other in profile.instead.items():
        console.print(f"on this profile, what the space calls {family} is {other}", style="yellow")
    for note in source.notes:
        console.print(f"note: {escape(note)}", style="yellow", soft_wrap=True)


def layers_json(found: Sequence[Candidates]) -> str:
    """The same for a program."""
    return json.dumps(
        [
            {
                "layer": entry.layer.name,
                "op": entry.layer.op_type,
                "kind": entry.layer.kind,
                "weight_shape": list(entry.layer.weight_shape),
                "tied_to": entry.layer.tied_to,
                "schemes": [str(scheme) for scheme in entry.schemes],
                "refused": {str(scheme): why for scheme, why in entry.refused},
                "replaced": {str(listed): str(scheme) for listed, scheme in entry.replaced},
            }
            for entry in found
        ],
        indent=1,
    )
