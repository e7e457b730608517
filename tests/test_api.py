"""What a notebook user does."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import autoq
from autoq.core.result import Trial
from autoq.errors import JobError, RunError
from autoq.record.verify import verify
from tests.small_job import QUIET_SEARCH, environment, job_values, shared_run, tracking_uri, write_job

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> autoq.SearchResult:
    return autoq.load(shared_run(tmp_path_factory) / "run")


def test_search_takes_a_mapping_with_paths_relative_to_a_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_job(tmp_path)
    values = job_values(tracking_uri(tmp_path_factory))
    seen: list[Trial] = []
    steps: list[str] = []
    found = autoq.search(
        values, base_dir=tmp_path, out=tmp_path / "run", ray="off", trials=2, seed=11, on_trial=seen.append,
        on_step=steps.append,
    )  # fmt: skip
    assert list(found.trials) == seen
    assert len(found.trials) == 2
    assert found.path == tmp_path / "run"
    assert found.front.points and found.front.final
    assert steps[0] == "reading model and data"
    # The mapping is the caller's.
    assert values == job_values(tracking_uri(tmp_path_factory))
    # What was found is what lies there.
    again = autoq.load(tmp_path / "run")
    assert again.trials == found.trials
    assert [point.id for point in again.front.points] == [point.id for point in found.front.points]
    with pytest.raises(RunError, match="already holds a search"):
        autoq.search(values, base_dir=tmp_path, out=tmp_path / "run", ray="off")


def test_errors_are_autoqs_own(tmp_path: Path) -> None:
    with pytest.raises(autoq.AutoqError):
        autoq.search({"version": 1})
    with pytest.raises(JobError, match="model: missing"):
        autoq.search({"version": 1})
    with pytest.raises(JobError, match="no such job file"):
        autoq.search(tmp_path / "missing.yaml")
    with pytest.raises(RunError, match="is this the folder of a search"):
        autoq.load(tmp_path)


def test_the_table(result: autoq.SearchResult) -> None:
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == ["float32", *(point.id for point in result.front.points)]
    assert frame.loc["float32", "speedup"] == 1.0
    point = result.front.points[0]
    assert frame.loc[point.id, "metric"] == point.metric.final
    assert frame.loc[point.id, "size_ratio"] == point.size_bytes / result.front.baseline.size_bytes


def test_a_notebook_shows_a_table(result: autoq.SearchResult) -> None:
    html = result._repr_html_()
    assert html.startswith("<p>") and "<table" in html
    assert all(point.id in html for point in result.front.points)
    assert result.summary().split(".")[0] in html


def test_the_plot(result: autoq.SearchResult) -> None:
    figure = result.plot()
    assert isinstance(figure, Figure)
    assert figure.axes


def test_choosing_and_exporting(result: autoq.SearchResult, tmp_path: Path) -> None:
    best, smallest = result.select("best"), result.select("smallest")
    assert best.metric.final == max(point.metric.final or 0 for point in result.front.points)
    assert smallest.size_bytes == min(point.size_bytes for point in result.front.points)
    assert result.select(best.id[:6]) == best
    assert result.select("smallest", max_drop=0.05).size_bytes >= smallest.size_bytes
    folder = result.export("smallest", tmp_path / "x", max_drop=0.5)
    assert folder == tmp_path / "x"
    assert verify(folder).ok
    with pytest.raises(RunError, match="is no point of this front"):
        result.export("nope", tmp_path / "y")


def test_loading_changes_nothing_also_while_a_trial_is_being_written(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path / "run"
    shutil.copytree(shared_run(tmp_path_factory) / "run", run)
    with (run / "trials.jsonl").open("ab") as log:
        log.write(b'{"version": 1, "id": "half a li')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len(autoq.load(run).trials) == 10
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_search_stays_a_function_whatever_is_imported() -> None:
    code = """
import autoq, importlib, pkgutil
assert callable(autoq.search) and not hasattr(autoq.search, "__path__")
for module in pkgutil.walk_packages(autoq.__path__, "autoq."):
    if module.name != "autoq.__main__":
        importlib.import_module(module.name)
    assert callable(autoq.search), module.name
from autoq.search.loop import Search
from autoq.search import candidates
assert callable(autoq.search) and Search.__module__ == "autoq.search.loop"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_importing_autoq_is_light() -> None:
    heavy = ("torch", "mlflow", "ray", "optuna", "sklearn", "onnx", "onnxruntime", "matplotlib", "pandas", "numpy")
    code = f"import sys, autoq; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_packages() -> None:
    assert importlib.metadata.version("autoq") == autoq.__version__
