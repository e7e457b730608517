"""Timing several models in turn, in warm blocks: the method, apart from any runtime and process.

One *round* times one short block of every model; the first model is the float32 baseline. Rounds run forward
and backward in turn (ABBA), so that a linear drift cancels. The first runs of a block refill the caches that the
model before it emptied, and are not counted. A block's value is the median of its runs: a preempted run then leaves it
as it was, where a mean moves.

A *sitting* is a fresh process with freshly opened sessions, and a few rounds; of each model its quietest block counts,
since other work, within this machine or on the same hardware beside a virtual one, only ever adds, and comes
and goes. Where a session's memory happens to lie moves its speed by about half a percent for as long as it lives,
which no number of rounds in one process shows; so sittings are what is counted, and one under foreign load is made
again. ``docs/measurement.md`` has the figures behind each choice.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoq.numerics.sittings import sittings_ratio

CLEARLY = 0.1
"""By how much the rounds of one sitting must agree that a candidate is slower than it may be."""

Step = Callable[[], object]
"""One run. What it returns is of no interest, unless it is a :class:`DeviceTime`."""
Clock = Callable[[], float]


class DeviceTime(float):
    """What a device's own clock says that a run took, in seconds; it then counts in place of the time that passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingPlan:
    """How long to time. All times in seconds.

    A block lasts about ``block_s`` and has at least ``min_runs`` runs after the ``discard`` first ones (fewer where one
    run alone lasts longer than a block). A sitting has two rounds, or as many as last as long as its preparation did,
    ``max_rounds`` at the most. There are ``min_sittings`` to ``max_sittings``: fewer than the most as soon as every
    ratio's 95 % interval is within ``half_width`` of the ratio, or after ``limit_s`` per candidate. A round in which
    this thread had the core for less than ``min_cpu_share`` of the wall time is timed again, but no more rounds in a
    sitting than it keeps. A sitting is disturbed where other work took more than ``max_foreign`` of the machine's other
    cores, or where a model took more than ``max_slowdown`` times what it took at its best (on a virtual machine, work
    that shares the core may be out of sight): it does not count where others are left, and another is made.
    """

    block_s: float = 0.03
    min_runs: int = 5
    discard: int = 2
    max_rounds: int = 6
    min_sittings: int = 4
    max_sittings: int = 16
    limit_s: float = 1.2
    half_width: float = 0.01
    min_cpu_share: float = 0.9
    max_foreign: float = 0.25
    max_slowdown: float = 1.05
    warm_s: float = 0.02
    warm_runs: int = 10
    max_warm_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What one sitting timed. ``blocks_ms[i][r]`` is model i's median milliseconds per run in round r; 0: the baseline.

    ``cpu_share[r]`` is the smallest share of a block's wall time for which the timing thread had a core.
    ``repeated`` counts the rounds that were timed again. ``foreign`` is the share of the machine's other cores that
    other work took meanwhile, ``None`` where the system does not tell.
    """

    blocks_ms: tuple[tuple[float, ...], ...]
    cpu_share: tuple[float, ...] = ()
    repeated: int = 0
    foreign: float | None = None

    def ratios(self, index: int) -> tuple[float, ...]:
        """Model ``index`` over the baseline, round by round."""
        return tuple(own / base for own, base in zip(self.blocks_ms[index], self.blocks_ms[0], strict=True))

    @property
    def quietest_ms(self) -> tuple[float, ...]:
        """Each model's median run in the block that other work delayed least: what the sitting counts as."""
        return tuple(map(min, self.blocks_ms))

    def ratio(self, index: int) -> float:
        """Model ``index`` over the baseline."""
        return self.quietest_ms[index] / self.quietest_ms[0]

    def slowed(self, plan: TimingPlan, best_ms: Sequence[float]) -> bool:
        """Whether other work delayed a model throughout; ``best_ms`` are the least of :attr:`quietest_ms` of all."""
        return any(own > plan.max_slowdown * best for own, best in zip(self.quietest_ms, best_ms, strict=True))

    def disturbed(self, plan: TimingPlan, best_ms: Sequence[float]) -> bool:
        """Whether this sitting should not count, where others are left."""
        lost = sum(share < plan.min_cpu_share for share in self.cpu_share)
        beside_others = self.foreign is not None and self.foreign > plan.max_foreign
        return 2 * lost > len(self.cpu_share) or beside_others or self.slowed(plan, best_ms)


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
    two at the least, ``plan.max_rounds`` at the most. ``backward``: the first round has the baseline last. ``clock``
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


def enough(sittings: Sequence[Rounds], plan: TimingPlan, spent_s: float) -> bool:
    """Whether these sittings will do; ``spent_s`` seconds have gone by, those for others included."""
    if not sittings:
        return False
    candidates = range(1, len(sittings[0].blocks_ms))
    count, limit_s = len(sittings), plan.limit_s * len(candidates)
    if count < plan.min_sittings:
        # Slow models: fewer must do where they already took several times the limit.
        return (4 * count >= 3 * plan.min_sittings and spent_s >= 2 * limit_s) or (
            2 * count >= plan.min_sittings and spent_s >= 4 * limit_s
        )
    if count >= plan.max_sittings or spent_s >= limit_s:
        return True
    return all(relative_half_width([each.ratio(index) for each in sittings]) <= plan.half_width for index in candidates)


def clearly_above(sittings: Sequence[Rounds], ratio: float) -> bool:
    """Whether every candidate is slower than ``ratio`` in every round, by :data:`CLEARLY`; never where it is infinite.

    Two rounds are enough: what moves both alike (a session's memory, work on other cores) moves them by less than that.
    """
    slower = [
        own > ratio * (1 + CLEARLY)
        for each in sittings
        for index in range(1, len(each.blocks_ms))
        for own in each.ratios(index)
    ]
    return sum(len(each.blocks_ms[0]) for each in sittings) >= 2 and all(slower)


def relative_half_width(ratios: Sequence[float]) -> float:
    """Half the width of the 95 % interval of sittings' ratios, as a share of the ratio; two at least."""
    ratio, (low, high) = sittings_ratio(ratios)
    return (high - low) / 2 / ratio


def _seconds(step: Step, clock: Clock) -> float:
    start = clock()
    result = step()
    passed = clock() - start
    return float(result) if isinstance(result, DeviceTime) else passed


def _warm_up(step: Step, plan: TimingPlan, clock: Clock) -> float:
    """Run until two runs of ``warm_runs`` in a row agree within 2 %; seconds per run, from the last of them."""
    start = clock()
    before = math.inf
    while True:
        times: list[float] = []
        chunk_start = clock()
        while len(times) < plan.warm_runs and (clock() - chunk_start < plan.warm_s or len(times) < 2):
            times.append(_seconds(step, clock))
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
    while len(shares) % 2 or not shares or (clock() - start < at_least_s and len(shares) < plan.max_rounds):
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
        times.append(_seconds(step, clock))
    wall, cpu = clock() - wall_start, cpu_clock() - cpu_start
    return 1e3 * max(statistics.median(times), 1e-9), min(1.0, cpu / wall) if wall > 0 else 1.0
