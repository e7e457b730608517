"""Reading layers: what counts as one, what it is called, and which share a weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autoq.model.graph import Graph, attribute
from autoq.model.layers import read_layers, with_macs
from autoq.model.prepare import prepare
from tests.models import Net


def layers_of(net: Net, *outputs: str) -> tuple[Graph, dict[str, object]]:
    graph = Graph(prepare(net.model(*outputs)).model)
    return graph, {layer.name: layer for layer in read_layers(graph)}


def test_names() -> None:
    """A weight's name less its ending; where the exporter invented that, the module's path; else the node's name."""
    net = Net()
    y = net.input("rows", 4)
    for name in (
        "encoder.layer.0.weight",
        "block/dense/kernel",
        "head.W",
        "val_17",
        "onnx::MatMul_9",
        "plain",
        "t5.weight",
    ):
        y = net.add("MatMul", y, net.weight(4, 4, name=name))
    model = net.model(y)
    scopes = model.graph.node[3].metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'model', 'model.attention', 'linear']"
    broken = model.graph.node[4].metadata_props.add()
    broken.key, broken.value = "pkg.torch.onnx.name_scopes", "not a list ("
    found = [layer.name for layer in read_layers(Graph(prepare(model).model))]
    fourth, sixth = model.graph.node[4].name, model.graph.node[5].name
    assert found == [
        "encoder.layer.0",
        "block/dense",
        "head",
        "model.attention",
        fourth,
        sixth,
        model.graph.node[6].name,
    ]


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("scopes", [True, False])
def test_layers_that_take_up_a_bias_or_a_batch_norm_keep_their_names(opset: int, scopes: bool) -> None:
    """Old exporters name weights onnx::Conv_7 and nodes after modules; new ones note the module's path on each node."""
    net = Net()
    x = net.add("Conv", net.input("rows", 3, 4, 4), net.weight(2, 3, 3, 3, name="onnx::Conv_1"))
    x = net.add("Flatten", net.add("Relu", net.add("BatchNormalization", x, *batch_norm(net, 2))))
    x = net.add("MatMul", x, net.weight(8, 6, name="onnx::MatMul_2"))
    x = net.add("Add", net.constant(np.ones(6, np.float32)), x)
    x = net.add("Gemm", x, net.weight(6, 5, name="onnx::Gemm_3"))
    model = net.model(net.add("BatchNormalization", x, *batch_norm(net, 5)), opset=opset, ir_version=8)
    names = {"Conv": "/stem/conv/Conv", "MatMul": "/block/query/MatMul", "Gemm": "/head/Gemm"}
    for node in model.graph.node:
        node.name = names.get(node.op_type, node.name)
        if scopes:
            entry = node.metadata_props.add()
            module = node.name.strip("/").rpartition("/")[0].replace("/", ".") or "other"
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(["", "net", module, node.op_type])
    prepared = prepare(model)
    assert prepared.opset == 21 and [node.op_type for node in prepared.model.graph.node].count("Gemm") == 2
    found = [layer.name for layer in read_layers(Graph(prepared.model))]
    assert found == (["stem.conv", "block.query", "head"] if scopes else list(names.values()))


def batch_norm(net: Net, channels: int) -> list[str]:
    return [net.constant((1 + net.rng.random(channels)).astype(np.float32)) for _ in range(4)]


def test_equal_names_are_numbered() -> None:
    net = Net()
    x, weight = net.input("rows", 4), net.weight(4, 4, name="shared.weight")
    y = net.add("MatMul", net.add("MatMul", net.add("MatMul", x, weight), weight), weight)
    _, layers = layers_of(net, y)
    assert {name: layer.tied_to for name, layer in layers.items()} == {  # type: ignore[attr-defined]
        "shared": None,
        "shared#2": "shared",
        "shared#3": "shared",
    }


