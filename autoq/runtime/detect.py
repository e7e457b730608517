"""Which hardware profiles describe this machine, the best first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoq.errors import AutoqError
from autoq.runtime.extras import missing_extra
from autoq.runtime.machine import MachineInfo, describe, software_versions
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.profile_page import gauge_name, obtained
from autoq.spec.resources import named

_KINDS = ("gpu", "npu", "cpu")
_FIRST = "onnxruntime"  # stock, so that whoever gets the file can run it


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How one profile stands to a machine.

    ``profile`` is ``None`` where its file is wrong, and ``problems`` then says how. ``problems`` are what the machine
    lacks; ``install`` is the command that installs what the profile's runtime needs, or empty.
    """

    name: str
    profile: Profile | None
    problems: tuple[str, ...]
    install: str = ""

    @property
    def fits(self) -> bool:
        """Whether a search can run on it here as things are."""
        return not self.problems and not self.install

    @property
    def reason(self) -> str:
        """Why a search cannot, or that it can, in words."""
        if self.problems:
            return "; ".join(self.problems)
        return f"its runtime is not installed: {self.install}" if self.install else "fits this machine"


def fit(profile: Profile, machine: MachineInfo) -> Fit:
    """How ``profile`` stands to ``machine``."""
    gpus = machine.gpus if profile.match.gpu_names else ()
    problems = profile.match_problems(machine.arch, machine.flags, gpus)
    if profile.probed is not None:
        problems += profile.probed.elsewhere(machine.cpu_model, software_versions())
    install = missing_extra(profile.runtime.name, gauge_name(profile))
    return Fit(name=profile.name, profile=profile, problems=tuple(problems), install=install)


def detect(machine: MachineInfo | None = None) -> list[Fit]:
    """Every profile that comes with autoq, the best for ``machine`` (this one) first.

    What fits goes before what does not, and among those that fit: what is measured here before what is estimated, what
    asks something of the machine before what fits any, a GPU before an NPU before a CPU, stock ONNX Runtime before
    other runtimes, and what asks for more before what asks for less.
    """
    machine = machine or describe()
    found = []
    for name in named("hardware_profiles"):
        try:
            found.append(fit(load_profile(name, Path()), machine))
        except AutoqError as error:
            found.append(Fit(name=name, profile=None, problems=(str(error),)))
    return sorted(found, key=_rank)


def _rank(found: Fit) -> tuple[bool, bool, bool, bool, int, bool, int, str]:
    profile = found.profile
    if profile is None:
        return (True, True, True, True, 0, True, 0, found.name)
    asked = sum(bool(value) for value in profile.match.model_dump().values())
    return (
        not found.fits,
        bool(found.problems),
        obtained(profile) == "estimated",
        asked == 0,
        _KINDS.index(profile.kind),
        profile.runtime.name != _FIRST,
        -asked,
        found.name,
    )
