"""Hand-made search problems: layers without a model behind them, and an executor that answers from a table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from autoq.core.layer import Layer
from autoq.core.objectives import Constraints, Direction, Objective, Values
from autoq.core.policy import Policy
from autoq.core.result import Failure, Latency, Pruned, Trial
from autoq.core.scheme import Scheme
from autoq.errors import TrialError
from autoq.runtime.gauge import Measurement
from autoq.search.candidates import Candidates
from autoq.search.evaluate import Dropped, Scored
from autoq.search.executor import with_hurdles
from autoq.search.fidelity import Hurdle
from autoq.search.problem import Problem
from autoq.search.proposer import Proposer
from autoq.spec.hardware import load_profile

SCHEMES = tuple(Scheme.parse(text) for text in ("float32", "w8", "w4", "w8a8@minmax", "w4a8@mse"))
PROFILE = load_profile("cpu-x86-onnxruntime", Path())
BASELINE = Values(metric=0.9, latency_ratio=1.0, size_bytes=1000, peak_memory_bytes=5000)


def make_layer(name: str, tied_to: str | None = None) -> Layer:
    return Layer(
        name=name,
        op_type="Conv",
        node=name,
        weight=f"{tied_to or name}.w",
        weight_index=1,
        weight_shape=(8, 4, 3, 3),
        channel_axis=0,
        input=f"{name}.in",
        output=f"{name}.out",
        tied_to=tied_to,
        macs=1000,
    )


def make_problem(
    layers: Sequence[str] = ("a", "b", "c"),
    *,
    schemes: Sequence[Scheme] = SCHEMES,
    objectives: tuple[Objective, ...] = ("metric", "latency", "size"),
    direction: Direction = "maximize",
    seeds: Sequence[Scheme] = SCHEMES,
    own: dict[str, Sequence[Scheme]] | None = None,
    tied: dict[str, str] | None = None,
    **bounds: float,
) -> Problem:
    return Problem(
        candidates=tuple(
            Candidates(layer=make_layer(name, (tied or {}).get(name)), schemes=tuple((own or {}).get(name, schemes)))
            for name in layers
        ),
        canonical=lambda policy: policy,
        seed_schemes=tuple(seeds),
        objectives=objectives,
        direction=direction,
        constraints=Constraints(**bounds),
        baseline=BASELINE,
        profile=PROFILE,
    )


def make_latency(ratio: float) -> Latency:
    return Latency(median_ms=ratio, ratio=ratio, ratio_ci95=(ratio * 0.99, ratio * 1.01), batch=1, threads=1)


def make_trial(number: int, policy: Policy, metric: float, ratio: float, size: int, memory: int = 5000) -> Trial:
    return Trial(
        number=number,
        policy=policy,
        origin="seed:test",
        metric=metric,
        latency=make_latency(ratio),
        latency_modelled=ratio,
        size_bytes=size,
        peak_memory_bytes=memory,
        weight_bits_mean=8.0,
        sha256="0" * 64,
    )


def make_proposer(problem: Problem, sampler: str = "nsga2", seed: int = 0) -> Proposer:
    return Proposer(
        problem.choices,
        problem.complete,
        seeds=problem.uniform_seeds(),
        objectives=len(problem.objectives),
        sampler=sampler,  # type: ignore[arg-type]
        seed=seed,
    )


def bits(policy: Policy) -> int:
    return sum(scheme.weight_bits for _, scheme in policy.items_)


class TableExecutor:
    """Fewer bits: smaller, faster, worse. ``fails`` says for which policies, and why; ``scored`` what was asked.

    With ``drops``, what loses two points more than its hurdle allows is dropped half-way.
    """

    description = "a table"

    def __init__(self, fails: Callable[[Policy], Failure | None] = lambda policy: None, *, drops: bool = False) -> None:
        self.fails, self.drops = fails, drops
        self.scored: list[Policy] = []
        self.measured: list[str] = []
        self.idle_above: dict[str, float] = {}
        self._bits: dict[str, int] = {}

    def score(
        self, policies: Sequence[Policy], hurdles: Sequence[Hurdle] | None = None
    ) -> Iterator[Scored | Dropped | Failure]:
        for policy, hurdle in zip(policies, with_hurdles(policies, hurdles), strict=True):
            self.scored.append(policy)
            failure = self.fails(policy)
            model = f"{policy.id} {'#' * bits(policy)}".encode()
            self._bits[policy.id] = bits(policy)
            metric = 0.5 + 0.4 * bits(policy) / (32 * len(policy))
            if failure is None and self.drops and 0.9 - metric > hurdle.for_size(len(model))[0] + 0.02:
                yield Dropped(
                    pruned=Pruned(rows=50, of=100, metric=metric, bound=metric + 0.02, why="hopeless"),
                    size_bytes=len(model),
                    sha256="0" * 64,
                    weight_bits_mean=bits(policy) / len(policy),
                )
                continue
            yield failure or Scored(
                model=model,
                metric=metric,
                sha256=hashlib.sha256(model).hexdigest(),
                weight_bits_mean=bits(policy) / len(policy),
                seconds={"build": 0.0},
            )

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement | Failure:
        self.idle_above[model.stem] = idle_above
        self.measured.append(model.stem)
        if self._bits[model.stem] == 32:
            return Failure(reason="measure", message="this one cannot be timed")
        return Measurement(latency=make_latency(self._bits[model.stem] / 100), peak_memory_bytes=5000, load_ms=1.0)

    def measure_many(self, models: Sequence[Path]) -> Sequence[Measurement | Failure]:
        missing = [path for path in models if not path.exists()]
        if missing:
            raise TrialError("load", f"{missing[0]} is not there")
        return [Measurement(latency=make_latency(self._bits[path.stem] / 100)) for path in models]

    def close(self) -> None:
        pass
