"""Who evaluates: this process, or Ray workers (:mod:`autoq.search.ray_executor`). Both give the same results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from autoq.core.policy import Policy
from autoq.core.result import Failure
from autoq.errors import TrialError
from autoq.runtime.gauge import Gauge, Measurement, measure_each
from autoq.search.evaluate import Dropped, Evaluator, Scored, Workload
from autoq.search.fidelity import Hurdle

Task = Callable[[Evaluator, Any, Any], Any]


class Executor(Protocol):
    """Scores candidates in any number at once; measures one at a time, while nothing is scored."""

    description: str

    def score(
        self, policies: Sequence[Policy], hurdles: Sequence[Hurdle] | None = None
    ) -> Iterator[Scored | Dropped | Failure]:
        """One result for each policy, in their order, as they become ready.

        ``hurdles`` has one for each policy; ``None`` are such as everything takes.
        """
        ...

    def run(self, task: Task, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """``task(evaluator, shared, item)`` for every item: its place and what came of it, as each is done.

        Items are begun in their order. All three travel to the workers, ``shared`` once. One whose worker is lost, or
        whose task raises, comes to a :class:`Failure`.
        """
        ...

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement | Failure:
        """Latency and peak memory of a file; roughly where it is slower than ``idle_above`` (:class:`Gauge`)."""
        ...

    def measure_many(self, models: Sequence[Path]) -> Sequence[Measurement | Failure]:
        """Several files, timed in turn with each other and with float32; why that failed, of some.

        See :meth:`Gauge.measure_many`.
        """
        ...

    def close(self) -> None:
        """Ends what was started."""
        ...


class LocalExecutor:
    """Evaluates in this process, one candidate after the other."""

    description = "this process"

    def __init__(self, workload: Workload, meter: Gauge) -> None:
        self._evaluator = Evaluator(workload)
        self._meter = meter

    def score(
        self, policies: Sequence[Policy], hurdles: Sequence[Hurdle] | None = None
    ) -> Iterator[Scored | Dropped | Failure]:
        """See :class:`Executor`."""
        return (self._evaluator.evaluate(*each) for each in zip(policies, with_hurdles(policies, hurdles), strict=True))

    def run(self, task: Task, shared: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See :class:`Executor`."""
        for position, item in enumerate(items):
            yield position, attempted(task, self._evaluator, shared, item)

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement | Failure:
        """See :class:`Executor`."""
        return measured(self._meter, model, idle_above)

    def measure_many(self, models: Sequence[Path]) -> Sequence[Measurement | Failure]:
        """See :class:`Executor`."""
        return measured_many(self._meter, models)

    def close(self) -> None:
        """See :class:`Executor`."""
        self._meter.close()


def with_hurdles(policies: Sequence[Policy], hurdles: Sequence[Hurdle] | None) -> Sequence[Hurdle]:
    """A hurdle for each policy: those given, or such as everything takes."""
    return [Hurdle()] * len(policies) if hurdles is None else hurdles


def attempted(task: Task, evaluator: Evaluator, shared: Any, item: Any) -> Any:
    """What the task gives, or why it gives nothing, as a value."""
    try:
        return task(evaluator, shared, item)
    except TrialError as error:
        return Failure(reason=error.reason, message=str(error))  # type: ignore[arg-type]
    except Exception as error:  # a defect of ours, or of a library: it costs this item alone
        message = f"internal error, {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Failure(reason="build", message=message)


def measured(meter: Gauge, model: Path, idle_above: float) -> Measurement | Failure:
    """The measurement, or why there is none, as a value."""
    try:
        return meter.measure(model, idle_above=idle_above)
    except TrialError as error:
        return Failure(reason=error.reason, message=str(error))  # type: ignore[arg-type]


def measured_many(meter: Gauge, models: Sequence[Path]) -> list[Measurement | Failure]:
    """The measurements, and why there is none, as values."""
    found = measure_each(meter, list(models)) if models else []
    return [
        Failure(reason=each.reason, message=str(each)) if isinstance(each, TrialError) else each  # type: ignore[arg-type]
        for each in found
    ]
