"""Tables and sentences for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from autoq.cli.front_view import console
from autoq.core.layer_loss import LayerLosses
from autoq.model.source import SourceModel
from autoq.pipeline import Outcome
from autoq.record.layer_losses import describe_losses
from autoq.record.summary import unit_of
from autoq.record.verify import Verification
from autoq.search.candidates import Candidates
from autoq.spec.hardware import Profile


def print_next_steps(outcome: Outcome) -> None:
    """Where everything lies and what to do with it."""
    front = outcome.front
    others = f", {front.trials_pruned} dropped on the way" if front.trials_pruned else ""
    others += f", {front.trials_failed} failed" if front.trials_failed else ""
    out = console()
    out.print(
        f"{front.trials_complete} trials{others} in {front.wall_s:.0f} s; stopped by: {front.stop_reason}. "
        f"Everything is in {escape(str(outcome.path))} (open report.html).",
        soft_wrap=True,
    )
    run = escape(str(outcome.path))
    if front.points:
        out.print(f"What if:         autoq front {run} --max-drop 0.01", soft_wrap=True)
        out.print(f"Export a point:  autoq export {run} --select knee --out DIR", soft_wrap=True)
    out.print(f"Review in MLflow: mlflow ui --backend-store-uri {escape(outcome.tracking_uri)}", soft_wrap=True)


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
    out = console()
    out.print(table)
    out.print(escape(describe_losses(found)), soft_wrap=True)
    out.print(f"Table and heat maps: {escape(str(folder))} (open sensitivity.html).", soft_wrap=True)


def print_verification(found: Verification) -> None:
    """Every layer with how it was asked to run and how it runs, then every check."""
    out = console()
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
        out.print(table)
    styles = {"ok": "green", "failed": "red", "skipped": "yellow"}
    for check in found.checks:
        out.print(f"[{styles[check.status]}]{check.status:8}[/] {check.name}: {escape(check.found)}", soft_wrap=True)


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
    out = console()
    out.print(table)
    out.print(f"profile {escape(profile.name)}, space {escape(space)}")
    for family, other in profile.instead.items():
        out.print(f"on this profile, what the space calls {family} is {other}", style="yellow")
    for note in source.notes:
        out.print(f"note: {escape(note)}", style="yellow", soft_wrap=True)


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
