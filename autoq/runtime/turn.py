"""One measurement at a time on this machine, over all processes of this user."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is measured yet
    fcntl = None  # type: ignore[assignment]

_LOOK_S = 0.05


def turn_path() -> Path:
    """The file that whoever measures has locked."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"autoq-measuring-{user}.lock"


@contextlib.contextmanager
def measuring_turn(wait_s: float = 60.0) -> Iterator[bool]:
    """Hold the machine's turn to measure; yields whether it was got within ``wait_s`` seconds.

    Without it the caller measures all the same and says that it was disturbed: a process that was stopped
    (Ctrl-Z) in its turn must not stop every other search. The kernel frees the turn of a process that dies.
    """
    try:
        handle = os.open(turn_path(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # no writable temporary folder: nobody else on this machine can take a turn either
        yield False
        return
    try:
        got, deadline = _try_lock(handle), time.monotonic() + wait_s
        while not got and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            got = _try_lock(handle)
        yield got
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
