"""An equalized model is the same function; what its channels cannot pass keeps its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import numpy_helper

from autoq.model.equalize import GROWTH, Equalized, equalize
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from autoq.numerics.weights import quantize_weight
from tests.model.test_random_models import models
from tests.models import Net, distance, run

Middle = Callable[[Net, str], str]


def uneven(net: Net, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: int) -> str:
    """A convolution whose output channels, and biases, differ by powers of ten."""
    groups = attributes.get("group", 1)
    weight = net.rng.standard_normal((outputs, inputs // groups, kernel, kernel)) * 0.3
    factors = 10.0 ** net.rng.uniform(-1, 1, outputs)
    bias = net.rng.standard_normal(outputs) * factors
    values = [(weight * factors[:, None, None, None]).astype(np.float32), bias.astype(np.float32)]
    pads = [kernel // 2] * 4
    return str(net.add("Conv", x, *(net.constant(value) for value in values), pads=pads, **attributes))


def equalized(model: onnx.ModelProto) -> tuple[Graph, Equalized]:
    graph = Graph(prepare(model).model)
    return graph, equalize(graph, read_layers(graph))


def changed(graph: Graph, found: Equalized) -> set[str]:
    """The constants with other values."""
    return {
        tensor.name
        for tensor in found.model.graph.initializer
        if not np.array_equal(numpy_helper.to_array(tensor), graph.constant(tensor.name))
    }


def same_function(graph: Graph, found: Equalized, feeds: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(found.model, full_check=True)
    exact, outputs = run(graph.model, feeds), run(found.model, feeds)
    for name, expected in exact.items():
        assert distance(outputs[name], expected) < 2e-5, name


def images(rows: int = 3, channels: int = 4, size: int = 8) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((rows, channels, size, size)).astype(np.float32)}


PASSED: dict[str, Middle] = {
    "nothing": lambda n, y: y,
    "Relu": lambda n, y: n.add("Relu", y),
    "LeakyRelu": lambda n, y: n.add("LeakyRelu", y, alpha=0.1),
    "Clip from zero": lambda n, y: n.add("Clip", y, n.constant(np.float32(0))),
    "MaxPool": lambda n, y: n.add("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool": lambda n, y: n.add("AveragePool", y, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    "depthwise": lambda n, y: n.add("Relu", uneven(n, n.add("Relu", y), 6, 6, group=6)),
    "grouped": lambda n, y: n.add("Relu", uneven(n, n.add("Relu", y), 6, 6, group=2)),
    "residual": lambda n, y: n.add("Add", n.conv(n.add("Relu", y), 6, 6), y),
    "constant added": lambda n, y: n.add("Add", y, n.constant(np.ones((6, 1, 1), np.float32))),
    "one value added": lambda n, y: n.add("Add", n.constant(np.float32(0.7)), y),
    "constant subtracted": lambda n, y: n.add("Sub", y, n.constant(np.ones((1, 6, 1, 1), np.float32))),
    "scaled by channels": lambda n, y: n.add("Mul", y, n.constant(np.arange(6, dtype=np.float32).reshape(6, 1, 1) + 1)),
    "divided": lambda n, y: n.add("Div", y, n.constant(np.float32(3))),
    "gate": lambda n, y: n.add("Mul", y, n.add("Sigmoid", n.conv(n.add("GlobalAveragePool", y), 6, 6, 1))),
    "padded": lambda n, y: n.add("Pad", y, n.ints(0, 0, 1, 0, 0, 0, 0, 2), n.constant(np.float32(0))),
    "reflected": lambda n, y: n.add("Pad", y, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    "transposed twice": lambda n, y: n.add(
        "Transpose", n.add("Relu", n.add("Transpose", y, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]
    ),
    "resized": lambda n, y: n.add("Resize", y, "", n.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear"),
    "every other row": lambda n, y: n.add("Slice", y, n.ints(0), n.ints(8), n.ints(2), n.ints(2)),
    "mean of a row": lambda n, y: n.add("ReduceMean", y, n.ints(-1), keepdims=1),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
def test_channels_pass(name: str) -> None:
    net = Net(seed=len(name))
    y = PASSED[name](net, uneven(net, net.input("rows", 4, 8, 8), 4, 6))
    graph, found = equalized(net.model(net.conv(y, 6, 3)))
    assert found.rescaled == (2 if name in ("depthwise", "grouped") else 1), str(found)
    assert {layer.weight for layer in read_layers(graph)[:1]} <= changed(graph, found)
    same_function(graph, found, images())


STOPPED: dict[str, Middle] = {
    "Clip": lambda n, y: n.add("Clip", y, n.constant(np.float32(0)), n.constant(np.float32(6))),
    "HardSwish": lambda n, y: n.add("HardSwish", y),
    "Slice": lambda n, y: n.add("Slice", y, n.ints(0), n.ints(6), n.ints(1), n.ints(1)),
    "Slice without axes": lambda n, y: n.add("Slice", y, n.ints(0, 0), n.ints(3, 6)),
    "Mul": lambda n, y: n.add("Mul", y, y),
    "Div": lambda n, y: n.add("Div", n.constant(np.float32(1)), n.add("Relu", n.conv(y, 6, 6))),
    "Add": lambda n, y: n.add("Add", y, n.input("rows", 6, 8, 8, name="z")),
    "Pad": lambda n, y: n.add("Pad", y, n.ints(0, 0, 1, 0, 0, 0, 0, 0), n.constant(np.float32(1))),
    "Pad of channels": lambda n, y: n.conv(n.add("Pad", y, n.ints(0, 3, 0, 0, 0, 0, 0, 0)), 9, 6),
    "Concat": lambda n, y: n.conv(n.add("Concat", y, y, axis=1), 12, 6),
    "ReduceMean": lambda n, y: n.add("Add", n.add("ReduceMean", y, n.ints(1), keepdims=1), n.conv(y, 6, 6)),
    "Reshape": lambda n, y: n.add("Reshape", n.add("Reshape", y, n.ints(0, 3, 2, 64)), n.ints(0, 6, 8, 8)),
    "Transpose": lambda n, y: n.add("Transpose", y, perm=[0, 2, 1, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPPED)
def test_channels_stop(name: str) -> None:
    net = Net(seed=len(name))
    y = STOPPED[name](net, uneven(net, net.input("rows", 4, 8, 8), 4, 6))
    model = net.model(net.conv(y, 8 if name == "Transpose" else 6, 3))
    graph = Graph(model)
    found = equalize(graph, read_layers(graph))
    assert found.kept[{"Transpose": "Conv"}.get(name, name.split()[0])] == 1, str(found)
    feeds = images()
    if name == "Add":
        feeds["z"] = np.ones((3, 6, 8, 8), np.float32)
    if name != "Div":
        assert read_layers(graph)[0].weight not in changed(graph, found)
        same_function(graph, found, feeds)


def test_rows_and_matrices() -> None:
    """Flattened images, Gemm in both orders, MatMul with an Add, LayerNormalization, a Reshape of rows."""
    net = Net(seed=3)
    y = net.add("Relu", uneven(net, net.input("rows", 4, 4, 4), 4, 6))
    y = net.add("Relu", net.add("Gemm", net.add("Flatten", y), net.weight(96, 8), net.weight(8)))
    y = net.add("Relu", net.add("Gemm", y, net.weight(7, 8), net.constant(np.float32(0.3)), transB=1))
    y = net.add("Reshape", net.add("MatMul", y, net.weight(7, 10)), net.ints(-1, 2, 10))
    y = net.add(
        "LayerNormalization", y, net.constant(net.rng.lognormal(0, 1, 10).astype(np.float32)), net.weight(10), axis=-1
    )
    y = net.add("Relu", net.add("Add", net.add("MatMul", y, net.weight(10, 5)), net.weight(5)))
    graph, found = equalized(net.model(net.add("MatMul", y, net.weight(5, 3))))
    assert found.rescaled == 5, str(found)
    same_function(graph, found, {"x": images(4, 4, 4)["x"]})


def test_shared_weights_stay() -> None:
    net = Net()
    shared = net.weight(4, 4, 3, 3)
    x = net.input("rows", 4, 8, 8)
    y = net.add("Relu", net.add("Conv", x, shared, pads=[1, 1, 1, 1]))
    y = net.add("Relu", net.add("Conv", y, shared, pads=[1, 1, 1, 1]))
    graph, found = equalized(net.model(net.conv(y, 4, 3)))
    assert found.rescaled == 0 and not changed(graph, found)


def test_shared_and_computed_biases_stay() -> None:
    net = Net()
    bias = net.constant(np.arange(1, 5, dtype=np.float32))
    y = net.add("Relu", net.add("Conv", net.input("rows", 4, 8, 8), net.weight(4, 4, 1, 1), bias))
    y = net.add("Relu", net.add("Conv", y, net.weight(4, 4, 1, 1), bias))
    graph, found = equalized(net.model(net.conv(y, 4, 3)))
    assert found.kept["a bias that is computed or shared"] == 2 and not changed(graph, found)


def test_an_output_keeps_its_scale() -> None:
    """Whoever reads it outside would see the scale."""
    net = Net()
    y = net.add("Relu", uneven(net, net.input("rows", 4, 8, 8), 4, 6))
    _, found = equalized(net.model(y, net.conv(y, 6, 3)))
    assert found.rescaled == 0 and found.kept["an output of the model"] == 2
    assert "stays as it is" in str(found)


def test_one_scale_for_a_tensor_then_loses_less() -> None:
    """The reason for it all: 4 bits and one scale on a depthwise chain of uneven channels."""
    net = Net(seed=5)
    y = net.add("Relu", uneven(net, net.input("rows", 4, 8, 8), 4, 6, 1))
    y = net.add("Relu", uneven(net, y, 6, 6, group=6))
    graph, found = equalized(net.model(net.conv(y, 6, 3, 1)))
    feeds = images()
    (exact,) = run(graph.model, feeds).values()
    errors = []
    for model in (graph.model, found.model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if value.ndim == 4:
                rounded = quantize_weight(value, bits=4, axis=None).dequantize()
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
        (output,) = run(copy, feeds).values()
        errors.append(np.square(output - exact).mean())
    assert errors[1] < 0.3 * errors[0]


def test_a_dead_channel_does_not_take_the_range() -> None:
    """Next to no weights, but a bias: divided by the scale of its weights, it would dwarf all other channels."""
    net = Net(seed=2)
    weight = net.rng.standard_normal((4, 4, 1, 1)).astype(np.float32)
    weight[0] *= 1e-8
    bias = net.constant(np.array([0.5, 1, -1, 0.2], np.float32), "bias")
    y = net.add("Relu", net.add("Conv", net.input("rows", 4, 8, 8), net.constant(weight, "first.weight"), bias))
    graph, found = equalized(net.model(net.conv(y, 4, 3, 1)))
    (after,) = (numpy_helper.to_array(t) for t in found.model.graph.initializer if t.name == "bias")
    assert found.rescaled == 1 and np.abs(after).max() <= GROWTH * 1.001
    same_function(graph, found, images())


@settings(max_examples=40)
@given(models())
def test_random_models_stay_the_same_function(model: onnx.ModelProto) -> None:
    graph, found = equalized(model)
    rng = np.random.default_rng(1)
    feeds = {value.name: rng.standard_normal((2, 4, 6, 6)).astype(np.float32) for value in model.graph.input}
    same_function(graph, found, feeds)
