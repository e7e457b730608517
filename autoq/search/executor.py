"""Who evaluates: this process, or Ray workers (:mod:`autoq.search.ray_executor`). Both give the same results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from autoq.core.policy import Policy
from autoq.core.result import Failure, Latency
from autoq.errors import TrialError
from autoq.runtime.meter import Measurement, Meter
from autoq.search.evaluate import Evaluator, Scored, Workload


class Executor(Protocol):
    """Scores candidates in any number at once; measures one at a time, while nothing is scored."""

    description: str

    def score(self, policies: Sequence[Policy]) -> Iterator[Scored | Failure]:
        """One result for each policy, in their order, as they become ready."""
        ...

    def measure(self, model: Path) -> Measurement | Failure:
        """Latency and peak memory of a file."""
        ...

    def measure_many(self, models: Sequence[Path]) -> list[Latency]:
        """Latencies of several files, timed in turn with each other and with float32.

        Raises :class:`autoq.errors.TrialError`.
        """
        ...

    def close(self) -> None:
        """Ends what was started."""
        ...


class LocalExecutor:
    """Evaluates in this process, one candidate after the other."""

    description = "this process"

    def __init__(self, workload: Workload, meter: Meter) -> None:
        self._evaluator = Evaluator(workload)
        self._meter = meter

    def score(self, policies: Sequence[Policy]) -> Iterator[Scored | Failure]:
        """See :class:`Executor`."""
        return (self._evaluator.evaluate(policy) for policy in policies)

    def measure(self, model: Path) -> Measurement | Failure:
        """See :class:`Executor`."""
        return measured(self._meter, model)

    def measure_many(self, models: Sequence[Path]) -> list[Latency]:
        """See :class:`Executor`."""
        return self._meter.measure_many(list(models))

    def close(self) -> None:
        """See :class:`Executor`."""
        self._meter.close()


def measured(meter: Meter, model: Path) -> Measurement | Failure:
    """The measurement, or why there is none, as a value."""
    try:
        return meter.measure(model)
    except TrialError as error:
        return Failure(reason=error.reason, message=str(error))  # type: ignore[arg-type]
