"""The stored tables of benchmarks/tabular: whole, small, and of use to tell samplers apart."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.numerics.pareto import non_dominated


@pytest.fixture(scope="module")
def judge(repo_root: Path) -> Any:
    """``benchmarks/tabular/run.py``, which is a script, as a module."""
    folders = [str(repo_root / "benchmarks" / "tabular"), str(repo_root / "benchmarks")]
    sys.path[:0] = folders
    try:
        return importlib.import_module("run")
    finally:
        for folder in folders:
            sys.path.remove(folder)


TABLES = {"digits": 4**5, "resnet20": 3**7, "made-up-0": 3**8}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_whole(judge: Any, repo_root: Path, name: str) -> None:
    file = repo_root / "benchmarks" / "tabular" / f"{name}.npz"
    if not name.startswith("made-up"):
        assert file.stat().st_size < 300_000
    table = judge.load(name)
    assert len(table.losses) == TABLES[name] == len(table.schemes) ** len(table.groups)
    assert np.isfinite(table.losses).all() and np.isfinite(table.proxies).all() and (table.proxies >= 0).all()
    assert table.proxies.shape == (len(table.groups), len(table.schemes), 3)
    front = np.flatnonzero(non_dominated(table.losses))
    assert table.volume(front) == pytest.approx(table.volume(np.arange(len(table.losses))))


def test_rows_are_found_by_their_policy(judge: Any) -> None:
    table = judge.load("digits")
    first = dict.fromkeys(table.groups, table.schemes[0])
    assert table.row(first) == 0
    assert table.row(first | {table.groups[-1]: table.schemes[3]}) == 3
    assert table.row(dict.fromkeys(table.groups, table.schemes[3])) == len(table.losses) - 1


def test_ours_is_ahead_and_curves_only_rise(judge: Any) -> None:
    result = judge.judge(judge.load("digits"), ["front", "random"], seeds=1, batch=8, predicted=24)
    assert result["ahead"]["random"]["mean"] > 0.5
    shares = [median for _, median, _ in result["share"]["front"]]
    assert shares == sorted(shares) and 0.9 < shares[-1] <= 1 + 1e-9
