"""Stored weights at their limits, shared ones, and tables of embeddings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autoq.core.scheme import Scheme
from autoq.errors import TrialError
from autoq.model.lower import Lowering
from tests.models import Net, check, distance, lowered, run, run_optimized, run_unfused

ALL = ("float16", "w8", "w4", "w2", "w8-tensor", "w4-gptq", "w8a8@minmax", "w4a8-gptq@mse", "w2a8-tensor@minmax")
ALL += ("w4-tensor-kmeans", "w2-kmeans", "w4a8-kmeans@mse", "w2a8-kmeans@minmax")


def conv_of(weight: np.ndarray, bias: np.ndarray | None = None, activation: str = "Relu") -> onnx.ModelProto:
    net = Net()
    parameters = [net.constant(weight.astype(np.float32), "w.weight")]
    if bias is not None:
        parameters.append(net.constant(bias.astype(np.float32), "b"))
    y = net.add("Conv", net.input("rows", weight.shape[1], 6, 6), *parameters)
    return net.model(net.add(activation, y))


def feeds(channels: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": (np.random.default_rng(4).standard_normal((3, channels, 6, 6)) * scale).astype(np.float32)}


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape)


@pytest.mark.parametrize("scheme", ALL)
def test_channels_of_zeros(scheme: str) -> None:
    weight = random_weight(4, 3, 3, 3)
    weight[1:3] = 0
    subject = lowered(conv_of(weight, random_weight(4)), [scheme], feeds(3))
    (found,) = run_optimized(subject.build(scheme), subject.feeds)[0].values()
    (exact,) = subject.float32().values()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 1:3], exact[:, 1:3], atol=float(exact.max()) / 120)  # bias alone


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-38, 1e30])
def test_weights_at_the_ends_of_float32(scheme: str, value: float) -> None:
    """All zero, subnormal, barely normal, huge: a sound file that computes finite numbers near the right ones."""
    if scheme == "float16" and value > 1:
        pytest.skip("candidates refuse float16 here")
    subject = lowered(conv_of(np.sign(random_weight(4, 3, 3, 3)) * value), [scheme], feeds(3))
    candidate = subject.build(scheme)
    check(candidate)
    (found,) = run_optimized(candidate, subject.feeds)[0].values()
    (exact,) = subject.float32().values()
    assert np.isfinite(found).all()
    assert np.abs(found - exact).max() <= 0.35 * max(float(np.abs(exact).max()), 1e-30)


@pytest.mark.parametrize("weights", ["w8a8", "w8a8-tensor", "w2a8-kmeans", "w2a8-tensor-kmeans"])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_room_for_a_bias_far_larger_than_what_is_added_to_it(op: str, weights: str) -> None:
    """The bias at the product of both scales would not fit 32 bits; the weights give way, and the sum is right."""
    net = Net()
    weight = random_weight(4, 8) * 1e-6
    bias = np.array([1e6, -3e5, 0.5, 0], np.float32)
    if op == "Conv":
        x, shape = net.input("rows", 8, 1, 1), (4, 8, 1, 1)
    else:
        x, shape = net.input("rows", 8), (4, 8)
    attributes = {"transB": 1} if op == "Gemm" else {}
    y = net.add(
        op, x, net.constant(weight.astype(np.float32).reshape(shape), "w.weight"), net.constant(bias, "b"), **attributes
    )
    data = {"x": (random_weight(5, 8) * 1e-3).astype(np.float32).reshape(5, *shape[1:])}
    scheme = f"{weights}@minmax"
    subject = lowered(net.model(y), [scheme], data)
    candidate = check(subject.build(scheme))
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in candidate.graph.initializer if t.data_type == TensorProto.INT32
    }
    assert len(stored) == (op == "Gemm"), "the runtime rounds a Conv's when it loads the file"
    assert all(np.abs(integers.astype(np.int64)).max() <= 2**30 + 2**8 for integers in stored.values())
    (found,) = run_optimized(subject.build(scheme), data)[0].values()
    (exact,) = subject.float32().values()
    assert distance(found, exact) < 0.01


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-37, 1e-30, 1e30])
def test_activations_at_the_ends_of_float32(scale: float) -> None:
    subject = lowered(conv_of(random_weight(4, 3, 3, 3), random_weight(4)), ["w8a8@minmax"], feeds(3, scale))
    candidate = subject.build("w8a8@minmax")
    check(candidate)
    (found,) = run_optimized(candidate, subject.feeds)[0].values()
    (exact,) = subject.float32().values()
    assert np.isfinite(found).all() and distance(found, exact) < 0.05


@pytest.mark.parametrize("inputs", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("outputs", [1, 3, 6])
def test_numbers_of_weights_that_fill_no_byte(inputs: int, outputs: int) -> None:
    net = Net()
    y = net.add("MatMul", net.input("rows", 2, inputs), net.weight(inputs, outputs))
    data = {"x": np.random.default_rng(0).standard_normal((3, 2, inputs)).astype(np.float32)}
    schemes = ("w4", "w2", "w4a8@minmax", "w2a8@minmax", "w4-kmeans", "w2-kmeans", "w4a8-kmeans@minmax")
    subject = lowered(net.model(y), schemes, data)
    (layer,) = subject.layers
    for scheme in schemes:
        candidate = subject.build(scheme)
        check(candidate)
        weight = subject.lowering.bank[layer.name, Scheme.parse(scheme).weight].dequantize()
        (found,) = run_optimized(candidate, data)[0].values()
        assert distance(found, data["x"] @ weight) < (0.02 if "a8" in scheme else 1e-6), scheme


@pytest.mark.parametrize("scheme", ALL)
def test_shared_weights_are_stored_once(scheme: str) -> None:
    net = Net()
    weight, x = net.weight(6, 6, 3, 3), net.input("rows", 6, 8, 8)
    first = net.add("Relu", net.add("Conv", x, weight, net.weight(6)))
    second = net.add("Conv", first, weight, net.weight(6))
    subject = lowered(net.model(second), [scheme], {"x": random_weight(2, 6, 8, 8).astype(np.float32)})
    candidate = check(subject.build(scheme))
    assert sum(tensor.dims == [6, 6, 3, 3] for tensor in candidate.graph.initializer) == 1
    outputs, _, counts = run_optimized(subject.build(scheme), subject.feeds)
    assert counts["QLinearConv"] == (2 if "a8" in scheme else 0)
    for name, expected in run_unfused(subject.build(scheme), subject.feeds).items():
        assert distance(outputs[name], expected) < 0.02


@pytest.mark.parametrize("scheme", ["float16", "w8", "w4", "w8a8@minmax", "w4a8@minmax"])
def test_one_weight_used_in_different_ways(scheme: str) -> None:
    """An embedding's table that is the last product's weight, too, and a Gemm that scales: each use has its form."""
    net = Net()
    table = net.weight(7, 5, name="embed.weight")
    rows = net.add("Gather", table, net.input("rows", 3, name="ids", kind=TensorProto.INT64))
    flat = net.add("Reshape", rows, net.ints(-1, 5))
    plain = net.add("Gemm", flat, table, transB=1)
    scaled = net.add("Gemm", flat, table, transB=1, alpha=0.5)
    data = {"ids": np.array([[0, 6, 3], [-1, 2, -7]], np.int64)}
    subject = lowered(net.model(plain, scaled, rows), [scheme], data)
    assert [layer.tied_to for layer in subject.layers] == [None, None, None]
    candidate = subject.build(scheme)
    check(candidate)
    outputs, exact = run_optimized(candidate, data)[0], subject.float32()
    for name, expected in exact.items():
        assert distance(outputs[name], expected) < (0.2 if scheme.startswith("w4") else 0.03), name


@pytest.mark.parametrize(
    "scheme", ["float32", "float16", "w8", "w8-tensor", "w4", "w4-tensor", "w2", "w4-kmeans", "w2-tensor-kmeans"]
)
def test_embeddings(scheme: str) -> None:
    """A look-up gives the table's own rows, bit for bit, and dequantizes no more than the rows that it takes."""
    net = Net()
    rows = net.add(
        "Gather", net.weight(50, 8, name="embed.weight"), net.input("rows", 3, name="ids", kind=TensorProto.INT64)
    )
    again = net.add("Gather", "embed.weight", net.add("Neg", net.add("Sign", "ids")))
    data = {"ids": np.random.default_rng(0).integers(-50, 50, (4, 3))}
    subject = lowered(net.model(rows, again), [scheme], data)
    first, second = subject.layers
    assert (first.kind, second.tied_to, first.integer_problem != "") == ("embedding (Gather)", "embed", True)
    candidate = subject.build(scheme)
    parsed = check(candidate)
    assert sum(tensor.dims == [50, 8] for tensor in parsed.graph.initializer) == 1
    weight = subject.graph.constant("embed.weight")
    assert weight is not None
    parsed_scheme = Scheme.parse(scheme)
    if scheme == "float16":
        weight = weight.astype(np.float16).astype(np.float32)
    elif parsed_scheme.weight is not None:
        weight = subject.lowering.bank["embed", parsed_scheme.weight].dequantize()
    outputs, graph, counts = run_optimized(candidate, data)
    np.testing.assert_array_equal(outputs[rows], weight[data["ids"]])
    np.testing.assert_array_equal(outputs[again], weight[-np.sign(data["ids"])])
    whole = [tensor for tensor in graph.initializer if (tensor.data_type, tensor.dims) == (TensorProto.FLOAT, [50, 8])]
    assert not whole or scheme == "float32", "the whole table is float at run time"
    assert counts["Gather"] >= 2


