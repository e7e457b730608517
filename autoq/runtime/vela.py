"""Arm Ethos-U: the gauge whose figures are estimates by Arm's compiler Vela (:mod:`autoq.runtime.vela_compile`)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from autoq.core.identity import sha256_hex
from autoq.core.result import Estimate
from autoq.errors import ProfileError, RunError, TrialError
from autoq.runtime.gauge import Gauge, Measurement
from autoq.runtime.timing import TimingPlan
from autoq.runtime.vela_compile import NpuEstimate, check_installed, compiled_for, estimate, installed, npu_of

COMPILED_FILE = "model_vela.tflite"
"""What :func:`write_compiled` writes."""


def write_compiled(model: bytes, folder: Path, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes what the accelerator's driver runs, compiled from a TFLite file, into ``folder``; the names of the files.

    ``options`` are a profile's for :class:`Vela`. Without Vela there is no such file. Raises
    :class:`~autoq.errors.RunError` where Vela fails or ``folder`` cannot be written.
    """
    if not installed():
        return ()
    names = {name: options[name] for name in ("npu", "system", "memory") if name in options}
    try:
        (folder / COMPILED_FILE).write_bytes(compiled_for(model, npu_of(**names)))
    except (OSError, TrialError) as error:
        raise RunError(f"{folder / COMPILED_FILE} cannot be written: {error}") from None
    return (COMPILED_FILE,)


class Vela(Gauge):
    """The :class:`~autoq.runtime.gauge.Gauge` whose figures are Vela's estimates. Equal files are compiled once."""

    def __init__(
        self,
        reference: Path,
        feeds: Mapping[str, Any],
        *,
        npu: str,
        system: str | None = None,
        memory: str | None = None,
        host_cycles_per_value: float | None = None,
        timeout_s: float = 120.0,
        runtime: str = "litert",
        reference_name: str = "w8a8",
    ) -> None:
        """``npu`` is one of :data:`NPUS`, ``system`` and ``memory`` may name another of its systems in Vela's
        ``Arm/vela.ini``; ``host_cycles_per_value`` is as in :func:`estimate`, ``timeout_s`` for one file.

        Raises :class:`~autoq.errors.ProfileError` without Vela, for an unknown ``npu``, and for a ``runtime`` of
        other files than TFLite's.
        """
        check_installed()
        if runtime != "litert":
            raise ProfileError(
                f"measure.by: vela reads TFLite files, so that runtime.name must be litert, not {runtime}"
            )
        for name, value in (("timeout_s", timeout_s), ("host_cycles_per_value", host_cycles_per_value)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise ProfileError(f"measure.options.{name}: must be a number above 0, not {value!r}")
        self.baseline, self.npu = Path(reference).resolve(), npu_of(npu, system, memory)
        self._host, self._limit_s, self._reference_name = host_cycles_per_value, timeout_s, reference_name
        self._by = f"Vela {metadata.version('ethos-u-vela')}, {npu}"
        self._kept: dict[str, NpuEstimate] = {}

    def measure(self, candidate: Path, *, idle_above: float = math.inf) -> Measurement:
        """Estimates of one file: ``peak_memory_bytes`` is RAM, ``size_bytes`` the compiled file, for flash."""
        return self._measurement(self._found(candidate))

    def measure_many(self, candidates: Sequence[Path]) -> list[Measurement]:
        """Estimates of several files, as many at a time as there are cores."""
        return [self._measurement(found) for found in self._all(candidates)]

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """The same ratios: an estimate is never disturbed."""
        return [self._latency(found).ratio for found in self._all(candidates)], False

    def _all(self, paths: Sequence[Path]) -> list[NpuEstimate]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # each waits for a process
            return list(pool.map(self._found, paths))

    def _found(self, path: Path) -> NpuEstimate:
        model = Path(path).read_bytes()
        key = sha256_hex(model)
        if key not in self._kept:
            self._kept[key] = estimate(model, self.npu, host_cycles_per_value=self._host, limit_s=self._limit_s)
        return self._kept[key]

    def _measurement(self, found: NpuEstimate) -> Measurement:
        return Measurement(
            latency=self._latency(found),
            peak_memory_bytes=found.sram_bytes + found.dram_bytes,
            size_bytes=found.flash_bytes,
        )

    def _latency(self, found: NpuEstimate) -> Estimate:
        figures = {
            "cycles": found.cycles,
            "host_cycles": found.host_cycles,
            "sram_bytes": found.sram_bytes,
            "dram_bytes": found.dram_bytes,
            "flash_bytes": found.flash_bytes,
        }
        return Estimate(
            ms=found.latency_ms,
            ratio=found.cycles / self._found(self.baseline).cycles,
            reference=self._reference_name,
            by=self._by,
            figures=figures,
        )
