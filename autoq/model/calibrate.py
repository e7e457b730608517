"""One pass over the calibration data collects whatever any scheme could need; the rest is pure functions of it.

Consumers declare: the tensors whose ranges are wanted, and the layers whose second moments are (GPTQ) or mean inputs
(bias correction). Memory is bounded: a histogram of fixed size for each tensor, one matrix or vector for each layer,
and activations of as many rows at a time as fit :data:`ACTIVATION_BYTES`, whatever the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper
from onnxruntime import InferenceSession

from autoq.core.layer import Layer
from autoq.core.scheme import ActivationSpec
from autoq.errors import DataError
from autoq.model.graph import Graph
from autoq.model.lower import Affine
from autoq.model.moments import FirstMoment, LayerInputs, SecondMoment
from autoq.model.operators import least_that_counts
from autoq.numerics.affine import activation_affine
from autoq.numerics.histogram import TensorStatistics
from autoq.numerics.ranges import clip_range
from autoq.runtime.ort import clean_message, open_session

Batch = Mapping[str, np.ndarray]

ACTIVATION_BYTES = 256 * 2**20
"""Activations held at once. One row may take more: it is run alone then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one pass gave: ``statistics`` by tensor, ``moments`` by layer (float64 ``[groups, K, K]``).

    ``peaks`` has, by tensor, the largest magnitude of each channel (last axis). ``means`` has the mean inputs by layer
    (float64 ``[groups, K]``) over all data, ``sample_means`` those of the patches that ``moments`` were taken of.
    ``rows`` is the number of data rows seen.
    """

    statistics: dict[str, TensorStatistics]
    peaks: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    sample_means: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    rows: int


def calibrate(
    graph: Graph,
    batches: Iterable[Batch],
    *,
    tensors: Sequence[str],
    moment_layers: Sequence[Layer] = (),
    mean_layers: Sequence[Layer] = (),
    peak_tensors: Sequence[str] = (),
    moment_rows: int = 256,
    padding_mask: str | None = None,
    threads: int = 1,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Calibration:
    """Runs the float model over ``batches`` and collects the statistics of ``tensors``, ``moment_layers`` and
    ``mean_layers``.

    Values that no reader can tell apart count as one (:func:`autoq.model.operators.least_that_counts`). Second moments
    use the first ``moment_rows`` rows only: they cost more than ranges and settle sooner.
    ``on_batch`` is told the rows done so far. Raises :class:`DataError` when an activation is NaN or infinite.
    """
    layer_inputs = [layer.input for layer in (*moment_layers, *mean_layers)]
    runner = _Runner(graph, [*tensors, *layer_inputs, *peak_tensors], padding_mask=padding_mask, threads=threads)
    statistics = {name: TensorStatistics.empty() for name in tensors}
    floors = {name: floor for name in tensors if (floor := least_that_counts(graph, name)) is not None}
    # Layers that read one tensor in one way, as an attention's three do, share the moments of it.
    readings = {layer.name: (layer.input, LayerInputs.of_layer(layer, graph)) for layer in moment_layers}
    moments = {reading: SecondMoment(reading[1]) for reading in readings.values()}
    means = {layer.name: FirstMoment.of_layer(layer, graph) for layer in mean_layers}
    peaks: dict[str, np.ndarray] = {}
    rows = 0
    for index, batch in enumerate(batches):
        for values in runner.parts(batch, index):
            for name in peak_tensors:
                peak = np.abs(values[name].reshape(-1, values[name].shape[-1])).max(axis=0, initial=0.0)
                peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
            for name in tensors:
                # Parts of one batch merge: how a batch is divided changes nothing.
                counted = np.maximum(values[name], floors[name]) if name in floors else values[name]
                statistics[name] = _updated(statistics[name], name, counted, index)
            for (tensor, _), moment in moments.items() if rows < moment_rows else ():
                moment.update(values[tensor])
            for layer in mean_layers:
                means[layer.name].update(values[layer.input])
        rows += _rows(batch)
        on_batch(rows)
    if rows == 0:
        raise DataError("data.calibration holds no rows")
    matrices = {reading: (moment.matrix(), moment.mean()) for reading, moment in moments.items()}
    return Calibration(
        statistics=statistics,
        peaks=peaks,
        moments={name: matrices[reading][0] for name, reading in readings.items()},
        sample_means={name: matrices[reading][1] for name, reading in readings.items()},
        means={name: moment.mean() for name, moment in means.items()},
        rows=rows,
    )


def calibrate_smoothed(
    graph: Graph,
    batches: Iterable[Batch],
    divisors: Mapping[tuple[str, float], tuple[str, np.ndarray]],
    *,
    padding_mask: str | None = None,
    threads: int = 1,
) -> dict[tuple[str, float], TensorStatistics]:
    """The statistics of smoothed tensors; see :func:`autoq.model.smoothing.divisors`.

    It takes a pass of its own, since the divisors follow from a first one. Raises as :func:`calibrate`.
    """
    runner = _Runner(graph, [tensor for tensor, _ in divisors.values()], padding_mask=padding_mask, threads=threads)
    statistics = {key: TensorStatistics.empty() for key in divisors}
    for index, batch in enumerate(batches):
        for values in runner.parts(batch, index):
            for key, (tensor, divisor) in divisors.items():
                smoothed = values[tensor] * (np.float32(1) / divisor)  # as a candidate computes it
                statistics[key] = _updated(statistics[key], tensor, smoothed, index)
    return statistics


def affine_table(
    statistics: Mapping[str, TensorStatistics], specs: Iterable[ActivationSpec]
) -> dict[tuple[str, ActivationSpec], Affine]:
    """Scale and zero point of every tensor under every activation scheme: pure functions of the statistics.

    Raises :class:`DataError` for a tensor that never held a value.
    """
    table: dict[tuple[str, ActivationSpec], Affine] = {}
    for tensor, values in statistics.items():
        if not values.histogram.count:
            raise DataError(f"tensor {tensor!r} was empty in every calibration batch; nothing to calibrate it by")
        for spec in specs:
            low, high = clip_range(values, spec.calibration, signed=spec.signed)
            table[tensor, spec] = activation_affine(low, high, spec.dtype)
    return table


def smoothed_affines(
    statistics: Mapping[tuple[str, float], TensorStatistics], specs: Iterable[ActivationSpec]
) -> dict[tuple[str, ActivationSpec], Affine]:
    """As :func:`affine_table`, of smoothed tensors by (name, strength); ``specs`` are those of tensors as they are."""
    specs = tuple(specs)
    table: dict[tuple[str, ActivationSpec], Affine] = {}
    for (name, strength), values in statistics.items():
        smoothed = [dataclasses.replace(spec, smoothing=strength) for spec in specs]
        table |= affine_table({name: values}, smoothed)
    return table


def output_shapes(graph: Graph, layers: Sequence[Layer], batch: Batch) -> dict[str, tuple[int, ...]]:
    """The shape that each layer's output has for one row of ``batch``, from a real run."""
    wanted = [layer.output for layer in layers]
    values = _run(open_session(with_outputs(graph, wanted), threads=1), wanted, batch, "the first rows")
    rows = _rows(batch)
    return {
        name: (1, *value.shape[1:]) if value.ndim and value.shape[0] == rows else value.shape
        for name, value in values.items()
    }


