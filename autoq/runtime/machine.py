"""What machine this is, and which versions run on it: read from the system, nothing imported for it."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

# What we call it -> the distributions that may provide it, the usual one first.
_SOFTWARE: dict[str, tuple[str, ...]] = {
    "autoq": ("autoq",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "vela": ("ethos-u-vela",),
    "onnx": ("onnx",),
    "numpy": ("numpy",),
    "optuna": ("optuna",),
    "ray": ("ray",),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """A machine as far as it decides which kernels run and how fast.

    ``flags`` are the CPU's features in the kernel's spelling (``avx512_vnni``, ``asimddp``, …), empty where they
    cannot be read. ``usable_cores`` are those this process may run on. ``memory_bytes`` is the physical memory.
    """

    arch: str
    os: str
    cpu_model: str
    flags: frozenset[str]
    physical_cores: int
    logical_cores: int
    usable_cores: int
    memory_bytes: int

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs of the machine that this program runs on, by name."""
        return gpu_names()

    @property
    def adds_pairs_in_16_bits(self) -> bool:
        """Whether integer kernels add two products in 16 bits here, and saturate: x86 with AVX2 and without VNNI."""
        return adds_pairs_in_16_bits(self.flags)


def adds_pairs_in_16_bits(flags: Collection[str]) -> bool:
    """As :attr:`MachineInfo.adds_pairs_in_16_bits`, of a CPU's features."""
    return "avx2" in flags and "avx512_vnni" not in flags and "avx_vnni" not in flags


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """The names of NVIDIA's GPUs here, as its driver's own tool gives them; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip()) if told.returncode == 0 else ()


def describe() -> MachineInfo:
    """This machine."""
    logical = os.cpu_count() or 1
    if sys.platform == "darwin":
        model, flags, physical = _darwin_cpu()
    else:
        model, flags, physical = parse_cpuinfo(_CPUINFO.read_text(errors="replace") if _CPUINFO.exists() else "")
    return MachineInfo(
        arch=platform.machine().lower(),
        os=f"{platform.system()} {platform.release()}".strip(),
        cpu_model=model or platform.processor() or "unknown",
        flags=flags,
        physical_cores=physical or logical,
        logical_cores=logical,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0,
    )


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str], int]:
    """Model, flags and number of physical cores (0: not told) from the text of Linux's ``/proc/cpuinfo``.

    Flags are those that every CPU has. Arm kernels say ``Features`` for flags and give no model name.
    """
    model, flags, cores = "", None, set()
    for block in text.strip().split("\n\n"):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        model = model or fields.get("model name", "") or fields.get("Model", "") or fields.get("Hardware", "")
        listed = fields.get("flags") or fields.get("Features")
        if listed:
            flags = frozenset(listed.split()) & (flags if flags is not None else frozenset(listed.split()))
        if "core id" in fields:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    return model, flags or frozenset(), len(cores)


def software_versions() -> dict[str, str | None]:
    """Versions by name, of Python and of each package that decides a result; None where it is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distributions in _SOFTWARE.items():
        versions[name] = next((found for one in distributions if (found := package_version(one))), None)
    return dict(sorted(versions.items()))


def package_version(distribution: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _darwin_cpu() -> tuple[str, frozenset[str], int]:
    """Model, flags and physical cores from ``sysctl``; features are those reported as 1 under ``hw.optional``."""

    def sysctl(*arguments: str) -> str:
        try:
            return subprocess.run(["sysctl", *arguments], capture_output=True, text=True, timeout=5, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    pairs = (line.partition(": ") for line in sysctl("hw.optional").splitlines())
    flags = frozenset(key.rsplit(".", 1)[-1].lower() for key, _, value in pairs if value.strip() == "1")
    physical = sysctl("-n", "hw.physicalcpu").strip()
    return sysctl("-n", "machdep.cpu.brand_string").strip(), flags, int(physical) if physical.isdigit() else 0
