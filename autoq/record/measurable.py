"""What ``autoq measure`` measures: the files behind a model, an exported folder or a run, and what to feed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.identity import sha256_hex
from autoq.errors import AutoqError, RunError
from autoq.record.choice import select
from autoq.record.front import read_front
from autoq.record.manifest import MANIFEST_FILE, ONNX_RUNTIME, read_manifest
from autoq.record.run_folder import RunFolder
from autoq.runtime.base import InputSpec, Runtime, fixed_batch, load_runtime
from autoq.runtime.data import load_split
from autoq.runtime.sheet import random_feeds
from autoq.runtime.shipped import shipped_files
from autoq.spec.job import Job, load_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurable:
    """A model's file, its float32 file, and the runtime that it was scored on; ``job`` where there was one."""

    name: str
    model: Path
    reference: Path
    runtime: str
    runtime_options: Mapping[str, Any]
    job: Job | None


def find_measurable(what: Path, point: str | None = None, against: Path | None = None) -> Measurable:
    """``what`` is a model's file, an exported folder, or a run folder (``point`` says which of its front; the knee).

    ``against`` is the file to compare with: by default the float32 file of the run's or the export's job. Raises
    :class:`RunError` where a file is missing or is not the one that was searched.
    """
    if what.is_file():
        if point is not None:
            raise RunError(f"{what} is a file: a point is chosen of a run folder")
        if against is None:
            raise RunError(f"{what} is compared with another file, as a rule float32's: say which with --against")
        found = Measurable(
            name=what.name, model=what, reference=against, job=None, runtime="onnxruntime", runtime_options={}
        )
    elif (what / MANIFEST_FILE).is_file():
        manifest = read_manifest(what)
        job, model = _job(manifest), what / manifest["model"]["file"]
        found = _found(manifest["id"], model, against or job.model_path, job, manifest)
        _check_reference(found.reference, manifest["source"]["sha256"], against)
    else:
        folder = RunFolder(what)
        chosen = select(front := read_front(folder.front), point)
        record, base = folder.read(), front.baseline
        reference = against or what / base.model_path
        found = _found(chosen.id, what / chosen.model_path, reference, _job(record), record)
        _check_reference(found.reference, base.sha256, against)
    for path in (found.model, found.reference):
        if not path.is_file():
            raise RunError(f"there is no {path}; say with --against where the file to compare with is")
    return found


def _job(record: Mapping[str, Any]) -> Job:
    return load_job(record["job"], record["base_dir"])


def _found(name: str, model: Path, reference: Path, job: Job, record: Mapping[str, Any]) -> Measurable:
    runtime = record.get("runtime", ONNX_RUNTIME)
    options = dict(runtime["options"])
    return Measurable(
        name=name, model=model, reference=reference, job=job, runtime=runtime["name"], runtime_options=options
    )


def _check_reference(path: Path, sha256: str, against: Path | None) -> None:
    """Raises :class:`RunError` where the file has changed since the search."""
    if against is not None or not path.is_file():
        return
    if sha256_hex(b"".join(file.read_bytes() for file in shipped_files(path) if file.is_file())) != sha256:
        raise RunError(f"{path} is not the model that was searched: say with --against what to compare with")


class Feeds:
    """The inputs of one inference: from the job's data, repeated as need be, else random."""

    def __init__(self, found: Measurable, open_size: int) -> None:
        self.specs = _inputs(found)
        self.fixed = fixed_batch(self.specs)
        self._open_size = open_size
        self.source = "random values"
        self._rows: Mapping[str, np.ndarray] | None = None
        if found.job is not None:
            try:
                self._rows = load_split(found.job, "search", self.specs).inputs
                self.source = "the job's data"
            except AutoqError as error:
                self.source = f"random values, since the job's data cannot be read ({error})"

    def __call__(self, batch: int) -> dict[str, np.ndarray]:
        """Of ``batch`` rows."""
        if self._rows is None:
            return random_feeds(self.specs, batch, self._open_size)
        return {name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in self._rows.items()}

    def check(self, batches: Sequence[int]) -> None:
        """Raises :class:`RunError` for a batch size that the model does not take."""
        wrong = [batch for batch in batches if self.fixed not in (None, batch)]
        if wrong:
            raise RunError(f"the model takes batches of {self.fixed} rows alone, not of {wrong[0]}")


def _inputs(found: Measurable) -> tuple[InputSpec, ...]:
    runtime: Runtime = load_runtime(found.runtime, **found.runtime_options)
    return runtime.inputs(runtime.open(found.model))
