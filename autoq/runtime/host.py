"""What else this machine does, as the kernel tells it: work of others, load, clock frequency. Nothing elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One look at the machine. ``load_average`` is that of the last minute; ``mhz`` is the mean over ``cpus``.

    ``governor`` is how the kernel chooses the frequency. ``None`` is what the system does not tell.
    """

    load_average: float | None
    mhz: float | None
    governor: str | None


def look(cpus: tuple[int, ...] = ()) -> HostState:
    """The machine now; the frequency is that of ``cpus``, by default of all."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return HostState(load_average=load, mhz=_mhz(cpus), governor=_governor(cpus))


def idle_seconds(stat: str) -> float:
    """Seconds that the cores were idle since the machine started, summed over them; from the text of ``/proc/stat``.

    Waiting for a disk is idle. What a hypervisor gave to others (steal) is not: it is work of others.
    """
    fields = stat.split("\n", 1)[0].split()
    if fields[0] != "cpu" or len(fields) < 6:
        raise ValueError(f"the first line of /proc/stat is not the sum over cores: {' '.join(fields)[:80]}")
    return (int(fields[4]) + int(fields[5])) / float(os.sysconf("SC_CLK_TCK"))


def cores_of(stat: str) -> int:
    """How many cores ``/proc/stat`` lists."""
    return sum(line.startswith("cpu") and line[3:4].isdigit() for line in stat.split("\n"))


class ForeignLoad:
    """The share of the machine's other cores that other processes took, from here to :meth:`share`.

    The kernel counts in hundredths of a second: tell nothing from less than a twentieth. ``own`` returns the CPU
    seconds of what is not foreign: by default this process's.
    """

    def __init__(self, threads: int, own: Callable[[], float] = time.process_time) -> None:
        self._threads, self._own = threads, own
        self._stat = _read(_STAT)
        self._start, self._own_start = time.monotonic(), own()

    def share(self) -> float | None:
        """At least 0, 1 where all other cores were busy; ``None`` where the system does not tell."""
        after, wall, own = _read(_STAT), time.monotonic() - self._start, self._own() - self._own_start
        if not self._stat or not after or wall <= 0:
            return None
        cores = cores_of(after)
        busy = cores * wall - (idle_seconds(after) - idle_seconds(self._stat))
        return min(1.0, max(0.0, (busy - own) / wall / max(1, cores - self._threads)))


def _mhz(cpus: tuple[int, ...]) -> float | None:
    """The kernel's figure for each core; else that of ``/proc/cpuinfo``, which a virtual machine may have made up."""
    listed = cpus or tuple(range(os.cpu_count() or 1))
    texts = [_read(_CPUS / f"cpu{cpu}" / "cpufreq" / "scaling_cur_freq") for cpu in listed]
    if all(text.strip().isdigit() for text in texts):
        return sum(int(text) for text in texts) / len(texts) / 1e3
    found = [line.partition(":")[2] for line in _read(_CPUINFO).split("\n") if line.startswith("cpu MHz")]
    chosen = [float(found[cpu]) for cpu in listed if cpu < len(found)]
    return sum(chosen) / len(chosen) if chosen else None


def _governor(cpus: tuple[int, ...]) -> str | None:
    cpu = cpus[0] if cpus else 0
    return _read(_CPUS / f"cpu{cpu}" / "cpufreq" / "scaling_governor").strip() or None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
