"""What one model costs at several batch sizes and thread counts: latency, throughput, loading, memory, file size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.result import Latency
from autoq.runtime.base import InputSpec
from autoq.runtime.meter import FINAL_PLAN, Meter
from autoq.runtime.parallel import Throughput
from autoq.runtime.shipped import shipped_bytes, zipped_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One row of the sheet, of the model and of its reference, which were timed in turn.

    ``load_ms`` and ``peak_memory_bytes`` are as in :class:`autoq.runtime.gauge.Measurement`; of the reference too.
    ``parallel`` has what was asked for of several sessions at once.
    """

    latency: Latency
    reference_ms: float
    load_ms: tuple[float, float]
    peak_memory_bytes: tuple[int, int]
    parallel: tuple[Throughput, ...] = ()

    @property
    def throughput(self) -> tuple[float, float]:
        """Samples a second of the model and of the reference: one session, run after run."""
        batch = 1e3 * self.latency.batch
        return batch / self.latency.median_ms, batch / self.reference_ms

    @property
    def slower(self) -> bool:
        """Whether the model is surely slower than its reference."""
        return self.latency.ratio_ci95[0] > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """``size_bytes`` and ``zipped_bytes`` are of the model's files and of the reference's."""

    model: Path
    reference: Path
    size_bytes: tuple[int, int]
    zipped_bytes: tuple[int, int]
    settings: tuple[SheetRow, ...]


def measure_sheet(
    model: Path,
    reference: Path,
    feeds: Callable[[int], Mapping[str, np.ndarray]],
    *,
    batches: Sequence[int],
    threads: Sequence[int],
    sessions: Sequence[int] = (),
    runtime: str,
    runtime_options: Mapping[str, Any],
    step: Callable[[str], None] = lambda text: None,
) -> Sheet:
    """Each batch size with each number of threads. ``feeds`` gives the inputs of one inference of so many rows.

    ``sessions``: of how many at once the throughput is taken, each in a process of its own.
    Raises as :class:`~autoq.runtime.meter.Meter` does.
    """
    rows = []
    for batch in batches:
        for count in threads:
            step(f"batch {batch}, {_plural(count, 'thread')}")
            options = {"batch": batch, "threads": count, "runtime": runtime, "runtime_options": runtime_options}
            with Meter(reference, feeds(batch), plan=FINAL_PLAN, **options) as meter:  # type: ignore[arg-type]
                base, own = meter.measure(reference), meter.measure(model)
                parallel = []
                for number in sessions:
                    step(f"batch {batch}, {_plural(count, 'thread')}, {_plural(number, 'session')} at once")
                    parallel.append(meter.parallel(model, number))
            assert isinstance(own.latency, Latency)
            rows.append(
                SheetRow(
                    latency=own.latency,
                    reference_ms=own.latency.median_ms / own.latency.ratio,
                    load_ms=(own.load_ms or 0.0, base.load_ms or 0.0),
                    peak_memory_bytes=(own.peak_memory_bytes or 0, base.peak_memory_bytes or 0),
                    parallel=tuple(parallel),
                )
            )
    files = (model, reference)
    sizes, zipped = [shipped_bytes(path) for path in files], [zipped_bytes(path) for path in files]
    return Sheet(
        model=model,
        reference=reference,
        size_bytes=(sizes[0], sizes[1]),
        zipped_bytes=(zipped[0], zipped[1]),
        settings=tuple(rows),
    )


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def random_feeds(specs: Sequence[InputSpec], batch: int, open_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One inference's inputs: normal floats, integers 0 and 1; open dimensions behind the first are ``open_size``."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        sizes = (batch, *[open_size] * (len(spec.shape) - 1))
        shape = [size if given is None else given for size, given in zip(sizes, spec.shape, strict=False)]
        values = rng.normal(size=shape) if spec.dtype.kind == "f" else rng.integers(2, size=shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds
