"""Evaluates on Ray workers (Ray's only home): on this machine by default, or on a cluster.

The workload travels once, through Ray's object store. Workers that die are started again and their candidate is tried
once more. Latency is measured by the driver's meter while no candidate is scored: on a machine of two cores a busy
neighbour changes even ratios (see docs/measurement.md).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoq.core.policy import Policy
from autoq.core.result import Failure, Latency
from autoq.errors import RunError
from autoq.runtime.meter import Measurement, Meter
from autoq.search.evaluate import Evaluator, Scored, Workload
from autoq.search.executor import measured

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TQDM": "0",
    # A full disk is reported by autoq when it writes; Ray would refuse to work from 95 % on.
    "RAY_local_fs_capacity_threshold": "1.0",
}


class _Worker:
    """What runs on a worker. It fetches the workload when first asked, and so again after it was started anew."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def evaluate(self, policy: Policy, workload: list[Any]) -> Scored | Failure:
        """``workload`` is a list of one reference: a bare one would be fetched for every call."""
        if self._evaluator is None:
            self._evaluator = Evaluator(_import_ray().get(workload[0]))
        return self._evaluator.evaluate(policy)


class RayExecutor:
    """Scores on ``workers`` Ray actors of one core each.

    ``address`` is ``"local"`` to start Ray here, or a cluster's address (``auto``, ``host:port``, ``ray://…``).
    ``workers`` 0 means one for each core of the cluster. Raises :class:`RunError` when Ray cannot be reached.
    """

    def __init__(self, workload: Workload, meter: Meter, *, address: str, workers: int = 0) -> None:
        ray = _import_ray()
        self._ray = ray
        self._meter = meter
        self._owns = not ray.is_initialized()
        if self._owns:
            self._start(address, workers)
        cores = int(ray.cluster_resources().get("CPU", 1))
        count = min(workers or cores, cores) or 1
        self.description = f"Ray {ray.__version__}, {count} worker{'s' if count > 1 else ''}"
        worker = ray.remote(_Worker).options(num_cpus=1, max_restarts=-1, max_task_retries=1)
        self._workload = [ray.put(workload)]
        self._actors = [worker.remote() for _ in range(count)]

    def _start(self, address: str, workers: int) -> None:
        try:
            self._ray.init(address=address, **_options(address, workers or os.cpu_count() or 1))
        except Exception as error:  # Ray raises from several trees
            raise RunError(
                f"Ray at {address!r} cannot be reached: {_first_line(error)}; start it with `ray start --head`, or "
                "use `--ray local` or `--ray off`"
            ) from None

    def score(self, policies: Sequence[Policy]) -> Iterator[Scored | Failure]:
        """See :class:`autoq.search.executor.Executor`."""
        idle = list(range(len(self._actors)))
        waiting = list(enumerate(policies))
        running: dict[Any, tuple[int, int]] = {}
        results: dict[int, Scored | Failure] = {}
        given = 0
        while waiting or running or given < len(policies):
            while waiting and idle:
                position, policy = waiting.pop(0)
                actor = idle.pop(0)
                running[self._actors[actor].evaluate.remote(policy, self._workload)] = (position, actor)
            while given in results:
                yield results.pop(given)
                given += 1
            if not running:
                continue
            ready, _ = self._ray.wait(list(running), num_returns=1)
            for reference in ready:
                position, actor = running.pop(reference)
                idle.append(actor)
                results[position] = self._result(reference)

    def _result(self, reference: Any) -> Scored | Failure:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            return Failure(reason="worker_lost", message=f"its worker died twice: {_first_line(error)}")
        except self._ray.exceptions.RayTaskError as error:
            return Failure(reason="metric", message=f"{type(error.cause).__name__}: {_first_line(error.cause)}")

    def measure(self, model: Path) -> Measurement | Failure:
        """See :class:`autoq.search.executor.Executor`."""
        return measured(self._meter, model)

    def measure_many(self, models: Sequence[Path]) -> list[Latency]:
        """See :class:`autoq.search.executor.Executor`."""
        return self._meter.measure_many(list(models))

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
