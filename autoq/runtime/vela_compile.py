"""What Vela, Arm's compiler for the Ethos-U NPUs, makes of a TFLite file, and what it thinks that would cost.

Vela schedules a file for one accelerator and models the time of each piece. Nothing runs: its figures are estimates,
and have a type of their own. What the accelerator cannot run Vela leaves to the host's processor and counts as no
time at all; here it is forbidden, or charged by the values that it writes.

Vela runs in a process of its own, for it ends, crashes or hangs as it likes.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoq.errors import ProfileError, TrialError
from autoq.spec.checking import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Npu:
    """An accelerator, and the system around it, by the names in Vela's ``Arm/vela.ini``."""

    accelerator: str
    system: str
    memory: str


NPUS: Mapping[str, Npu] = {
    "ethos-u55-128": Npu(accelerator="ethos-u55-128", system="Ethos_U55_High_End_Embedded", memory="Shared_Sram"),
    "ethos-u55-256": Npu(accelerator="ethos-u55-256", system="Ethos_U55_High_End_Embedded", memory="Shared_Sram"),
    "ethos-u65-256": Npu(accelerator="ethos-u65-256", system="Ethos_U65_High_End", memory="Dedicated_Sram"),
    "ethos-u85-256": Npu(accelerator="ethos-u85-256", system="Ethos_U85_SYS_DRAM_Mid", memory="Dedicated_Sram"),
}
"""Accelerators with a usual system each: U55 with flash, U65 and U85 with DRAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuEstimate:
    """What Vela estimates for one inference. None of it is measured.

    ``cycles`` are the accelerator's at ``clock_hz``, with ``host_cycles`` of them charged for operators on the host;
    ``sram_bytes`` and ``dram_bytes`` are what it uses of each memory; ``flash_bytes`` is the size of the compiled file:
    weights, compressed, and commands. ``layers`` are (tensor, cycles) pairs in the order of execution, and ``on_host``
    the operators that the accelerator does not run.
    """

    npu: Npu
    cycles: int
    host_cycles: int
    clock_hz: float
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    layers: tuple[tuple[str, int], ...]
    on_host: tuple[str, ...]

    @property
    def latency_ms(self) -> float:
        """The estimated time of one inference."""
        return 1000 * self.cycles / self.clock_hz


def estimate(
    model: bytes, npu: Npu, *, host_cycles_per_value: float | None = None, limit_s: float = 120
) -> NpuEstimate:
    """Vela's estimate of a TFLite file.

    An operator that stays on the host fails the candidate, unless ``host_cycles_per_value`` says how many of the
    accelerator's cycles the host takes for each value that it writes.

    Raises :class:`TrialError`: ``measure`` where Vela rejects the file, crashes, reports nonsense or leaves an operator
    to the host, ``timeout`` where it takes more than ``limit_s`` seconds; :class:`ProfileError` without Vela.
    """
    check_installed()
    with tempfile.TemporaryDirectory(prefix="autoq-vela-") as name:
        folder = Path(name)
        _compile(folder, model, npu, limit_s)
        compiled = (folder / "out" / "model_vela.tflite").read_bytes()
        host = _host_operators(compiled)
        if host and host_cycles_per_value is None:
            left = ", ".join(sorted({code for code, _ in host}))
            raise TrialError("measure", f"{npu.accelerator} does not run {left}: the host's processor would have to")
        summary = _rows(folder, "*_summary_*.csv")[-1]
        cycles = _number(summary, "cycles_total")
        if cycles <= 0:
            raise TrialError(
                "measure", f"Vela reports no cycles for {npu.accelerator}: nothing of the model runs on it"
            )
        layers = tuple(
            (row.get("Name", ""), round(_number(row, "Op Cycles"))) for row in _rows(folder, "*_per-layer.csv")
        )
    charged = round(sum(values for _, values in host) * (host_cycles_per_value or 0))
    return NpuEstimate(
        npu=npu,
        cycles=round(cycles) + charged,
        host_cycles=charged,
        clock_hz=_number(summary, "core_clock"),
        sram_bytes=round(1024 * _number(summary, "sram_memory_used")),
        dram_bytes=round(1024 * _number(summary, "dram_memory_used")),
        flash_bytes=len(compiled),
        layers=layers,
        on_host=tuple(code for code, _ in host),
    )


def compiled_for(model: bytes, npu: Npu, *, limit_s: float = 120) -> bytes:
    """The file that the accelerator's driver runs: TFLite with the command stream. Raises as :func:`estimate`."""
    check_installed()
    with tempfile.TemporaryDirectory(prefix="autoq-vela-") as name:
        _compile(Path(name), model, npu, limit_s)
        return (Path(name) / "out" / "model_vela.tflite").read_bytes()


