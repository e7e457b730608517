"""What a metric compares: a model's output and the targets, as scikit-learn wants them.

Every function takes ``output`` [rows, ...] and ``targets`` [rows, ...] and returns (y_true, y_pred). Raises
:class:`~autoq.errors.MetricError`, led by ``what``, where the shapes cannot be compared.
"""

from __future__ import annotations

import numpy as np

from autoq.errors import MetricError

# Rows of a softmax sum to 1; rows of one that was itself quantized nearly do; rows of logits do not.
_SUM_TOLERANCE = 0.1


def read_labels(output: np.ndarray, targets: np.ndarray, axis: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Arg-max over ``axis``; both flat, one element per position. Integers shaped as the targets are labels already."""
    if output.dtype.kind in "biu" and output.shape == targets.shape:
        return targets.ravel(), output.ravel()
    axis = _class_axis(output, axis, what)
    labels = output.argmax(axis)
    if targets.shape == (*labels.shape, 1):
        targets = targets[..., 0]
    if labels.shape != targets.shape:
        raise MetricError(
            f"{what}: the arg-max of output {list(output.shape)} over axis {axis} is {list(labels.shape)}, and the "
            f"targets are {list(targets.shape)}{_axis_hint(output, targets)}"
        )
    return targets.ravel(), labels.ravel()


def read_scores(output: np.ndarray, targets: np.ndarray, axis: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """What ranks: [n] for two classes (the second's margin over the first), [n, classes] probabilities for more."""
    columns = _columns(output, targets, axis, what)
    if targets.ndim == 2 and targets.shape == columns.shape and targets.shape[1] > 1:
        return targets, columns  # several labels to a row: each column ranks rows by itself
    flat = _flat_targets(targets, len(columns), what)
    if columns.ndim == 1:
        return flat, columns
    if columns.shape[1] == 2:
        return flat, columns[:, 1] - columns[:, 0]
    return flat, as_probabilities(columns)


def read_probabilities(output: np.ndarray, targets: np.ndarray, axis: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """[n, classes]: rows that sum to 1 as they are, else their softmax. [n]: the sigmoid, unless all are in 0..1."""
    columns = _columns(output, targets, axis, what)
    flat = _flat_targets(targets, len(columns), what)
    if columns.ndim == 1:
        if columns.min() < 0 or columns.max() > 1:
            columns = np.exp(-np.logaddexp(0.0, -columns))  # sigmoid, without overflow
        return flat, columns
    return flat, as_probabilities(columns)


def read_values(output: np.ndarray, targets: np.ndarray, axis: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The output as it is, in float64; beyond two axes, the rest is laid flat. ``axis`` plays no part."""
    if output.shape != targets.shape and _trimmed(output) == _trimmed(targets):
        output = output.reshape(targets.shape)
    if output.shape != targets.shape:
        raise MetricError(f"{what}: the output is {list(output.shape)} and the targets {list(targets.shape)}")
    if output.ndim > 2:
        output, targets = output.reshape(len(output), -1), targets.reshape(len(targets), -1)
    return targets, output.astype(np.float64)


def _class_axis(output: np.ndarray, axis: int, what: str) -> int:
    if not -output.ndim <= axis < output.ndim or axis % output.ndim == 0:
        raise MetricError(
            f"{what}: output {list(output.shape)} has no axis {axis} of classes beside its rows; give output: or a "
            "function"
        )
    axis %= output.ndim
    if output.shape[axis] < 2:
        raise MetricError(
            f"{what}: output {list(output.shape)} has one column on axis {axis}, whose arg-max is always 0; where to "
            "cut a single score is yours to say, in a function"
        )
    return axis


def _axis_hint(output: np.ndarray, targets: np.ndarray) -> str:
    for axis in range(1, output.ndim):
        if np.delete(output.shape, axis).tolist() == list(targets.shape):
            return f"; write axis: {axis} if the classes lie there"
    if output.shape == targets.shape:
        return "; targets are class numbers, one for each row, not one-hot"
    return ""


def _columns(output: np.ndarray, targets: np.ndarray, axis: int, what: str) -> np.ndarray:
    """float64 [n] or [n, classes], n counting every position."""
    values = output.astype(np.float64)
    if values.ndim < 2 or (values.ndim == 2 and values.shape[1] == 1):
        return values.reshape(-1)
    if targets.shape == output.shape and output.ndim > 2:
        raise MetricError(f"{what}: several labels at each of several positions ({list(output.shape)}) need a function")
    axis = _class_axis(output, axis, what)
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _flat_targets(targets: np.ndarray, count: int, what: str) -> np.ndarray:
    if targets.size != count:
        raise MetricError(f"{what}: {count} outputs and {targets.size} targets (shape {list(targets.shape)})")
    return targets.reshape(-1)


def as_probabilities(columns: np.ndarray) -> np.ndarray:
    """``columns`` [n, classes] as probabilities: rows that sum to 1 as they are, else their softmax."""
    sums = columns.sum(axis=1, keepdims=True)
    if columns.min() >= 0 and (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
        return columns / sums
    powers = np.exp(columns - columns.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _trimmed(array: np.ndarray) -> tuple[int, ...]:
    return array.shape[:-1] if array.ndim > 1 and array.shape[-1] == 1 else array.shape
