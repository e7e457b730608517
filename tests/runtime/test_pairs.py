"""Every pair left in the graph that runs has a reason, and what is a defect is called one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.scheme import FLOAT32, Scheme
from autoq.runtime.executed import LayerNames
from autoq.runtime.pairs import DEFECT, REASONS, Left, left_pairs
from tests.models import Lowered, Net, lowered

U8 = "w8a8@minmax"


def audited(subject: Lowered, schemes: dict[str, str] | str = U8) -> list[Left]:
    """The pairs left of a policy: one scheme for all layers, or scheme by layer."""
    chosen = schemes if isinstance(schemes, dict) else dict.fromkeys((layer.name for layer in subject.layers), schemes)
    refused = {layer.name for layer in subject.layers if layer.integer_problem}
    policy = subject.canonical({n: FLOAT32 if n in refused else Scheme.parse(s) for n, s in chosen.items()})
    placer = subject.lowering.placer
    names = [
        LayerNames(
            layer=layer.name,
            node=layer.node,
            weight=layer.weight,
            outputs=(layer.output, placer.stored(subject.graph.nodes[layer.node])),
        )
        for layer in subject.layers
        if policy[layer.name].activation is not None
    ]
    return left_pairs(subject.build(policy), names)


def between(middle: Callable[[Net, str], str], *schemes: str) -> Lowered:
    net = Net(seed=1)
    y = middle(net, net.add("Relu", net.conv(net.input("rows", 4, 8, 8), 4, 8)))
    model = net.model(net.add("Relu", net.conv(y, 8, 4)))
    feeds = {"x": np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    return lowered(model, schemes or (U8,), feeds)


def _excited(n: Net, y: str) -> str:
    inner = n.add("HardSwish", n.conv(n.add("GlobalAveragePool", y), 8, 4, 1))
    return str(n.add("Mul", y, n.add("HardSigmoid", n.conv(inner, 4, 8, 1), alpha=1 / 6)))


WHOLE: dict[str, Callable[[Net, str], str]] = {
    "squeeze-excite": _excited,
    "SiLU": lambda n, y: n.add("Mul", c := n.conv(y, 8, 8, group=8), n.add("Sigmoid", c)),
    "HardSwish": lambda n, y: n.add("HardSwish", n.conv(y, 8, 8, group=8)),
    "ReLU6": lambda n, y: n.add("Clip", n.conv(y, 8, 8), n.constant(np.float32(0)), n.constant(np.float32(6))),
    "residual": lambda n, y: n.add("Add", y, n.conv(y, 8, 8)),
    "shuffle": lambda n, y: n.add(
        "Reshape",
        n.add("Transpose", n.add("Reshape", y, n.ints(0, 2, 4, 8, 8)), perm=[0, 2, 1, 3, 4]),
        n.ints(0, 8, 8, 8),
    ),
    "up and down": lambda n, y: n.conv(
        n.add(
            "Concat",
            n.add(
                "Resize",
                n.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]),
                "",
                n.constant(np.array([1, 1, 2, 2], np.float32)),
                mode="nearest",
            ),
            y,
            axis=1,
        ),
        16,
        8,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_only_the_model_has_pairs_at_its_ends(name: str) -> None:
    left = audited(between(WHOLE[name]))
    assert Counter((one.op_type, one.reason) for one in left) == {
        ("QuantizeLinear", "input"): 1,
        ("DequantizeLinear", "output"): 1,
    }


def _upward(n: Net, y: str) -> str:
    return str(n.add("Concat", n.add("ConvTranspose", y, n.weight(8, 8, 1, 1)), y, axis=1))


PARTLY: dict[str, tuple[Callable[[Net, str], str], set[tuple[str, str]]]] = {
    "no kernel": (lambda n, y: n.add("Tanh", y), {("Tanh", "no kernel")}),
    "constant": (
        lambda n, y: n.add("Mul", y, n.constant(np.float32([[[2]]] * 8))),
        {("Mul", "constant operand")},
    ),
    "both ways": (lambda n, y: n.add("Add", n.add("Tanh", y), y), {("Tanh", "no kernel")}),
    "two of three": (
        lambda n, y: n.add("Mul", n.add("Mul", n.add("Tanh", y), n.add("GlobalAveragePool", y)), y),
        {("Tanh", "no kernel"), ("Mul", "float operand")},
    ),
    "form": (
        lambda n, y: n.add("AveragePool", y, kernel_shape=[2, 2], dilations=[2, 2]),
        {("Sum", "policy"), ("AveragePool", "form")},
    ),
    "one part of a Concat": (
        lambda n, y: n.conv(_upward(n, y), 16, 8),
        {("Sum", "policy"), ("ConvTranspose", "no kernel")},
    ),
}


@pytest.mark.parametrize("name", PARTLY)
def test_reasons(name: str) -> None:
    middle, expected = PARTLY[name]
    left = audited(between(middle))
    assert {(one.beside, one.reason) for one in left if one.beside != "model"} == expected
    assert all(one.reason in REASONS for one in left)


def test_float_layers_give_a_reason_and_small_gates_join_the_integers() -> None:
    subject = between(_excited, U8, "w8")
    first, inner, gate, last = (layer.name for layer in subject.layers)
    left = audited(subject, {first: U8, inner: "w8", gate: "w8", last: U8})
    assert {(one.op_type, one.beside, one.reason) for one in left if one.beside != "model"} == {
        ("DequantizeLinear", "Conv", "policy"),
        ("QuantizeLinear", "ReorderOutput", "policy"),
    }


def test_signed_pairs_around_a_tensor_with_two_readers() -> None:
    left = audited(between(WHOLE["residual"], "w8a8-s8@minmax"), "w8a8-s8@minmax")
    assert {one.reason for one in left} == {"input", "output", "signed"}


def test_defects_are_found() -> None:
    """A pair with operators between that could run on integers, but whose scales the runtime cannot join."""

    def pair(source: str, scale: str, target: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{target}_q"], f"{target}_quantize"),
            helper.make_node("DequantizeLinear", [f"{target}_q", scale, "zero"], [target], f"{target}_dequantize"),
        ]

    nodes = [
        *pair("x", "one", "a"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("HardSwish", ["b"], ["c"], "swish"),
        *pair("c", "two", "d"),
        helper.make_node("Exp", ["d"], ["y"], "exp"),
    ]
    constants = {"one": np.float32(0.1), "two": np.float32(0.2), "zero": np.uint8(7)}
    graph = helper.make_graph(
        nodes,
        "defects",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    left = left_pairs(model.SerializeToString(), [])
    found = [(one.op_type, one.reason) for one in left]
    assert ("DequantizeLinear", DEFECT) in found and ("QuantizeLinear", DEFECT) in found
    assert ("DequantizeLinear", "no kernel") in found, "Exp has no integer kernel"
    assert all("a defect" in str(one) for one in left if not one.reason)
