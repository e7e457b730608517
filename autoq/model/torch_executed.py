"""Which kernel each layer of a file runs in, read from the plan that PyTorch computes it by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from autoq.model.torch_plan import Step
from autoq.model.torch_runtime import TorchRuntime
from autoq.runtime.executed import Executed, LayerNames

_PRECISION = {
    "_int_mm": "int8",
    "MatMulInteger": "int8",
    "_scaled_mm": "fp8",
    "MatMulNBits": "blocks",
    "Gather": "float32",
}
_FLOATS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "float32"}


def executed_steps(runtime: TorchRuntime, model: bytes | Path, layers: Sequence[LayerNames]) -> list[Executed]:
    """For each layer, what ``runtime`` runs it in; ``precision`` may be ``bf16``, ``fp16`` or ``fp8``, too.

    Raises :class:`autoq.errors.TrialError` where the file cannot be run, on one row of zeros.
    """
    session = runtime.open(model)
    feeds = {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in session.specs}
    runtime.run(session, feeds, 1)
    (plan,) = session.plans.values()
    steps = {step.node: step for step in plan.steps if step.node}
    return [_executed(names, steps.get(names.node)) for names in layers]


def _executed(names: LayerNames, step: Step | None) -> Executed:
    if step is None:
        return Executed(layer=names.layer, kernel="", precision="")
    kinds = {each.dtype for each in step.operands if isinstance(each, torch.Tensor)}
    own = next((name for kind, name in _FLOATS.items() if kind in kinds), "float32")
    return Executed(layer=names.layer, kernel=step.runs, precision=_PRECISION.get(step.runs, own))
