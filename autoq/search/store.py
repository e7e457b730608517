"""``trials.jsonl``: every finished trial, one line each, on disk before the next begins.

The file is only ever appended to. A line cut short by a crash is the last one: reading leaves it out, and the next
trial takes its place.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from autoq.core.policy import Policy
from autoq.core.result import FLOAT32_NAME, Latency, Trial
from autoq.errors import JobError, RunError

FORMAT_VERSION = 1

_ADAPTER = TypeAdapter(Trial)

_TO_FLOAT32 = "ratio_to_float32"
"""What the log calls a latency's ratio to float32."""


class TrialLog:
    """The trials of one run folder. ``append`` returns when the trial is safe on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Trial]:
        """All finished trials, in order; a line cut short at the end, by a crash or since it is being written, not.

        A trial that was tried again stands where it was tried first. The file is left as it is: its search may be
        running. Raises :class:`RunError` when a whole line is damaged.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror or error}") from None
        trials: dict[Policy, Trial] = {}
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                trial = _from_document(json.loads(line))
                trials[trial.policy] = trial
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JobError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"{self.path}, line {number} is damaged: {reason}; start anew with another --out"
                ) from None
        return list(trials.values())

    def append(self, trial: Trial) -> None:
        """Adds one finished trial. Raises :class:`RunError` when it cannot be written, for one on a full disk."""
        append_line(self.path, _line(trial))


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file, in the place of one cut short; returns when it is safe on disk.

    Raises :class:`RunError` when it cannot be written, for one on a full disk.
    """
    try:
        with path.open("a+b") as handle:
            _drop_torn_line(handle)
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> RunError:
    """What to tell the user when ``path`` cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full: {path} cannot be written. Finished trials are kept; free space and --resume"
        )
    return RunError(f"{path} cannot be written: {error.strerror or error}")


def _drop_torn_line(handle: BinaryIO) -> None:
    """Cuts the file behind its last whole line."""
    end = handle.seek(0, os.SEEK_END)
    if end == 0:
        return
    handle.seek(end - 1)
    if handle.read(1) != b"\n":
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)


def _line(trial: Trial) -> bytes:
    document: dict[str, Any] = _ADAPTER.dump_python(trial, mode="json", exclude={"policy"})
    latency = document["latency"]
    if isinstance(trial.latency, Latency) and trial.latency.reference == FLOAT32_NAME:  # as it always was
        del latency["reference"]
        document["latency"] = {_TO_FLOAT32 if name == "ratio" else name: value for name, value in latency.items()}
    document = {"version": FORMAT_VERSION, "id": trial.id, **document, "policy": trial.policy.to_text()}
    return json.dumps(document, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _from_document(document: Any) -> Trial:
    if not isinstance(document, dict) or document.pop("version", None) != FORMAT_VERSION:
        raise ValueError(f"it is no trial of format {FORMAT_VERSION}")
    document.pop("id", None)
    policy = Policy.from_text(document.pop("policy"))
    latency = document.get("latency")
    if isinstance(latency, dict) and _TO_FLOAT32 in latency:
        latency["ratio"] = latency.pop(_TO_FLOAT32)
    return _ADAPTER.validate_python({**document, "policy": policy})
