"""Several sessions at once: real processes, with steps whose speed is known, and real models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from autoq.errors import TrialError
from autoq.runtime.meter import Meter
from autoq.runtime.parallel import Block, ParallelPlan, throughput, time_parallel
from tests.small_job import small_model

PLAN = ParallelPlan(sittings=2, rounds=2, block_s=0.06)


def sleeper(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_the_rates_of_all_processes_add_up() -> None:
    """Sleeping needs no core: three processes that sleep for 10 ms make 300 runs a second, for 5 ms 600."""
    blocks = time_parallel(lambda: [sleeper(0.010), sleeper(0.005)], 3, PLAN, threads=1, backward=True)
    assert [len(model) for model in blocks] == [2, 2]
    for model, rate in zip(blocks, (300, 600), strict=True):
        for block in model:
            assert 0.4 * rate < block.runs_per_s <= rate  # the machine may be busy, and is never early
            assert block.cpu_share < 0.5


def test_a_block_is_begun_by_all_together(tmp_path: Path) -> None:
    """No process runs a model while another one runs the model before."""

    def steps() -> Sequence[Callable[[], None]]:
        def run(name: str) -> None:
            start = time.monotonic()
            time.sleep(0.002 + 0.004 * (os.getpid() % 2))
            with (tmp_path / f"{os.getpid()}.log").open("a") as log:
                log.write(f"{name} {start} {time.monotonic()}\n")

        return [lambda: run("a"), lambda: run("b")]

    time_parallel(steps, 2, PLAN, threads=1, backward=False)
    rows = [line.split() for log in tmp_path.iterdir() for line in log.read_text().splitlines()]
    spans = sorted((float(start), float(end), name) for name, start, end in rows)
    changes = [place for place in range(1, len(spans)) if spans[place - 1][2] != spans[place][2]]
    assert [spans[place][2] for place in changes] == ["b", "a"]  # a, b, then b, a
    for place in changes:
        assert max(end for _, end, _ in spans[:place]) <= spans[place][0]


def test_what_goes_wrong_in_a_process_is_told_and_none_is_left() -> None:
    def refuse() -> Sequence[Callable[[], None]]:
        raise TrialError("load", "no such operator")

    def die() -> Sequence[Callable[[], None]]:
        return [lambda: os._exit(7)]

    def fail() -> Sequence[Callable[[], object]]:
        return [lambda: 1 // 0]

    before = set(psutil.Process().children())
    with pytest.raises(TrialError, match="no such operator") as told:
        time_parallel(refuse, 2, PLAN, threads=1, backward=False)
    assert told.value.reason == "load"
    with pytest.raises(TrialError, match="one of the processes that ran the model ended, exit code 7"):
        time_parallel(die, 2, PLAN, threads=1, backward=False)
    with pytest.raises(TrialError, match="ZeroDivisionError"):
        time_parallel(fail, 2, PLAN, threads=1, backward=False)
    assert set(psutil.Process().children()) == before


def test_what_sittings_come_to() -> None:
    def sitting(base: float, own: float, share: float) -> list[list[Block]]:
        slow = Block(runs_per_s=1.0, cpu_share=0.1)
        return [[slow, Block(runs_per_s=base, cpu_share=share)], [slow, Block(runs_per_s=own, cpu_share=share)]]

    found = throughput(
        [sitting(100, 200, 1.0), sitting(110, 220, 1.0), sitting(90, 180, 0.5)],
        sessions=1, threads=1, batch=4, alone=True,
    )  # fmt: skip
    assert (found.samples_per_s, found.reference_samples_per_s) == (800, 400)
    assert found.ratio == pytest.approx(0.5) and found.ratio_ci95[0] < 0.5 < found.ratio_ci95[1]
    assert not found.disturbed
    crowded = [sitting(100, 200, 0.5)] * 3
    assert throughput(crowded, sessions=1, threads=1, batch=1, alone=True).disturbed
    # More than there are cores for: nobody has one alone.
    assert not throughput(crowded, sessions=10_000, threads=1, batch=1, alone=True).disturbed
    assert throughput([sitting(1, 2, 1.0)] * 2, sessions=1, threads=1, batch=1, alone=False).disturbed


def test_two_sessions_of_a_real_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small_model().SerializeToString())
    with Meter(path, {"x": np.zeros((4, 3, 8, 8), np.float32)}, batch=4) as meter:
        found = meter.parallel(path, 2, PLAN)
        assert found.sessions == 2 and found.samples_per_s > 100
        assert 0.3 < found.ratio < 3
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        with pytest.raises(TrialError, match=r"bad\.onnx"):
            meter.parallel(tmp_path / "bad.onnx", 2, PLAN)