def npu_of(npu: str, system: str | None = None, memory: str | None = None) -> Npu:
    """One of :data:`NPUS`, perhaps in another system or memory mode of ``Arm/vela.ini``; else a ``ProfileError``."""
    if not isinstance(npu, str) or npu not in NPUS:
        raise ProfileError(
            f"measure.options.npu: Vela has no accelerator {npu!r} here{nearest(npu, NPUS)}; known: {', '.join(NPUS)}"
        )
    known = NPUS[npu]
    return Npu(accelerator=known.accelerator, system=system or known.system, memory=memory or known.memory)


def installed() -> bool:
    """Whether Vela is there."""
    return importlib.util.find_spec("ethosu") is not None


def check_installed() -> None:
    """Raises :class:`~autoq.errors.ProfileError`, with the command that installs it, where Vela is not there."""
    if not installed():
        raise ProfileError("Vela is not installed; install it: pip install 'autoq[npu]'")


def _compile(folder: Path, model: bytes, npu: Npu, limit_s: float) -> None:
    (folder / "model.tflite").write_bytes(model)
    command = [sys.executable, "-m", "ethosu.vela", "model.tflite", "--output-dir", "out", "--verbose-performance"]
    command += ["--config", "Arm/vela.ini", "--accelerator-config", npu.accelerator]
    command += ["--system-config", npu.system, "--memory-mode", npu.memory]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrialError("timeout", f"Vela took more than {limit_s:g} s for {npu.accelerator}") from error
    if done.returncode or not (folder / "out" / "model_vela.tflite").is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        why = lines[-1] if lines else "without a word"
        raise TrialError("measure", f"Vela failed on the model for {npu.accelerator} (code {done.returncode}): {why}")


def _rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    found = sorted((folder / "out").glob(pattern))
    rows: list[dict[str, str]] = []
    if found:
        with found[0].open(newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    rows = [row for row in rows if any(row[field] != field for field in row)]  # a heading for each piece of the graph
    if not rows:
        raise TrialError("measure", f"Vela wrote no {pattern}")
    return rows


def _number(row: Mapping[str, str], field: str) -> float:
    text = row.get(field) or ""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TrialError("measure", f"Vela reports {field} = {text!r}, which is no figure")
    return number


def _host_operators(compiled: bytes) -> list[tuple[str, int]]:
    """Operators of the compiled file that are no command stream, and how many values each writes."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise ProfileError(f"LiteRT is not installed ({error}); install it: pip install 'autoq[npu]'") from error
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    model: Any = schema.Model.GetRootAs(compiled, 0)
    found = []
    for index in range(model.Subgraphs(0).OperatorsLength()):
        operator = model.Subgraphs(0).Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "?")
        if kind != "CUSTOM":
            found.append((kind, sum(_values(model, number) for number in operator.OutputsAsNumpy())))
    return found


def _values(model: Any, number: int) -> int:
    shape: Sequence[int] = model.Subgraphs(0).Tensors(int(number)).ShapeAsNumpy()
    return math.prod(int(size) for size in shape)
