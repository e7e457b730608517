"""Calls with a limit: what they return and raise passes through, and what never returns is left."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from autoq.runtime.time_limit import within


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "autoq-call"]


def test_what_returns_or_raises_in_time_is_as_without_a_limit() -> None:
    assert within(60, lambda: {"a": 1}) == {"a": 1}
    assert within(60, lambda: None) is None
    for error in (ValueError("no"), SystemExit(3), KeyboardInterrupt(), TimeoutError("of its own")):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            within(60, fail)
        assert caught.value is error
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        within(60, lambda: np.float32(1e38) * np.float32(1e38))
    assert threads() == []


def test_an_endless_loop_is_stopped() -> None:
    turns = 0

    def loop() -> None:
        nonlocal turns
        while True:
            try:
                turns += 1
            except Exception:  # which does not catch what stops it
                turns = -1

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.2, loop)
    assert time.monotonic() - start < 30
    for thread in threads():
        thread.join(30)
    assert threads() == [] and turns > 0


def test_what_waits_outside_python_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: release.wait(60))
    assert len(threads()) == 1
    release.set()
    threads()[0].join(30)
    assert threads() == []
