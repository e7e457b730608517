"""What the search for one target takes over from those for others, where the arithmetic is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoq.core.policy import Policy
from autoq.core.result import Front, Trial
from autoq.pipeline import Outcome, TakenOver
from autoq.record.run_folder import RunFolder
from autoq.search.store import TrialLog
from autoq.setting import Setting
from autoq.spec.hardware import Profile


def arithmetic(profile: Profile) -> str:
    """What decides which outputs a file gives, on one machine."""
    runtime = profile.runtime
    return f"{runtime.name} {sorted(runtime.arguments.items())}"


def taken_over(
    path: Path,
    fronts: Mapping[str, Front],
    outcomes: Mapping[str, Outcome],
    settings: Mapping[str, Setting],
    setting: Setting,
    parent_run: str,
) -> TakenOver:
    """What the search of ``setting`` takes over from those that have ended with ``fronts``, in folders of ``path``.

    ``fronts``, ``outcomes`` of those that were searched in this process, and ``settings`` are by the profile's name.
    ``parent_run`` is the tracking server's run of all.
    """
    own = arithmetic(setting.profile)
    answers = [found.answers for name, found in outcomes.items() if arithmetic(settings[name].profile) == own]
    calibrated = [found.calibrated for found in outcomes.values() if found.calibrated is not None]
    scored: list[tuple[str, Trial]] = []
    seeds: dict[Policy, str] = {}
    for name, front in fronts.items():
        if arithmetic(settings[name].profile) == own:
            scored += [(f"known:{name}", trial) for trial in TrialLog(RunFolder(path / name).trials).read()]
        else:
            for point in front.points:
                seeds.setdefault(point.policy, f"front:{name}")
    return TakenOver(
        setting=setting,
        scored=tuple(scored),
        answers=answers[0] if answers else None,
        calibrated=max(calibrated, key=lambda each: len(each.affines), default=None),
        seeds=tuple((origin, policy) for policy, origin in seeds.items()),
        parent_run=parent_run,
    )
