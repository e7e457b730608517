"""Latency and peak memory of a candidate file, measured alone, each in a fresh process.

    with Meter(Path("resnet20.onnx"), {"input": one_image}) as meter:
        measurement = meter.measure(Path("candidate.onnx"))

The process that measures is :mod:`autoq.runtime.meter_child`; how it times is :mod:`autoq.runtime.timing`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.result import FLOAT32_NAME, Conditions, Latency
from autoq.errors import ProfileError, TrialError
from autoq.numerics.sittings import sittings_ratio
from autoq.runtime.gauge import Gauge, Measurement
from autoq.runtime.host import look
from autoq.runtime.meter_process import MeterProcess
from autoq.runtime.parallel import Block, ParallelPlan, Throughput, throughput
from autoq.runtime.timing import CLEARLY, Rounds, TimingPlan, clearly_above, enough
from autoq.runtime.turn import measuring_turn

SEARCH_PLAN = TimingPlan(block_s=0.005, warm_s=0.005, max_warm_s=0.1)
"""The plan of a trial."""

FINAL_PLAN = TimingPlan(block_s=0.01, min_sittings=8, max_sittings=32, limit_s=2.5, half_width=0.005)
"""The plan for the front's last timing: longer than during the search."""

_GRACE_S = 10.0  # the measuring process keeps the time limit itself; after this much more, it hangs
_MEMORY_RUNS = 3
_LATELY = 50  # sittings: what float32 took at its best in these is what it takes where nothing disturbs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sittings:
    """The sittings that count, and what there was to know about all of them."""

    kept: tuple[Rounds, ...]
    conditions: Conditions
    load_ms: tuple[tuple[float | None, ...], ...]
    repeated_rounds: int

    def loaded_ms(self, index: int) -> float | None:
        """Median time to load of a model, where there is one."""
        told = [each[index] for each in self.load_ms]
        return statistics.median(taken) if (taken := [one for one in told if one is not None]) else None


