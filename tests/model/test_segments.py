"""Running a model in parts gives what running it whole does, whatever is kept at the cuts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autoq.core.scheme import Scheme
from autoq.errors import TrialError
from autoq.model.calibrate import with_outputs
from autoq.model.graph import Graph
from autoq.model.prepare import prepare
from autoq.model.segments import Segments
from tests.models import Lowered, Net, lowered, run


def residual_net() -> onnx.ModelProto:
    """Three convolutions, the second inside a residual, and a classifier."""
    net = Net()
    x = net.input("N", 3, 6, 6)
    one = net.add("Relu", net.conv(x, 3, 8))
    two = net.add("Relu", net.add("Add", net.conv(one, 8, 8), one))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.conv(two, 8, 8))))
    return net.model(net.add("Gemm", pooled, net.weight(8, 4), net.weight(4)))


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(0).normal(size=(7, 3, 6, 6)).astype(np.float32)
    return [{"x": x[:3]}, {"x": x[3:6]}, {"x": x[6:]}]  # the last batch is shorter


@pytest.fixture(scope="module")
def net(feeds: list[dict[str, np.ndarray]]) -> Lowered:
    return lowered(residual_net(), ["w8a8@minmax", "w4a8-gptq@minmax"], feeds[0])


@pytest.mark.parametrize("kept_bytes", [0, 2000, 2**30])
@pytest.mark.parametrize("scheme", ["float32", "w8a8@minmax"])
def test_every_part_gives_what_the_whole_gives(
    net: Lowered, feeds: list[dict[str, np.ndarray]], scheme: str, kept_bytes: int
) -> None:
    model = onnx.ModelProto.FromString(net.build(scheme))
    graph = Graph(model)
    parts = Segments(model, feeds, kept_bytes=kept_bytes)
    for layer in net.layers:
        node = parts.node(layer.node)
        assert node is not None
        for after, tensor in ((False, node.input[0]), (True, node.output[0])):
            wanted = [run(with_outputs_of(graph, tensor), batch)[tensor] for batch in feeds]
            found = [values for (values,) in parts.upto(layer.node, [tensor], after=after)]
            for own, whole in zip(found, wanted, strict=True):
                # A cut through a layer and its quantization leaves it in float: half a level at the most.
                np.testing.assert_allclose(own, whole, atol=0.02 * np.abs(whole).max())


def with_outputs_of(graph: Graph, tensor: str) -> bytes:
    return with_outputs(graph, [tensor])


def test_integers_cross_a_cut(net: Lowered, feeds: list[dict[str, np.ndarray]]) -> None:
    """Exactly what the whole model computes on its integer kernels, at a quarter of the bytes."""
    model = onnx.ModelProto.FromString(net.build("w8a8@minmax"))
    parts = Segments(model, feeds)
    last = net.layers[2].node
    node = parts.node(last)
    assert node is not None
    found = [values for (values,) in parts.upto(last, [node.input[0]])]
    for own, batch in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(own, run(with_outputs_of(Graph(model), node.input[0]), batch)[node.input[0]])
    state = parts._state[0]
    assert state and all(values.dtype == np.uint8 for values in state.values())


def test_numbers_behind_the_cut_may_change(net: Lowered, feeds: list[dict[str, np.ndarray]]) -> None:
    policy = dict(net.policy("w8a8@minmax"))
    parts = Segments(onnx.ModelProto.FromString(net.build("w8a8@minmax")), feeds)
    second = net.layers[1].node
    list(parts.upto(second, [net.layers[1].input]))
    changed = net.canonical(policy | {net.layers[1].name: Scheme.parse("w4a8-gptq@minmax")})
    model = onnx.ModelProto.FromString(net.build(changed))
    parts.replace(model)
    (name,) = (value.name for value in model.graph.output)
    found = [values for (values,) in parts.upto(net.layers[3].node, [name], after=True)]
    for own, batch in zip(found, feeds, strict=True):
        np.testing.assert_allclose(own, run(model, batch)[name], atol=1e-3)


def test_a_branch_that_comes_later_is_run_when_it_is_asked_for(feeds: list[dict[str, np.ndarray]]) -> None:
    net = Net()
    x = net.input("N", 3, 6, 6)
    conv = net.conv(x, 3, 3)
    shortcut = net.add("Relu", x)  # stands behind the convolution in the graph
    model = net.model(net.add("Add", conv, shortcut))
    parts = Segments(model, feeds)
    found = [values for (values,) in parts.upto(model.graph.node[0].name, [shortcut])]
    np.testing.assert_array_equal(found[0], np.maximum(feeds[0]["x"], 0))
    assert [len(values) for (values,) in parts.upto(model.graph.node[2].name, [conv])] == [3, 3, 1]


def test_bodies_read_what_crosses_the_cut(feeds: list[dict[str, np.ndarray]]) -> None:
    """A branch of an If reads a tensor from outside that no node of the graph takes as its input."""
    net = Net()
    x = net.input("N", 3, 6, 6)
    early = net.add("Relu", x)
    first = net.conv(x, 3, 3)
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    then = helper.make_graph([helper.make_node("Abs", [early], ["out"], "then")], "then", [], out)
    other = helper.make_graph([helper.make_node("Neg", [early], ["out"], "else")], "else", [], out)
    condition = net.add("Greater", net.add("ReduceMax", first, keepdims=0), net.constant(np.float32(1e9)))
    chosen = net.add("If", condition, then_branch=then, else_branch=other)
    model = prepare(net.model(chosen)).model
    branch = next(node for node in model.graph.node if node.op_type == "If")
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    parts = Segments(model, feeds)
    list(parts.upto(conv.name, [conv.output[0]], after=True))
    found = [values for (values,) in parts.upto(branch.name, [branch.output[0]], after=True)]
    np.testing.assert_array_equal(found[2], -np.maximum(feeds[2]["x"], 0))


def test_a_part_that_does_not_run_is_a_trial_error(net: Lowered) -> None:
    parts = Segments(net.graph.model, [{"x": np.zeros((2, 3, 6, 6), np.float64)}])
    with pytest.raises(TrialError, match="ONNX Runtime"):
        list(parts.upto(net.layers[1].node, [net.layers[1].input]))


def test_a_model_that_calls_its_tensors_otherwise(net: Lowered, feeds: list[dict[str, np.ndarray]]) -> None:
    """A file's own names are numbers, which another constant shifts."""
    model = onnx.ModelProto.FromString(net.build("w8a8@minmax"))
    other = onnx.ModelProto.FromString(net.build("w8a8@minmax"))
    ends = {value.name for value in (*other.graph.input, *other.graph.output)}
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in ends or not name else f"other {name}" for name in names]
    for tensor in other.graph.initializer:
        tensor.name = f"other {tensor.name}"
    first, last = net.layers[1].node, net.layers[-1].node
    parts, exact = Segments(model, feeds), Segments(model, feeds)
    for each in (parts, exact):
        list(each.upto(first, []))
    parts.replace(other)
    given = exact.node(last).input[0]  # type: ignore[union-attr]
    found = [values for (values,) in parts.upto(last, [f"other {given}"])]
    for values, (wanted,) in zip(found, exact.upto(last, [given]), strict=True):
        np.testing.assert_array_equal(values, wanted)
    shorter = onnx.ModelProto.FromString(net.build("float32"))
    with pytest.raises(TrialError, match="other nodes"):
        exact.replace(shorter)
