"""``autoq measure``: latency, throughput, loading, memory and size of a model beside float32."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from autoq.runtime.parallel import Throughput
    from autoq.runtime.sheet import Sheet, SheetRow


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """``1,8,32``, none above ``most``."""

    name = "N,…"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """Whole numbers above 0, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and len(part) <= 6 and 0 < int(part) <= self._most for part in parts):
            message = f"{value!r} is no list of numbers such as 1,8,32, each from 1 to {self._most}"
            self.fail(message, parameter, context)
        return tuple(dict.fromkeys(map(int, parts)))


@click.command()
@click.argument("what", metavar="MODEL.onnx|EXPORT_DIR|RUN", type=click.Path(path_type=Path))
@click.option("--point", metavar="knee|best|fastest|smallest|ID", help="Which point of a run; by default the knee.")
@click.option("--against", type=click.Path(path_type=Path), help="What to compare with, instead of the job's float32.")
@click.option("--batch", type=_Numbers(65_536), help="Rows at a time; by default 1, or what the model fixes.")
@click.option("--threads", type=_Numbers(1024), default="1", show_default=True, help="Threads of the runtime.")
@click.option("--sessions", type=_Numbers(256), help="Throughput also of so many sessions at once, a process each.")
@click.option("--profile", help="Measure with this profile's runtime; by default with the one it was scored on.")
@click.option(
    "--open-size", type=click.IntRange(min=1), default=64, show_default=True, help="Of open dimensions, without a job."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    what: Path,
    point: str | None,
    against: Path | None,
    profile: str | None,
    open_size: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure a model beside float32: an ONNX file, an exported folder, or a point of the search in RUN."""
    import dataclasses

    from autoq.record.measurable import Feeds, find_measurable
    from autoq.runtime.profiles import read_profile
    from autoq.runtime.sheet import measure_sheet

    found = find_measurable(what, point, against)
    if profile is not None:
        runtime = read_profile(profile, Path()).runtime
        found = dataclasses.replace(found, runtime=runtime.name, runtime_options=runtime.arguments)
    feeds = Feeds(found, open_size)
    batches = given["batch"] or (feeds.fixed or 1,)
    feeds.check(batches)
    sheet = measure_sheet(
        found.model,
        found.reference,
        feeds,
        batches=batches,
        threads=given["threads"],
        sessions=given["sessions"] or (),
        runtime=found.runtime,
        runtime_options=found.runtime_options,
        step=lambda text: None if as_json else click.echo(f"measuring {text}", err=True),
    )
    if as_json:
        click.echo(json.dumps({"version": 1, "name": found.name, "fed": feeds.source, **sheet_dict(sheet)}, indent=1))
        return
    _print(found.name, f"{found.runtime}, fed {feeds.source}", sheet)


def sheet_dict(sheet: Sheet) -> dict[str, Any]:
    """As JSON: pairs are of the model and of its reference."""
    from autoq.record.speed import latency_document

    return {
        "model": str(sheet.model),
        "reference": str(sheet.reference),
        "size_bytes": sheet.size_bytes,
        "zipped_bytes": sheet.zipped_bytes,
        "settings": [
            {
                "latency": latency_document(row.latency),
                "reference_ms": row.reference_ms,
                "samples_per_s": row.throughput,
                "load_ms": row.load_ms,
                "peak_memory_bytes": row.peak_memory_bytes,
                "slower": row.slower,
                **({"parallel": [_parallel(each) for each in row.parallel]} if row.parallel else {}),
            }
            for row in sheet.settings
        ],
    }


def _parallel(found: Throughput) -> dict[str, Any]:
    return {
        "sessions": found.sessions,
        "samples_per_s": (found.samples_per_s, found.reference_samples_per_s),
        "ratio_to_float32": found.ratio,
        "ratio_ci95": found.ratio_ci95,
        "disturbed": found.disturbed,
    }


def _print(name: str, how: str, sheet: Sheet) -> None:
    from rich.markup import escape
    from rich.table import Table

    from autoq.cli.front_view import console

    out = console()
    table = Table(title=f"{escape(name)} beside {escape(sheet.reference.name)} ({escape(how)})", title_justify="left")
    for heading in ("batch", "threads", "ms", "float32", "speed, 95 %", "samples/s", "float32", "load, ms", "float32"):
        table.add_column(heading, justify="right")
    for heading in ("peak MB", "float32", ""):
        table.add_column(heading, justify="right")
    for row in sheet.settings:
        table.add_row(*_cells(row))
    out.print(table)
    if any(row.parallel for row in sheet.settings):
        out.print(_parallel_table(sheet))
    for what, (own, base) in (("file", sheet.size_bytes), ("zipped", sheet.zipped_bytes)):
        out.print(f"{what:7s} {own / 1e3:10,.1f} KB, float32 {base / 1e3:,.1f} KB: {own / base:.3f} of it")
    for row in sheet.settings:
        if row.slower:
            out.print(
                f"SLOWER than float32 at batch {row.latency.batch} with {row.latency.threads} threads: it takes "
                f"{row.latency.ratio:.2f} times as long",
                style="red",
            )
    cores = os.cpu_count() or 1
    if any(row.latency.threads > cores for row in sheet.settings):
        out.print(f"More threads than this machine has cores ({cores})", style="yellow")
    elif any(each.sessions * row.latency.threads > cores for row in sheet.settings for each in row.parallel):
        out.print(f"More sessions at once than this machine has cores for ({cores})", style="yellow")


def _parallel_table(sheet: Sheet) -> Table:
    from rich.table import Table

    table = Table(title="Sessions at once, a process each", title_justify="left")
    for heading in ("batch", "threads", "sessions", "samples/s", "float32", "speed, 95 %", ""):
        table.add_column(heading, justify="right")
    for row in sheet.settings:
        for each in row.parallel:
            table.add_row(
                str(row.latency.batch),
                str(row.latency.threads),
                str(each.sessions),
                f"{each.samples_per_s:,.0f}",
                f"{each.reference_samples_per_s:,.0f}",
                _speed(each.ratio, each.ratio_ci95),
                "disturbed" if each.disturbed else "",
            )
    return table


def _speed(ratio: float, interval: tuple[float, float]) -> str:
    return rf"{1 / ratio:.2f}x \[{1 / interval[1]:.2f}, {1 / interval[0]:.2f}]"


def _cells(row: SheetRow) -> list[str]:
    own, base = row.throughput
    return [
        str(row.latency.batch),
        str(row.latency.threads),
        f"{row.latency.median_ms:.3f}",
        f"{row.reference_ms:.3f}",
        _speed(row.latency.ratio, row.latency.ratio_ci95),
        f"{own:,.0f}",
        f"{base:,.0f}",
        f"{row.load_ms[0]:.1f}",
        f"{row.load_ms[1]:.1f}",
        f"{row.peak_memory_bytes[0] / 1e6:.1f}",
        f"{row.peak_memory_bytes[1] / 1e6:.1f}",
        "disturbed" if row.latency.disturbed else "",
    ]
