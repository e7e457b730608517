"""Whole searches that are guided by a measured latency model: the same table gives the same proposals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import autoq
from autoq.core.result import Trial
from autoq.search import latency
from autoq.search.latency import LatencyTable, read_kept
from autoq.search.store import TrialLog
from tests.small_job import CACHE, QUIET_SEARCH, tracking_uri, write_job

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", *QUIET_SEARCH)

FEWEST = 8  # files of a model, and so trials of a search that has one


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of a third of the files: how good they are is tests/search/test_latency.py's to say."""
    monkeypatch.setattr(latency, "FEWEST", FEWEST)
    monkeypatch.setattr(latency, "FILES_A_LAYER", 0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(
        tmp_path_factory.mktemp("guided"),
        tracking_uri(tmp_path_factory),
        objectives=["metric", "latency", "size"],
        budget={"trials": FEWEST},
    )


def proposed(run: Path) -> list[tuple[str, float | None]]:
    return [(trial.id, trial.latency_modelled) for trial in TrialLog(run / "trials.jsonl").read()]


def test_a_search_that_goes_on_keeps_its_table(job: Path, tmp_path: Path) -> None:
    first = autoq.search(job, out=tmp_path / "first", ray="off")
    table = read_kept(tmp_path / "first" / "latency.json")
    assert isinstance(table, LatencyTable)
    (note,) = [note for note in first.front.notes if note.startswith("latency model from ")]
    assert note == str(table.check)

    before = proposed(tmp_path / "first")
    shutil.rmtree(Path(CACHE) / "latency")
    more = autoq.search(job, out=tmp_path / "first", ray="off", resume=True, trials=FEWEST + 1)
    assert read_kept(tmp_path / "first" / "latency.json") == table
    assert proposed(tmp_path / "first")[:FEWEST] == before
    assert len(more.trials) == FEWEST + 1
    assert not (Path(CACHE) / "latency").exists()  # nothing was measured anew


def test_few_trials_are_guided_by_the_profile(job: Path, tmp_path: Path) -> None:
    result = autoq.search(job, out=tmp_path / "run", ray="off", trials=3)
    kept = read_kept(tmp_path / "run" / "latency.json")
    assert isinstance(kept, str) and "the profile's costs guide proposals" in kept
    assert kept in result.front.notes
    assert all(isinstance(trial, Trial) and trial.latency_modelled for trial in result.trials)
