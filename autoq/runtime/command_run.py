"""One run of a user's command: its places filled in, its output read, itself stopped when it takes too long.

No shell takes part: the command is a list of arguments. It runs in a process group of its own, which is killed as a
whole, and what it prints goes to files, so that a child that it leaves behind holds nothing up.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoq.errors import ProfileError, TrialError

PLACES = ("model", "model_name", "reference", "reference_name", "batch", "threads", "feeds", "folder")
"""What a command may name in braces. ``folder`` is a new one for every run, removed behind it."""

_PLACE = re.compile(r"\{(\w+)\}")
_MOST_BYTES = 1 << 24  # of output that is read


def check_places(option: str, arguments: Sequence[str]) -> None:
    """Raises :class:`ProfileError` for a name in braces that means nothing."""
    for argument in arguments:
        for name in _PLACE.findall(argument):
            if name not in PLACES:
                raise ProfileError(
                    f"measure.options.{option}: {argument!r} has {{{name}}}, which means nothing; known: "
                    + ", ".join(f"{{{place}}}" for place in PLACES)
                )


def filled(arguments: Sequence[str], places: Mapping[str, object]) -> list[str]:
    """``arguments`` with what ``places`` says for each name in braces."""
    return [_PLACE.sub(lambda match: str(places[match[1]]), argument) for argument in arguments]


def run_command(arguments: Sequence[str], places: Mapping[str, object], timeout_s: float, output: str = "") -> str:
    """What it printed, or wrote to the file ``output`` in ``{folder}``.

    Raises :class:`TrialError`: ``timeout``, or ``measure`` where it cannot be started, fails or writes no such file,
    with the last line it printed.
    """
    with tempfile.TemporaryDirectory(prefix="autoq-command-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        (folder / "files").mkdir()
        argv = filled(arguments, {**places, "folder": folder / "files"})
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            code = _finished(argv, stdout.fileno(), stderr.fileno(), timeout_s)
        words = _last_line(folder / "stderr") or _last_line(folder / "stdout")
        said = f"; its last words: {words}" if words else "; it printed nothing"
        if code is None:
            raise TrialError("timeout", f"{argv[0]} took longer than {timeout_s:g} s and was stopped{said}")
        if code != 0:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise TrialError("measure", f"{argv[0]} {how}{said}")
        try:
            return _read(folder / "files" / output if output else folder / "stdout")
        except OSError as error:
            why = f"wrote no {output} into {{folder}}" if output else f"printed what cannot be read ({error})"
            raise TrialError("measure", f"{argv[0]} {why}{said}") from None


def _finished(argv: list[str], stdout: int, stderr: int, timeout_s: float) -> int | None:
    """Its exit code; ``None`` at the time limit. Whatever it started in its group is gone."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise TrialError("measure", f"{argv[0]} cannot be started: {why}") from None
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:  # Ctrl-C too
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(path: Path) -> str:
    with path.open("rb") as handle:
        return handle.read(_MOST_BYTES).decode(errors="replace")


def _last_line(path: Path) -> str:
    lines = [line for line in _read(path).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:200] if lines else ""


def read_json(text: str) -> Any:
    """The JSON document in what a command printed: all of it, or else its last line that is one.

    Raises :class:`TrialError` (``measure``).
    """
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if line[0] in "{[":
            with contextlib.suppress(ValueError, RecursionError):
                return json.loads(line)
    shown = f"its last line is {lines[-1][:120]!r}" if lines else "it printed nothing"
    raise TrialError("measure", f"the command's output has no JSON document; {shown}")


def numbers_at(document: Any, path: str) -> list[float]:
    """The numbers at a path: names and indices between dots, ``*`` for each element; a list stands for its elements.

    Raises :class:`TrialError` (``measure``) where there is nothing, or anything but numbers above 0.
    """
    found = [document]
    for part in path.split(".") if path else []:
        found = [each for value in found for each in _step(value, part)]
    values = [_number(each) for value in found for each in (value if isinstance(value, list) else [value])]
    if not values:
        raise TrialError("measure", f"the command's JSON has nothing at {path!r}")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            shown = json.dumps(value)[:60]
            raise TrialError("measure", f"the command's JSON has {shown} at {path!r}: times must be numbers above 0")
    return [float(value) for value in values]


def _number(value: Any) -> Any:
    """A text that is a number as that: some tools write all values as texts."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _step(value: Any, part: str) -> list[Any]:
    if part == "*":
        return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    if isinstance(value, dict) and part in value:
        return [value[part]]
    if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        return [value[int(part)]]
    return []