def with_outputs(graph: Graph, tensors: Sequence[str]) -> bytes:
    """The float model with ``tensors`` as its only outputs, whatever their shapes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    del model.graph.output[:]
    float_type = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape=None)
    for name in tensors:
        value = known.get(name) or onnx.ValueInfoProto(name=name, type=float_type)
        model.graph.output.append(value)
    return model.SerializeToString()


class _Runner:
    """Runs the float model for the values of ``names``, on part of a batch's rows at a time."""

    def __init__(self, graph: Graph, names: Sequence[str], *, padding_mask: str | None, threads: int) -> None:
        self._padding_mask = padding_mask
        self._names = [name for name in dict.fromkeys(names) if name not in graph.inputs]
        self._session = open_session(with_outputs(graph, self._names), threads=threads) if self._names else None
        inputs = self._session.get_inputs() if self._session else ()
        self._fixed = any(value.shape and isinstance(value.shape[0], int) for value in inputs)
        self._size = 1  # until the first row has shown what one takes

    def parts(self, batch: Batch, index: int) -> Iterator[dict[str, np.ndarray]]:
        """Tensor name -> values, of the inputs too, for one part of the batch after the other."""
        rows, start = _rows(batch), 0
        while start < rows:
            size = rows if self._fixed or self._session is None else self._size
            part = {name: values[start : start + size] if np.ndim(values) else values for name, values in batch.items()}
            found = {}
            if self._session is not None:
                found = _run(self._session, self._names, part, f"calibration batch {index}")
                taken = sum(values.nbytes for values in found.values())
                self._size = max(1, ACTIVATION_BYTES * _rows(part) // max(taken, 1))
            start += size
            yield self._kept({**part, **found})

    def _kept(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._padding_mask is None:
            return values
        mask = np.asarray(values[self._padding_mask]) != 0
        return {name: without_padding(array, mask) for name, array in values.items()}


def without_padding(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``values`` at the positions where ``mask`` ``[rows, positions]`` is true, ``[kept, ...]``.

    They are told by their shape: ``[rows, positions, K]``, the same as rows of a matrix, or ``[rows, heads, positions,
    K]``. Any other tensor comes back as it is, as do all where nothing would be left.
    """
    if not mask.any():
        return values
    if values.ndim == 3 and values.shape[:2] == mask.shape:
        return np.asarray(values[mask])
    if values.ndim == 4 and (values.shape[0], values.shape[2]) == mask.shape:
        return np.asarray(values.swapaxes(1, 2)[mask])
    if values.ndim == 2 and len(values) == mask.size:
        return np.asarray(values[mask.reshape(-1)])
    return values


def _rows(batch: Batch) -> int:
    return next((len(values) for values in batch.values() if np.ndim(values)), 1)


def _run(session: InferenceSession, names: Sequence[str], batch: Batch, what: str) -> dict[str, np.ndarray]:
    try:
        feeds = {value.name: np.asarray(batch[value.name]) for value in session.get_inputs()}
        return dict(zip(names, session.run(list(names), feeds), strict=True))
    except KeyError as error:
        raise DataError(f"the model's input {error.args[0]!r} is not fed; the data has {', '.join(batch)}") from None
    except Exception as error:  # ONNX Runtime's errors have no common base below Exception
        raise DataError(f"{what}: ONNX Runtime failed to run the float model: {clean_message(error)}") from error


def _updated(statistics: TensorStatistics, name: str, values: np.ndarray, batch: int) -> TensorStatistics:
    try:
        return statistics.update(values, batch=batch)
    except ValueError:
        raise DataError(
            f"calibration batch {batch}: the float model computes NaN or infinity in tensor {name!r}; "
            "look for broken rows in data.calibration, or for a broken model"
        ) from None
