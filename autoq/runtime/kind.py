"""Of one kind or not: may figures that two machines took stand beside each other?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoq.runtime.machine import MachineInfo, adds_pairs_in_16_bits, package_version, software_versions

# The features of a CPU, in the kernel's spelling, that choose between kernels of the runtimes.
_KERNEL_FLAGS = frozenset({
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "avx512_bf16", "amx_bf16",
    "asimd", "asimddp", "i8mm", "sve", "sve2", "feat_dotprod", "feat_i8mm",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What makes two machines one to a search.

    ``flags`` are the CPU's features that choose between kernels, sorted, ``cores`` its logical ones; ``versions`` are
    those of autoq and of the runtime, ``None`` where there is none.
    """

    arch: str
    cpu_model: str
    flags: tuple[str, ...]
    cores: int
    versions: Mapping[str, str | None]

    def timed_otherwise(self, other: Kind) -> str:
        """Why times taken on ``other`` cannot stand beside those of this one, in words; empty where they can."""
        found = self._otherwise(other)
        if self.cpu_model != other.cpu_model:
            found.append(f"CPU {other.cpu_model}, not {self.cpu_model}")
        if self.cores != other.cores:
            found.append(f"{other.cores} cores, not {self.cores}")
        if less := sorted({*self.flags} - {*other.flags}):
            found.append(f"no {', '.join(less)}")
        if more := sorted({*other.flags} - {*self.flags}):
            found.append(f"{', '.join(more)} besides")
        return "; ".join(found)

    def scored_otherwise(self, other: Kind) -> str:
        """Why a file may have another metric on ``other`` than on this one, by more than sums in another order make."""
        found = self._otherwise(other)
        here, there = adds_pairs_in_16_bits(self.flags), adds_pairs_in_16_bits(other.flags)
        if here != there:
            has = "has no VNNI, without which its integer kernels" if there else "has VNNI, without which those here"
            found.append(f"it {has} add in 16 bits and saturate")
        return "; ".join(found)

    def _otherwise(self, other: Kind) -> list[str]:
        found = [] if self.arch == other.arch else [f"{other.arch}, not {self.arch}"]
        for name, version in self.versions.items():
            if other.versions.get(name) != version:
                found.append(f"{name} {other.versions.get(name)}, not {version}")
        return found


def kind_of(machine: MachineInfo, runtime: str) -> Kind:
    """The kind of ``machine``, which is the one that this runs on, for what ``runtime`` runs."""
    versions = software_versions()
    return Kind(
        arch=machine.arch,
        cpu_model=machine.cpu_model,
        flags=tuple(sorted(machine.flags & _KERNEL_FLAGS)),
        cores=machine.logical_cores,
        versions={
            "autoq": versions["autoq"],
            runtime: versions[runtime] if runtime in versions else package_version(_PACKAGES.get(runtime, runtime)),
        },
    )


# Runtimes that are called otherwise than their packages.
_PACKAGES = {"litert": "ai-edge-litert"}
