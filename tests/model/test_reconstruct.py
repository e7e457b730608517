"""Rounding by block: never from labels or policies, better than each layer alone, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.errors import DataError
from autoq.model.calibrate import calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from autoq.model.reconstruct import problem, reconstruct
from autoq.numerics.weights import QuantizedWeight, quantize_weight
from tests.models import Net, run

SPEC = WeightSpec(bits=2, rounding="brecq")
GPTAQ = WeightSpec(bits=2, rounding="gptaq")


def residual(blocks: int = 3, width: int = 8) -> Any:
    net = Net()
    x = net.add("Relu", net.conv(net.input("n", 3, 8, 8), 3, width))
    for _ in range(blocks):
        inner = net.add("Relu", net.conv(x, width, width))
        x = net.add("Relu", net.add("Add", net.conv(inner, width, width), x))
    return net.model(x)


def batches_of(count: int, rows: int = 8, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((rows, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def error(graph: Graph, layers: Sequence[Layer], entries: dict[str, QuantizedWeight]) -> float:
    """Of the model's output on rows that rounding did not see, in the runtime."""
    from onnx import numpy_helper

    feeds = batches_of(1, 32, seed=9)[0]
    model = type(graph.model)()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        for layer in layers:
            if layer.weight == tensor.name and layer.name in entries:
                tensor.CopyFrom(numpy_helper.from_array(entries[layer.name].dequantize(), tensor.name))
    (exact,), (found,) = (list(run(which, feeds).values()) for which in (graph.model, model))
    return float(np.square(exact - found).mean())


def test_better_than_every_layer_alone() -> None:
    graph = Graph(prepare(residual()).model)
    layers = read_layers(graph)
    names = [layer.name for layer in layers[1:]]
    data = batches_of(8)
    moments = calibrate(graph, data, tensors=(), moment_layers=layers).moments
    alone = {
        layer.name: quantize_weight(
            np.asarray(graph.constant(layer.weight)), bits=2, axis=0, rounding="gptq", hessian=moments[layer.name]
        )
        for layer in layers[1:]
    }
    blocks, gptaq = (reconstruct(graph, layers, names, spec, data) for spec in (SPEC, GPTAQ))
    assert list(blocks) == list(gptaq) == names
    assert error(graph, layers, blocks) < 0.8 * error(graph, layers, alone)
    assert error(graph, layers, gptaq) < 0.9 * error(graph, layers, alone)


def test_an_entry_depends_on_no_choice_of_layers() -> None:
    graph = Graph(prepare(residual()).model)
    layers = read_layers(graph)
    every = reconstruct(graph, layers, [layer.name for layer in layers], SPEC, batches_of(4))
    last = layers[-1].name
    alone = reconstruct(graph, layers, [last], SPEC, batches_of(4))
    assert list(alone) == [last]
    np.testing.assert_array_equal(alone[last].values, every[last].values)
    np.testing.assert_array_equal(alone[last].scale, every[last].scale)


@pytest.mark.parametrize(
    "kind", ["one row", "one input channel", "zero channel", "shared weight", "depthwise", "matmul"]
)
def test_odd_models(kind: str) -> None:
    net = Net()
    x = net.input("n", 3, 8, 8)
    if kind == "matmul":
        y = net.add("MatMul", net.add("MatMul", x, net.weight(8, 6)), net.weight(6, 5))
    elif kind == "shared weight":
        weight = net.weight(3, 3, 3, 3)
        y = net.add("Conv", net.add("Conv", x, weight, pads=[1] * 4), weight, pads=[1] * 4)
    elif kind == "one input channel":
        y = net.conv(net.conv(x, 3, 1), 1, 4)
    elif kind == "depthwise":
        y = net.conv(net.conv(x, 3, 6), 6, 6, group=6)
    else:
        y = net.conv(net.conv(x, 3, 4), 4, 4)
    graph = Graph(prepare(net.model(y)).model)
    if kind == "zero channel":
        name = read_layers(graph)[1].weight
        weight_values = np.array(graph.constant(name))
        weight_values[1] = 0
        graph._arrays[name] = weight_values
    layers = read_layers(graph)
    own = [layer.name for layer in layers if layer.tied_to is None]
    entries = reconstruct(
        graph, layers, own, SPEC, batches_of(1 if kind == "one row" else 2, 1 if kind == "one row" else 4)
    )
    for layer in layers:
        if layer.tied_to is None:
            assert entries[layer.name].values.shape == layer.weight_shape
            assert np.isfinite(entries[layer.name].scale).all()


def test_what_cannot_be_rounded_by_block_is_told() -> None:
    net = Net()
    y = net.add("Det", net.add("MatMul", net.input("n", 4, 4), net.weight(4, 4)))
    graph = Graph(net.model(net.add("MatMul", net.add("Reshape", y, net.ints(-1, 1)), net.weight(1, 3))))
    first, second = read_layers(graph)
    assert problem(graph, first) == ""
    assert "Det is not known" in problem(graph, second)


def test_no_rows() -> None:
    graph = Graph(prepare(residual(1)).model)
    layers = read_layers(graph)
    with pytest.raises(DataError, match="no rows"):
        reconstruct(graph, layers, [layers[0].name], SPEC, [])


def test_what_stands_at_padded_positions_changes_nothing() -> None:
    net = Net()
    y = net.add("MatMul", net.input("n", 5, 12), net.weight(12, 12))
    y = net.add("MatMul", net.add("Relu", y), net.weight(12, 4))
    graph = Graph(prepare(net.model(y)).model)
    layers = read_layers(graph)
    rng = np.random.default_rng(0)
    mask = np.repeat([[1, 1, 1, 0, 0]], 16, axis=0)
    clean = rng.standard_normal((16, 5, 12)).astype(np.float32)
    dirty = np.where(mask[:, :, None] == 1, clean, 50 * rng.standard_normal(clean.shape)).astype(np.float32)

    def entry(x: np.ndarray, name: str | None) -> QuantizedWeight:
        batch = {"x": x, "mask": mask}
        return reconstruct(graph, layers, [layers[1].name], SPEC, [batch, batch], padding_mask=name)[layers[1].name]

    np.testing.assert_array_equal(entry(clean, "mask").dequantize(), entry(dirty, "mask").dequantize())
    assert (entry(clean, None).dequantize() != entry(dirty, None).dequantize()).any()


def test_means_are_left_to_a_bias_that_takes_them_up() -> None:
    """Each fit is the better one for what it serves: all of the error, or the error less its mean."""
    net = Net(seed=2)
    y = net.add("MatMul", net.add("MatMul", net.input("n", 12), net.weight(12, 12)), net.weight(12, 4))
    graph = Graph(prepare(net.model(y)).model)
    layers = read_layers(graph)
    x = (np.random.default_rng(0).standard_normal((256, 12)) + 3).astype(np.float32)
    exact = run(graph.model, {"x": x})[y]

    def errors(corrected: bool) -> tuple[float, float]:
        spec = WeightSpec(bits=2, rounding="brecq", bias_correction="empirical" if corrected else None)
        entries = reconstruct(graph, layers, [layer.name for layer in layers], spec, [{"x": x}, {"x": x}])
        first, second = (entries[layer.name].dequantize() for layer in layers)
        missing = exact - x @ first @ second
        return float(np.square(missing).mean()), float(np.square(missing - missing.mean(axis=0)).mean())

    plain, corrected = errors(False), errors(True)
    assert plain[0] < corrected[0]
    assert corrected[1] < plain[1]
