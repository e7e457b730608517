"""``autoq sensitivity``: the loss that each layer and scheme of a job causes alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autoq.core.layer_loss import LayerLosses
from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import JobError
from autoq.model.bank import default_cache_dir
from autoq.model.suffix import Suffixes
from autoq.record.layer_losses import write_losses
from autoq.runtime.archive import listed
from autoq.runtime.data import Split
from autoq.runtime.ort import open_session, run_batches
from autoq.search.candidates import Candidates
from autoq.search.survey import survey
from autoq.setting import Setting, groundwork_of, read_setting
from autoq.spec.checking import nearest, show
from autoq.spec.job import Job, load_job
from autoq.spec.schemes import globbed, matches

ROWS = 256
"""Rows of the search split, by default: enough to order layers, and a fraction of a search's time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a caller may watch: steps in words, how many of how many probes are done, warnings."""

    step: Callable[[str], None] = lambda text: None
    probe: Callable[[int, int], None] = lambda done, total: None
    warn: Callable[[str], None] = lambda text: None


def layer_losses(
    source: str | Path | Mapping[str, Any] | Job,
    *,
    rows: int = ROWS,
    layers: Sequence[str] = (),
    schemes: Sequence[str] = (),
    out: str | Path | None = None,
    force: bool = False,
    base_dir: str | Path | None = None,
    watch: Watch | None = None,
) -> LayerLosses:
    """Takes each layer's schemes one at a time, all other layers in float32, on ``rows`` rows of the search split.

    ``layers`` and ``schemes`` are globs that narrow both down. ``out`` is a folder for the table and the pictures.
    Labels are used for the metric that is reported, and for nothing else. What was taken is cached at once. Raises
    :class:`autoq.errors.AutoqError`.
    """
    watch = watch or Watch()
    job = load_job(source, base_dir)
    watch.step("reading model and data")
    setting = read_setting(job, force=force, warn=watch.warn)
    chosen = narrowed(setting.candidates, layers, schemes)
    split = _first_rows(setting.search, rows)
    watch.step("measuring float32")
    # First, since a metric that does not fit the model shows here, and what follows may take minutes.
    float32 = run_batches(open_session(setting.model.path), split.inputs, job.data.batch)
    setting.metric(float32, split.targets)
    lowering = groundwork_of(dataclasses.replace(setting, candidates=chosen), step=watch.step)
    watch.step(f"taking {len(chosen)} layers one at a time on {split.rows} rows")
    found = survey(
        job.name,
        chosen,
        split,
        setting.metric,
        canonical=lowering.canonical,
        runs=lambda: Suffixes(lowering, split.inputs, job.data.batch),
        float32=float32,
        workers=os.cpu_count() or 1,
        cache_dir=default_cache_dir(),
        identity=_identity(setting, split),
        progress=watch.probe,
    )
    if out is not None:
        write_losses(found, Path(out))
    return found


def narrowed(candidates: Sequence[Candidates], layers: Sequence[str], schemes: Sequence[str]) -> tuple[Candidates, ...]:
    """All layers, with the schemes that the globs leave: float32 alone for a layer that matches none of ``layers``.

    Raises :class:`JobError` for a glob that matches nothing here.
    """
    names = [entry.layer.name for entry in candidates]
    known = list(dict.fromkeys(scheme for entry in candidates for scheme in entry.schemes if scheme != FLOAT32))
    for glob in layers:
        if not any(fnmatchcase(name, glob) for name in names):
            raise JobError(f"--layers: no layer matches {show(glob)}{nearest(glob, names)}; there are {listed(names)}")
    for glob in schemes:
        if not any(matches(glob, globbed(scheme)) for scheme in known):
            texts = [str(scheme) for scheme in known]
            raise JobError(
                f"--schemes: no layer may have {show(glob)} here{nearest(glob, texts)}; there are {listed(texts)}"
            )

    def wanted(entry: Candidates, scheme: Scheme) -> bool:
        layer = not layers or any(fnmatchcase(entry.layer.name, glob) for glob in layers)
        return layer and (not schemes or any(matches(glob, globbed(scheme)) for glob in schemes))

    left = tuple(
        dataclasses.replace(entry, schemes=tuple(s for s in entry.schemes if wanted(entry, s)) or (FLOAT32,))
        for entry in candidates
    )
    if all(set(entry.schemes) == {FLOAT32} for entry in left):
        raise JobError("--layers and --schemes leave nothing: no layer that matches may have a scheme that matches")
    return left


def _first_rows(split: Split, rows: int) -> Split:
    count = max(1, min(rows, split.rows) // split.group) * split.group
    return split.take(slice(0, count))


def _identity(setting: Setting, split: Split) -> object:
    """What the figures depend on besides the policy."""
    metric = {name: value for name, value in setting.metric.spec.items() if name != "timeout"}
    function = setting.metric.choice.function
    if function is not None:  # the user's code may change under the same name
        metric["code"] = setting.job.resolve(function.rpartition(":")[0]).read_text(errors="replace")
    return [*setting.built_from, split.fingerprint, setting.job.data.batch, metric]
