"""The numerical health of a candidate's layers, taken on a few rows with the real runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import TrialError
from autoq.model.lower import Lowering
from autoq.model.moments import LayerInputs
from autoq.numerics.affine import LEVELS, quantize
from autoq.numerics.distortion import decibels, relative_noise
from autoq.numerics.health import AccumulatorHealth, RangeHealth, accumulator_health, range_health
from autoq.runtime.ort import clean_message, open_session

ROWS = 16
"""Calibration rows that health is taken on."""

MOST_VALUES = 1 << 16
"""Values of a tensor that are looked at, spread evenly."""

MOST_PATCHES = 32
"""Patches, or rows, of a layer's input whose sums are worked out, spread evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """One layer of a candidate. ``None`` is what the layer does not have, or what could not be taken.

    ``weight_sqnr_db`` is of its weights alone. ``output_sqnr_db`` is of its output in the candidate against the float
    model's, with the noise of all layers before it. ``tensor`` is what it reads quantized, and ``input`` what that does
    to the float model's values.
    """

    layer: str
    scheme: Scheme
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    tensor: str | None = None
    input: RangeHealth | None = None
    accumulator: AccumulatorHealth | None = None


class HealthCheck:
    """Takes the health of candidates of one ``lowering``; the float model runs once, on ``rows``.

    Raises :class:`autoq.errors.TrialError` where it cannot be run so.
    """

    def __init__(self, lowering: Lowering, rows: Mapping[str, np.ndarray]) -> None:
        self._lowering = lowering
        self._rows = dict(rows)
        graph, placer = lowering.graph, lowering.placer
        self._stored = {layer.name: placer.stored(graph.nodes[layer.node]) for layer in lowering.layers}
        read = {placer.root(layer.input) for layer in lowering.layers if not layer.integer_problem}
        inputs = {layer.input for layer in lowering.layers if not layer.integer_problem}
        wanted = {*self._stored.values(), *(layer.output for layer in lowering.layers), *read, *inputs}
        self._float = {**self._rows, **tensors(graph.model, sorted(wanted - set(self._rows)), self._rows)}

    def take(self, policy: Policy, candidate: bytes, *, banked: bool) -> tuple[LayerHealth, ...]:
        """The health of each layer that ``policy`` quantizes, in the model's order; ``candidate`` is its file.

        All numbers are the file's own. ``banked`` says that they are the bank's, too, and not polished since: weights
        that the runtime's own operators unpack are then taken from there.
        """
        file = _File(onnx.ModelProto.FromString(candidate))
        outputs = {}
        for layer in self._lowering.layers:
            names = [name for name in (self._stored[layer.name], layer.output) if name in file.makers]
            if names:
                outputs[layer.name] = names[0]
        found = tensors(file.model, sorted(set(outputs.values())), self._rows)
        layers = [layer for layer in self._lowering.layers if policy[layer.name].weight is not None]
        file.evaluate([*(name for layer in layers for name in file.of_layer(layer)), *file.quantizers.values()])
        return tuple(
            self._layer(layer, policy[layer.name], outputs.get(layer.name), found, file, banked) for layer in layers
        )

    def _layer(
        self,
        layer: Layer,
        scheme: Scheme,
        output: str | None,
        found: Mapping[str, np.ndarray],
        file: _File,
        banked: bool,
    ) -> LayerHealth:
        exact = self._lowering.graph.constant(layer.weight)
        assert exact is not None and scheme.weight is not None
        stored, levels = file.weight(layer)
        entry = self._lowering.bank.get((layer.tied_to or layer.name, scheme.weight))
        if stored is None and banked and entry is not None:
            stored = entry.dequantize()
        comparable = stored is not None and stored.shape == exact.shape
        health = LayerHealth(
            layer=layer.name,
            scheme=scheme,
            weight_sqnr_db=decibels(relative_noise(exact, stored)) if stored is not None and comparable else None,
            output_sqnr_db=self._output(output, found),
        )
        root = self._lowering.placer.root(layer.input)
        affine = file.affine(root) if scheme.activation is not None and not scheme.activation.dynamic else None
        if affine is None:
            return health
        scale, zero_point, (low, high) = affine
        values = self._float[root].reshape(-1)
        sampled = values[:: max(1, -(-values.size // MOST_VALUES))]
        fits = levels is not None and levels.shape == layer.weight_shape and scheme.activation_bits == 8
        integers = quantize(self._float[layer.input], scale, zero_point, low, high).astype(np.int64) - low
        return dataclasses.replace(
            health,
            tensor=root,
            input=range_health(sampled, scale, zero_point, low, high) if sampled.size else None,
            accumulator=self._sums(layer, levels, integers, zero_point - low) if fits and levels is not None else None,
        )

    def _output(self, name: str | None, found: Mapping[str, np.ndarray]) -> float | None:
        if name is None or name not in self._float or found[name].shape != self._float[name].shape:
            return None
        noise = relative_noise(self._float[name], found[name])
        return decibels(noise) if np.isfinite(noise) else None

    def _sums(self, layer: Layer, weight: np.ndarray, integers: np.ndarray, zero: int) -> AccumulatorHealth:
        inputs = LayerInputs.of_layer(layer, self._lowering.graph)
        levels = np.moveaxis(weight, layer.channel_axis, 0).reshape(inputs.groups, -1, inputs.columns)
        return accumulator_health(levels, patches(inputs, integers, zero))


class _File:
    """A candidate's own constants: weights as layers read them, their integers, scales of activations."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.quantizers: dict[tuple[str, str], str] = {}
        self._nodes = {node.name: node for node in model.graph.node}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, np.ndarray] = {}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear" and node.output[0].endswith("::q"):
                root = node.output[0].removesuffix("::q")
                self.quantizers[root, "scale"] = node.input[1]
                if len(node.input) > 2 and node.input[2]:
                    self.quantizers[root, "zero"] = node.input[2]

    def of_layer(self, layer: Layer) -> list[str]:
        """The tensors that tell a layer's weight: as its node reads it, and its integers where that is a product's."""
        node = self._nodes.get(layer.node)
        if node is None or node.op_type != layer.op_type or layer.op_type == "Gather":
            return []  # an operator of the runtime's own, which unpacks by itself, or a look-up
        name = node.input[layer.weight_index]
        maker = self.makers.get(name)
        return [name, maker.input[0]] if maker is not None and maker.op_type == "DequantizeLinear" else [name]

    def weight(self, layer: Layer) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The weight in float32, and its integers; ``None`` where the file does not show them."""
        found = [self._values.get(name) for name in self.of_layer(layer)]
        return found[0] if found else None, found[1] if len(found) > 1 else None

    def affine(self, root: str) -> tuple[float, int, tuple[int, int]] | None:
        """Scale, zero point and levels of a tensor; ``None`` where the file does not quantize it."""
        scale = self._values.get(self.quantizers.get((root, "scale"), ""))
        if scale is None:
            return None
        zero = self._values.get(self.quantizers.get((root, "zero"), ""), np.uint8(0))  # left out: ONNX's default
        return float(scale), int(zero), LEVELS[zero.dtype.name]  # type: ignore[index]

    def evaluate(self, names: Sequence[str]) -> None:
        """Works out those of ``names`` that hang on constants alone."""
        known, nodes = set(self._initializers), []
        for node in self.model.graph.node:
            if node.input and all(not name or name in known for name in node.input):
                nodes.append(node)
                known.update(node.output)
        wanted = list(dict.fromkeys(name for name in names if name in known))
        self._values = {
            name: numpy_helper.to_array(self._initializers[name]) for name in wanted if name in self._initializers
        }
        made = [name for name in wanted if name not in self._initializers]
        graph = helper.make_graph(nodes, "constants", [], [], self.model.graph.initializer)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        self._values |= tensors(model, made, {})


def patches(inputs: LayerInputs, values: np.ndarray, padding: int) -> np.ndarray:
    """At most :data:`MOST_PATCHES` of what a layer adds up, ``[groups, n, K]``; ``padding`` is what stands for zero."""
    if inputs.op_type != "Conv":
        rows = inputs.rows(values)
        return rows[:: max(1, -(-len(rows) // MOST_PATCHES))][None]
    # Padding is zero there: of values less the zero point.
    windows = inputs.windows(values - padding)
    count = windows.shape[0] * int(np.prod(windows.shape[2 : 2 + len(inputs.kernel)]))
    # Odd, so that the stride never walks along one column of an image.
    positions = np.arange(0, count, -(-count // MOST_PATCHES) | 1)
    where: tuple[Any, ...] = np.unravel_index(positions, (len(windows), *windows.shape[2 : 2 + len(inputs.kernel)]))
    picked = windows[(where[0], slice(None), *where[1:])].reshape(len(positions), inputs.groups, inputs.columns)
    return np.ascontiguousarray(picked.transpose(1, 0, 2)) + padding


def tensors(model: onnx.ModelProto, names: Sequence[str], rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of ``names`` in stock ONNX Runtime. Raises :class:`autoq.errors.TrialError` where it fails."""
    if not names:
        return {}
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    del wanted.graph.output[:]
    wanted.graph.output.extend(known.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(wanted.SerializeToString())
    try:
        feeds = {value.name: rows[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(list(names), feeds), strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base below Exception
        raise TrialError("metric", f"ONNX Runtime failed: {clean_message(error)}") from error
