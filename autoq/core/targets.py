"""What came of one job on several pieces of hardware: every file on each of them, and one file for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPoint:
    """One file on one target: found there, or found for another and scored and timed there as well.

    ``found_for`` is the profile whose search found it, ``file`` its path relative to the folder of the whole search.
    ``metric`` is on the final split, on this target's runtime; ``drop`` is against float32 there, ``size_ratio`` too.
    ``size_bytes`` is what this target stores. ``latency_ratio`` is against the target's reference, ``estimated`` where
    nothing ran. Intervals are of 95 %, ``None`` where there is none. ``breaks`` has a sentence for
    each of the job's constraints that it breaks here. ``on_front`` says whether no other file beats it here.
    """

    id: str
    sha256: str
    found_for: str
    file: str
    metric: float
    drop: float
    size_bytes: int
    size_ratio: float
    latency_ratio: float | None = None
    latency_ms: float | None = None
    estimated: bool = False
    peak_memory_bytes: int | None = None
    metric_ci95: tuple[float, float] | None = None
    drop_ci95: tuple[float, float] | None = None
    latency_ci95: tuple[float, float] | None = None
    breaks: tuple[str, ...] = ()
    on_front: bool = False

    def cost(self, objective: str) -> float | None:
        """What ``objective`` (``"latency"``, ``"size"`` or ``"peak_memory"``) costs here; ``None`` where not taken."""
        costs = {"latency": self.latency_ratio, "size": self.size_ratio, "peak_memory": self.peak_memory_bytes}
        return costs[objective]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """All files that run on one target; ``run`` is its run folder's name. ``refused`` has the others, and why."""

    profile: str
    run: str
    reference: str
    baseline_metric: float
    baseline_ms: float | None
    points: tuple[TargetPoint, ...]
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTarget:
    """What one file for all costs on one target: ``cost`` is the common file's over the best one's (1 = nothing)."""

    profile: str
    best: TargetPoint
    common: TargetPoint
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonFile:
    """The file that serves all targets best, judged by ``objective``; ``cost`` is the geometric mean over them."""

    objective: str
    cost: float
    on: tuple[OnTarget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """``targets.json``. ``why_no_common`` says why there is no file for all, where there is none."""

    name: str
    objectives: tuple[str, ...]
    metric_name: str
    metric_direction: Literal["maximize", "minimize"] = "maximize"
    targets: tuple[TargetResult, ...]
    common: CommonFile | None = None
    why_no_common: str = ""


def common_file(targets: Sequence[TargetResult], objectives: Sequence[str]) -> tuple[CommonFile | None, str]:
    """The file that keeps the constraints on every target and costs the least there; or ``None``, and why.

    It is judged by the first of latency, size and peak memory that is an objective: on each target by the ratio to the
    best file that keeps the constraints there, over targets by the geometric mean.
    """
    objective = next((name for name in ("latency", "size", "peak_memory") if name in objectives), "size")
    best: dict[str, tuple[float, TargetPoint]] = {}
    for target in targets:
        kept = [(cost, point) for point in target.points if (cost := _cost(point, objective)) is not None]
        if not kept:
            return None, f"on {target.profile} no file keeps the constraints"
        best[target.profile] = min(kept, key=lambda each: (each[0], -each[1].metric, each[1].sha256))
    shared = set.intersection(*({point.sha256 for point in target.points} for target in targets))
    if not shared:
        return None, "no file runs on all of them: they read different kinds of files, or reject each other's"
    found: list[CommonFile] = []
    broken: list[str] = []
    for sha256 in sorted(shared):
        parts = []
        for target in targets:
            point = next(each for each in target.points if each.sha256 == sha256)
            cost = _cost(point, objective)
            if cost is None:
                broken.append(f"{point.id} on {target.profile}: {'; '.join(point.breaks) or 'not measured'}")
                break
            least, own = best[target.profile]
            parts.append(OnTarget(profile=target.profile, best=own, common=point, cost=cost / least))
        if len(parts) == len(targets):
            mean = math.exp(sum(math.log(part.cost) for part in parts) / len(parts))
            found.append(CommonFile(objective=objective, cost=mean, on=tuple(parts)))
    if not found:
        return None, f"none of the {len(shared)} files that run on all keeps the constraints on all; {broken[0]}"
    return min(found, key=lambda each: (each.cost, max(part.cost for part in each.on))), ""


def _cost(point: TargetPoint, objective: str) -> float | None:
    return None if point.breaks else point.cost(objective)
