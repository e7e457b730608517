"""Evaluates on Ray workers (Ray's only home): on this machine by default, or on a cluster.

The workload travels once, through Ray's object store. A worker that dies is replaced and its candidate is tried
once more. Latency is measured by the driver's meter while no candidate is scored: on a machine of two cores a busy
neighbour changes even ratios (see docs/measurement.md).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autoq.core.policy import Policy
from autoq.core.result import Failure
from autoq.errors import RunError
from autoq.runtime.gauge import Gauge, Measurement
from autoq.runtime.kind import Kind, kind_of
from autoq.runtime.machine import describe
from autoq.search.evaluate import Dropped, Evaluator, Scored, Workload
from autoq.search.executor import Task, attempted, measured, measured_many, with_hurdles
from autoq.search.fidelity import Hurdle

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM": "0",
    # A full disk is reported by autoq when it writes; Ray would refuse to work from 95 % on.
    "RAY_local_fs_capacity_threshold": "1.0",
}


_PATIENCE_S = 120.0
"""How long no worker at all may be up before the search gives up."""
_STARTS = 3
"""How often in a row starting a worker may fail."""
_TRIES = 2
"""How often a candidate is given to a worker that dies."""


class _Worker:
    """What runs on a worker. It is prepared before it is given a candidate."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def prepare(self, workload: list[Any]) -> tuple[str, Kind]:
        """Fetches the workload; a list of one reference, since a bare one would be fetched before the call.

        Returns the name of its node, and what kind of machine that is.
        """
        fetched = _import_ray().get(workload[0])
        self._evaluator = Evaluator(fetched)
        return platform.node(), kind_of(describe(), fetched.runtime)

    def evaluate(self, policy: Policy, hurdle: Hurdle) -> Scored | Dropped | Failure:
        """As :meth:`autoq.search.evaluate.Evaluator.evaluate`."""
        assert self._evaluator is not None
        return self._evaluator.evaluate(policy, hurdle)

    def attempt(self, task: Task, shared: list[Any], item: Any) -> Any:
        """As :func:`autoq.search.executor.attempted`; ``shared`` is a list of one reference."""
        assert self._evaluator is not None
        return attempted(task, self._evaluator, _import_ray().get(shared[0]), item)


