"""Polishes one candidate, on a worker: new numbers for it, kept where rows held out say that they are better."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from autoq.core.policy import Policy
from autoq.core.result import Failure, PolishKind
from autoq.errors import TrialError
from autoq.model.polish import LayerPolish, polish
from autoq.model.target import Target
from autoq.runtime.closeness import Closeness
from autoq.search.evaluate import Evaluator, Scored

HELD_OUT = 4
"""One unit of so many is held out: the last of every four."""

BATCH = 32

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishWork:
    """What the polishes of one search share: the calibration rows, and how they hang together.

    ``unit`` rows belong together; ``fixed`` says that the model takes just so many at a time. The input
    ``padding_mask`` is 0 at positions that are not looked at.
    """

    kind: PolishKind
    inputs: Inputs
    unit: int
    fixed: bool = False
    padding_mask: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishItem:
    """One candidate to polish. ``deadline`` is a reading of ``time.time``."""

    policy: Policy
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishResult:
    """What came of it. ``why`` says why the old file stays; then there is no ``scored``."""

    measure: str
    held_out: tuple[float, float]
    layers: tuple[LayerPolish, ...]
    seconds: float
    why: str = ""
    scored: Scored | None = None


def polish_point(evaluator: Evaluator, work: PolishWork, item: PolishItem) -> PolishResult | Failure:
    """Polishes a candidate; a :class:`autoq.search.executor.Task`.

    Raises :class:`TrialError`: ``timeout`` where the deadline passes, whatever else where something does not run.
    """
    start = time.perf_counter()
    fit, held_out = halves(work)
    inputs = {name: np.concatenate([batch[name] for batch in held_out]) for name in work.inputs}
    lowering, policy, target = evaluator.lowering, item.policy, evaluator.target
    rows = len(next(iter(held_out[0].values())))

    def outputs(candidate: bytes) -> dict[str, np.ndarray]:
        return target.outputs(target.write(candidate), inputs, rows)

    def in_time(layer: LayerPolish | None = None) -> None:
        if time.time() > item.deadline:
            raise TrialError("timeout", "the time for polishing ran out")

    in_time()
    given = target if target.runs_onnx else Target.load("onnxruntime")
    float32 = given.outputs(lowering.graph.model.SerializeToString(), inputs, rows)
    closeness = Closeness.of_metric(evaluator.metric, float32)
    old = lowering.build(policy)
    before = closeness(outputs(old), float32)
    new, layers = polish(lowering, policy, fit, held_out, padding_mask=work.padding_mask, on_layer=in_time)
    model = new.build(policy)
    after = closeness(outputs(model), float32)
    if not (math.isfinite(before) and math.isfinite(after)):
        raise TrialError("metric", "outputs on calibration rows are not finite")
    result = PolishResult(
        measure=closeness.measure,
        held_out=(before, after),
        layers=layers,
        seconds=time.perf_counter() - start,
        why=_why_not(before, after, layers) or _other_form(old, model),
    )
    if result.why:
        return result
    scored = evaluator.score(policy, lambda: target.write(model))
    if isinstance(scored, Failure):
        return scored
    return PolishResult(
        measure=result.measure,
        held_out=result.held_out,
        layers=layers,
        seconds=time.perf_counter() - start,
        scored=scored,
    )


def halves(work: PolishWork) -> tuple[list[Inputs], list[Inputs]]:
    """The rows to fit and those held out, in batches: every fourth unit is held out, of fewer the last.

    Raises :class:`TrialError` (``build``) where there are not two units.
    """
    rows = len(next(iter(work.inputs.values())))
    units = rows // work.unit
    if units < 2:
        what = "one batch of the model's" if work.fixed else "one"
        raise TrialError("build", f"{rows} calibration rows are too few: some must be held out, and there is {what}")
    held = [unit for unit in range(units) if unit % HELD_OUT == HELD_OUT - 1] or [units - 1]
    kept = [unit for unit in range(units) if unit not in set(held)]
    per_batch = 1 if work.fixed else max(1, BATCH // work.unit)
    return _batches(work, kept, per_batch), _batches(work, held, per_batch)


def _batches(work: PolishWork, units: Sequence[int], per_batch: int) -> list[Inputs]:
    batches: list[Inputs] = []
    for start in range(0, len(units), per_batch):
        rows = (np.array(units[start : start + per_batch])[:, None] * work.unit + np.arange(work.unit)).reshape(-1)
        batches.append({name: values[rows] for name, values in work.inputs.items()})
    return batches


def _why_not(before: float, after: float, layers: Sequence[LayerPolish]) -> str:
    if not any(layer.kept for layer in layers):
        reasons = dict.fromkeys(layer.skipped for layer in layers if layer.skipped)
        return "no layer came nearer to float32" + (f" ({'; '.join(reasons)})" if reasons else "")
    return "" if after < before else "its outputs on the rows held out came no nearer to float32's"


def _other_form(before: bytes, after: bytes) -> str:
    """What differs besides numbers, or nothing: then the runtime runs the same kernels."""
    same = computing_nodes(before) == computing_nodes(after)
    return "" if same else "the new numbers need another form of the graph"


def computing_nodes(model: bytes) -> list[tuple[str, list[onnx.AttributeProto]]]:
    """Operators and attributes in order, less what hangs on constants alone: that folds when the session loads."""
    graph = onnx.ModelProto.FromString(model).graph
    constant = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
        else:
            found.append((node.op_type, list(node.attribute)))
    return found
