"""The peak of a process's memory while something runs, from what the kernel says.

Linux: the high-water mark of the resident set (``VmHWM``) less the resident set just before, in a process of its own.
Elsewhere: the same from ``getrusage``, whose mark cannot be reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc/self")
_MADV_POPULATE_READ = 22  # Linux 5.14: map all pages of a range now


def peak_growth_bytes(action: Callable[[], object]) -> int:
    """Bytes by which the resident set grew at its highest point during ``action``, at least 0.

    To be called once in a fresh process: memory that was freed to the allocator and not to the system would be used
    again unseen. Pages of shared libraries are mapped in beforehand, since the runtime's own code is no model's memory.
    """
    gc.collect()
    _map_in_libraries()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_bytes()
    with contextlib.suppress(OSError):
        # Where it is not allowed, the mark since the fork stands: it is above the present by what was trimmed above.
        (_PROC / "clear_refs").write_text("5")
    action()
    return max(0, _high_water_bytes() - before)


def _status_bytes(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _resident_bytes() -> int:
    return _status_bytes("VmRSS") if _PROC.exists() else _high_water_bytes()


def _high_water_bytes() -> int:
    if _PROC.exists():
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def _map_in_libraries() -> None:
    """Touch every page of the shared libraries; nothing where the kernel cannot do it."""
    if not _PROC.exists():
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in (_PROC / "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and ".so" in fields[5] and fields[1].startswith("r"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            madvise(start, end - start, _MADV_POPULATE_READ)
