"""Calls that may never return, such as a user's function with an endless loop in it."""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Stop(BaseException):
    """Raised inside a call that took too long; no ``except Exception`` catches it."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """``call()``, made in a thread of its own; raises ``TimeoutError`` where it has not returned after ``seconds``.

    The thread is then told to stop, which it does at its next line of Python. One that never comes to it, inside a C
    library for one, stays behind and ends with the process.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()  # NumPy's error state, for one, is the caller's

    def run() -> None:
        try:
            results.append(context.run(call))
        except _Stop:
            pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="autoq-call", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    except BaseException:  # Ctrl-C
        _stop(thread)
        raise
    if errors:
        raise errors[0]
    if not results:
        _stop(thread)
        raise TimeoutError
    return results[0]


def _stop(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
