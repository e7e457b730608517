"""One contestant of equal_time.py: ``autoq search`` as it is, or with other proposals in the same search.

    python benchmarks/equal_search.py CONTESTANT JOB.yaml [options of autoq search]

``front``, ``tpe+``, ``nsga2+`` and ``random+`` are ``autoq search`` with that ``search.sampler``: uniform policies and
the predicted front first, then the sampler. ``tpe``, ``nsga2`` and ``random`` begin with the uniform policies alone.
``knapsack`` takes these and then the points of the predicted front one after the other, and nothing else: an integer
program on the proxies, which learns from no measurement. Evaluation is the same for all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from autoq.cli import main
from autoq.core.policy import Policy
from autoq.pipeline import run as flow
from autoq.search.problem import Problem
from autoq.search.proposer import Proposal
from autoq.search.seeds import knapsack_seeds

AS_IT_IS = ("front", "tpe+", "nsga2+", "random+")
OTHERS = ("tpe", "nsga2", "random", "knapsack")
MANY = 10_000
"""More points than a predicted front has."""


class InTurn:
    """Proposes given policies in their order."""

    def __init__(self, problem: Problem, seeds: Sequence[tuple[str, Any]]) -> None:
        made: dict[Policy, str] = {}
        for name, chosen in seeds:
            made.setdefault(problem.complete(chosen), name)
        self._left = [
            Proposal(policy=policy, origin=f"seed:{name}", handle=i) for i, (policy, name) in enumerate(made.items())
        ]

    def ask(self, count: int) -> list[Proposal]:
        """The next ones."""
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def tell(self, proposal: Proposal, losses: Sequence[float] | None, violation: float = 0.0) -> None:
        """Nothing is learned."""


def knapsack(setting: Any, problem: Problem, predicted: Any, latency: Any, taken_over: Any = None) -> InTurn:
    """In place of the pipeline's proposer: over the same proxies, noise and measured times, as the other has."""
    times = latency.layer_times(setting.candidates, problem.complete) if latency else None
    traced = knapsack_seeds(setting.candidates, predicted, setting.profile, MANY, times)
    named = [(f"knapsack {i}", {name: seed[name] for name in problem.choices}) for i, seed in enumerate(traced, 1)]
    return InTurn(problem, [*problem.uniform_seeds(), *named])


def unpredicted(make: Any) -> Any:
    """The pipeline's proposer without a predicted front."""
    return lambda setting, problem, predicted, *others: make(setting, problem, None, *others)


if __name__ == "__main__":
    contestant = sys.argv[1]
    if contestant == "knapsack":
        flow.proposer_of = knapsack  # type: ignore[assignment]
    elif contestant not in AS_IT_IS:
        flow.proposer_of = unpredicted(flow.proposer_of)
    sys.argv = ["autoq", "search", *sys.argv[2:]]
    raise SystemExit(main())
