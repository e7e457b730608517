"""The job's metric: a scikit-learn metric by name, or the user's own function; and its bootstrap distribution."""

from __future__ import annotations

import inspect
import math
import numbers
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.objectives import Direction
from autoq.errors import MetricError, TrialError
from autoq.runtime.metric_table import NamedMetric, find_metric
from autoq.runtime.readout import read_labels, read_probabilities, read_scores, read_values
from autoq.runtime.time_limit import within
from autoq.runtime.user_code import call_user, load_function
from autoq.spec.checking import nearest, show, validate
from autoq.spec.job import Job, MetricChoice

Outputs = Mapping[str, np.ndarray]

_READ = {"labels": read_labels, "scores": read_scores, "probabilities": read_probabilities, "values": read_values}
_FEWEST_RESAMPLES = 50

DEFAULT_TIMEOUT_S = 600.0
"""How long a metric function may take for one model where the job does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``metric(outputs, targets) -> float``. Pickled as its ``spec``: whoever unpickles it loads its code anew."""

    name: str
    direction: Direction
    choice: MetricChoice
    base_dir: Path
    _compute: Callable[[Outputs, np.ndarray | None], object] = field(repr=False, compare=False)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], base_dir: str | Path) -> Metric:
        """The metric of a job's ``metric`` section; files are relative to ``base_dir``.

        Raises :class:`~autoq.errors.JobError` for a wrong field, :class:`MetricError` for an unknown name or a file
        that cannot be run or lacks the function.
        """
        return _resolve(validate(MetricChoice, spec, "metric"), Path(base_dir))

    @property
    def spec(self) -> dict[str, Any]:
        """What :meth:`from_spec` takes."""
        return self.choice.model_dump(mode="json")

    def __reduce__(self) -> tuple[Callable[..., Metric], tuple[dict[str, Any], Path]]:
        return Metric.from_spec, (self.spec, self.base_dir)

    def __call__(self, outputs: Outputs, targets: np.ndarray | None) -> float:
        """The metric of ``outputs`` (name -> [rows, ...], in the model's order) against ``targets`` [rows, ...].

        Raises :class:`MetricError` where it raises, or returns what is no finite number; :class:`TrialError`
        (``timeout``) where a job's own function does not return in time.
        """
        value = self._compute(outputs, targets)
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise MetricError(
                f"metric {self.name!r} returned {show(value)} (a {type(value).__name__}), not a number; "
                "end it with float(...)"
            )
        number = float(value)
        if not math.isfinite(number):
            raise MetricError(f"metric {self.name!r} returned {number}; it must be finite")
        return number

    def reads(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """Those of ``outputs`` that the metric looks at: one for a named metric, all for a function."""
        if self.choice.function is not None:
            return dict(outputs)
        name = _output_name(self.choice, outputs)
        return {name: outputs[name]}

    def hits(self, outputs: Outputs, targets: np.ndarray | None) -> np.ndarray | None:
        """Which rows are right, bool [rows], where the metric is accuracy over rows: its mean. ``None`` elsewhere.

        For outputs and targets that the metric accepts.
        """
        choice = self.choice
        if choice.name is None or choice.kwargs or self.direction != "maximize" or targets is None:
            return None
        named = find_metric(choice.name)
        if named.function != "accuracy_score" or named.kwargs or named.sign != 1:
            return None
        output = outputs[_output_name(choice, outputs)]
        axis = -1 if choice.axis is None else choice.axis
        truth, predicted = read_labels(output, targets, axis, f"metric {choice.name!r}")
        return np.asarray(predicted == truth) if len(predicted) == len(targets) else None

    def classes(self, outputs: Outputs, targets: np.ndarray | None) -> tuple[str, int] | None:
        """The output that holds one value for each class, and its axis of classes; ``None`` where none does.

        A metric by name says so. For a function, it is the first output where the targets are the numbers of its
        columns: whole numbers from 0, one to a row, of at least two kinds.
        """
        if self.choice.function is None:
            name = _output_name(self.choice, outputs)
            reads = find_metric(self.choice.name or "").reads
            axis = -1 if self.choice.axis is None else self.choice.axis
            return (name, axis) if reads != "values" and outputs[name].dtype.kind == "f" else None
        name, output = next(iter(outputs.items()))
        if targets is None or targets.dtype.kind not in "iu" or targets.size != len(targets) or output.ndim != 2:
            return None
        fits = output.dtype.kind == "f" and targets.min() >= 0 and 1 <= targets.max() < output.shape[1]
        return (name, -1) if fits and targets.min() != targets.max() else None


def resolve_metric(job: Job) -> Metric:
    """The job's metric; raises :class:`MetricError` as :meth:`Metric.from_spec`."""
    return _resolve(job.metric, job.base_dir)


def bootstrap_metric(
    metric: Metric,
    outputs: Outputs,
    targets: np.ndarray | None,
    group: int,
    *,
    resamples: int = 1000,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = 20.0,
) -> np.ndarray:
    """The metric [kept] on resamples of whole groups of rows, drawn with replacement (Efron 1979).

    As :func:`bootstrap_paired` with one model.
    """
    return bootstrap_paired(
        metric, [outputs], targets, group, resamples=resamples, seed=seed, clock=clock, budget_s=budget_s
    )[0]


def bootstrap_paired(
    metric: Metric,
    outputs: Sequence[Outputs],
    targets: np.ndarray | None,
    group: int,
    *,
    resamples: int = 1000,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = 20.0,
) -> np.ndarray:
    """The metric [models, kept] of several models' outputs on the same resamples, one column for each resample.

    Resamples follow from ``seed``, the number of rows and ``group`` alone, so differences between rows of the result
    are paired. There are at most ``resamples``, and fewer (but at least 50) where ``budget_s`` seconds by ``clock``
    have gone by. A resample on which the metric fails or is not finite for any model (a class that was not drawn) is
    left out; :class:`MetricError` is raised when none is left.
    """
    read = [metric.reads(model) for model in outputs]
    counts = {len(array) for model in read for array in model.values()}
    counts |= set() if targets is None else {len(targets)}
    if len(counts) != 1:
        raise MetricError(f"metric {metric.name!r}: outputs and targets differ in rows ({sorted(counts)})")
    rows = counts.pop()
    if rows == 0 or rows % group:
        raise MetricError(f"metric {metric.name!r}: {rows} rows are not whole groups of {group}")
    generator = np.random.default_rng(seed)
    offsets = np.arange(group)
    start = clock()
    columns: list[list[float]] = []
    failure = ""
    for done in range(resamples):
        if done >= _FEWEST_RESAMPLES and clock() - start > budget_s:
            break
        drawn = generator.integers(rows // group, size=rows // group)
        picked = (drawn[:, None] * group + offsets).reshape(-1)
        picked_targets = None if targets is None else targets[picked]
        try:
            columns.append([metric({k: a[picked] for k, a in model.items()}, picked_targets) for model in read])
        except MetricError as error:
            failure = str(error)
    if not columns:
        raise MetricError(f"metric {metric.name!r} has no value on any resample of the rows; the last: {failure}")
    return np.array(columns, dtype=np.float64).T


def _resolve(choice: MetricChoice, base_dir: Path) -> Metric:
    if choice.function is not None:
        function = load_function(choice.function, base_dir, MetricError, "metric.function")
        file, _, name = choice.function.rpartition(":")
        path, what = base_dir / file, f"metric {name!r}"

        limit = choice.timeout or DEFAULT_TIMEOUT_S

        def call(outputs: Outputs, targets: np.ndarray | None) -> object:
            try:
                return within(
                    limit, lambda: call_user(lambda: function(dict(outputs), targets), path, MetricError, what)
                )
            except TimeoutError:
                message = f"{what} did not return within {limit:g} s; metric.timeout allows it more"
                raise TrialError("timeout", message) from None

        direction: Direction = choice.direction or "maximize"
        return Metric(name=name, direction=direction, choice=choice, base_dir=base_dir, _compute=call)
    name = choice.name or ""
    named = find_metric(name)
    direction = choice.direction or named.direction
    return Metric(
        name=name, direction=direction, choice=choice, base_dir=base_dir, _compute=_sklearn_call(choice, named)
    )


def _sklearn_call(choice: MetricChoice, named: NamedMetric) -> Callable[[Outputs, np.ndarray | None], object]:
    from sklearn import metrics  # 1 s to import, and not needed for a user's own function

    function = getattr(metrics, named.function, None)
    if function is None:
        raise MetricError(f"metric.name: this scikit-learn has no {named.function}; a later one may")
    kwargs = {**named.kwargs, **choice.kwargs}
    takes_labels = named.reads in ("scores", "probabilities") and "labels" in inspect.signature(function).parameters
    what = f"metric {choice.name!r}"
    axis = -1 if choice.axis is None else choice.axis

    def call(outputs: Outputs, targets: np.ndarray | None) -> object:
        output = outputs[_output_name(choice, outputs)]
        if targets is None:
            raise MetricError(f"{what}: there are no targets to compare with; give data.target")
        if output.ndim == 0 or targets.ndim == 0 or len(output) != len(targets) or not len(targets):
            raise MetricError(f"{what}: the output is {list(output.shape)} and the targets {list(targets.shape)}")
        if output.dtype.kind == "f" and np.isnan(output).any():
            raise MetricError(f"{what}: {int(np.isnan(output).sum())} of {output.size} values of the output are NaN")
        truth, predicted = _READ[named.reads](output, targets, axis, what)
        if named.function == "accuracy_score" and not kwargs:
            return (predicted == truth).mean()
        extra = {}
        if takes_labels and predicted.ndim == 2 and truth.ndim == 1 and "labels" not in kwargs:
            # Classes that happen not to occur among these rows still have their column.
            extra = {"labels": np.arange(predicted.shape[1])}
        with warnings.catch_warnings():
            # "Ill-defined, set to 0", of every candidate anew: the value says it, and NaN is refused.
            warnings.simplefilter("ignore", UserWarning)
            value = call_user(lambda: function(truth, predicted, **kwargs, **extra), Path(), MetricError, what)
        return named.sign * value if isinstance(value, numbers.Real) else value

    return call


def _output_name(choice: MetricChoice, outputs: Outputs) -> str:
    if choice.output is not None:
        if choice.output not in outputs:
            hint = f"{nearest(choice.output, outputs)}; it has {', '.join(outputs)}"
            raise MetricError(f"metric.output: the model has no output {choice.output!r}{hint}")
        return choice.output
    if not outputs:
        raise MetricError("metric: the model has no outputs")
    return next(iter(outputs))
