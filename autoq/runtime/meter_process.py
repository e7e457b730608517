"""The parent's side of the measuring process: starting it, asking it, ending it.

The process itself is :mod:`autoq.runtime.meter_child`, where the messages are listed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoq.errors import ProfileError, TrialError

_START_TIMEOUT_S = 60.0


class MeterProcess:
    """The measuring process, started when first asked and again after it died; and the folder with its feeds."""

    def __init__(self, runtime: str, options: dict[str, Any], threads: int, feeds: Mapping[str, np.ndarray]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="autoq-meter-"))
        self._start = {"runtime": runtime, "options": options, "threads": threads, "folder": str(self._folder)}
        self._feeds = {name: np.asarray(array) for name, array in feeds.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def ensure(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        self._folder.mkdir(parents=True, exist_ok=True)
        feeds = self._folder / "feeds.npz"
        if not feeds.exists():
            np.savez(feeds, **self._feeds)  # type: ignore[arg-type]
        root = str(Path(__file__).resolve().parents[2])
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with (self._folder / "stderr.txt").open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autoq.runtime.meter_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env={**os.environ, **quiet, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C at the terminal reaches the search, not the process that measures
            )
        reply = self._exchange({**self._start, "feeds": str(feeds)}, _START_TIMEOUT_S)
        if reply is None or "reason" in reply:
            why = reply["message"] if reply else f"it ended{self.last_words()}"
            self._kill()
            raise ProfileError(f"the measuring process does not start: {why}")

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The reply, or None if the process died; raises :class:`TrialError` (``timeout``)."""
        self.ensure()
        return self._exchange(request, timeout_s)

    def last_words(self) -> str:
        """The last line that it wrote to stderr, to end a message with."""
        with contextlib.suppress(OSError):
            lines = (self._folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
            if lines:
                return f"; its last words: {lines[-1][:200]}"
        return ""

    def close(self) -> None:
        """End it and remove its folder; nothing in a process that was forked from its owner."""
        if os.getpid() != self._owner:
            return
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answer, deadline = b"", time.monotonic() + timeout_s
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while not answer.endswith(b"\n"):
                    if not selector.select(max(0.0, deadline - time.monotonic())):
                        raise TrialError("timeout", f"the measuring process did not answer within {timeout_s:g} s")
                    piece = os.read(process.stdout.fileno(), 1 << 16)
                    if not piece:
                        self._kill()
                        return None
                    answer += piece
        except BrokenPipeError:
            self._kill()
            return None
        except BaseException:  # Ctrl-C too: a late answer would be taken for the next question's
            self._kill()
            raise
        return dict(json.loads(answer))

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # its children die with it
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
