"""Rivals' environments, one each under ``benchmarks/out/venvs``, made of ``NAME.txt`` beside this file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def environment(name: str) -> Path:
    """The Python of a rival's environment. Torch goes first: what needs it would fetch another build."""
    venv = HERE.parent / "out" / "venvs" / name
    python = venv / "bin" / "python"
    if not (venv / ".ready").exists():
        wanted = HERE / f"{name}.txt"
        torch = [line for line in wanted.read_text().splitlines() if line.startswith("torch==")]
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        if torch:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *torch], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", wanted], check=True)
        (venv / ".ready").touch()
    return python
