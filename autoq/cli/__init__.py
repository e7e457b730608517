"""The command line: arguments, printing, exit codes.

Exit codes: 0 done; 1 ``verify`` found something wrong, or autoq itself broke; 2 bad input; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from autoq import __version__
from autoq.cli.measure import measure
from autoq.cli.profile import profile
from autoq.errors import AutoqError

_PATH = click.Path(path_type=Path)

_RATIO = click.FloatRange(min=0, min_open=True)
_CHOICE = (
    click.option(
        "--select",
        "how",
        metavar="knee|best|fastest|smallest|ID",
        help="Which point; by default the knee, the one nearest to the ideal point (each objective scaled to 0..1).",
    ),
    click.option(
        "--weights",
        metavar="OBJECTIVE=N,…",
        help="Which point instead: the least weighted Chebyshev distance from the ideal point; metric=1,latency=2.",
    ),
    click.option(
        "--max-drop", type=click.FloatRange(min=0), help="Largest metric drop, in the metric's unit (0.01 = 1 point)."
    ),
    click.option("--max-latency-ratio", type=_RATIO, help="Largest latency relative to float32."),
    click.option("--max-size-ratio", type=_RATIO, help="Largest file relative to float32's."),
    click.option("--max-memory-ratio", type=_RATIO, help="Largest peak memory relative to float32's."),
)


def _choosing(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose a point of a front."""
    for option in reversed(_CHOICE):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="autoq")
def cli() -> None:
    """Finds for every layer of a trained model the precision worth having, by measuring the files that would ship."""


@cli.command()
@click.argument("job", type=_PATH)
@click.option("--out", type=_PATH, help="Run folder; by default a new one in runs/.")
@click.option("--resume", is_flag=True, help="Continue the search in the folder --out.")
@click.option("--trials", type=click.IntRange(min=1), help="Candidates to evaluate, instead of the job's number.")
@click.option("--time", metavar="DURATION", help="Stop searching after, for one, 10m; instead of the job's.")
@click.option(
    "--ray", default="local", metavar="local|off|ADDRESS", show_default=True, help="Where candidates are evaluated."
)
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Ray workers; 0, the default, is one a core.")
@click.option("--tracking-uri", metavar="URI", help="MLflow server; by default sqlite:///runs/mlflow.db.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the proposals, instead of the job's.")
@click.option(
    "--polish",
    type=click.Choice(["none", "sequential"]),
    help="Polish the front's points when the search has ended, instead of the job's choice.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Search although the hardware profile does not describe this machine, or --resume on another machine.",
)
@click.option("--quiet", is_flag=True, help="No progress; errors, warnings and the result only.")
def search(job: Path, out: Path | None, resume: bool, quiet: bool, **options: object) -> None:
    """Search the job file JOB; print the front."""
    from autoq.cli.front_view import print_front
    from autoq.cli.progress import run_with_progress
    from autoq.cli.views import print_next_steps

    if resume and out is None:
        raise click.UsageError("--resume continues the search in a folder: say which with --out")
    from autoq.spec.job import load_job

    if len(load_job(job).targets) > 1:
        from autoq.cli.progress import targets_with_progress
        from autoq.cli.targets_view import print_targets

        found = targets_with_progress(job, quiet=quiet, out=out, resume=resume, **options)
        print_targets(found.targets, found.path)
        return
    outcome = run_with_progress(job, quiet=quiet, out=out, resume=resume, **options)
    print_front(outcome.front)
    print_next_steps(outcome)


@cli.command()
@click.argument("run", type=_PATH)
@_choosing
@click.option("--json", "as_json", is_flag=True, help="Print front.json, with what was chosen.")
def front(run: Path, as_json: bool, how: str | None, **options: Any) -> None:
    """Show the front of the search in the folder RUN; with options, what would be chosen of it. Changes nothing."""
    from autoq.cli.front_view import choice_json, print_front, refuse_empty, wish
    from autoq.record.choice import choose
    from autoq.record.front import front_json, read_front
    from autoq.record.run_folder import TARGETS_FILE, RunFolder

    asked = how is not None or any(value is not None for value in options.values())
    if (run / TARGETS_FILE).exists() and not asked:
        _show_targets(run, as_json)
        return
    found = read_front(RunFolder(run).front)
    choice = choose(found, how, **wish(options)) if asked else None
    if as_json:
        click.echo(choice_json(choice) if choice else front_json(found), nl=False)
        return
    print_front(found, choice)
    refuse_empty(found)


def _show_targets(run: Path, as_json: bool) -> None:
    from autoq.cli.targets_view import print_targets
    from autoq.errors import RunError
    from autoq.record.run_folder import TARGETS_FILE
    from autoq.record.targets import read_targets_record

    targets = read_targets_record(run).targets
    if targets is None:
        raise RunError(f"the search in {run} has not finished; its targets have folders of their own there")
    if as_json:
        click.echo((run / TARGETS_FILE).read_text(), nl=False)
    else:
        print_targets(targets, run)


