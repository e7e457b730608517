"""The measuring process: ``python -m autoq.runtime.meter_child``, started and spoken to by :mod:`autoq.runtime.meter`.

It imports the runtime once, opens no session itself, and forks a child for every measurement: fresh memory, and a crash
or an endless loop stays in the child. One JSON object a line, on stdin and stdout:

    start     {"runtime", "options", "threads", "feeds": PATH.npz, "folder": PATH}    -> {"ready": true}
    latency   {"op", "models": [PATH], "sitting", "plan": {}, "timeout_s"}            -> {"rounds", "load_ms", "cpus"}
    memory    {"op", "model": PATH, "runs", "timeout_s"}                              -> {"peak_bytes"}
    parallel  {"op", "models": [PATH], "sessions", "sitting", "plan", "timeout_s"}    -> {"blocks"}
    any failure                                                                       -> {"reason", "message"}

The first of ``models`` is the float32 baseline.

It lives no longer than its parent: it ends when stdin closes (and removes ``folder`` then, since its parent cannot any
more) or when it is handed to another parent; its children are killed with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import selectors
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoq.errors import AutoqError, TrialError
from autoq.runtime.base import Runtime, load_runtime
from autoq.runtime.forked import LOOK_S, die_with, pin
from autoq.runtime.host import ForeignLoad
from autoq.runtime.memory import peak_growth_bytes
from autoq.runtime.parallel import ParallelPlan, time_parallel
from autoq.runtime.timing import TimingPlan, time_sitting

Reply = dict[str, Any]


class Server:
    """Reads requests, forks for each, writes replies."""

    def __init__(self, requests: int, replies: int) -> None:
        """``requests`` and ``replies`` are file descriptors."""
        self._requests, self._replies = requests, replies
        self._parent = os.getppid()
        self._pending = b""
        self._folder: str | None = None
        self._runtime: Runtime
        self._feeds: dict[str, np.ndarray]
        self._threads = 1
        self._padding = bytearray()

    def serve(self) -> None:
        """Until the parent has gone."""
        start = self._next()
        if start is None:
            return
        try:
            self._folder = start["folder"]
            self._threads = start["threads"]
            self._runtime = load_runtime(start["runtime"], **start["options"])
            with np.load(start["feeds"], allow_pickle=False) as arrays:
                self._feeds = {name: arrays[name] for name in arrays.files}
        except AutoqError as error:
            self._reply({"reason": "start", "message": str(error)})
            return
        gc.collect()
        gc.freeze()  # what is here by now is shared with every child, and no child's collector need look at it
        self._reply({"ready": True})
        while (request := self._next()) is not None:
            self._reply(self._measure(request))

    def _measure(self, request: dict[str, Any]) -> Reply:
        reading, writing = os.pipe()
        server = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                os.close(self._replies)
                die_with(server)
                os.write(writing, json.dumps(self._child(request)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        try:
            answer = self._wait_for(reading, time.monotonic() + request["timeout_s"])
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # it has answered, or will not
            _, status = os.waitpid(child, 0)
        if answer is None:
            return {"reason": "timeout", "message": f"measuring took longer than {request['timeout_s']:g} s"}
        if answer:
            return dict(json.loads(answer))
        how = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "ended early"
        hint = " (out of memory?)" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else ""
        return {"reason": "measure", "message": f"the process that ran the model {how}{hint}"}

    def _wait_for(self, reading: int, deadline: float) -> bytes | None:
        """What the child wrote, empty if it died; None at the deadline."""
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(min(left, LOOK_S))}
                if reading in ready:
                    piece = os.read(reading, 1 << 16)
                    if not piece:
                        return answer
                    answer += piece
                elif self._requests in ready or os.getppid() != self._parent:
                    raise EOFError  # nobody sends while we measure: the pipe was closed
        return None

    def _child(self, request: dict[str, Any]) -> Reply:
        try:
            operation = {"latency": self._latency, "memory": self._memory, "parallel": self._parallel}[request["op"]]
            return operation(request)
        except TrialError as error:
            return {"reason": error.reason, "message": str(error)}
        except MemoryError:
            return {"reason": "measure", "message": "the model does not fit into memory"}
        except Exception as error:  # this process is about to end: whatever it was must be told
            return {"reason": "measure", "message": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    def _latency(self, request: dict[str, Any]) -> Reply:
        cpus = pin(self._threads)
        foreign = ForeignLoad(self._threads)
        setup = time.perf_counter()
        steps, load_ms = self._open(request["models"], request["sitting"])
        setup_s = time.perf_counter() - setup
        backward = _backward(request["sitting"])
        rounds = time_sitting(steps, TimingPlan(**request["plan"]), setup_s=setup_s, backward=backward)
        return {
            "rounds": dataclasses.asdict(dataclasses.replace(rounds, foreign=foreign.share())),
            "load_ms": load_ms,
            "cpus": cpus,
        }

    def _open(self, models: list[str], sitting: int) -> tuple[list[Callable[[], object]], list[float | None]]:
        """A step of each model, the baseline first, and the milliseconds that opening their sessions took.

        ``None`` for the session that was opened first: it paid for what the runtime does once in a process.
        """
        # What is allocated behind this lies elsewhere in every sitting, as it does in every process of a user's.
        self._padding = bytearray(64 * (1 + 37 * sitting % 509))
        steps: dict[int, Callable[[], object]] = {}
        load_ms: dict[int, float | None] = {}
        # Which session is opened first decides whose memory lies where: every other sitting is the other way round.
        for index in sorted(range(len(models)), reverse=_backward(sitting)):
            path = Path(models[index])
            try:
                start = time.perf_counter()
                session = self._runtime.open(path, threads=self._threads)
                load_ms[index] = 1e3 * (time.perf_counter() - start) if load_ms else None
                steps[index] = self._runtime.step(session, self._feeds)
            except TrialError as error:
                if index == 0:
                    raise TrialError("measure", f"the float32 baseline {path.name} does not run: {error}") from error
                raise TrialError(error.reason, f"{path.name}: {error}") from error
        return [steps[index] for index in range(len(models))], [load_ms[index] for index in range(len(models))]

    def _parallel(self, request: dict[str, Any]) -> Reply:
        blocks = time_parallel(
            lambda: self._open(request["models"], request["sitting"])[0],
            request["sessions"],
            ParallelPlan(**request["plan"]),
            threads=self._threads,
            backward=_backward(request["sitting"]),
        )
        return {"blocks": [[dataclasses.asdict(block) for block in model] for model in blocks]}

    def _memory(self, request: dict[str, Any]) -> Reply:
        pin(self._threads)

        def load_and_run() -> None:
            session = self._runtime.open(Path(request["model"]), threads=self._threads)
            step = self._runtime.step(session, self._feeds)
            for _ in range(request["runs"]):
                step()

        # A device with memory of its own has its own peak.
        peak = getattr(self._runtime, "peak_growth_bytes", peak_growth_bytes)
        return {"peak_bytes": peak(load_and_run)}

    def _next(self) -> dict[str, Any] | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(LOOK_S):
                    if os.getppid() != self._parent:
                        return None
                    continue
                piece = os.read(self._requests, 1 << 16)
                if not piece:
                    return None
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def _reply(self, reply: Reply) -> None:
        line = json.dumps(reply).encode() + b"\n"
        while line:
            line = line[os.write(self._replies, line) :]

    def clean_up(self) -> None:
        """Remove the folder of a parent that has gone."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _backward(sitting: int) -> bool:
    return sitting % 2 == 1


def main() -> None:
    """Serve on stdin and stdout; whatever a library prints goes to stderr, which the parent keeps in a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    replies = os.dup(1)
    os.dup2(2, 1)
    server = Server(0, replies)
    try:
        server.serve()
    except (EOFError, BrokenPipeError):
        pass
    finally:
        server.clean_up()


if __name__ == "__main__":
    main()
