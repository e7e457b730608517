"""Builds a candidate and scores its metric: the part of a trial that may run anywhere, beside others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.result import Failure, Pruned
from autoq.core.scheme import ActivationSpec, WeightSpec
from autoq.errors import MetricError, TrialError
from autoq.model.entries import Entry
from autoq.model.graph import Graph
from autoq.model.lower import Affine, Lowering
from autoq.model.target import Target
from autoq.runtime.metric import Metric
from autoq.search.fidelity import Hurdle, Steps, score_in_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """All that evaluating needs, sent to each worker once.

    ``model`` is the serialized prepared model; ``inputs`` [rows, ...] and ``targets`` [rows] are the search split;
    ``metric`` is the job's metric as plain data, with ``base_dir`` to find its file. ``forms`` are those that
    candidates are written in. ``steps`` is how they are scored; ``None`` is on all rows at once. ``runtime``, made with
    ``runtime_options``, is what they are scored on (:data:`autoq.runtime.base.RUNTIMES`). ``known`` has the
    metric of files, by SHA-256, that were scored so already.
    """

    model: bytes
    layers: tuple[Layer, ...]
    affines: Mapping[tuple[str, ActivationSpec], Affine]
    bank: Mapping[tuple[str, WeightSpec], Entry]
    corrections: Mapping[tuple[str, WeightSpec], np.ndarray]
    smoothing: Mapping[tuple[str, float], np.ndarray]
    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray | None
    metric: Mapping[str, Any]
    base_dir: str
    batch: int
    accuracy_level: int = 4
    integer_products: bool = False
    threads: int = 1
    forms: tuple[str, ...] = ()
    steps: Steps | None = None
    runtime: str = "onnxruntime"
    runtime_options: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate's file and what does not depend on the hardware. ``metric`` is finite."""

    model: bytes
    metric: float
    sha256: str
    weight_bits_mean: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A candidate that was dropped before all rows were scored, or since it is not worth timing."""

    pruned: Pruned
    size_bytes: int
    sha256: str
    weight_bits_mean: float
    seconds: dict[str, float] = field(default_factory=dict)


class Evaluator:
    """Evaluates policies of one workload; keeps what they share."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        graph = Graph(onnx.ModelProto.FromString(workload.model))
        self.lowering = Lowering(
            graph,
            workload.layers,
            workload.affines,
            workload.bank,
            corrections=workload.corrections,
            smoothing=workload.smoothing,
            accuracy_level=workload.accuracy_level,
            forms=workload.forms,
            integer_products=workload.integer_products,
        )
        self.target = Target.load(workload.runtime, workload.runtime_options)
        self.metric = Metric.from_spec(workload.metric, Path(workload.base_dir))

    def evaluate(self, policy: Policy, hurdle: Hurdle | None = None) -> Scored | Dropped | Failure:
        """Builds, loads and scores a canonical policy; one that will not take its ``hurdle`` is dropped on the way.

        What goes wrong with the candidate comes back as a value. That holds for a defect of our own, too: one candidate
        that cannot be built must not cost the whole search.
        """
        return self._attempt(policy, lambda: self.build(policy), hurdle or Hurdle())

    def build(self, policy: Policy) -> bytes:
        """The file of a canonical policy, as it ships on the target; raises :class:`TrialError` (``build``)."""
        return self.target.write(self.lowering.build(policy))

    def score(self, policy: Policy, build: Callable[[], bytes]) -> Scored | Failure:
        """As :meth:`evaluate`, of the file that ``build`` gives, on all rows whatever comes."""
        result = self._attempt(policy, build, Hurdle())
        assert not isinstance(result, Dropped)
        return result

    def _attempt(self, policy: Policy, build: Callable[[], bytes], hurdle: Hurdle) -> Scored | Dropped | Failure:
        seconds: dict[str, float] = {}
        work = self.workload
        try:
            model = _timed(seconds, "build", build)
            sha256, bits = hashlib.sha256(model).hexdigest(), weight_bits_mean(work.layers, policy)
            if (known := work.known.get(sha256)) is not None:
                return Scored(model=model, metric=known, sha256=sha256, weight_bits_mean=bits, seconds=seconds)
            session = _timed(seconds, "load", lambda: self.target.runtime.open(model, threads=work.threads))
            outputs, pruned = _timed(seconds, "metric", lambda: self._outputs(session, hurdle.for_size(len(model))))
            if pruned is not None:
                return Dropped(
                    pruned=pruned, size_bytes=len(model), sha256=sha256, weight_bits_mean=bits, seconds=seconds
                )
            metric = _timed(seconds, "metric_function", lambda: self.metric(outputs, work.targets))
        except TrialError as error:
            return Failure(reason=error.reason, message=str(error))  # type: ignore[arg-type]
        except MetricError as error:
            return Failure(reason="metric", message=str(error))
        except MemoryError:
            step = list(seconds)[-1].removesuffix("_function")
            return Failure(reason=step, message="the model or its outputs do not fit into memory")  # type: ignore[arg-type]
        except Exception as error:
            step = list(seconds)[-1].removesuffix("_function")
            message = f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Failure(reason=step, message=message)  # type: ignore[arg-type]
        return Scored(model=model, metric=metric, sha256=sha256, weight_bits_mean=bits, seconds=seconds)

    def _outputs(self, session: Any, limit: tuple[float, str]) -> tuple[dict[str, np.ndarray], Pruned | None]:
        work, run = self.workload, self.target.runtime.run
        if work.steps is None:
            return run(session, work.inputs, work.batch), None
        return score_in_steps(
            lambda rows: run(session, rows, work.batch),
            self.metric,
            work.inputs,
            work.targets,
            work.steps,
            limit,
        )


def weight_bits_mean(layers: tuple[Layer, ...], policy: Policy) -> float:
    """Mean bits per weight over the layers' parameters, each shared weight counted once."""
    own = [layer for layer in layers if layer.tied_to is None]
    schemes = dict(policy)
    bits = sum(layer.parameters * schemes[layer.name].weight_bits for layer in own)
    return bits / sum(layer.parameters for layer in own)


def _timed(seconds: dict[str, float], name: str, step: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    try:
        return step()
    finally:
        seconds[name] = time.perf_counter() - start
