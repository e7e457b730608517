"""Candidates in TensorRT's explicit-quantization form: the rules that they keep, and the values that they have."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from autoq.errors import TrialError
from autoq.model.tensorrt import to_tensorrt
from autoq.model.tensorrt_check import tensorrt_problems
from tests.models import Lowered, Net, check, distance, lowered, run, run_unfused

SIGNED = ["w8a8-s8@minmax", "w8a8-s8-tensor@mse", "w8a8-s8-bc@minmax", "w8a8-s8-smooth0.5@minmax"]
BLOCKS = ["w4-b32", "w4-b64"]
REFUSED = {
    "w8a8@minmax": "'-s8'",
    "w8a8@dynamic": "calibrated ranges",
    "w4a8-s8@minmax": "a Cast of int8",
    "w8": "a Cast of int8",
    "w4": "a Cast of int4",
    "w8-b32": "com.microsoft",
    "w4-b32-asym": "'-asym'",
}


def image_net() -> Lowered:
    """A residual block, carried operators, pools, a Gemm and a MatMul."""
    net = Net(3)
    x = net.input("n", 8, 12, 12)
    a = net.add("Relu", net.conv(x, 8, 16))
    b = net.add("Relu", net.add("Add", a, net.conv(a, 16, 16, group=4)))
    c = net.add("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2])
    d = net.add("Flatten", net.add("GlobalAveragePool", c))
    e = net.add("Relu", net.add("Gemm", d, net.weight(32, 16), net.weight(32), transB=1))
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8, 12, 12)).astype(np.float32)}
    return lowered(net.model(net.add("MatMul", e, net.weight(32, 10))), SIGNED, feeds)


def products(schemes: list[str]) -> Lowered:
    """A MatMul with a bias behind it, an activation, a Gemm of a transposed weight."""
    net = Net(5)
    x = net.input("n", 6, 64)
    a = net.add("Gelu", net.add("Add", net.add("MatMul", x, net.weight(64, 128)), net.weight(128)))
    b = net.add("Reshape", a, net.ints(-1, 128))
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 6, 64)).astype(np.float32)}
    return lowered(net.model(net.add("Gemm", b, net.weight(64, 128), net.weight(64), transB=1)), schemes, feeds)


@pytest.fixture(scope="module")
def images() -> Lowered:
    return image_net()


@pytest.mark.parametrize("scheme", SIGNED)
def test_a_signed_candidate_keeps_its_values(images: Lowered, scheme: str) -> None:
    candidate = images.build(scheme)
    model = to_tensorrt(candidate)
    parsed = check(model)
    assert tensorrt_problems(parsed) == ()
    assert parsed.opset_import[0].version == 20
    assert "Cast" not in {node.op_type for node in parsed.graph.node}
    assert {tensor.data_type for tensor in parsed.graph.initializer} <= {
        TensorProto.INT8,
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    for runs in (run, run_unfused):
        (found,), (expected,) = runs(model, images.feeds).values(), runs(candidate, images.feeds).values()
        assert distance(found, expected) < 1e-6
    assert to_tensorrt(candidate) == model


def test_biases_are_floats_and_activations_are_named_as_before(images: Lowered) -> None:
    """A Gemm's bias is stored as int32 for ONNX Runtime; here it is the same numbers in float32."""
    candidate = onnx.load_from_string(images.build(SIGNED[0]))
    model = onnx.load_from_string(to_tensorrt(candidate.SerializeToString()))
    assert any(tensor.data_type == TensorProto.INT32 for tensor in candidate.graph.initializer)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[2])
    assert (bias.data_type, tuple(bias.dims)) == (TensorProto.FLOAT, (32,))
    written = [{n.output[0] for n in each.graph.node if n.op_type == "QuantizeLinear"} for each in (candidate, model)]
    assert written[0] == written[1]


