"""What a forked process that measures does for itself: it takes its cores, and ends with whoever forked it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

LOOK_S = 1.0
"""How often it is seen whether the parent still lives, where the kernel does not tell."""

_PR_SET_PDEATHSIG = 1


def pin(threads: int, place: int = 0) -> list[int]:
    """Bind this process to ``threads`` of its cores, where it has more; the cores it then runs on.

    The last ones, or those before them for ``place`` 1, and so on; interrupts and whatever else starts early gather on
    the first. Where there are not as many, to none.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    end = len(allowed) - place * threads
    if threads < len(allowed) and end >= threads:
        allowed = allowed[end - threads : end]
        os.sched_setaffinity(0, allowed)
    return allowed


def die_with(parent: int) -> None:
    """See that this forked process dies with the process ``parent``, which forked it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(LOOK_S)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)
