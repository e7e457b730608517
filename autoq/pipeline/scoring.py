"""How candidates are judged, and who scores and measures them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from autoq.core.objectives import Values
from autoq.core.result import FrontPoint
from autoq.model.lower import Lowering
from autoq.runtime.base import fixed_batch
from autoq.runtime.gauge import Gauge
from autoq.search.evaluate import Workload
from autoq.search.executor import Executor, LocalExecutor
from autoq.search.fidelity import Steps, plan_steps, planned_looks
from autoq.search.problem import Problem
from autoq.setting import Setting


def problem_of(setting: Setting, lowering: Lowering, baseline: FrontPoint) -> Problem:
    """What is searched, and what float32 reaches of it."""
    return Problem(
        candidates=setting.candidates,
        canonical=lowering.canonical,
        seed_schemes=tuple(dict.fromkeys(map(setting.profile.instead_of, setting.space.seeds))),
        objectives=setting.job.objectives,
        direction=setting.metric.direction,
        constraints=setting.job.constraints,
        baseline=Values(
            metric=baseline.metric.search,
            latency_ratio=baseline.latency.ratio if baseline.latency else None,
            size_bytes=baseline.size_bytes,
            peak_memory_bytes=baseline.peak_memory_bytes,
        ),
        profile=setting.profile,
    )


def looks(setting: Setting) -> tuple[int, ...]:
    """After how many rows of the search split candidates may be dropped; none where all are scored whatever comes."""
    if setting.job.search.fidelity == "full":
        return ()
    return planned_looks(setting.search.rows, setting.search.group, _chunk(setting))


def _chunk(setting: Setting) -> int:
    """Rows that go through the model at once when it is scored."""
    return fixed_batch(setting.inputs) or setting.job.data.batch


def steps_of(setting: Setting, answers: Mapping[str, np.ndarray]) -> Steps | None:
    """In which steps candidates are scored, given float32's ``answers``; ``None`` is on all rows at once."""
    if not looks(setting):
        return None
    split = setting.search
    return plan_steps(
        setting.metric, answers, split.targets, group=split.group, chunk=_chunk(setting), seed=setting.job.seed
    )


def executor_of(workload: Workload, gauge: Gauge, ray: str, workers: int) -> Executor:
    """This process, or Ray's workers."""
    if ray == "off":
        return LocalExecutor(workload, gauge)
    from autoq.search.ray_executor import RayExecutor

    return RayExecutor(workload, gauge, address=ray, workers=workers)
