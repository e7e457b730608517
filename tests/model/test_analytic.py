"""Mean inputs that follow from the model, against those of data drawn from what it assumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoq.core.scheme import Scheme
from autoq.model.analytic import analytic_means, analytic_problem, assumed_inputs, input_moments
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from autoq.model.source import read_model
from autoq.search.candidates import all_candidates
from autoq.spec.hardware import load_profile
from autoq.spec.space import Space
from tests.models import Net, lowered, run

Middle = Callable[[Net, str], str]

# What may stand between two 1x1 convolutions, of 4 channels: with independent inputs, all of it is nearly exact.
FOLLOWED: dict[str, Middle] = {
    "Relu": lambda n, y: n.add("Relu", y),
    "Clip": lambda n, y: n.add("Clip", y, n.constant(np.float32(0)), n.constant(np.float32(1))),
    "HardSwish": lambda n, y: n.add("HardSwish", y),
    "Sigmoid": lambda n, y: n.add("Sigmoid", y),
    "LeakyRelu": lambda n, y: n.add("LeakyRelu", y, alpha=0.2),
    "Gelu": lambda n, y: n.add("Gelu", y),
    "Tanh": lambda n, y: n.add("Tanh", y),
    "sum": lambda n, y: n.add("Add", n.add("Relu", y), y),
    "constant": lambda n, y: n.add("Relu", n.add("Add", y, n.constant(np.float32(0.5)))),
    "one a channel": lambda n, y: n.add("Mul", y, n.constant(np.arange(4, dtype=np.float32).reshape(4, 1, 1))),
    "cut": lambda n, y: n.add("Slice", y, n.ints(0, 0), n.ints(9, 9), n.ints(2, 3), n.ints(2, 2)),
    "channels padded": lambda n, y: n.add(
        "Pad", n.conv(y, 4, 2, 1), n.ints(0, 1, 0, 0, 0, 1, 0, 0), n.constant(np.float32(0))
    ),
    "pool": lambda n, y: n.add("AveragePool", n.add("Relu", y), kernel_shape=[2, 2]),
}  # fmt: skip


def graph_of(model: object) -> Graph:
    prepared = prepare(model)  # type: ignore[arg-type]
    return Graph(prepared.model, norms=prepared.norms)


@pytest.mark.parametrize("name", FOLLOWED)
def test_means_follow(name: str) -> None:
    net = Net(seed=len(name))
    y = FOLLOWED[name](net, net.conv(net.input("rows", 3, 6, 6), 3, 4, 1))
    model = net.model(y, net.conv(y, 4, 2, 1))
    x = np.random.default_rng(1).standard_normal((3000, 3, 6, 6)).astype(np.float32) + np.float32(0.4)
    graph = graph_of(model)
    moments = input_moments(x)
    assert moments is not None
    found = analytic_means(graph, read_layers(graph), {"x": moments})
    seen = run(graph.model, {"x": x})[graph.model.graph.output[0].name].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(found[read_layers(graph)[-1].name][0], seen, atol=0.02)


def test_a_batch_norm_says_it_outright(tmp_path: Path) -> None:
    """Folded into its convolution, it still says what its output's mean and deviation were in training."""
    net = Net(seed=3)
    parameters = [1 + net.rng.random(4), net.rng.standard_normal(4), net.rng.standard_normal(4), 1 + net.rng.random(4)]
    y = net.conv(net.add("MaxPool", net.input("rows", 3, 6, 6), kernel_shape=[2, 2]), 3, 4, bias=False)
    y = net.add("BatchNormalization", y, *(net.constant(value.astype(np.float32)) for value in parameters))
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.conv(net.add("Relu", y), 4, 2)).SerializeToString())
    model = read_model(path)
    assert [node.op_type for node in model.graph.model.graph.node] == ["MaxPool", "Conv", "Relu", "Conv"]
    found = analytic_means(model.graph, model.layers, {})
    assert list(found) == [model.layers[1].name], "nothing is known of what MaxPool makes of an unknown input"
    gamma, beta = parameters[0], parameters[1]
    draws = np.maximum(beta + gamma * np.random.default_rng(0).standard_normal((200_000, 4)), 0).mean(axis=0)
    np.testing.assert_allclose(found[model.layers[1].name][0].reshape(4, 9), np.repeat(draws[:, None], 9, 1), atol=0.02)
    equalized = read_model(path, equalized=True)
    (mean,) = analytic_means(equalized.graph, equalized.layers, {}).values()
    weights = [graph.constant(model.layers[1].weight) for graph in (model.graph, equalized.graph)]
    products = [np.einsum("oikl,i->o", weight, each.reshape(4, 9)[:, 0]) for weight, each in
                zip(weights, (found[model.layers[1].name][0], mean[0]), strict=True)]  # fmt: skip
    np.testing.assert_allclose(products[0], products[1], rtol=1e-4)


def test_flattened_channels_and_groups() -> None:
    net = Net(seed=4)
    y = net.add("Relu", net.conv(net.input("rows", 4, 3, 3), 4, 4, 3, group=4))
    y = net.add("Relu", net.conv(y, 4, 6, 1, group=2))
    model = net.model(net.add("Gemm", net.add("Flatten", y), net.weight(54, 5), net.weight(5)))
    graph = graph_of(model)
    layers = read_layers(graph)
    found = analytic_means(graph, layers, assumed_inputs(graph))
    assert [found[layer.name].shape for layer in layers] == [(4, 9), (2, 2), (1, 54)]
    assert (found[layers[2].name][0].reshape(6, 9) == found[layers[2].name][0].reshape(6, 9)[:, :1]).all()


def test_what_does_not_follow() -> None:
    """Layer norms, maxima, tokens: the scheme less its correction stands in, with the reason."""
    net = Net()
    y = net.add("MaxPool", net.input("rows", 3, 6, 6), kernel_shape=[2, 2])
    model = net.model(net.conv(y, 3, 4))
    graph = graph_of(model)
    (layer,) = read_layers(graph)
    assert "what MaxPool makes" in analytic_problem(
        graph, layer, analytic_means(graph, (layer,), assumed_inputs(graph))
    )
    schemes = tuple(map(Scheme.parse, ("float32", "w4-bca", "w4-bc")))
    space = Space(name="test", description="", schemes=schemes, rules=(), seeds=schemes)
    (entry,) = all_candidates(graph, (layer,), space, load_profile("cpu-x86-onnxruntime", "."), 21)
    assert [str(scheme) for scheme in entry.schemes] == ["float32", "w4", "w4-bc"]
    assert [str(scheme) for scheme, _ in entry.refused] == ["w4-bca"]


def test_candidates_lose_less() -> None:
    net = Net(seed=8)
    y = net.add("Relu", net.conv(net.input("rows", 3, 6, 6), 3, 8))
    model = net.model(net.conv(net.add("Relu", net.conv(y, 8, 8)), 8, 4))
    x = np.random.default_rng(1).standard_normal((50, 3, 6, 6)).astype(np.float32)
    subject = lowered(model, ["float32", "w2", "w2-bc", "w2-bca"], {"x": x})
    (exact,) = subject.float32().values()
    errors = {}
    for text in ("w2", "w2-bc", "w2-bca"):
        (found,) = run(subject.build(text), {"x": x}).values()
        errors[text] = np.square(found - exact).mean()
    assert errors["w2-bc"] < errors["w2"] and errors["w2-bca"] < errors["w2"]
    names = {layer.name for layer in subject.layers}
    assert {name for name, spec in subject.lowering.corrections if spec.bias_correction == "analytic"} == names
