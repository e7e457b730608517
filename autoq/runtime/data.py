"""The job's data: one split, read and made into what the model is fed.

Only the rows that the split asks for are read and preprocessed. The arrays are read-only, as they are when a worker
reads them from shared memory: nothing that changes data in place works alone and fails with workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from autoq.errors import DataError
from autoq.runtime.archive import listed, need_memory, open_archive
from autoq.runtime.base import InputSpec
from autoq.runtime.preprocess import make_input
from autoq.runtime.user_code import call_user, load_function
from autoq.spec.checking import nearest
from autoq.spec.data_fields import Data, InputMap, Source, SplitName
from autoq.spec.job import Job

__all__ = ["InputSpec", "Split", "load_split"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """``inputs``: model input -> array [rows, ...] of the model's dtype, C-contiguous, read-only.

    ``targets`` [rows, ...] as in the file, or ``None``. Rows ``i * group`` to ``(i + 1) * group - 1`` belong together.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray | None
    group: int = 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.inputs.values())))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of names, dtypes, shapes and bytes, the targets' included; computed at every call."""
        digest = hashlib.sha256(f"group {self.group}".encode())
        arrays = [(f"input {name}", array) for name, array in sorted(self.inputs.items())]
        if self.targets is not None:
            arrays.append(("targets", self.targets))
        for name, array in arrays:
            digest.update(f"\n{name!r} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        return digest.hexdigest()

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The inputs, ``size`` rows at a time (the last time what is left), as views."""
        for start in range(0, self.rows, size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def take(self, rows: slice) -> Split:
        """The split of those rows, as views; raises :class:`DataError` where they are none or cut a group."""
        start, stop, step = rows.indices(self.rows)
        if step != 1 or start >= stop or start % self.group or (stop - start) % self.group:
            raise DataError(f"rows {start} to {stop} of {self.rows} are not a run of whole groups of {self.group}")
        return Split(
            inputs={name: array[start:stop] for name, array in self.inputs.items()},
            targets=None if self.targets is None else self.targets[start:stop],
            group=self.group,
        )


def load_split(job: Job, which: SplitName, model_inputs: Sequence[InputSpec]) -> Split:
    """The rows of one split, preprocessed for a model with these inputs.

    The calibration split may lack the target; its ``targets`` are then ``None``. Raises :class:`DataError`, naming the
    split, the file and the array, for everything in the data that the job cannot use.
    """
    where = f"data.{which}"
    source = job.data.split(which)
    feeds = _feeds(job.data, model_inputs)
    with _opened(job, source, where) as (origin, table):
        wanted = [(how.source or spec.name, f"input {spec.name!r}") for spec, how in feeds]
        target = job.data.target
        if target is not None and (which != "calibration" or target in table.keys):
            wanted.append((target, "target"))
        else:
            target = None
        start, stop = _rows(table, wanted, source, job.data.group, origin, minimum=1 if which == "calibration" else 2)
        inputs = {}
        for spec, how in feeds:
            array = table.read(how.source or spec.name, start, stop)
            # The result, and one intermediate array of it.
            need_memory(2 * array.size * max(spec.dtype.itemsize, 4), f"{origin}: input {spec.name!r}")
            inputs[spec.name] = make_input(array, how, spec, origin, start)
        targets = None if target is None else _checked_targets(table.read(target, start, stop), origin, target, start)
    for array in (*inputs.values(), *(() if targets is None else (targets,))):
        array.flags.writeable = False
    return Split(inputs=inputs, targets=targets, group=job.data.group)


class _Table(Protocol):
    """Arrays by name, of which some rows can be read."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str, start: int, stop: int) -> np.ndarray: ...


class _Arrays:
    """What a data function returned."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._arrays[key].shape

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._arrays[key][start:stop].copy()  # a copy: the function may keep what it returned, and change it


@contextmanager
def _opened(job: Job, source: Source, where: str) -> Iterator[tuple[str, _Table]]:
    if source.path is not None:
        path = job.resolve(source.path)
        with open_archive(path, where) as archive:
            yield f"{where}: {path}", archive
    else:
        origin = f"{where}: {source.function}"
        yield origin, _Arrays(_called(source.function or "", job, where, origin))


def _called(reference: str, job: Job, where: str, origin: str) -> dict[str, np.ndarray]:
    function = load_function(reference, job.base_dir, DataError, where)
    path = job.resolve(reference.rpartition(":")[0])
    returned = call_user(function, path, DataError, origin)
    if not isinstance(returned, Mapping):
        raise DataError(f"{origin} returned a {type(returned).__name__}; it must return a dict of arrays")
    arrays = {}
    for key, value in returned.items():
        array = call_user(partial(np.asarray, value), path, DataError, f"{origin}: array {key!r}")
        if array.dtype.hasobject:
            raise DataError(f"{origin}: array {key!r} holds Python objects; return a plain array of numbers")
        arrays[str(key)] = array
    return arrays


def _feeds(data: Data, model_inputs: Sequence[InputSpec]) -> list[tuple[InputSpec, InputMap]]:
    if data.inputs is None:
        return [(spec, InputMap.model_validate({})) for spec in model_inputs]
    names = [spec.name for spec in model_inputs]
    for name in data.inputs:
        if name not in names:
            raise DataError(
                f"data.inputs: the model has no input {name!r}{nearest(name, names)}; it has {listed(names)}"
            )
    missing = [name for name in names if name not in data.inputs]
    if missing:
        raise DataError(f"data.inputs: nothing feeds the model's {listed(missing)}; add each with from: KEY")
    return [(spec, data.inputs[spec.name]) for spec in model_inputs]


def _rows(
    table: _Table, wanted: Sequence[tuple[str, str]], source: Source, group: int, origin: str, *, minimum: int
) -> tuple[int, int]:
    """The first row of the split, and the row after the last."""
    for key, purpose in wanted:
        if key not in table.keys:
            raise DataError(
                f"{origin} has no array {key!r} (for {purpose}){nearest(key, table.keys)}; it has {listed(table.keys)}"
            )
    counts: dict[str, int] = {}
    for key, _ in wanted:
        shape = table.shape(key)
        if not shape:
            raise DataError(f"{origin}: array {key!r} is a single number, not one value for each row")
        counts[key] = shape[0]
    total = min(counts.values())
    if total != max(counts.values()):
        said = ", ".join(f"{key} has {count}" for key, count in counts.items())
        raise DataError(f"{origin}: the arrays differ in rows: {said}")
    start, stop = source.rows
    if source.slice is not None and (start >= total or (stop or 0) > total):
        raise DataError(f"{origin}: slice [{start}, {stop}] goes beyond the {total} rows that there are")
    end = min(total, total if stop is None else stop)
    count = end - start
    if count < max(minimum, group):
        raise DataError(f"{origin}: {count} rows are too few; at least {max(minimum, group)} are needed")
    if start % group or count % group:
        raise DataError(
            f"{origin}: rows {start} to {end} cut a group: data.group is {group}, so a split starts at a multiple of "
            f"{group} and has a multiple of {group} rows"
        )
    return start, end


def _checked_targets(targets: np.ndarray, origin: str, key: str, first_row: int) -> np.ndarray:
    if targets.dtype.kind not in "biufUS":
        raise DataError(f"{origin}: target {key!r} is of type {targets.dtype}; give numbers")
    if targets.dtype.kind == "f":
        finite = np.isfinite(targets)
        if not finite.all():
            row = int(np.unravel_index(int(np.argmin(finite)), finite.shape)[0])
            raise DataError(f"{origin}: target {key!r}, row {first_row + row}: the value is not finite")
    return targets
