"""Shared by all tests: one thread, no telemetry, no windows; the benchmark data; the same random examples each run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before any library reads them. Spinning threads beside a second test process make both many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# No deadline: a busy machine is no bug. Derandomized: a failure here is a failure everywhere.
settings.register_profile("autoq", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("autoq")


# The files that take longest, first: two processes then end together. Those that wait for Ray are apart, each beside
# one that computes.
_LONG = (
    "cli/test_interrupted.py",
    "cli/test_commands.py",
    "record/test_tracking.py",
    "test_pipeline.py",
    "robustness/test_fuzz.py",
    "search/test_ray.py",
    "infra/test_examples.py",
    "infra/test_entrypoint.py",
    "model/test_torch_runtime.py",
    "robustness/test_bad_layers.py",
    "model/test_random_models.py",
    "search/test_latency_search.py",
    "record/test_openvino.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (pytest-xdist takes them in this order, with --no-loadscope-reorder)."""
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(_LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def printed_on_threads(repo_root: Path) -> Callable[[str], set[bytes]]:
    """What a program prints in processes whose linear algebra has one thread and two: one text where they agree."""

    def printed(program: str) -> set[bytes]:
        found = set()
        for threads in ("1", "2"):
            environment = {**os.environ, "PYTHONPATH": str(repo_root)}
            environment |= {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
            command = [sys.executable, "-c", program]
            found.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        assert all(found)
        return found

    return printed


@pytest.fixture(scope="session")
def bench() -> Path:
    """The folder of real models and data (``cifar10/``, ``sts/``); the test is skipped where there is none."""
    folder = Path(os.environ.get("AUTOQ_BENCH") or ROOT.parent / "shared" / "bench")
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder}; set AUTOQ_BENCH to its folder")
    return folder