@pytest.mark.parametrize("scheme", BLOCKS)
def test_weights_in_blocks_become_int4(scheme: str) -> None:
    """Levels along K, scales for each block, an even last dimension; computed as they are written."""
    subject = products(BLOCKS)
    candidate = subject.build(scheme)
    model = to_tensorrt(candidate)
    parsed = check(model)
    assert tensorrt_problems(parsed) == ()
    assert parsed.opset_import[0].version == 21
    constants = {tensor.name: tensor for tensor in parsed.graph.initializer}
    kinds = [tensor.data_type for tensor in parsed.graph.initializer]
    assert kinds.count(TensorProto.INT4) == 2
    blocks = {
        a.i for n in parsed.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute if a.name == "block_size"
    }
    assert blocks == {int(scheme[-2:])}
    # Unfused: ONNX Runtime would make MatMulNBits of it, which rounds activations to 8 bits.
    (found,) = run_unfused(model, subject.feeds).values()
    # Against the products by hand: levels and scales as they lie in the file.
    weights = {}
    for node in parsed.graph.node:
        if node.op_type == "DequantizeLinear":
            levels, scales = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input)
            assert (scales > 0).all()
            weights[node.output[0]] = levels * np.repeat(scales, int(scheme[-2:]), axis=0)
    first, second = weights.values()
    biases = [numpy_helper.to_array(constants[n.input[1]]) for n in parsed.graph.node if n.op_type == "Add"]
    hidden = torch.nn.functional.gelu(torch.from_numpy(subject.feeds["x"] @ first + biases[0])).numpy()
    assert distance(found, hidden.reshape(-1, 128) @ second + biases[1]) < 1e-5
    # A positive scale costs a part of the blocks some precision, not more than a fifth of the rounding's own error.
    true = {layer.op_type: subject.graph.constant(layer.weight) for layer in subject.layers}
    for weight, exact in ((first, true["MatMul"]), (second, true["Gemm"].T)):
        assert 0.02 < np.linalg.norm(weight - exact) / np.linalg.norm(exact) < 0.12
    assert len(model) < len(subject.graph.model.SerializeToString()) / 3


@pytest.mark.parametrize("scheme", REFUSED)
def test_what_tensorrt_cannot_read_is_refused(scheme: str) -> None:
    with pytest.raises(TrialError, match=REFUSED[scheme]) as caught:
        to_tensorrt(products([scheme]).build(scheme))
    assert caught.value.reason == "build"


@pytest.mark.parametrize(("inputs", "outputs", "why"), [(48, 64, "do not divide its 48 inputs"), (64, 7, "7 outputs")])
def test_blocks_that_do_not_fit(inputs: int, outputs: int, why: str) -> None:
    net = Net()
    y = net.add("MatMul", net.input("n", inputs), net.weight(inputs, outputs))
    subject = lowered(net.model(y), ["w4-b32"], {"x": np.ones((2, inputs), np.float32)})
    with pytest.raises(TrialError, match=why):
        to_tensorrt(subject.build("w4-b32"))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=3),
    activation=st.sampled_from(["Relu", "Sigmoid", "Tanh", ""]),
    residual=st.booleans(),
)
def test_random_networks(seed: int, widths: list[int], activation: str, residual: bool) -> None:
    net = Net(seed)
    x, channels = net.input("n", 4, 6, 6), 4
    for width in widths:
        y = net.conv(x, channels, width, kernel=1 if seed % 2 else 3)
        y = net.add(activation, y) if activation else y
        x = net.add("Add", x, y) if residual and width == channels else y
        channels = width
    feeds = {"x": np.random.default_rng(seed).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    subject = lowered(net.model(x), SIGNED[:1], feeds)
    candidate = subject.build(SIGNED[0])
    model = to_tensorrt(candidate)
    assert tensorrt_problems(check(model)) == ()
    (found,), (expected,) = run_unfused(model, feeds).values(), run_unfused(candidate, feeds).values()
    assert distance(found, expected) < 1e-6
