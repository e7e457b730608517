"""What the search asks of whoever takes latency and memory of a file on the target.

A gauge is one file with one class, and one line in :data:`GAUGES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from autoq.core.result import FLOAT32_NAME, Estimate, Latency
from autoq.errors import ProfileError, TrialError
from autoq.runtime.named import made_by_name
from autoq.runtime.timing import TimingPlan
from autoq.spec.checking import nearest

METER = "meter"

# name -> "module:class". Text, so that naming a gauge does not import what it needs.
GAUGES: dict[str, str] = {
    METER: "autoq.runtime.meter:Meter",
    "command": "autoq.runtime.command:Command",
    "roofline": "autoq.model.roofline:Roofline",
    "vela": "autoq.runtime.vela:Vela",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was found out about one file.

    ``peak_memory_bytes``: growth of the process's resident memory, at its highest, by loading and running the file; on
    a device, what it needs of its memory. ``load_ms``: opening a session on the file, with the file in the page cache,
    in a process that has opened one before; ``reference_load_ms`` is the same of the reference, in the same processes.
    ``size_bytes``: what the file takes in the device's storage, where that is not the file itself.
    ``cpu_share``: the median round's share of its core. What else the machine did is in the latency's ``conditions``.
    """

    latency: Latency | Estimate
    peak_memory_bytes: int | None = None
    load_ms: float | None = None
    reference_load_ms: float | None = None
    size_bytes: int | None = None
    cpu_share: float = 1.0
    repeated_rounds: int = 0

    @property
    def disturbed(self) -> bool:
        """Whether other work disturbed it."""
        return isinstance(self.latency, Latency) and self.latency.disturbed


class Gauge(Protocol):
    """Takes latency and memory of files, against one reference. A context manager; may be used from several threads.

    All methods raise :class:`~autoq.errors.TrialError`: ``load`` where the target rejects a file, ``measure`` where it
    fails, ``timeout`` where it takes too long.
    """

    baseline: Path
    """The reference's file."""

    def measure(self, candidate: Path, *, idle_above: float = math.inf) -> Measurement:
        """One file; where its ratio is clearly above ``idle_above``, roughly will do."""
        ...

    def measure_many(self, candidates: Sequence[Path]) -> Sequence[Measurement]:
        """Several files, in turn with each other and the reference, more exactly than :meth:`measure`; no memory."""
        ...

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """Ratios to the reference, quickly; and whether that was disturbed."""
        ...

    def close(self) -> None:
        """Ends what was started; nothing, unless a gauge says otherwise."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure_each(gauge: Gauge, files: Sequence[Path]) -> list[Measurement | TrialError]:
    """:meth:`Gauge.measure_many`; where it fails, each half by itself, down to the files that fail and their errors.

    What fails may be one file, or that there is no room for so many at once.
    """
    try:
        return list(gauge.measure_many(files))
    except TrialError as error:
        if len(files) == 1:
            return [error]
        # One that hangs would hang in each half again.
        size = 1 if error.reason == "timeout" else (len(files) + 1) // 2
        parts = [files[start : start + size] for start in range(0, len(files), size)]
        return [found for part in parts for found in measure_each(gauge, part)]


def load_gauge(
    name: str,
    reference: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    batch: int = 1,
    threads: int = 1,
    runtime: str = "onnxruntime",
    runtime_options: Mapping[str, Any] | None = None,
    plan: TimingPlan | None = None,
    reference_name: str = FLOAT32_NAME,
    options: Mapping[str, Any] | None = None,
) -> Gauge:
    """The gauge called ``name``, told what its constructor names of all this, and made with ``options``.

    ``reference`` is the file that ratios are against, ``reference_name`` what it is: ``"float32"``, or the scheme of a
    uniform candidate. ``feeds`` has one inference's inputs, ``batch`` rows. Raises :class:`~autoq.errors.ProfileError`
    for an unknown name, for ``options`` that it does not take, and where its package is not installed.
    """
    occasion = {
        "batch": batch,
        "threads": threads,
        "runtime": runtime,
        "runtime_options": runtime_options,
        "plan": plan,
        "reference_name": reference_name,
    }
    if name not in GAUGES:  # the field that says it is another than the options'
        raise ProfileError(f"measure.by: unknown gauge {name!r}{nearest(name, GAUGES)}; known: {', '.join(GAUGES)}")
    gauge: Gauge = made_by_name(
        GAUGES, "gauge", name, (reference, feeds), field="measure.options", options=options or {}, occasion=occasion
    )
    return gauge
