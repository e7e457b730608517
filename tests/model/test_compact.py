"""Fewer bytes, the same model: what is shortened, what keeps its name, and what the runtime makes of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.scheme import Scheme
from autoq.model.compact import WORTH_A_CAST, compact
from autoq.numerics.affine import half
from tests.models import Net, check, lowered, run_optimized

LONG = WORTH_A_CAST


def tensors(**values: np.ndarray) -> dict[str, TensorProto]:
    return {name: numpy_helper.from_array(value, name) for name, value in values.items()}


def test_what_float16_holds_is_stored_so_and_nothing_else_is() -> None:
    exact = np.linspace(-1, 1, LONG, dtype=np.float16).astype(np.float32)
    kept = {
        "inexact": np.full(LONG, 0.1, np.float32),
        "too large": np.full(LONG, 1e6, np.float32),
        "short": exact[: LONG - 1],
        "whole": np.ones(LONG, np.int32),
    }
    nodes = [helper.make_node("Identity", [name], [f"{name} out"], name) for name in ("exact", *kept)]
    made, stored = compact(nodes, tensors(exact=exact, **kept))
    (cast,) = (node for node in made if node.op_type == "Cast")
    assert stored.keys() - kept.keys() == set(cast.input) and list(cast.output) == ["exact"]
    np.testing.assert_array_equal(numpy_helper.to_array(stored[cast.input[0]]).astype(np.float32), exact)
    assert made[1:] == nodes and made[0] == cast, "constants stand before what reads them"
    for name, values in kept.items():
        np.testing.assert_array_equal(numpy_helper.to_array(stored[name]), values)


def test_names_that_are_looked_for_stay() -> None:
    zero = np.uint8(3)
    given = tensors(**{"w::w": np.ones(9, np.int8), "a::z": np.asarray(zero), "b::z": np.asarray(zero)})
    given |= tensors(**{"c::z": np.asarray(np.int8(3)), "theirs": np.asarray(zero)})
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "theirs", "a::z"], ["a::q"], "a::q::QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["a::q", "theirs", "b::z"], ["b::raw"], "b::raw::DequantizeLinear"),
        helper.make_node("Conv", ["b::raw", "w::w", "c::z"], ["y"], "layer", group=1, strides=[1, 2], pads=[0, 0]),
    ]
    made, stored = compact(nodes, given)
    assert [node.name for node in made] == ["", "", "layer"]
    quantize, dequantize, conv = made
    assert quantize.output[0] == dequantize.input[0] == "a::q" and quantize.input[1] == "theirs"
    assert quantize.input[2] == dequantize.input[2], "equal scalars are one"
    assert dequantize.output[0] == conv.input[0] != "b::raw"
    assert conv.input[1] == "w::w" and conv.input[2] not in ("c::z", quantize.input[2])
    assert [entry.name for entry in conv.attribute] == ["strides"]
    assert stored.keys() == {"w::w", "theirs", quantize.input[2], conv.input[2]}
    assert nodes[0].input[2] == "a::z" and len(nodes[2].attribute) == 3, "arguments stay as they are"


@pytest.mark.parametrize("scheme", ["float32", "float16", "w4", "w8", "w8a8@minmax", "w2a8@minmax", "w4-tensor"])
def test_nothing_of_it_is_left_when_the_session_has_loaded(scheme: str) -> None:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 8, 6, 6), 8, 32))
    y = net.add("HardSwish", net.conv(y, 32, 32, group=32))
    y = net.add("Flatten", net.add("GlobalAveragePool", y))
    model = net.model(net.add("Gemm", y, net.weight(32, 40), net.weight(40)))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)}
    subject = lowered(model, [scheme], feeds)
    candidate = check(subject.build(scheme))
    counts = run_optimized(subject.build(scheme), feeds)[2]
    assert not counts["Cast"]
    biases = {layer.bias for layer in subject.layers}
    halves = [t for t in candidate.graph.initializer if t.data_type == TensorProto.FLOAT16 and len(t.dims) == 1]
    integers = Scheme.parse(scheme).activation is not None
    assert len(halves) >= (0 if scheme == "float32" else 2 if integers else len(biases))
    if scheme != "float32":
        named = {node.name for node in candidate.graph.node if node.name}
        assert named >= {layer.node for layer in subject.layers}


def test_half() -> None:
    values = np.array([1.0, 0.1, -3e4, 7e-5], np.float32)
    np.testing.assert_array_equal(half(values), values.astype(np.float16).astype(np.float32))
    assert np.abs(half(values) / values - 1).max() <= 2**-11
    for beyond in (1e-7, 7e4, -1e38):  # float16 would be a twentieth off, or infinite
        unchanged = np.array([1.0, beyond], np.float32)
        assert half(unchanged) is unchanged
    assert half(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_a_candidate_is_smaller_than_its_parts_were() -> None:
    """Most of what a 4-bit file of small layers held besides integers is gone: names, scales, biases."""
    net = Net()
    y = net.input("rows", 32, 8, 8)
    for _ in range(4):
        y = net.add("HardSwish", net.conv(y, 32, 32, 1))
    model = net.model(y)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 32, 8, 8)).astype(np.float32)}
    subject = lowered(model, ["w4"], feeds)
    integers, scales_and_biases = 4 * 32 * 32 // 2, 4 * 2 * 2 * 32
    assert len(subject.build("w4")) < integers + scales_and_biases + 4 * 320
    assert onnx.load_from_string(subject.build("w4")).graph.initializer