def test_an_integer_convolution_over_embeddings() -> None:
    net = Net()
    ids = net.input("rows", 9, name="ids", kind=TensorProto.INT64)
    y = net.add("Transpose", net.add("Gather", net.weight(50, 8), ids), perm=[0, 2, 1])
    y = net.add("Relu", net.add("Conv", y, net.weight(6, 8, 3), net.weight(6)))
    subject = lowered(net.model(y), ["w8a8@minmax", "w8"], {"ids": np.random.default_rng(0).integers(0, 50, (4, 9))})
    table, conv = subject.layers
    policy = subject.canonical({table.name: Scheme.parse("w8"), conv.name: Scheme.parse("w8a8@minmax")})
    outputs, _, counts = run_optimized(subject.build(policy), subject.feeds)
    assert (counts["QLinearConv"], counts["QuantizeLinear"]) == (1, 1)
    assert distance(outputs[y], subject.float32()[y]) < 0.03


def test_what_was_not_prepared_is_a_failed_build() -> None:
    subject = lowered(conv_of(random_weight(4, 3, 3, 3)), ["w8", "w8a8@minmax"], feeds(3))
    with pytest.raises(TrialError, match="the bank has no w4") as raised:
        subject.build("w4")
    assert raised.value.reason == "build"
    with pytest.raises(TrialError, match="no calibrated range for mse"):
        subject.build("w8a8@mse")
    bare = Lowering(subject.graph, subject.layers, {}, {})
    assert run(bare.build(subject.policy("float32")), subject.feeds).keys() == subject.float32().keys()
