"""autoq finds for every layer of a trained model the precision and calibration worth having on one target.

import autoq

result = autoq.search("job.yaml")
result.front                      # the Pareto front; in a notebook, result shows itself as a table
result.export("knee", "export")   # the model, its manifest and a script that runs it
"""

from __future__ import annotations

# Next to nothing is imported here: until `python -m autoq` comes to its own code, Ctrl-C shows Python's traceback.
from autoq.errors import AutoqError

TYPE_CHECKING = False  # as `typing` has it

# The function `search` below shares its name with the package autoq/search, and loading a package binds its name here.
# Loaded now, before the function is defined, it never does so again.
__import__("autoq.search")

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from autoq.core.result import Trial
    from autoq.pipeline import Events
    from autoq.result import SearchResult, SensitivityResult
    from autoq.targets import TargetsOutcome

__version__ = "0.1.0"
__all__ = ["AutoqError", "SearchResult", "SensitivityResult", "load", "search", "search_targets", "sensitivity"]


def __getattr__(name: str) -> Any:
    if name in ("SearchResult", "SensitivityResult"):
        import autoq.result

        return getattr(autoq.result, name)
    raise AttributeError(f"module 'autoq' has no attribute {name!r}")


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
    polish: str | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_warning: Callable[[str], None] | None = None,
) -> SearchResult:
    """Runs a search, as ``autoq search`` does.

    ``job`` is a job file, or its content as a mapping, whose paths are then relative to ``base_dir`` (by default the
    current folder). ``out`` is the run folder (by default a new one in ``runs/``). ``trials``, ``time``, ``seed``,
    ``polish`` and ``tracking_uri`` replace the job's. ``ray`` is ``"local"``, ``"off"`` or a cluster's address. Raises
    :class:`autoq.errors.AutoqError`; finished trials stay in ``out``, and ``resume=True`` goes on.
    """
    from autoq.pipeline import run_search
    from autoq.result import SearchResult
    from autoq.spec.job import load_job

    replaced = load_job(job, base_dir).overridden(
        trials=trials, time=time, tracking_uri=tracking_uri, seed=seed, polish=polish
    )
    events = _events(on_step, on_trial, on_warning)
    outcome = run_search(replaced, out=out, resume=resume, ray=ray, workers=workers, force=force, events=events)
    return SearchResult(outcome.front, outcome.trials, outcome.path)


def _events(
    on_step: Callable[[str], None], on_trial: Callable[[Trial], None], on_warning: Callable[[str], None] | None
) -> Events:
    """Who is told what; warnings are Python's where nobody is named."""
    import warnings

    from autoq.pipeline import Events

    return Events(
        step=on_step,
        trial=lambda trial, search: on_trial(trial),
        warn=on_warning or (lambda text: warnings.warn(text, stacklevel=2)),
    )


def search_targets(
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
    polish: str | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_warning: Callable[[str], None] | None = None,
) -> TargetsOutcome:
    """Runs a job whose ``hardware`` is a list: a search for each profile, then every file on each of them.

    The options are those of :func:`search`; ``on_step``, ``on_trial`` and ``on_warning`` are told of every target's.
    The outcome has each target's own front (``fronts``) and what was found of all files on all targets (``targets``).
    """
    from autoq.spec.job import load_job
    from autoq.targets import run_targets

    replaced = load_job(job, base_dir).overridden(
        trials=trials, time=time, tracking_uri=tracking_uri, seed=seed, polish=polish
    )
    events = _events(on_step, on_trial, on_warning)
    return run_targets(replaced, out=out, resume=resume, ray=ray, workers=workers, force=force, events=events)


def sensitivity(
    job: str | Path | Mapping[str, Any],
    *,
    rows: int = 256,
    layers: Sequence[str] = (),
    schemes: Sequence[str] = (),
    out: str | Path | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    on_step: Callable[[str], None] = lambda text: None,
    on_probe: Callable[[int, int], None] = lambda done, total: None,
    on_warning: Callable[[str], None] | None = None,
) -> SensitivityResult:
    """The loss that each layer's schemes cause alone, all other layers in float32, as ``autoq sensitivity`` has it.

    It is taken on ``rows`` rows of the search split. ``layers`` and ``schemes`` are globs that narrow both down.
    ``out`` is a folder for the table and the pictures. ``on_probe`` is told how many of how many models are done.
    Raises :class:`autoq.errors.AutoqError`; what was taken is cached, and the same call goes on.
    """
    import warnings

    from autoq.layerwise import Watch, layer_losses
    from autoq.result import SensitivityResult

    warn = on_warning or (lambda text: warnings.warn(text, stacklevel=2))
    watch = Watch(step=on_step, probe=on_probe, warn=warn)
    found = layer_losses(
        job, rows=rows, layers=layers, schemes=schemes, out=out, force=force, base_dir=base_dir, watch=watch
    )
    return SensitivityResult(found)


def load(path: str | Path) -> SearchResult:
    """The result in a run folder, also of a search that is still running or was interrupted."""
    from pathlib import Path

    from autoq.record.front import read_front
    from autoq.record.run_folder import RunFolder
    from autoq.result import SearchResult
    from autoq.search.store import TrialLog

    folder = RunFolder(Path(path))
    front = read_front(folder.front)
    return SearchResult(front, tuple(TrialLog(folder.trials).read()), folder.path)
