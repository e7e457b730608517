import os
import subprocess
import sys
import time

import pytest

from autoq.runtime.host import ForeignLoad, cores_of, idle_seconds, look

STAT = """cpu  2608508 2499565 479848 1457719 23086 0 6100 17212 0 0
cpu0 1141728 1133135 222010 1029413 8267 0 482 8691 0 0
cpu1 1466779 1366429 257838 428306 14819 0 5617 8521 0 0
intr 1 2 3
cpufreq 5
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own figures, of Linux")


def test_idle_seconds_and_cores_by_hand():
    assert idle_seconds(STAT) == pytest.approx((1457719 + 23086) / os.sysconf("SC_CLK_TCK"))
    assert cores_of(STAT) == 2
    with pytest.raises(ValueError, match="not the sum over cores"):
        idle_seconds("intr 1 2 3")


@linux
def test_work_of_another_process_is_foreign_and_ones_own_is_not():
    spin = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"

    def share(foreign: bool) -> float:
        watch = ForeignLoad(1)
        if foreign:
            subprocess.run([sys.executable, "-c", spin], check=True)
        else:
            end = time.monotonic() + 0.6
            while time.monotonic() < end:
                pass
        found = watch.share()
        assert found is not None
        return found

    others = max(1, len(os.sched_getaffinity(0)) - 1)
    loaded, quiet = share(True), min(share(False) for _ in range(3))
    assert loaded > 0.5 / max(others, (os.cpu_count() or 1) - 1)
    assert loaded > quiet or loaded > 0.9  # under someone else's load, both are near 1


@linux
def test_what_the_kernel_tells():
    state = look()
    assert state.load_average is not None and state.load_average >= 0
    assert state.mhz is None or 10 < state.mhz < 20_000
    assert state.governor is None or state.governor.isprintable()


def test_nothing_told_is_none(tmp_path, monkeypatch):
    for name in ("_STAT", "_CPUINFO", "_CPUS"):
        monkeypatch.setattr(f"autoq.runtime.host.{name}", tmp_path / "absent")
    assert ForeignLoad(1).share() is None
    assert look().mhz is None and look().governor is None
