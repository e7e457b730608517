"""The patient queue: order, pauses and giving up, with a clock of its own."""

from __future__ import annotations

import itertools
import random

from autoq.record.tracking_queue import FIRST_PAUSE, LONGEST_PAUSE, PatientQueue


class Desk:
    """Takes numbers while it is ``up``; refuses those in ``bad`` for good."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.up, self.now, self.bad = True, 0.0, bad
        self.taken: list[int] = []
        self.failures: list[int] = []
        self.attempts = 0
        self.queue = PatientQueue[int](
            self._write,
            lasting=lambda error: isinstance(error, ValueError),
            failed=lambda item, error: self.failures.append(item),
            clock=lambda: self.now,
        )

    def _write(self, item: int) -> None:
        self.attempts += 1
        if not self.up:
            raise ConnectionError
        if item in self.bad:
            raise ValueError
        self.taken.append(item)


def test_nothing_waits_while_the_server_is_there() -> None:
    desk = Desk()
    for item in range(5):
        desk.queue.put(item)
        assert len(desk.queue) == 0
    assert desk.taken == list(range(5))


def test_a_dead_server_is_left_alone_for_growing_pauses() -> None:
    desk = Desk()
    desk.up = False
    times = []
    for _ in range(4000):
        before = desk.attempts
        desk.queue.put(0)
        if desk.attempts > before:
            times.append(desk.now)
        desk.now += 0.1
    gaps = [round(b - a) for a, b in itertools.pairwise(times)]
    assert gaps == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert (FIRST_PAUSE, LONGEST_PAUSE) == (2.0, 60.0) and len(desk.queue) == 4000


def test_all_that_waited_comes_in_order_and_the_pause_starts_afresh() -> None:
    desk = Desk()
    desk.up = False
    for item in range(3):
        desk.queue.put(item)
    desk.up = True
    desk.queue.put(3)
    assert desk.taken == [] and len(desk.queue) == 4
    desk.now += FIRST_PAUSE
    desk.queue.put(4)
    assert desk.taken == [0, 1, 2, 3, 4] and desk.failures == [0]
    desk.up = False
    desk.queue.put(5)
    desk.up = True
    desk.now += FIRST_PAUSE
    desk.queue.put(6)
    assert desk.taken[-2:] == [5, 6]


def test_flush_does_not_wait_for_the_pause() -> None:
    desk = Desk()
    desk.up = False
    desk.queue.put(0)
    desk.up = True
    desk.queue.flush()
    assert desk.taken == [0]


def test_what_is_refused_for_good_is_given_up() -> None:
    desk = Desk(bad=(1, 2))
    for item in range(4):
        desk.queue.put(item)
    assert desk.taken == [0, 3] and desk.failures == [1, 2] and len(desk.queue) == 0


def test_whatever_happens_each_item_is_taken_once_and_in_order() -> None:
    rng = random.Random(5)
    desk = Desk()
    for item in range(300):
        desk.up = rng.random() < 0.6
        desk.now += rng.random() * 5
        desk.queue.put(item)
    desk.up = True
    desk.queue.flush()
    assert desk.taken == list(range(300))
