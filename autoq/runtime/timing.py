"""Timing several models in turn, in warm blocks: the method, apart from any runtime and process.

One *round* times one block of every model; the first model is the float32 baseline, and a candidate's ratio is
taken within each round, so that what slows the machine for longer than a round slows both. Rounds run forward
and backward in turn (ABBA), so that a linear drift cancels. The first runs of a block refill the caches that the
model before it emptied, and are not counted. A block's value is the median of its runs: a preempted run then leaves it
as it was, where a mean moves.

A *sitting* is a fresh process with freshly opened sessions, and a few rounds. Where a session's memory happens to lie
moves its speed by about half a percent for as long as it lives, which no number of rounds in one process
shows; so the rounds are spread over several sittings. ``docs/measurement.md`` has the figures behind each choice.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoq.numerics.bootstrap import median_ratio

CLEARLY = 0.1
"""By how much the rounds of one sitting must agree that a candidate is slower than it may be."""

FEW_ROUNDS = 4
"""Fewer rounds have no interval of their own."""

Step = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """How long to time. All times in seconds.

    A block lasts about ``block_s`` and has at least ``min_runs`` runs after the ``discard`` first ones (fewer where one
    run alone lasts longer than a block). There are ``min_rounds`` to ``max_rounds`` rounds: fewer than the most as
    soon as every ratio's 95 % interval is within ``half_width`` of the ratio, or after ``limit_s`` per candidate. A
    round in which this thread had the core for less than ``min_cpu_share`` of the wall time is timed again, but no
    more rounds in a sitting than it keeps.
    """

    block_s: float = 0.03
    min_runs: int = 5
    discard: int = 2
    min_rounds: int = 8
    max_rounds: int = 30
    limit_s: float = 1.2
    half_width: float = 0.01
    min_cpu_share: float = 0.9
    warm_s: float = 0.02
    warm_runs: int = 10
    max_warm_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What was timed. ``blocks_ms[i][r]`` is model i's median milliseconds per run in round r; 0 is the baseline.

    ``cpu_share[r]`` is the smallest share of a block's wall time for which the timing thread had a core.
    ``repeated`` counts the rounds that were timed again.
    """

    blocks_ms: tuple[tuple[float, ...], ...]
    cpu_share: tuple[float, ...] = ()
    repeated: int = 0

    def and_then(self, later: Rounds) -> Rounds:
        """These rounds and those of a later sitting on the same models."""
        pairs = zip(self.blocks_ms, later.blocks_ms, strict=True)
        return Rounds(
            blocks_ms=tuple((*mine, *its) for mine, its in pairs),
            cpu_share=(*self.cpu_share, *later.cpu_share),
            repeated=self.repeated + later.repeated,
        )