class RayExecutor:
    """Scores on ``workers`` Ray actors of one core each.

    ``address`` is ``"local"`` to start Ray here, or a cluster's address (``auto``, ``host:port``, ``ray://…``).
    ``workers`` 0 means one for each core of the cluster. Raises :class:`RunError` when Ray cannot be reached.

    Only a worker that is up gets a candidate: one that waits for a core (its node was removed, say, or others use the
    cluster) joins when it has one, and holds nothing up. A worker on a machine that gives files other metrics than this
    one does (:meth:`autoq.runtime.kind.Kind.scored_otherwise`) ends the search with a :class:`RunError`.
    """

    def __init__(self, workload: Workload, meter: Gauge, *, address: str, workers: int = 0) -> None:
        ray = _import_ray()
        self._ray = ray
        self._meter = meter
        self._owns = not ray.is_initialized()
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._failed_starts = 0
        self._kind = kind_of(describe(), workload.runtime)
        try:
            if self._owns:
                self._start(address, workers)
            cores = int(ray.cluster_resources().get("CPU", 1))
            count = min(workers or cores, cores) or 1
            self.description = f"Ray {ray.__version__}, {count} worker{'s' if count > 1 else ''}"
            self._workload = [ray.put(workload)]
            for _ in range(count):
                self._start_worker()
        except BaseException:  # Ctrl-C too: Ray must not live on
            self.close()
            raise

    def _start(self, address: str, workers: int) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=address, **_options(address, workers or os.cpu_count() or 1))
        except SystemExit as stop:  # what Ray's own handler does, which is in force from the start of this call
            if stop.code == signal.SIGTERM and callable(handler):
                handler(signal.SIGTERM, None)
            raise
        except Exception as error:  # Ray raises from several trees
            raise RunError(
                f"Ray at {address!r} cannot be reached: {_first_line(error)}; start it with `ray start --head`, or "
                "use `--ray local` or `--ray off`"
            ) from None
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    def _start_worker(self) -> None:
        # No restarts by Ray: its restarted actor keeps its calls waiting for a core that may never be free.
        actor = self._ray.remote(_Worker).options(num_cpus=1).remote()
        self._actors.append(actor)
        self._starting[actor.prepare.remote(self._workload)] = actor

    def score(
        self, policies: Sequence[Policy], hurdles: Sequence[Hurdle] | None = None
    ) -> Iterator[Scored | Dropped | Failure]:
        """See :class:`autoq.search.executor.Executor`."""
        results: dict[int, Scored | Dropped | Failure] = {}
        items = list(zip(policies, with_hurdles(policies, hurdles), strict=True))
        done = self._each(lambda actor, position: actor.evaluate.remote(*items[position]), len(items))
        for given in range(len(policies)):
            while given not in results:
                results.update([next(done)])
            yield results.pop(given)

    def run(self, task: Task, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See :class:`autoq.search.executor.Executor`."""
        reference = [self._ray.put(shared)]
        return self._each(lambda actor, position: actor.attempt.remote(task, reference, items[position]), len(items))

    def _each(self, begin: Callable[[Any, int], Any], count: int) -> Iterator[tuple[int, Any]]:
        """What ``begin`` (an actor, a position) came to at each position, as each is done; begun in their order."""
        waiting = [(position, 1) for position in range(count)]
        running: dict[Any, tuple[int, int, Any]] = {}
        while waiting or running:
            while waiting and self._idle:
                position, attempt = waiting.pop(0)
                actor = self._idle.pop(0)
                running[begin(actor, position)] = (position, attempt, actor)
            patience = None if running else _PATIENCE_S
            ready, _ = self._ray.wait([*running, *self._starting], num_returns=1, timeout=patience)
            if not ready:
                raise RunError(
                    f"no Ray worker has started within {_PATIENCE_S:g} s: the cluster has no free core (see `ray "
                    "status`). Finished trials are kept; --resume goes on"
                )
            for reference in ready:
                if reference in self._starting:
                    self._started(reference)
                    continue
                position, attempt, actor = running.pop(reference)
                result = self._result(reference)
                if not isinstance(result, str):
                    self._idle.append(actor)
                    yield position, result
                    continue
                self._replace(actor)
                if attempt < _TRIES:
                    waiting.insert(0, (position, attempt + 1))
                else:
                    yield position, Failure(reason="worker_lost", message=f"its worker died twice: {result}")

    def _started(self, reference: Any) -> None:
        """Takes up a worker that has prepared itself. Raises :class:`RunError` where none can."""
        actor = self._starting.pop(reference)
        try:
            node, kind = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise RunError(f"a Ray worker cannot take up the work: {_first_line(error.cause)}") from None
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RunError(f"Ray workers die while they start: {_first_line(error)}") from None
            self._replace(actor)
        else:
            if why := self._kind.scored_otherwise(kind):
                raise RunError(
                    f"node {node} of the Ray cluster would score otherwise than this machine, which is searched for: "
                    f"{why}. Take it out of the cluster, or make it alike; finished trials are kept"
                )
            self._failed_starts = 0
            self._idle.append(actor)

    def _result(self, reference: Any) -> Scored | Dropped | Failure | str:
        """What a worker found; a text is why it, or its answer, was lost."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return Failure(reason="metric", message=f"{type(error.cause).__name__}: {_first_line(error.cause)}")
        except self._ray.exceptions.RayError as error:
            return _first_line(error)

    def _replace(self, actor: Any) -> None:
        self._actors.remove(actor)
        with contextlib.suppress(Exception):
            self._ray.kill(actor)
        self._start_worker()

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement | Failure:
        """See :class:`autoq.search.executor.Executor`."""
        return measured(self._meter, model, idle_above)

    def measure_many(self, models: Sequence[Path]) -> Sequence[Measurement | Failure]:
        """See :class:`autoq.search.executor.Executor`."""
        return measured_many(self._meter, models)

    def close(self) -> None:
        """See :class:`autoq.search.executor.Executor`."""
        self._meter.close()
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if self._owns:
            self._ray.shutdown()


def try_ray() -> str:
    """Starts Ray here with one worker and runs one task; why that failed, or nothing."""
    try:
        ray = _import_ray()
        ray.init(address="local", **_options("local", 1))
        try:
            return (
                "" if ray.get(ray.remote(_answer).remote(), timeout=60) == _answer() else "a task gave a wrong result"
            )
        finally:
            ray.shutdown()
    except Exception as error:  # Ray raises from several trees, and import errors count as well
        return f"{type(error).__name__}: {_first_line(error)}"


def _answer() -> int:
    return 42


def _import_ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def _options(address: str, cores: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": _worker_environment()},
    }
    if address == "local":
        options |= {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    return options


def _worker_environment() -> dict[str, str]:
    """One thread a worker: two workers that both use every core run several times slower than one."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": path}


def _first_line(error: BaseException | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
