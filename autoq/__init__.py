"""autoq finds for every layer of a trained model the precision and calibration worth having on one target.

import autoq

result = autoq.search("job.yaml")
result.front                      # the Pareto front; in a notebook, result shows itself as a table
result.export("knee", "export")   # the model, its manifest and a script that runs it
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoq.errors import AutoqError

# The function `search` below shares its name with the package autoq/search, and loading a package binds its name here.
# Loaded now, before the function is defined, it never does so again.
importlib.import_module("autoq.search")

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from autoq.core.result import Front, FrontPoint, Trial

__version__ = "0.1.0"
__all__ = ["AutoqError", "SearchResult", "load", "search"]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A finished search. ``path`` is its run folder; ``trials`` has every trial, the failed ones too."""

    front: Front
    trials: tuple[Trial, ...]
    path: Path

    def select(
        self, how: str = "knee", *, max_drop: float | None = None, max_latency_ratio: float | None = None
    ) -> FrontPoint:
        """The point called ``"knee"``, ``"best"``, ``"fastest"``, ``"smallest"`` or by its id, within the bounds.

        ``max_drop`` is in the metric's own unit, ``max_latency_ratio`` relative to float32 (0.5 = twice as fast).
        Raises :class:`autoq.errors.RunError` when there is none.
        """
        from autoq.record.choice import select

        return select(self.front, how, max_drop=max_drop, max_latency_ratio=max_latency_ratio)

    def export(
        self,
        how: str = "knee",
        out: str | Path = "export",
        *,
        max_drop: float | None = None,
        max_latency_ratio: float | None = None,
    ) -> Path:
        """Writes the chosen model, its manifest and ``infer.py`` into the folder ``out``, which is returned."""
        from autoq.record.export import export_point

        export_point(self.path, how, Path(out), max_drop=max_drop, max_latency_ratio=max_latency_ratio)
        return Path(out)

    def to_frame(self) -> DataFrame:
        """The front as a pandas table, float32 first."""
        from dataclasses import asdict

        from pandas import DataFrame

        from autoq.record.summary import front_table

        return DataFrame([asdict(row) for row in front_table(self.front)]).set_index("id")

    def plot(self) -> Figure:
        """The front over all trials, as a Matplotlib figure."""
        from autoq.record.plots import plot_front

        return plot_front(self.front, self.trials)

    def summary(self) -> str:
        """What was gained, in a sentence or two."""
        from autoq.record.summary import describe_gain

        return describe_gain(self.front)

    def _repr_html_(self) -> str:
        from html import escape

        columns = ["metric", "drop", "speedup", "size_ratio", "weight_bits_mean", "policy"]
        return f"<p>{escape(self.summary())}</p>{self.to_frame()[columns].to_html(float_format='%.4g')}"


def search(
    job: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trials: int | None = None,
    time: str | float | None = None,
    ray: str = "local",
    workers: int = 0,
    tracking_uri: str | None = None,
    seed: int | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_warning: Callable[[str], None] | None = None,
) -> SearchResult:
    """Runs a search, as ``autoq search`` does.

    ``job`` is a job file, or its content as a mapping, whose paths are then relative to ``base_dir`` (by default the
    current folder). ``out`` is the run folder (by default a new one in ``runs/``). ``trials``, ``time``, ``seed`` and
    ``tracking_uri`` replace the job's. ``ray`` is ``"local"``, ``"off"`` or a cluster's address. Raises
    :class:`autoq.errors.AutoqError`; finished trials stay in ``out``, and ``resume=True`` goes on.
    """
    import warnings

    from autoq.pipeline import Events, run_search

    events = Events(
        step=on_step,
        trial=lambda trial, search: on_trial(trial),
        warn=on_warning or (lambda text: warnings.warn(text, stacklevel=2)),
    )
    outcome = run_search(
        job,
        out=out,
        resume=resume,
        trials=trials,
        time_limit=time,
        ray=ray,
        workers=workers,
        tracking_uri=tracking_uri,
        seed=seed,
        force=force,
        base_dir=base_dir,
        events=events,
    )
    return SearchResult(outcome.front, outcome.trials, outcome.path)


def load(path: str | Path) -> SearchResult:
    """The result in a run folder, also of a search that is still running or was interrupted."""
    from autoq.record.front import read_front
    from autoq.record.run_folder import RunFolder
    from autoq.search.store import TrialLog

    folder = RunFolder(Path(path))
    front = read_front(folder.front)
    return SearchResult(front, tuple(TrialLog(folder.trials).read()), folder.path)