def time_sitting(
    steps: Sequence[Step],
    plan: TimingPlan,
    *,
    setup_s: float = 0.0,
    backward: bool = False,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.thread_time,
) -> Rounds:
    """Time every step against the first one; ``steps`` has the baseline first, then at least one candidate.

    An even number of rounds, as many as it takes to last as long as the preparation did: ``setup_s`` and the warm-up;
    two at the least, ``plan.min_rounds`` at the most. ``backward``: the first round has the baseline last. ``clock``
    and ``cpu_clock`` return seconds, of wall time and of this thread's CPU time. Exceptions of a step pass.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        sizes = [_block_size(_warm_up(step, plan, clock), plan) for step in steps]
        return _rounds(steps, sizes, plan, setup_s + clock() - start, backward, clock, cpu_clock)
    finally:
        if collecting:
            gc.enable()


def enough(rounds: Rounds, plan: TimingPlan, spent_s: float) -> bool:
    """Whether the sittings so far, which took ``spent_s`` seconds together, will do."""
    baseline_ms, *candidates_ms = rounds.blocks_ms
    count, limit_s = len(baseline_ms), plan.limit_s * len(candidates_ms)
    if count < plan.min_rounds:
        # Slow models: half the rounds must do where they already took four times the limit.
        return 2 * count >= plan.min_rounds and spent_s >= 4 * limit_s
    if count >= plan.max_rounds or spent_s >= limit_s:
        return True
    return all(relative_half_width(candidate_ms, baseline_ms) <= plan.half_width for candidate_ms in candidates_ms)


def clearly_above(rounds: Rounds, ratio: float) -> bool:
    """Whether every candidate is slower than ``ratio`` in every round, by :data:`CLEARLY`; never where it is infinite.

    Two rounds are enough: what moves both alike (a session's memory, work on other cores) moves them by less than that.
    """
    baseline_ms, *candidates_ms = rounds.blocks_ms
    slower = [
        all(own / base > ratio * (1 + CLEARLY) for own in owns)
        for base, *owns in zip(baseline_ms, *candidates_ms, strict=True)
    ]
    return len(slower) >= 2 and all(slower)


def relative_half_width(candidate_ms: Sequence[float], baseline_ms: Sequence[float]) -> float:
    """Half the width of the ratio's 95 % interval, as a share of the ratio."""
    ratio, (low, high) = median_ratio(candidate_ms, baseline_ms, seed=0)
    return (high - low) / 2 / ratio


def _warm_up(step: Step, plan: TimingPlan, clock: Clock) -> float:
    """Run until two runs of ``warm_runs`` in a row agree within 2 %; seconds per run, from the last of them."""
    start = clock()
    before = math.inf
    while True:
        times: list[float] = []
        chunk_start = clock()
        while len(times) < plan.warm_runs and (clock() - chunk_start < plan.warm_s or len(times) < 2):
            run_start = clock()
            step()
            times.append(clock() - run_start)
        now, spent = statistics.median(times), clock() - start
        steady = abs(now - before) <= 0.02 * now
        if spent >= plan.max_warm_s or (steady and spent >= plan.warm_s):
            return now
        before = now


def _block_size(run_s: float, plan: TimingPlan) -> tuple[int, int]:
    """How many runs of a block are discarded, and how many counted."""
    if run_s <= plan.block_s:
        return plan.discard, max(plan.min_runs, round(plan.block_s / max(run_s, 1e-7)))
    # A run this long empties and refills the caches by itself: a cold first run differs little, and costs much.
    return (1, 3) if run_s <= 10 * plan.block_s else (0, 1)


def _rounds(
    steps: Sequence[Step],
    sizes: Sequence[tuple[int, int]],
    plan: TimingPlan,
    at_least_s: float,
    backward: bool,
    clock: Clock,
    cpu_clock: Clock,
) -> Rounds:
    blocks: list[list[float]] = [[] for _ in steps]
    shares: list[float] = []
    repeated = 0
    start = clock()
    while len(shares) % 2 or not shares or (clock() - start < at_least_s and len(shares) < plan.min_rounds):
        forward = (len(shares) % 2 == 0) != backward
        order = range(len(steps)) if forward else range(len(steps) - 1, -1, -1)
        values, share = [0.0] * len(steps), 1.0
        for index in order:
            values[index], had = _block(steps[index], *sizes[index], clock, cpu_clock)
            share = min(share, had)
        if share < plan.min_cpu_share and repeated <= len(shares):
            repeated += 1
            continue
        shares.append(share)
        for block, value in zip(blocks, values, strict=True):
            block.append(value)
    return Rounds(blocks_ms=tuple(map(tuple, blocks)), cpu_share=tuple(shares), repeated=repeated)


def _block(step: Step, discard: int, counted: int, clock: Clock, cpu_clock: Clock) -> tuple[float, float]:
    """Median milliseconds of the counted runs, and the share of their wall time spent on a core."""
    for _ in range(discard):
        step()
    times = []
    cpu_start, wall_start = cpu_clock(), clock()
    for _ in range(counted):
        run_start = clock()
        step()
        times.append(clock() - run_start)
    wall, cpu = clock() - wall_start, cpu_clock() - cpu_start
    return 1e3 * max(statistics.median(times), 1e-9), min(1.0, cpu / wall) if wall > 0 else 1.0
