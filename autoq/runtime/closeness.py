"""How near a model's outputs are to float32's: what is tuned and decided by where no labels may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from autoq.errors import TrialError
from autoq.runtime.metric import Metric
from autoq.runtime.metric_table import find_metric
from autoq.runtime.readout import as_probabilities

Outputs = Mapping[str, np.ndarray]
Measure = Literal["KL divergence", "relative squared error"]

_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """A distance to float32's outputs, least where they agree.

    ``"KL divergence"`` is of the class probabilities over ``axis`` of the output ``names[0]``, the mean over rows and
    positions. ``"relative squared error"`` is ``E|y - y32|^2 / E|y32|^2``, the mean over the outputs ``names``.
    """

    measure: Measure
    names: tuple[str, ...]
    axis: int = -1

    @classmethod
    def of_metric(cls, metric: Metric, float32: Outputs) -> Closeness:
        """The one that fits what ``metric`` reads of the outputs: classes, or values.

        Raises :class:`TrialError` (``metric``) where none of those outputs holds floats.
        """
        read = {name: values for name, values in metric.reads(float32).items() if values.dtype.kind == "f"}
        if not read:
            raise TrialError("metric", "the outputs that the metric reads are no floats, which have no distances")
        named = find_metric(metric.choice.name) if metric.choice.name else None
        axis = -1 if metric.choice.axis is None else metric.choice.axis
        if named is not None and named.reads != "values":
            ((name, values),) = read.items()
            if values.ndim > 1 and -values.ndim <= axis < values.ndim and axis % values.ndim and values.shape[axis] > 1:
                return cls(measure="KL divergence", names=(name,), axis=axis)
        return cls(measure="relative squared error", names=tuple(read))

    def __call__(self, outputs: Outputs, float32: Outputs) -> float:
        """The distance of ``outputs`` (name -> [rows, ...]) to ``float32``; infinite where they are not finite."""
        if not all(np.isfinite(outputs[name]).all() for name in self.names):
            return float("inf")
        if self.measure == "KL divergence":
            name = self.names[0]
            expected, found = (self._probabilities(values[name]) for values in (float32, outputs))
            return float((expected * np.log(expected / found)).sum(axis=1).mean())
        errors = []
        for name in self.names:
            exact = float32[name].astype(np.float64)
            power = np.square(exact).mean()
            errors.append(np.square(outputs[name] - exact).mean() / (power if power > 0 else 1.0))
        return float(np.mean(errors))

    def _probabilities(self, values: np.ndarray) -> np.ndarray:
        columns = np.moveaxis(values.astype(np.float64), self.axis, -1).reshape(-1, values.shape[self.axis])
        return np.maximum(as_probabilities(columns), _SMALLEST)
