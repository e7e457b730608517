"""``autoq profile``: which hardware profiles there are, what each says, and which describe this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def profile() -> None:
    """Hardware profiles: what there is, what one allows, which describe this machine, what pays on it."""


@profile.command("list")
@_JSON
def list_profiles(as_json: bool) -> None:
    """List the profiles that come with autoq."""
    from autoq.cli.profile_view import fit_dict, print_list
    from autoq.runtime.detect import detect as find

    found = sorted(find(), key=lambda each: each.name)
    if as_json:
        click.echo(json.dumps([fit_dict(each) for each in found], indent=1))
    else:
        print_list(found)


@profile.command()
@click.argument("name")
@_JSON
def show(name: str, as_json: bool) -> None:
    """Show what the profile NAME (or the YAML file at a path) allows, and how its figures come about."""
    from autoq.cli.profile_view import print_page, standing
    from autoq.runtime.detect import fit
    from autoq.runtime.machine import describe
    from autoq.runtime.profiles import read_profile
    from autoq.spec.profile_page import page_dict

    found = read_profile(name, Path())
    stands = fit(found, describe())
    if as_json:
        click.echo(json.dumps({**page_dict(found), "this_machine": standing(stands)}, indent=1))
    else:
        print_page(found, stands)


@profile.command()
@_JSON
def detect(as_json: bool) -> None:
    """Say which profiles describe this machine, the best first, and why the others do not."""
    from autoq.cli.profile_view import fit_dict, print_detected
    from autoq.runtime.detect import detect as find

    found = find()
    if as_json:
        click.echo(json.dumps([fit_dict(each) for each in found], indent=1))
    else:
        print_detected(found)


@profile.command()
@click.argument("source", metavar="JOB|MODEL", type=click.Path(path_type=Path))
@click.option("--profile", "hardware", help="Profile: a name or a path; by default the job's, or the best that fits.")
@click.option("--space", help="Search space: a name or a path; by default the job's, or `default`.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write: a profile that carries what was found.")
@click.option("--seconds", type=click.FloatRange(min=0), default=60, show_default=True, help="About how long to time.")
@click.option("--force", is_flag=True, help="Go on although the profile does not describe this machine.")
@_JSON
def probe(source: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Time the layers of JOB's model, or of an ONNX file, alone in every scheme that the profile allows.

    With --out, a profile file that drops what does not: `hardware: FILE` in a job searches with it.
    """
    from datetime import date

    from autoq.cli.profile_view import print_probe
    from autoq.cli.progress import stepper, warner
    from autoq.probing import probe_model, probed_profile, write_probed

    found = probe_model(source, step=stepper(quiet=as_json), warn=warner(), **options)
    if out is not None:
        write_probed(found, out, date.today())
    if as_json:
        click.echo(json.dumps(probed_profile(found, out or Path("probed.yaml"), date.today()), indent=1))
    else:
        print_probe(found, out)
