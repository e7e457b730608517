"""The gauge ``roofline``: an analytic estimate of one inference on an accelerator that nothing here can run.

Each operator takes the longer of its arithmetic and its traffic, and an overhead (Williams, Waterman and Patterson,
"Roofline: an insightful visual performance model for multicore architectures", CACM 52(4), 2009). What cannot run on
the accelerator runs on its host, at the host's rates: float layers are charged and never free. docs/roofline.md has
the formulas and an example by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.result import FLOAT32_NAME, Estimate
from autoq.errors import ProfileError, TrialError
from autoq.model.operations import Operation, operations
from autoq.runtime.gauge import Gauge, Measurement
from autoq.runtime.timing import TimingPlan
from autoq.spec.checking import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """An accelerator and its host, in the units of its data sheet.

    ``int8_gmacs_s``, ``int16_gmacs_s`` and ``int4_gmacs_s`` are peak rates in 10^9 multiply-accumulates a second, by
    the wider of the two operands but for the last: weights of at most 4 bits with 8-bit activations (by default as
    int8). ``vector_gops_s`` are 10^9 results a second of operators that multiply no weights. ``memory_gb_s`` is the
    bandwidth of the memory outside (10^9 bytes a second), ``sram_kib`` what stays on the chip, ``overhead_us`` the
    microseconds to start an operator. The host's are likewise, in float32; a host with 0 ``host_gmacs_s`` is none.
    """

    int8_gmacs_s: float
    memory_gb_s: float
    sram_kib: float
    int16_gmacs_s: float = 0.0
    int4_gmacs_s: float = 0.0
    vector_gops_s: float = 0.0
    overhead_us: float = 0.0
    host_gmacs_s: float = 0.0
    host_gops_s: float = 0.0
    host_gb_s: float = 0.0
    host_overhead_us: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ProfileError(f"measure.options.{name}: must be a number of at least 0 ({value!r})")
        for name in ("int8_gmacs_s", "memory_gb_s"):
            if not getattr(self, name):
                raise ProfileError(f"measure.options.{name}: must be above 0")
        if self.host_gmacs_s and not (self.host_gops_s and self.host_gb_s):
            raise ProfileError("measure.options: a host with host_gmacs_s has host_gops_s and host_gb_s as well")

    def rate(self, operation: Operation) -> float:
        """Multiply-accumulates a second, of an operation on the accelerator; 0 where it has no such units."""
        if operation.activation_bits > 8 or operation.weight_bits > 8:
            return 1e9 * self.int16_gmacs_s
        narrow = operation.weight_bits <= 4 and self.int4_gmacs_s
        return 1e9 * (self.int4_gmacs_s if narrow else self.int8_gmacs_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costed:
    """One operation and what it takes: seconds in all, and the bytes that it moves to and from the memory outside."""

    operation: Operation
    seconds: float
    moved: float
    on_host: bool


def costs(found: Sequence[Operation], chip: Chip) -> list[Costed]:
    """What each operation of one inference takes, in order.

    Raises :class:`TrialError` (``measure``) for one that needs a host where there is none.
    """
    sram = 1024 * chip.sram_kib
    placed = [(each, not each.integer or (each.macs > 0 and not chip.rate(each))) for each in found]
    weights = sum(each.weight_bytes for each, on_host in placed if not on_host)
    largest = max((each.working_bytes for each, on_host in placed if not on_host), default=0)
    resident = weights + largest <= sram
    return [_host(each, chip) if on_host else _chip(each, chip, sram, resident) for each, on_host in placed]


def _chip(each: Operation, chip: Chip, sram: float, resident: bool) -> Costed:
    compute = each.macs / chip.rate(each) if each.macs else 0.0
    if each.results and chip.vector_gops_s:
        compute += each.results / (1e9 * chip.vector_gops_s)
    moved = (0.0 if resident else each.weight_bytes) + (0.0 if each.working_bytes <= sram else each.working_bytes)
    seconds = max(compute, moved / (1e9 * chip.memory_gb_s)) + 1e-6 * chip.overhead_us
    return Costed(operation=each, seconds=seconds, moved=moved, on_host=False)


def _host(each: Operation, chip: Chip) -> Costed:
    if not chip.host_gmacs_s:
        raise TrialError(
            "measure",
            f"{each.name} ({each.op_type}) cannot run on this accelerator, and its profile gives no host to run it "
            "(measure.options.host_gmacs_s)",
        )
    compute = each.macs / (1e9 * chip.host_gmacs_s) + each.results / (1e9 * chip.host_gops_s)
    moved = each.weight_bytes + each.working_bytes
    seconds = max(compute, moved / (1e9 * chip.host_gb_s)) + 1e-6 * chip.host_overhead_us
    return Costed(operation=each, seconds=seconds, moved=moved, on_host=True)


class Roofline(Gauge):
    """The :class:`~autoq.runtime.gauge.Gauge` that computes. Nothing runs, and files need not run here."""

    def __init__(
        self,
        reference: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        reference_name: str = FLOAT32_NAME,
        **options: Any,
    ) -> None:
        """``options`` are those of :class:`Chip`."""
        self.baseline, self.reference_name = Path(reference), reference_name
        known = Chip.__dataclass_fields__
        for name in options:
            if name not in known:
                raise ProfileError(f"measure.options: the roofline has no {name!r}{nearest(name, known)}")
        missing = [each.name for each in fields(Chip) if each.default is MISSING and each.name not in options]
        if missing:
            raise ProfileError(f"measure.options of 'roofline': {missing[0]} is missing")
        self.chip = Chip(**options)
        self._feeds = dict(feeds)
        self._reference_s: float | None = None

    def measure(self, candidate: Path, *, idle_above: float = math.inf) -> Measurement:
        """See :class:`~autoq.runtime.gauge.Gauge`."""
        estimate = self._estimate(candidate)
        return Measurement(latency=estimate, peak_memory_bytes=int(estimate.figures["memory_bytes"]))

    def measure_many(self, candidates: Sequence[Path]) -> list[Measurement]:
        """See :class:`~autoq.runtime.gauge.Gauge`."""
        return [self.measure(each) for each in candidates]

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """See :class:`~autoq.runtime.gauge.Gauge`."""
        return [self._estimate(each).ratio for each in candidates], False

    def _estimate(self, path: Path) -> Estimate:
        found = self._costs(path)
        if self._reference_s is None:
            self._reference_s = sum(each.seconds for each in self._costs(self.baseline))
        seconds = sum(each.seconds for each in found)
        return Estimate(
            ms=1e3 * seconds,
            ratio=seconds / self._reference_s,
            reference=self.reference_name,
            by=f"roofline, {self.chip.int8_gmacs_s:g} GMAC/s int8, {self.chip.memory_gb_s:g} GB/s",
            figures={
                "host_ms": 1e3 * sum(each.seconds for each in found if each.on_host),
                "host_operators": sum(each.on_host for each in found),
                "moved_bytes": sum(each.moved for each in found),
                "memory_bytes": max((each.operation.working_bytes for each in found), default=0),
                "sram_bytes": max((each.operation.working_bytes for each in found if not each.on_host), default=0),
                "weights_bytes": sum(each.operation.weight_bytes for each in found),
            },
        )

    def _costs(self, path: Path) -> list[Costed]:
        return costs(operations(path, self._feeds), self.chip)