@cli.command()
@click.argument("run", type=_PATH)
@_choosing
@click.option("--out", type=_PATH, required=True, help="Folder to write.")
@click.option("--form", metavar="NAME", help="Write the model anew for another runtime (tensorrt), scored on the CPU.")
def export(run: Path, how: str | None, out: Path, form: str | None, **options: Any) -> None:
    """Export a point of the front in RUN: the model, its manifest, and a script that runs it."""
    from autoq.cli.front_view import wish
    from autoq.record.choice_summary import choice_text
    from autoq.record.export import export_choice

    choice = export_choice(run, out, how, form=form, **wish(options))
    click.echo(choice_text(choice))
    beside = ("model.xml", "model.bin", "manifest.json", "infer.py")
    files = ", ".join(name for name in beside if (out / name).exists())
    model = out / f"model{Path(choice.point.model_path).suffix}"
    click.echo(f"{choice.point.id} -> {model} ({model.stat().st_size:,} bytes), {files}")
    click.echo(f"Prove it with: autoq verify {out}")


@cli.command()
@click.argument("job", type=_PATH)
@click.option("--out", type=_PATH, help="Folder for the table and the pictures; by default a new one in runs/.")
@click.option("--rows", type=click.IntRange(min=1), default=256, show_default=True, help="Rows of the search split.")
@click.option("--layers", metavar="GLOB", multiple=True, help="Only layers whose name matches; may be repeated.")
@click.option("--schemes", metavar="GLOB", multiple=True, help="Only schemes that match; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--force", is_flag=True, help="Go on although the hardware profile does not describe this machine.")
@click.option("--quiet", is_flag=True, help="No progress; errors, warnings and the result only.")
def sensitivity(job: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Take the layers of the job file JOB one at a time: the loss that each scheme causes alone."""
    from autoq.cli.progress import losses_with_progress
    from autoq.cli.views import print_losses
    from autoq.record.layer_losses import losses_json

    try:
        found, folder = losses_with_progress(job, quiet=quiet, **options)
    except KeyboardInterrupt as stop:
        stop.add_note("what was taken is cached, and the same command goes on")
        raise
    if as_json:
        click.echo(losses_json(found), nl=False)
    else:
        print_losses(found, folder)


@cli.command()
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--job", type=_PATH, help="Job file to take the data from, if it has moved since the search.")
@click.option("--no-metric", is_flag=True, help="Do not score the metric again (no data needed).")
def verify(folder: Path, job: Path | None, no_metric: bool) -> None:
    """Prove the exported model in DIR: its hash, that it loads, its metric, and what each layer really runs in."""
    from autoq.cli.views import print_verification
    from autoq.record.verify import verify as prove

    found = prove(folder, job=None if job is None else str(job), metric=not no_metric)
    print_verification(found)
    if not found.ok:
        raise SystemExit(1)


@cli.command()
@click.argument("model", type=_PATH)
@click.option("--hardware", default="cpu-x86-onnxruntime", show_default=True, help="Profile: a name or a path.")
@click.option("--space", default="default", show_default=True, help="Search space: a name or a path.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def layers(model: Path, hardware: str, space: str, as_json: bool) -> None:
    """Show the layers of the ONNX file MODEL, what each may become on a profile, and why not."""
    from autoq.cli.views import layers_json, print_layers
    from autoq.model.source import read_model
    from autoq.runtime.profiles import read_profile
    from autoq.search.candidates import all_candidates
    from autoq.spec.space import load_space

    profile, chosen = read_profile(hardware, Path()), load_space(space, Path())
    source = read_model(model, equalized=chosen.equalization == "cross-layer")
    found = all_candidates(source.graph, source.layers, chosen, profile, source.opset)
    if as_json:
        click.echo(layers_json(found))
    else:
        print_layers(source, found, profile, chosen.name)


cli.add_command(profile)
cli.add_command(measure)


@cli.command()
def doctor() -> None:
    """Show versions, the processor's features, whether Ray and MLflow work, and which profiles fit this machine."""
    from autoq.cli.doctor import examine

    if not examine():
        raise SystemExit(1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code. No error reaches the user as a traceback."""
    try:
        with _terminable():
            cli.main(arguments, prog_name="autoq", standalone_mode=False)
    except click.exceptions.Abort as abort:  # click's own for what interrupted it
        return _interrupted(abort.__cause__)
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except click.ClickException as error:
        error.show()
        return 2
    except AutoqError as error:
        _say(str(error))
        return 2
    except BrokenPipeError:  # the reader of our output, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}")
        return 2
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:  # a defect of autoq: say so in a line, keep the details for the report
        with tempfile.NamedTemporaryFile("w", prefix="autoq-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        _say(
            f"internal error, {type(error).__name__}: {error}. Please report it with {log.name}; "
            "finished trials are kept"
        )
        return 1
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what runs as Ctrl-C does: a scheduler's stop loses nothing that a person's would not."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(by: BaseException | None) -> int:
    # Where Ctrl-C came while code in a string ran (dataclasses are made so), Python would end with the signal and not
    # with our exit code. Running such code to its end makes it forget that (CPython, run_eval_code_obj).
    exec("")
    terminated = isinstance(by, _Terminated)
    how = "terminated" if terminated else "interrupted"
    default = ["finished trials are kept, and `autoq search JOB --out RUN --resume` goes on"]
    _say("; ".join([how, *getattr(by, "__notes__", default)]))
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _say(message: str) -> None:
    click.echo(f"{click.style('autoq:', fg='red')} {message}", err=True)
