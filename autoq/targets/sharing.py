"""What the search for one target takes over from those for others, where the arithmetic is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoq.core.policy import Policy
from autoq.core.result import Front
from autoq.pipeline import TakenOver
from autoq.record.run_folder import RunFolder
from autoq.search.store import TrialLog
from autoq.setting import Setting
from autoq.spec.hardware import Profile


def arithmetic(profile: Profile) -> str:
    """What decides which outputs a file gives, on one machine."""
    runtime = profile.runtime
    return f"{runtime.name} {sorted(runtime.arguments.items())}"


def taken_over(
    path: Path, fronts: Mapping[str, Front], settings: Mapping[str, Setting], setting: Setting, parent_run: str
) -> TakenOver:
    """What the search of ``setting`` takes over from those that have ended with ``fronts``, in folders of ``path``.

    ``fronts`` and ``settings`` are by the profile's name. ``parent_run`` is the tracking server's run of all.
    """
    known: dict[str, float] = {}
    seeds: dict[Policy, str] = {}
    for name, front in fronts.items():
        if arithmetic(settings[name].profile) == arithmetic(setting.profile):
            log = TrialLog(RunFolder(path / name).trials)
            known |= {t.sha256: t.metric for t in log.read() if t.sha256 is not None and t.metric is not None}
        for point in front.points:
            seeds.setdefault(point.policy, f"front:{name}")
    return TakenOver(
        setting=setting,
        known=known,
        seeds=tuple((origin, policy) for policy, origin in seeds.items()),
        parent_run=parent_run,
    )
