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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from autoq.core.result import FLOAT32_NAME, Latency
from autoq.errors import ProfileError, TrialError
from autoq.numerics.bootstrap import median_ratio
from autoq.runtime.gauge import Measurement
from autoq.runtime.meter_process import MeterProcess
from autoq.runtime.timing import CLEARLY, FEW_ROUNDS, Rounds, TimingPlan, clearly_above, enough
from autoq.runtime.turn import measuring_turn

SEARCH_PLAN = TimingPlan(block_s=0.01, warm_s=0.01, min_rounds=4)
"""The plan of a trial. On ResNet-20 it gives the spread of three times longer blocks in a quarter of their time."""

FINAL_PLAN = TimingPlan(min_rounds=16, max_rounds=40, limit_s=2.5, half_width=0.005)
"""The plan for the front's last timing: longer than during the search."""

_GRACE_S = 10.0  # the measuring process keeps the time limit itself; after this much more, it hangs
_MEMORY_RUNS = 3
_DISTURBED_SHARE = 0.25  # a median is safe from this share of disturbed rounds


class Meter:
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
        final_plan: TimingPlan = FINAL_PLAN,
        timeout_s: float = 120.0,
        reference_name: str = FLOAT32_NAME,
    ) -> None:
        """``baseline`` is the reference: the float32 file as its user gave it, or, where that does not run here, one
        that ``reference_name`` says. ``feeds`` has one inference's inputs, ``batch`` rows.

        ``runtime_options`` go to the runtime's constructor (``{"provider": ...}``). ``timeout_s`` bounds each
        candidate's latency and memory measurement, each by itself. Raises
        :class:`~autoq.errors.ProfileError` where nothing can be measured: no ``fork``, or no such runtime.
        """
        if not hasattr(os, "fork"):
            raise ProfileError(f"latency cannot be measured on {sys.platform}: it needs fork (Linux or macOS)")
        if threads < 1:
            raise ProfileError(f"latency is measured with at least 1 thread, not {threads}")
        self.baseline, self.batch, self.threads = Path(baseline).resolve(), batch, threads
        self.plan, self.final_plan, self.timeout_s = plan or SEARCH_PLAN, final_plan, timeout_s
        self._reference_name = reference_name
        self._lock = threading.Lock()
        self._server = MeterProcess(runtime, dict(runtime_options or {}), threads, feeds)
        self._finalizer = weakref.finalize(self, self._server.close)

    def __enter__(self) -> Meter:
        with self._lock:
            self._server.ensure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        load_average = os.getloadavg()[0]
        with self._lock, measuring_turn() as alone:
            memory = self._ask({"op": "memory", "model": str(path), "runs": _MEMORY_RUNS}, self.timeout_s)
            rounds, sittings = self._sittings([path], self.plan, self.timeout_s, idle_above)
        lost = sum(share < self.plan.min_cpu_share for share in rounds.cpu_share)
        return Measurement(
            latency=self._latency(rounds, 1),
            peak_memory_bytes=memory["peak_bytes"],
            load_ms=statistics.median(sitting["load_ms"][1] for sitting in sittings),
            disturbed=not alone or lost > _DISTURBED_SHARE * len(rounds.cpu_share),
            cpu_share=statistics.median(rounds.cpu_share),
            repeated_rounds=rounds.repeated,
            load_average=load_average,
            cpus=tuple(sittings[0]["cpus"]),
        )

    def measure_many(self, candidates: Sequence[Path], *, at_once: int = 8) -> list[Latency]:
        """Latencies of several files, timed in turn with each other and the baseline, longer than :meth:`measure` does.

        ``at_once`` bounds how many sessions lie in memory together, next to the baseline's. Raises as :meth:`measure`.
        """
        paths = [Path(candidate).resolve() for candidate in candidates]
        latencies: list[Latency] = []
        for start in range(0, len(paths), at_once):
            group = paths[start : start + at_once]
            with self._lock, measuring_turn():
                rounds, _ = self._sittings(group, self.final_plan, self.timeout_s * len(group))
            latencies += [self._latency(rounds, index) for index in range(1, len(group) + 1)]
        return latencies

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """Ratios to float32 of several files, timed in turn as ``plan`` says; and whether that was disturbed.

        Each is the quickest block's over float32's quickest: with few rounds and a busy machine, which only ever adds,
        that is nearer to what a long measurement gives than a median. Disturbed as in :class:`Measurement`. Raises as
        :meth:`measure`.
        """
        paths = [Path(candidate).resolve() for candidate in candidates]
        with self._lock, measuring_turn() as alone:
            rounds, _ = self._sittings(paths, plan, self.timeout_s * len(paths))
        baseline_ms, *quickest_ms = np.min(rounds.blocks_ms, axis=1).tolist()
        lost = sum(share < plan.min_cpu_share for share in rounds.cpu_share)
        disturbed = not alone or lost > _DISTURBED_SHARE * len(rounds.cpu_share)
        return [each / baseline_ms for each in quickest_ms], disturbed

    def _sittings(
        self, candidates: Sequence[Path], plan: TimingPlan, timeout_s: float, idle_above: float = math.inf
    ) -> tuple[Rounds, list[dict[str, Any]]]:
        """Sittings until the plan has enough: all their rounds, and the replies."""
        models = [str(path) for path in (self.baseline, *candidates)]
        rounds = Rounds(blocks_ms=((),) * len(models))
        replies: list[dict[str, Any]] = []
        start, bounded = time.monotonic(), math.isfinite(idle_above)  # bounded: one candidate beside float32
        while not replies or not (
            enough(rounds, plan, time.monotonic() - start) or (bounded and clearly_above(rounds, idle_above))
        ):
            first = not replies and bounded
            own = dataclasses.replace(plan, min_rounds=2) if first else plan
            request = {"op": "latency", "models": models, "sitting": len(replies), "plan": dataclasses.asdict(own)}
            left_s = timeout_s - (time.monotonic() - start)
            if left_s <= 0:
                raise TrialError("timeout", f"measuring took longer than {timeout_s:g} s")
            replies.append(self._ask(request, left_s))
            rounds = rounds.and_then(Rounds(**replies[-1]["rounds"]))
        return rounds, replies

    def _latency(self, rounds: Rounds, index: int) -> Latency:
        baseline_ms, candidate_ms = rounds.blocks_ms[0], rounds.blocks_ms[index]
        ratio, (low, high) = median_ratio(candidate_ms, baseline_ms, seed=0)
        if len(candidate_ms) < FEW_ROUNDS:  # the bootstrap of so few knows nothing of other sittings
            low, high = low / (1 + CLEARLY), high * (1 + CLEARLY)
        return Latency(
            median_ms=statistics.median(candidate_ms),
            ratio=ratio,
            ratio_ci95=(low, high),
            batch=self.batch,
            threads=self.threads,
            blocks_ms=candidate_ms,
            baseline_blocks_ms=baseline_ms,
            reference=self._reference_name,
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
