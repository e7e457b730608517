"""Throughput of several sessions at once, as a server has them: a process each, all of them at the same work.

As in :mod:`autoq.runtime.timing`, a block of every model in turn, forward and backward, in several sittings of fresh
processes, of which each counts as its quietest block. The processes wait for each other before every block, so that
none runs a model while another still runs the one before.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoq.core.result import FLOAT32_NAME
from autoq.errors import TrialError
from autoq.numerics.sittings import sittings_ratio
from autoq.runtime.forked import die_with, pin
from autoq.runtime.timing import Step

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

_MIN_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelPlan:
    """``sittings`` times fresh processes, which run every model ``rounds`` times for ``block_s`` seconds.

    Each makes ``discard`` runs that are not counted and ``min_runs`` at least that are, however long they take.
    """

    sittings: int = 4
    rounds: int = 2
    block_s: float = 0.25
    min_runs: int = 5
    discard: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``runs_per_s`` of all processes together; ``cpu_share`` is the least share of its core that one of them had."""

    runs_per_s: float
    cpu_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Samples a second of ``sessions`` sessions together, of a model and of its reference; medians of the sittings.

    ``ratio`` is the reference's over the model's (0.5: twice as many), as latencies' are, with its 95 % interval.
    """

    sessions: int
    samples_per_s: float
    reference_samples_per_s: float
    ratio: float
    ratio_ci95: tuple[float, float]
    reference: str = FLOAT32_NAME
    disturbed: bool = False


def time_parallel(
    make_steps: Callable[[], Sequence[Step]], sessions: int, plan: ParallelPlan, *, threads: int, backward: bool
) -> list[list[Block]]:
    """One sitting: ``blocks[i][r]`` is model i's in round r. Forks ``sessions`` processes, and ends them.

    ``make_steps`` is called in each of them; its session's ``threads`` threads have cores of their own, where there
    are as many. Raises :class:`TrialError`: what ``make_steps`` or a step raised, or ``measure`` where a process died.
    """
    workers: list[_Worker] = []
    try:
        for place in range(sessions):
            workers.append(_Worker(make_steps, plan, place if _fit(sessions * threads) else None, threads))
        (models,) = {worker.told() for worker in workers}
        blocks: list[list[Block]] = [[] for _ in range(models)]
        for number in range(plan.rounds):
            order = range(models) if (number % 2 == 0) != backward else range(models - 1, -1, -1)
            for model in order:
                for worker in workers:
                    worker.tell(model)
                told = [worker.told() for worker in workers]
                blocks[model].append(
                    Block(runs_per_s=sum(rate for rate, _ in told), cpu_share=min(share for _, share in told))
                )
        return blocks
    finally:
        for worker in workers:
            worker.end()


def throughput(
    sittings: Sequence[Sequence[Sequence[Block]]],
    *,
    sessions: int,
    threads: int,
    batch: int,
    alone: bool,
    reference: str = FLOAT32_NAME,
) -> Throughput:
    """What the ``sittings`` of :func:`time_parallel` come to, of the reference and one model.

    Disturbed where nobody saw to it that it was ``alone``, or where in most sittings a process was kept from its core.
    """
    rates = [[max(block.runs_per_s for block in model) for model in each] for each in sittings]
    ratio, interval = sittings_ratio([base / own for base, own in rates])
    shares = [max(min(block.cpu_share for block in row) for row in zip(*each, strict=True)) for each in sittings]
    return Throughput(
        sessions=sessions,
        samples_per_s=batch * statistics.median(own for _, own in rates),
        reference_samples_per_s=batch * statistics.median(base for base, _ in rates),
        ratio=ratio,
        ratio_ci95=interval,
        reference=reference,
        disturbed=not alone or (_fit(sessions * threads) and statistics.median(shares) < _MIN_SHARE),
    )


def _fit(threads: int) -> bool:
    """Whether so many threads have cores of their own here."""
    return threads <= (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class _Worker:
    """A process with its own sessions, and the pipe to it."""

    def __init__(
        self, make_steps: Callable[[], Sequence[Step]], plan: ParallelPlan, place: int | None, threads: int
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), make_steps, plan, place, threads)
        self._process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # ours: the pipe then ends with the process

    def tell(self, message: object) -> None:
        """Sends it; nothing where the process has died, which :meth:`told` says."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(message)

    def told(self) -> Any:
        """What it answers; raises :class:`TrialError`."""
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            how = f"exit code {self._process.exitcode}"
            hint = " (out of memory?)" if self._process.exitcode == -9 else ""
            raise TrialError("measure", f"one of the processes that ran the model ended, {how}{hint}") from None
        if isinstance(answer, TrialError):
            raise answer
        return answer

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(
    pipe: Connection,
    parent: int,
    make_steps: Callable[[], Sequence[Step]],
    plan: ParallelPlan,
    place: int | None,
    threads: int,
) -> None:
    """A process's life: opens its sessions, says how many, and then runs a block of each that it is told."""
    die_with(parent)
    try:
        if place is not None:
            pin(threads, place)
        steps = make_steps()
        pipe.send(len(steps))
        while True:
            pipe.send(_block(steps[pipe.recv()], plan))
    except (EOFError, BrokenPipeError):
        pass
    except TrialError as error:
        pipe.send(error)
    except MemoryError:
        pipe.send(TrialError("measure", "the model does not fit into memory as often as there are sessions"))
    except Exception as error:  # it must be told, whatever it was
        pipe.send(TrialError("measure", f"{type(error).__name__}: {' '.join(str(error).split())}"))
    finally:
        os._exit(0)


def _block(step: Step, plan: ParallelPlan) -> tuple[float, float]:
    """Runs a second, and the share of that time for which this thread had a core."""
    for _ in range(plan.discard):
        step()
    runs, start, cpu_start = 0, time.perf_counter(), time.thread_time()
    passed = 0.0
    while runs < plan.min_runs or passed < plan.block_s:
        step()
        runs += 1
        passed = time.perf_counter() - start
    return runs / passed, min(1.0, (time.thread_time() - cpu_start) / passed)
