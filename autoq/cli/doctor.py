"""``autoq doctor``: what is installed, what this machine is, and what works here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from autoq.cli.profile_view import print_detected
from autoq.errors import AutoqError
from autoq.record.run_folder import writable
from autoq.record.tracking import Tracker
from autoq.runtime.detect import detect
from autoq.runtime.extras import EXTRAS
from autoq.runtime.machine import describe, software_versions
from autoq.runtime.ort import available_providers
from autoq.search.ray_executor import try_ray

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


def examine() -> bool:
    """Prints the findings; whether all that a search needs works."""
    console = Console(highlight=False)
    machine = describe()
    console.print(f"{machine.cpu_model}, {machine.arch}, {machine.os}")
    memory = machine.memory_bytes / 2**30
    console.print(f"{machine.usable_cores} usable cores of {machine.logical_cores}, {memory:.1f} GiB")
    flags = [flag for flag in _FLAGS if flag in machine.flags]
    console.print(f"CPU features: {', '.join(flags) or 'none that matter here'}")
    console.print(
        "versions: "
        + ", ".join(
            f"{name} {found or ('not installed' if name in EXTRAS else 'MISSING')}"
            for name, found in software_versions().items()
        )
    )
    console.print(f"onnxruntime providers: {', '.join(available_providers())}")
    fine = True
    print_detected(detect(machine), console)
    for name, check in (("Ray", try_ray), ("MLflow", _try_mlflow), ("current folder", _try_folder)):
        problem = check()
        _line(console, not problem, name, problem or "works")
        fine = fine and not problem
    return fine


def _line(console: Console, good: bool, name: str, text: str) -> None:
    console.print(
        f"[{'green' if good else 'yellow'}]{'ok' if good else 'no':4}[/]{escape(name)}: {escape(text)}", soft_wrap=True
    )


def _try_mlflow() -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            Tracker.open(f"sqlite:///{folder}/mlflow.db", experiment="doctor", run_name="doctor").finish()
        except AutoqError as error:
            return str(error)
    return ""


def _try_folder() -> str:
    return "" if writable(Path.cwd()) else f"{os.getcwd()} cannot be written, so runs/ cannot be made here"
