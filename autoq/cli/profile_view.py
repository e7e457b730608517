"""Hardware profiles as tables and pages for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoq.cli.front_view import console
from autoq.probing import Probe
from autoq.runtime.detect import Fit
from autoq.search.pays import QUICK_MS
from autoq.spec.hardware import Profile
from autoq.spec.probed import Finding
from autoq.spec.profile_page import (
    OpPage,
    costs_words,
    gauge_name,
    latency_words,
    match_words,
    not_allowed,
    obtained,
    op_pages,
)


def print_list(found: Sequence[Fit]) -> None:
    """A row for each profile."""
    table = Table(title="Hardware profiles", title_justify="left")
    for heading in ("profile", "kind", "runtime", "latency", "on this machine"):
        table.add_column(heading, overflow="fold")
    for each in found:
        known = each.profile
        row = (known.kind, known.runtime.name, obtained(known)) if known else ("-", "-", "-")
        table.add_row(escape(each.name), *row, escape(each.reason), style="bold" if each.fits else None)
    out = console()
    out.print(table)
    out.print("One of them in full: autoq profile show NAME")


def print_detected(found: Sequence[Fit], out: Console | None = None) -> None:
    """A line for each profile, the best first, then what to write into a job."""
    out = out or console()
    for each in found:
        mark = "[green]ok  [/]" if each.fits else "[yellow]no  [/]"
        how = f" (latency {obtained(each.profile)})" if each.fits and each.profile else ""
        out.print(f"{mark}profile {escape(each.name)}: {escape(each.reason)}{how}", soft_wrap=True)
    if found and found[0].fits:
        out.print(f"In a job: hardware: {escape(found[0].name)}")
    else:
        out.print("No profile describes this machine: write one of your own (docs/hardware-profiles.md)")


def print_page(profile: Profile, stands: Fit) -> None:
    """All that a profile says, on one page."""
    out = console()
    out.print(f"[bold]{escape(profile.name)}[/bold] ({profile.kind})")
    out.print(escape(profile.description), soft_wrap=True)
    latency = profile.latency
    made = [f"{name} {value}" for name, value in profile.runtime.arguments.items()]
    for heading, text in (
        ("runtime", f"{', '.join([profile.runtime.name, *made])}: the metric is scored on it"),
        ("latency", f"{latency_words(profile)} ({gauge_name(profile)})"),
        ("", f"ratios are against {profile.reference}"),
        ("", f"batch {latency.batch}, {latency.threads} thread(s), where the job says nothing else"),
        ("costs", costs_words(profile)),
        *(("limits", f"{name} {bound:,}") for name, bound in profile.limits.model_dump(exclude_none=True).items()),
        ("recognised by", match_words(profile)),
        ("this machine", stands.reason),
        *(("instead", f"what a space calls {family} is {other} here") for family, other in profile.instead.items()),
    ):
        out.print(f"{heading:14}{escape(text)}", soft_wrap=True)
    pages = op_pages(profile)
    for page in pages:
        alike = [other.op for other in pages if _same(page, other)]
        if page.op == alike[0]:
            _print_ops(out, ", ".join(alike), page)
    out.print("An op that is not listed stays float32.")


def print_probe(found: Probe, out: Path | None) -> None:
    """A row for each shape and scheme, and what is dropped."""
    estimated, references = found.result.estimated, {each.reference for _, own in found.result.shapes for each in own}
    against = next(iter(references)) if len(references) == 1 else "the reference"
    table = Table(
        title=f"{escape(found.model)} on {escape(found.profile.name)}, {found.threads} thread(s), batch {found.batch}: "
        f"each layer alone, {'estimated' if estimated else 'measured'} time to {against}'s",
        title_justify="left",
    )
    for heading in ("layers", "weight", "uses", "scheme", "beside floats", "among integers", "size", ""):
        table.add_column(heading, overflow="fold")
    for shape, findings in found.result.shapes:
        for number, each in enumerate(findings):
            first = (f"{shape.layers} {shape.layer.kind}", "x".join(map(str, each.weight)), f"{each.uses:.0f}")
            table.add_row(
                *(first if number == 0 else ("", "", "")),
                each.scheme,
                _ratio(each.beside_float),
                _ratio(each.among_integers),
                f"{each.size:.2f}",
                "dropped" if each.dropped else _doubt(each, estimated),
                end_section=number == len(findings) - 1,
            )
    screen = console()
    screen.print(table)
    if estimated:
        screen.print(f"These figures are estimates by {escape(found.result.by)}: nothing was timed.")
    for problem in found.result.problems:
        screen.print(f"not probed: {escape(problem)}", style="yellow", soft_wrap=True)
    if found.result.left:
        screen.print(f"{found.result.left} shapes are left for want of time: the same command goes on with them")
    dropped = sum(bool(each.dropped) for _, findings in found.result.shapes for each in findings)
    screen.print(f"{dropped} schemes gain neither speed nor size over a gentler one where they are marked.")
    if out is None:
        screen.print("Nothing was changed: --out FILE writes a profile that drops them, for `hardware: FILE` in a job.")
    else:
        screen.print(f"Search with it: hardware: {escape(str(out))}", soft_wrap=True)


def _doubt(each: Finding, estimated: bool) -> str:
    best = min(ratio[1] for ratio in (each.beside_float, each.among_integers) if ratio is not None)
    return "too quick to tell" if not estimated and each.reference_ms < QUICK_MS and best > 1.02 else ""


def _ratio(ratio: tuple[float, float, float] | None) -> str:
    if ratio is None:
        return "-"
    text = f"{ratio[0]:.2f}" if ratio[1] == ratio[2] else f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"
    return escape(text)


def fit_dict(each: Fit) -> dict[str, Any]:
    """How a profile stands to this machine, as JSON can hold it."""
    known = each.profile
    return {
        "name": each.name,
        "kind": known.kind if known else None,
        "runtime": known.runtime.name if known else None,
        "latency": obtained(known) if known else None,
        **standing(each),
    }


def standing(each: Fit) -> dict[str, Any]:
    """Whether a profile fits this machine, and what is in the way."""
    return {"fits": each.fits, "problems": list(each.problems), "install": each.install}


def _same(page: OpPage, other: OpPage) -> bool:
    return (page.families, page.forbidden, page.aligned) == (other.families, other.forbidden, other.aligned)


def _print_ops(out: Console, ops: str, page: OpPage) -> None:
    table = Table(title=ops, title_justify="left")
    for heading in ("may be", "weights", "activations", "rounding", "runs"):
        table.add_column(heading, overflow="fold")
    for family in page.families:
        table.add_row(family.family, family.weights, family.activations, family.rounding, family.runs)
    out.print(table)
    for schemes, why in page.forbidden:
        out.print(f"  never {escape(schemes)}: {escape(why)}", soft_wrap=True)
    for rule in page.aligned:
        out.print(f"  aligned {escape(rule)}", soft_wrap=True)
    if others := not_allowed(page):
        out.print(f"  not here: {', '.join(others)}", soft_wrap=True)
