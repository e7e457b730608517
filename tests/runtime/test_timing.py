"""The timing method on a clock made of hand: every figure can be worked out. No real time passes."""

from __future__ import annotations

import pytest

from autoq.runtime.timing import DeviceTime, Rounds, TimingPlan, clearly_above, enough, time_sitting


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
    assert len(machine.time(steps, setup_s=0.15).cpu_share) == 4
    assert len(machine.time(steps, setup_s=30).cpu_share) == 6


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


def sitting(*ratios, base=1.0, **more) -> Rounds:
    share = more.pop("cpu_share", tuple(1.0 for _ in ratios))
    blocks = (tuple(base for _ in ratios), tuple(base * ratio for ratio in ratios))
    return Rounds(blocks_ms=blocks, cpu_share=share, **more)


def test_when_it_is_enough():
    plan = TimingPlan(min_sittings=4, max_sittings=10, limit_s=1.0, half_width=0.01)
    narrow, wide = [sitting(0.5, 0.501), sitting(0.501, 0.5)], [sitting(0.5, 0.5), sitting(0.6, 0.6)]
    assert not enough([], plan, 0.5)
    assert not enough([*narrow, narrow[0]], plan, 0.5)
    assert enough(narrow * 2, plan, 0.5)
    assert not enough(wide * 2, plan, 0.5)
    assert enough(wide * 2, plan, 1.0)
    assert enough(wide * 5, plan, 0.5)
    # a slow model: three quarters of the sittings will do after twice the limit, half after four times, fewer never
    assert not enough([*wide, wide[0]], plan, 1.9)
    assert enough([*wide, wide[0]], plan, 2.0)
    assert not enough(wide, plan, 3.9)
    assert enough(wide, plan, 4.0)
    assert not enough(wide[:1], plan, 40.0)


def test_a_sitting_counts_as_its_quietest_blocks():
    """However many rounds it has, and whatever came between."""
    busy = Rounds(blocks_ms=((1.2, 1.0, 1.1, 1.3), (0.9, 0.8, 0.5, 0.6)), cpu_share=(1.0,) * 4)
    assert busy.quietest_ms == (1.0, 0.5)
    assert busy.ratio(1) == 0.5
    assert busy.ratios(1) == pytest.approx((0.75, 0.8, 0.5 / 1.1, 0.6 / 1.3))


@pytest.mark.parametrize(
    ("made", "disturbed"),
    [
        (sitting(0.5, 0.5), False),
        (sitting(0.5, 0.5, foreign=0.2), False),
        (sitting(0.5, 0.5, foreign=0.3), True),
        (sitting(0.5, 0.5, cpu_share=(1.0, 0.5)), False),
        (sitting(0.5, 0.5, cpu_share=(0.5, 0.5)), True),
        (sitting(0.5, 0.5, base=1.04), False),
        (sitting(0.5, 0.5, base=1.06), True),
        (sitting(0.55, 0.55), True),
    ],
)
def test_when_a_sitting_is_disturbed(made, disturbed):
    assert made.disturbed(TimingPlan(), (1.0, 0.5)) is disturbed


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
    rounds = sitting(*ratios)
    assert clearly_above([rounds], limit) is clear
    # Of several candidates, all must be.
    assert clearly_above([Rounds(blocks_ms=(*rounds.blocks_ms, rounds.blocks_ms[1]))], limit) is clear
    assert not clearly_above([Rounds(blocks_ms=(*rounds.blocks_ms, rounds.blocks_ms[0]))], 1.0)


def test_a_devices_own_clock_counts_in_place_of_the_time_that_passed():
    machine = Machine()
    plain, other = machine.step("base", 2e-3), machine.step("device", 5e-3)

    def on_device():
        other()
        return DeviceTime(0.5e-3)

    rounds = machine.time([plain, on_device])
    assert rounds.quietest_ms == (pytest.approx(2.0), pytest.approx(0.5))
