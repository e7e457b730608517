"""``trials.jsonl``: every finished trial, one line each, on disk before the next begins.

The file is only ever appended to. A line cut short by a crash is the last one, and is dropped when read.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from autoq.core.policy import Policy
from autoq.core.result import Trial
from autoq.errors import JobError, RunError

FORMAT_VERSION = 1

_ADAPTER = TypeAdapter(Trial)


class TrialLog:
    """The trials of one run folder. ``append`` returns when the trial is safe on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Trial]:
        """All finished trials, in order; a line cut short at the end is removed from the file.

        Raises :class:`RunError` when a whole line is damaged.
        """
        try:
            data = self.path.read_bytes()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                os.truncate(self.path, end)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise disk_error(self.path, error) from None
        trials = []
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                trials.append(_from_document(json.loads(line)))
            except (ValueError, KeyError, TypeError, JobError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"{self.path}, line {number} is damaged: {reason}; start anew with another --out"
                ) from None
        return trials

    def append(self, trial: Trial) -> None:
        """Adds one finished trial. Raises :class:`RunError` when it cannot be written, for one on a full disk."""
        try:
            with self.path.open("ab") as handle:
                handle.write(_line(trial))
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from None


def disk_error(path: Path, error: OSError) -> RunError:
    """What to tell the user when ``path`` cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full: {path} cannot be written. Finished trials are kept; free space and --resume"
        )
    return RunError(f"{path} cannot be written: {error.strerror or error}")


def _line(trial: Trial) -> bytes:
    document: dict[str, Any] = _ADAPTER.dump_python(trial, mode="json", exclude={"policy"})
    document = {"version": FORMAT_VERSION, "id": trial.id, **document, "policy": trial.policy.to_text()}
    return json.dumps(document, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _from_document(document: dict[str, Any]) -> Trial:
    version = document.pop("version")
    if version != FORMAT_VERSION:
        raise ValueError(f"trial format {version}, not {FORMAT_VERSION}")
    document.pop("id", None)
    policy = Policy.from_text(document.pop("policy"))
    return _ADAPTER.validate_python({**document, "policy": policy})