def test_ties_ask_for_the_same_use() -> None:
    """The same array as a Gemm's rows and as its columns, or scaled: scales and forms differ, so they are not tied."""
    net = Net()
    x, weight = net.input("rows", 4), net.weight(4, 4, name="w.weight")
    outputs = [
        net.add("Gemm", x, weight),
        net.add("Gemm", x, weight, transB=1),
        net.add("Gemm", x, weight, alpha=2.0),
        net.add("MatMul", net.add("Relu", x), weight),
        net.add("Gemm", net.add("Relu", x), weight),
    ]
    _, layers = layers_of(net, *outputs)
    assert [layer.tied_to for layer in layers.values()] == [None, None, None, None, "w"]  # type: ignore[attr-defined]


def test_what_is_no_layer() -> None:
    net = Net()
    x = net.input("rows", 4)
    ids = net.input("rows", name="ids", kind=TensorProto.INT64)
    outputs = [
        net.add("MatMul", x, net.add("Transpose", x, perm=[1, 0])),  # two activations
        net.add("MatMul", x, net.constant(np.ones(4, np.float32))),  # a vector
        net.add("MatMul", x, net.constant(np.ones((4, 0), np.float32))),  # nothing
        net.add("Cast", net.add("MatMul", net.add("Cast", x, to=11), net.constant(np.ones((4, 2)))), to=1),  # float64
        net.add("Gather", net.weight(5, 6, name="columns"), ids, axis=1),  # columns of a table
        net.add("Gather", net.constant(np.arange(9)), ids),  # a table of integers
        net.add("MatMul", x, net.weight(4, 3, name="the.weight")),
    ]
    _, layers = layers_of(net, *outputs)
    assert list(layers) == ["the"]


def test_channels_and_macs() -> None:
    net = Net()
    x = net.input("rows", 6, 8, 8)
    outputs = [
        net.add("Conv", x, net.weight(4, 3, 3, 3, name="grouped.weight"), group=2),
        net.add("ConvTranspose", x, net.weight(6, 4, 2, 2, name="up.weight"), strides=[2, 2]),
        net.add("MatMul", x, net.weight(8, 5, name="product.weight")),
        net.add("MatMul", net.weight(5, 8, name="left.weight"), x),
    ]
    graph, _ = layers_of(net, *outputs)
    layers = read_layers(graph)
    shapes = dict(
        zip((layer.output for layer in layers), [(1, 4, 6, 6), (1, 4, 16, 16), (1, 6, 8, 5), (1, 6, 5, 8)], strict=True)
    )
    found = {layer.name: (layer.channels, layer.kind, layer.macs) for layer in with_macs(layers, shapes)}
    assert found == {
        "grouped": (4, "grouped Conv", 36 * 27 * 4),
        "up": (4, "ConvTranspose", 64 * 6 * 4 * 4),  # every input pixel times the kernel
        "product": (5, "MatMul", 48 * 8 * 5),
        "left": (5, "MatMul", 48 * 8 * 5),
    }
    assert all(layer.macs == 0 for layer in with_macs(layers, {}))


def test_graph() -> None:
    net = Net()
    x = net.input("rows", 4)
    y = net.add("Relu", x)
    z = net.add("Add", y, y)
    graph = Graph(prepare(net.model(z, net.add("Exp", z))).model)
    assert graph.inputs == ("x",) and z in graph.outputs
    assert [(node.op_type, index) for node, index in graph.consumers[y]] == [("Add", 0), ("Add", 1)]
    assert graph.sole_consumer(y) is None, "it is read twice"
    assert graph.sole_consumer(z) is None, "it leaves the graph"
    only = graph.sole_consumer(x)
    assert only is not None and only.op_type == "Relu"
    assert graph.constant(y) is None and graph.shapes[y] == (None, 4)
    node = onnx.helper.make_node("Pad", ["a"], ["b"], mode="edge", axis=3)
    assert (attribute(node, "mode"), attribute(node, "axis"), attribute(node, "none", 7)) == ("edge", 3, 7)
