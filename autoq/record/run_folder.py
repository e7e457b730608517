"""The run folder: where a search keeps everything, and what another search must agree with to continue it.

::

    RUN/
      run.json        the job, what it was run on, the identity that --resume checks
      trials.jsonl    every finished trial, one line each
      study.db        the same as an Optuna study, for optuna-dashboard
      models/         the files of the front, <policy id>.onnx, polished <policy id>.polished.onnx
      latency.json    the latency model that guides proposals, or why there is none
      polish.jsonl    what came of each polish, one line each
      front.json      the front, after every trial
      front.png, proxies.png, importances.png, front.html, report.html, health.json      at the end
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from autoq.errors import RunError
from autoq.record.files import write_atomically

VERSION = 1

TARGETS_FILE = "targets.json"
"""What a folder has that holds the run folders of several targets (:mod:`autoq.record.targets`)."""

_SHA256 = re.compile("[0-9a-f]{64}")


class RunFolder:
    """One search's folder, locked against a second search while it is open. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models = path / "models"
        self.trials = path / "trials.jsonl"
        self.study = path / "study.db"
        self.polish = path / "polish.jsonl"
        self.latency = path / "latency.json"
        self.front = path / "front.json"
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    def open(self, *, resume: bool) -> RunFolder:
        """Makes the folder, or takes up an existing one with ``resume``.

        Raises :class:`RunError` when it cannot be written, holds a search and ``resume`` is not given, holds none and
        it is, or is in use by another search.
        """
        try:
            self._check_use(resume)
            missing = [folder for folder in (self.models, self.path, *self.path.parents) if not folder.exists()]
            self.models.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror or error}; give another --out") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(f"another search is running in {self.path}; wait for it, or give another --out") from None
        self._made = missing
        if not resume:
            self.study.unlink(missing_ok=True)
            self.polish.unlink(missing_ok=True)
            self.latency.unlink(missing_ok=True)
        return self

    def _check_use(self, resume: bool) -> None:
        record = self.path / "run.json"
        if resume and not record.is_file():
            raise RunError(f"{self.path} holds no search to resume; leave --resume out to start one there")
        # A search that ended before its first trial holds nothing to lose: a new one may take its place.
        begun = record.exists() and self.trials.exists() and self.trials.stat().st_size > 0
        if not resume and begun:
            raise RunError(f"{self.path} already holds a search; continue it with --resume, or give another --out")
        if not resume and self.path.is_dir() and any(self.path.iterdir()) and not (self.path / ".lock").exists():
            raise RunError(f"{self.path} is a folder with other things in it; give an empty or a new one with --out")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        if self._made and not (self.path / "run.json").exists():
            # No search began: leave nothing behind that would be in the way of the next attempt.
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()

    def read(self) -> dict[str, Any]:
        """``run.json``; raises :class:`RunError` when it is missing, damaged or of a newer version."""
        path = self.path / "run.json"
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            refuse_several(self.path)
            raise RunError(f"{self.path} is no run folder: it has no run.json") from None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise RunError(f"{path} is damaged: it is not JSON") from None
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise RunError(f"{path} was written by another version of autoq; this one reads version {VERSION}")
        return record

    def write(self, record: Mapping[str, Any]) -> None:
        """Replaces ``run.json``."""
        text = json.dumps({"version": VERSION, **record}, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(self.path / "run.json", text + "\n")

    def check_identity(self, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        """Refuses to continue a search of something else; names what differs. Raises :class:`RunError`."""
        details = "; ".join(
            f"{place} was {_short(before)}, is {_short(now)}"
            for name in current
            for place, before, now in _first_difference(name, recorded.get(name), current[name])
        )
        if details:
            raise RunError(
                f"{self.path} holds the search of another job and cannot be resumed with this one: {details}. "
                "Give another --out"
            )


def refuse_several(folder: Path) -> None:
    """Raises :class:`RunError` for the folder of a search for several targets, where one target's is wanted."""
    if (folder / TARGETS_FILE).exists():
        own = ", ".join(str(found.parent) for found in sorted(folder.glob("*/run.json"))) or "none has begun yet"
        raise RunError(f"{folder} holds a search for several targets, each with a run folder of its own: {own}")


def free_name(parent: Path, name: str) -> Path:
    """``parent/name``, or with a number behind it, the first that does not exist yet."""
    candidate, number = parent / name, 2
    while candidate.exists():
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate


def writable(path: Path) -> bool:
    """Whether files can be made in ``path``, or in the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _first_difference(place: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Where two documents differ first, and both values there; nothing where they are equal."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in [*before, *now] if before.get(key, _short) != now.get(key, _short))
        return _first_difference(f"{place}.{key}", before.get(key), now.get(key)) or [(place, before, now)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        index = next(index for index, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        return _first_difference(f"{place}[{index}]", before[index], now[index])
    return [(place, before, now)]


def _short(value: object) -> str:
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    if _SHA256.fullmatch(text):
        return text[:12]
    return text if len(text) <= 60 else text[:57] + "..."
