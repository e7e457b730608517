"""The timing method on a clock made of hand: every figure can be worked out. No real time passes."""

from __future__ import annotations

import pytest

from autoq.runtime.timing import Rounds, TimingPlan, clearly_above, enough, time_sitting


class Machine:
    """Steps that take a given time on a clock of its own; notes who ran."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.ran: list[str] = []

    def step(self, name, seconds, stolen=lambda: 0.0):
        def run():
            self.ran.append(name)
            self.now += seconds(self) if callable(seconds) else seconds
            self.cpu += seconds(self) if callable(seconds) else seconds
            self.now += stolen()

        return run

    def time(self, steps, plan=None, **more) -> Rounds:
        return time_sitting(steps, plan or TimingPlan(), clock=lambda: self.now, cpu_clock=lambda: self.cpu, **more)


def blocks_of(ran: list[str]) -> list[tuple[str, int]]:
    blocks: list[tuple[str, int]] = []
    for name in ran:
        if blocks and blocks[-1][0] == name:
            blocks[-1] = (name, blocks[-1][1] + 1)
        else:
            blocks.append((name, 1))
    return blocks


def test_blocks_last_30_ms_and_rounds_alternate_in_direction():
    machine = Machine()
    steps = [machine.step("base", 1e-3), machine.step("half", 0.5e-3), machine.step("slow", 10e-3)]
    rounds = machine.time(steps)
    assert rounds.blocks_ms == tuple((pytest.approx(ms), pytest.approx(ms)) for ms in (1.0, 0.5, 10.0))
    assert rounds.cpu_share == (1.0, 1.0) and rounds.repeated == 0
    # 2 + 30 runs of 1 ms, 2 + 60 of 0.5 ms, 2 + 5 of 10 ms; the two blocks of "slow" meet in the middle.
    timed = blocks_of(machine.ran[-2 * (32 + 62 + 7) :])
    assert timed == [("base", 32), ("half", 62), ("slow", 14), ("half", 62), ("base", 32)]


def test_backward_starts_with_the_last():
    machine = Machine()
    machine.time([machine.step("base", 30e-3), machine.step("other", 30e-3)], backward=True)
    assert blocks_of(machine.ran[-4 * 7 :]) == [("other", 7), ("base", 14), ("other", 7)]


@pytest.mark.parametrize(("seconds", "per_block"), [(0.02, 7), (0.2, 4), (2.0, 1)])
def test_long_runs_have_short_blocks(seconds, per_block):
    machine = Machine()
    machine.time([machine.step("base", seconds), machine.step("other", 1e-3)])
    assert blocks_of(machine.ran)[-1] == ("base", per_block)


def test_a_slow_start_is_warmed_away():
    machine = Machine()
    falling = machine.step("other", lambda m: 1e-3 * (1 + 4 * max(0.0, 1 - m.now / 0.2)))
    rounds = machine.time([machine.step("base", 1e-3), falling])
    assert rounds.blocks_ms[1] == pytest.approx([1.0] * len(rounds.blocks_ms[1]))


def test_a_dear_preparation_is_followed_by_more_rounds():
    machine = Machine()
    steps = [machine.step("base", 1e-3), machine.step("other", 1e-3)]  # a round takes 64 ms
    assert len(machine.time(steps, setup_s=0.0).cpu_share) == 2
    assert len(machine.time(steps, setup_s=0.3).cpu_share) == 6
    assert len(machine.time(steps, setup_s=30).cpu_share) == 8


def test_a_preempted_run_leaves_its_block_as_it_was():
    machine = Machine()
    turns = iter(range(10**6))
    base = machine.step("base", 1e-3, stolen=lambda: 4e-3 if next(turns) % 40 == 39 else 0.0)
    rounds = machine.time([base, machine.step("other", 1e-3)], TimingPlan(min_cpu_share=0.5))
    assert rounds.blocks_ms[0] == (pytest.approx(1.0), pytest.approx(1.0))


def test_a_round_that_lost_its_core_is_timed_again_and_not_for_ever():
    machine = Machine()
    busy_until = 0.12  # through the warm-up and the first round
    base = machine.step("base", 1e-3, stolen=lambda: 1e-3 if machine.now < busy_until else 0.0)
    rounds = machine.time([base, machine.step("other", 1e-3)])
    assert rounds.repeated == 1
    assert rounds.cpu_share == (pytest.approx(1.0), pytest.approx(1.0))
    busy_until = float("inf")
    rounds = machine.time([base, machine.step("other", 1e-3)])
    assert rounds.repeated == 2
    assert rounds.cpu_share == (pytest.approx(0.5), pytest.approx(0.5))


def rounds_of(ratios) -> Rounds:
    return Rounds(blocks_ms=(tuple(1.0 for _ in ratios), tuple(ratios)), cpu_share=tuple(1.0 for _ in ratios))


def test_when_it_is_enough():
    plan = TimingPlan(min_rounds=8, max_rounds=30, limit_s=1.0, half_width=0.01)
    narrow, wide = [0.5, 0.501], [0.5, 0.6]
    assert not enough(rounds_of(narrow * 3), plan, 0.5)
    assert enough(rounds_of(narrow * 4), plan, 0.5)
    assert not enough(rounds_of(wide * 4), plan, 0.5)
    assert enough(rounds_of(wide * 4), plan, 1.0)
    assert enough(rounds_of(wide * 15), plan, 0.5)
    # a slow model: half of the rounds will do after four times the limit, fewer never
    assert enough(rounds_of(wide * 2), plan, 4.0)
    assert not enough(rounds_of(wide), plan, 40.0)


def test_sittings_add_up():
    first, second = rounds_of([0.5, 0.6]), rounds_of([0.7])
    both = first.and_then(second)
    assert both.blocks_ms == ((1.0, 1.0, 1.0), (0.5, 0.6, 0.7))
    assert both.cpu_share == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("ratios", "limit", "clear"),
    [
        ([0.9, 0.95], 0.5, True),
        ([0.9, 0.95], 0.85, False),  # by less than a tenth
        ([0.9, 0.5], 0.5, False),  # not in every round
        ([0.9], 0.5, False),
        ([0.9, 0.95], float("inf"), False),
    ],
)
def test_when_a_candidate_is_clearly_too_slow(ratios, limit, clear):
    rounds = rounds_of(ratios)
    assert clearly_above(rounds, limit) is clear
    # Of several candidates, all must be.
    assert clearly_above(Rounds(blocks_ms=(*rounds.blocks_ms, rounds.blocks_ms[1])), limit) is clear
    assert not clearly_above(Rounds(blocks_ms=(*rounds.blocks_ms, rounds.blocks_ms[0])), 1.0)