class Meter(Gauge):
    """Measures candidates against one reference: the :class:`~autoq.runtime.gauge.Gauge` of this machine."""

    def __init__(
        self,
        baseline: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        batch: int = 1,
        threads: int = 1,
        runtime: str = "onnxruntime",
        runtime_options: Mapping[str, Any] | None = None,
        plan: TimingPlan | None = None,
        final_plan: TimingPlan | None = None,
        timeout_s: float = 120.0,
        reference_name: str = FLOAT32_NAME,
    ) -> None:
        """``baseline`` is the reference: the float32 file as its user gave it, or, where that does not run here, one
        that ``reference_name`` says. ``feeds`` has one inference's inputs, ``batch`` rows.

        ``plan`` is for :meth:`measure`, ``final_plan`` for :meth:`measure_many`, which else has ``plan`` as well.
        ``runtime_options`` go to the runtime's constructor (``{"provider": ...}``). ``timeout_s`` bounds each
        candidate's latency and memory measurement, each by itself. Raises
        :class:`~autoq.errors.ProfileError` where nothing can be measured: no ``fork``, or no such runtime.
        """
        if not hasattr(os, "fork"):
            raise ProfileError(f"latency cannot be measured on {sys.platform}: it needs fork (Linux or macOS)")
        if threads < 1:
            raise ProfileError(f"latency is measured with at least 1 thread, not {threads}")
        self.baseline, self.batch, self.threads = Path(baseline).resolve(), batch, threads
        self.plan, self.final_plan, self.timeout_s = plan or SEARCH_PLAN, final_plan or plan or FINAL_PLAN, timeout_s
        self._reference_name = reference_name
        self._lock = threading.Lock()
        self._lately: deque[float] = deque(maxlen=_LATELY)
        self._server = MeterProcess(runtime, dict(runtime_options or {}), threads, feeds)
        self._finalizer = weakref.finalize(self, self._server.close)

    def __enter__(self) -> Meter:
        with self._lock:
            self._server.ensure()
        return self

    def close(self) -> None:
        """End the measuring process. Also happens when the meter is forgotten, and when this process ends."""
        self._finalizer()

    def measure(self, candidate: Path, *, idle_above: float = math.inf) -> Measurement:
        """Latency and peak memory of one file.

        ``idle_above`` is a ratio to float32 above which nobody cares how slow it is: timing ends with the first
        sitting that shows it to be clearly so (:func:`autoq.runtime.timing.clearly_above`), and its interval says how
        little is known then.

        Raises :class:`~autoq.errors.TrialError`: ``load`` if the runtime rejects it, ``measure`` if it crashes or
        fails, ``timeout`` if it takes longer than ``timeout_s``.
        """
        path = Path(candidate).resolve()
        with self._lock, measuring_turn() as alone:
            memory = self._ask({"op": "memory", "model": str(path), "runs": _MEMORY_RUNS}, self.timeout_s)
            found = self._sittings([path], self.plan, self.timeout_s, alone, idle_above)
        return dataclasses.replace(self._measurement(found, 1), peak_memory_bytes=memory["peak_bytes"])

    def measure_many(self, candidates: Sequence[Path], *, at_once: int = 8) -> list[Measurement]:
        """Several files, timed in turn with each other and the baseline, longer than :meth:`measure` does; no memory.

        ``at_once`` bounds how many sessions lie in memory together, next to the baseline's; where so many cannot be
        opened or run, fewer do. Raises as :meth:`measure`, for a file that fails by itself.
        """
        left = [Path(candidate).resolve() for candidate in candidates]
        measured: list[Measurement] = []
        while left:
            group = left[:at_once]
            try:
                with self._lock, measuring_turn() as alone:
                    found = self._sittings(group, self.final_plan, self.timeout_s * len(group), alone)
            except TrialError as error:
                if len(group) == 1 or error.reason == "timeout":
                    raise
                at_once = len(group) // 2
                continue
            measured += [self._measurement(found, index) for index in range(1, len(group) + 1)]
            left = left[len(group) :]
        return measured

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """Ratios to float32 of several files, timed in turn as ``plan`` says; and whether that was disturbed.

        Each is the quickest block's over float32's quickest: with few rounds and a busy machine, which only ever adds,
        that is nearer to what a long measurement gives than a median. Disturbed as in
        :class:`~autoq.core.result.Conditions`. Raises as :meth:`measure`.
        """
        paths = [Path(candidate).resolve() for candidate in candidates]
        with self._lock, measuring_turn() as alone:
            found = self._sittings(paths, plan, self.timeout_s * len(paths), alone)
        quickest_ms = [min(block for each in found.kept for block in each.blocks_ms[i]) for i in range(len(paths) + 1)]
        return [each / quickest_ms[0] for each in quickest_ms[1:]], found.conditions.disturbed

    def parallel(self, candidate: Path, sessions: int, plan: ParallelPlan | None = None) -> Throughput:
        """Throughput of ``sessions`` sessions at once, each in a process of its own, beside the baseline's.

        Raises as :meth:`measure`; ``timeout_s`` bounds a sitting.
        """
        plan = plan or ParallelPlan()
        models = [str(self.baseline), str(Path(candidate).resolve())]
        request = {"op": "parallel", "models": models, "sessions": sessions, "plan": dataclasses.asdict(plan)}
        with self._lock, measuring_turn() as alone:
            found = [
                self._ask({**request, "sitting": sitting}, self.timeout_s)["blocks"] for sitting in range(plan.sittings)
            ]
        return throughput(
            [[[Block(**block) for block in model] for model in each] for each in found],
            sessions=sessions,
            threads=self.threads,
            batch=self.batch,
            alone=alone,
            reference=self._reference_name,
        )

    def _sittings(
        self,
        candidates: Sequence[Path],
        plan: TimingPlan,
        timeout_s: float,
        alone: bool,
        idle_above: float = math.inf,
    ) -> _Sittings:
        """Sittings until the plan has enough; those that were disturbed do not count, where enough others are left."""
        models = [str(path) for path in (self.baseline, *candidates)]
        every: list[Rounds] = []
        load_ms: list[tuple[float | None, ...]] = []
        start, host = time.monotonic(), look()
        while True:
            request = {"op": "latency", "models": models, "sitting": len(every), "plan": dataclasses.asdict(plan)}
            left_s = timeout_s - (time.monotonic() - start)
            if left_s <= 0:
                raise TrialError("timeout", f"measuring took longer than {timeout_s:g} s")
            reply = self._ask(request, left_s)
            every.append(Rounds(**reply["rounds"]))
            load_ms.append(tuple(reply["load_ms"]))
            self._lately.append(every[-1].quietest_ms[0])
            best_ms = [min(each.quietest_ms[i] for each in every) for i in range(len(models))]
            best_ms[0] = min(self._lately)  # so that a measurement disturbed from end to end is seen to be
            calm = [each for each in every if not each.disturbed(plan, best_ms)]
            spent_s = time.monotonic() - start
            kept = calm
            unslowed = [each for each in every if not each.slowed(plan, best_ms)]
            # What runs on other cores slows nothing by much: there is no end of it to wait for.
            waited = len(unslowed) >= 2 * plan.min_sittings or len(every) >= plan.max_sittings
            if (waited or spent_s >= 2 * plan.limit_s * len(candidates)) and len(calm) < plan.min_sittings:
                # Waiting on may take for ever. Work beside comes in bursts, and slows kernels that fill a core's units
                # by more than it slows float32's: two calm sittings tell more than many disturbed ones.
                kept = next((some for some in (calm, unslowed) if len(some) > 1), every)
                if len(every) >= plan.min_sittings:
                    break
            # One candidate beside float32, which nobody may care for: its first sitting can tell.
            if enough(kept, plan, spent_s) or (math.isfinite(idle_above) and clearly_above(every, idle_above)):
                break
        kept = kept or every
        foreign = [each.foreign for each in kept if each.foreign is not None]
        slowdown = statistics.median(each.quietest_ms[0] for each in kept) / min(self._lately)
        conditions = Conditions(
            disturbed=not alone or len(calm) < min(plan.min_sittings, len(every)) or slowdown > plan.max_slowdown,
            foreign_load=statistics.mean(foreign) if foreign else None,
            slowdown=slowdown,
            load_average=host.load_average,
            mhz=host.mhz,
            governor=host.governor,
            cpus=tuple(reply["cpus"]),
            sittings=len(kept),
            left_out=len(every) - len(kept),
        )
        repeated = sum(each.repeated for each in every)
        return _Sittings(kept=tuple(kept), conditions=conditions, load_ms=tuple(load_ms), repeated_rounds=repeated)

    def _measurement(self, found: _Sittings, index: int) -> Measurement:
        return Measurement(
            latency=self._latency(found, index),
            load_ms=found.loaded_ms(index),
            reference_load_ms=found.loaded_ms(0),
            cpu_share=statistics.median(share for each in found.kept for share in each.cpu_share),
            repeated_rounds=found.repeated_rounds,
        )

    def _latency(self, found: _Sittings, index: int) -> Latency:
        ratios = [each.ratio(index) for each in found.kept]
        if len(ratios) > 1:
            ratio, (low, high) = sittings_ratio(ratios)
        else:  # one sitting knows nothing of others
            (ratio,) = ratios
            rounds = found.kept[0].ratios(index)
            low, high = min(*rounds, ratio) / (1 + CLEARLY), max(*rounds, ratio) * (1 + CLEARLY)
        return Latency(
            median_ms=statistics.median(each.quietest_ms[index] for each in found.kept),
            ratio=ratio,
            ratio_ci95=(low, high),
            batch=self.batch,
            threads=self.threads,
            blocks_ms=tuple(block for each in found.kept for block in each.blocks_ms[index]),
            baseline_blocks_ms=tuple(block for each in found.kept for block in each.blocks_ms[0]),
            reference=self._reference_name,
            conditions=found.conditions,
        )

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        request = {**request, "timeout_s": timeout_s}
        reply = self._server.ask(request, timeout_s + _GRACE_S)
        if reply is None:  # it died, which no candidate can make it do: once more, in a new one
            reply = self._server.ask(request, timeout_s + _GRACE_S)
        if reply is None:
            raise TrialError("measure", f"the measuring process died twice{self._server.last_words()}")
        if "reason" in reply:
            raise TrialError(reply["reason"], reply["message"])
        return reply
