"""The search's progress on a terminal: a bar with trials, the best so far and the time left; plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from autoq.core.layer_loss import LayerLosses
from autoq.core.objectives import metric_drop
from autoq.core.result import Trial
from autoq.layerwise import Watch, layer_losses
from autoq.pipeline import RUNS, Events, Outcome, run_search
from autoq.record.run_folder import free_name
from autoq.search.loop import Search
from autoq.spec.job import load_job
from autoq.targets import TargetsOutcome, run_targets

_LINE_EVERY_S = 20.0

Found = TypeVar("Found")


def run_with_progress(source: Path, *, quiet: bool, **options: Any) -> Outcome:
    """:func:`autoq.pipeline.run_search`, watched."""
    return _watched(run_search, source, quiet, options)


def targets_with_progress(source: Path, *, quiet: bool, **options: Any) -> TargetsOutcome:
    """:func:`autoq.targets.run_targets`, watched."""
    return _watched(run_targets, source, quiet, options)


def _watched(run: Callable[..., Found], source: Path, quiet: bool, options: dict[str, Any]) -> Found:
    console = Console(stderr=True, highlight=False)
    replaced = {name: options.pop(name) for name in ("trials", "time", "tracking_uri", "seed", "polish")}
    job = load_job(source).overridden(**replaced)
    if quiet:
        return run(job, events=Events(warn=_warner(console)), **options)
    if not console.is_terminal:
        return run(job, events=_lines(console, job.budget.trials), **options)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=job.budget.trials, best="")

        def on_trial(trial: Trial, search: Search) -> None:
            bar.update(task, completed=len(search.trials), best=best_so_far(search))

        events = Events(
            step=lambda text: bar.update(task, description=text),
            trial=on_trial,
            warn=_warner(console),
        )
        return run(job, events=events, **options)


def losses_with_progress(source: Path, *, quiet: bool, out: Path | None, **options: Any) -> tuple[LayerLosses, Path]:
    """:func:`autoq.layerwise.layer_losses`, watched; also the folder that it wrote."""
    console = Console(stderr=True, highlight=False)
    job = load_job(source)
    folder = out or free_name(RUNS, f"{job.name}-sensitivity")
    if quiet:
        return layer_losses(job, out=folder, watch=Watch(warn=_warner(console)), **options), folder
    if not console.is_terminal:
        return layer_losses(job, out=folder, watch=_probe_lines(console), **options), folder
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None)
        watch = Watch(
            step=lambda text: bar.update(task, description=text),
            probe=lambda done, total: bar.update(task, completed=done, total=total),
            warn=_warner(console),
        )
        return layer_losses(job, out=folder, watch=watch, **options), folder


def best_so_far(search: Search) -> str:
    """The front in a few words: ``front 7: fastest 2.1x, smallest 0.15``."""
    if not search.front:
        return "front empty"
    baseline = search.problem.baseline
    parts = [f"front {len(search.front)}:"]
    timed = [trial.latency.ratio for trial in search.front if trial.latency]
    if timed:
        parts.append(f"fastest {1 / min(timed):.2f}x,")
    if baseline.size_bytes:
        parts.append(f"smallest {min(t.size_bytes or 0 for t in search.front) / baseline.size_bytes:.2f},")
    if baseline.metric is not None:
        drops = [
            metric_drop(t.metric, baseline.metric, search.problem.direction)
            for t in search.front
            if t.metric is not None
        ]
        parts.append(f"least drop {min(drops):.4f}")
    return " ".join(parts)


def _lines(console: Console, total: int) -> Events:
    started = last = time.monotonic()

    def on_trial(trial: Trial, search: Search) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S or len(search.trials) == total:
            last = now
            console.print(
                f"autoq: {now - started:.0f} s: {len(search.trials)} of {total} trials; {best_so_far(search)}"
            )

    return Events(step=lambda text: console.print(f"autoq: {text}"), trial=on_trial, warn=_warner(console))


def _probe_lines(console: Console) -> Watch:
    last = time.monotonic()

    def on_probe(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S or done == total:
            last = time.monotonic()
            console.print(f"autoq: {done} of {total} models")

    return Watch(step=lambda text: console.print(f"autoq: {text}"), probe=on_probe, warn=_warner(console))


def _warner(console: Console) -> Any:
    return lambda text: console.print(f"autoq: [yellow]warning:[/yellow] {text}", soft_wrap=True)


def warner() -> Callable[[str], None]:
    """Prints warnings to stderr."""
    made: Callable[[str], None] = _warner(Console(stderr=True, highlight=False))
    return made


def stepper(*, quiet: bool) -> Callable[[str], None]:
    """Prints steps to stderr, or nothing."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    return lambda text: console.print(f"autoq: {escape(text)}", soft_wrap=True)
