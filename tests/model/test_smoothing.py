"""Smoothed layers in candidates: the same meaning, the same kernels, and one division for all that read a tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from autoq.core.layer import Layer
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.smoothing import families, smoothing_problem
from autoq.numerics.affine import quantize
from tests.models import Lowered, Net, check, distance, lowered, run, run_optimized, run_unfused

PLAIN, SMOOTH = "w8a8@minmax", "w8a8-smooth0.5@minmax"
SCHEMES = [
    "float32", "w8", PLAIN, SMOOTH, "w8a8-smooth0.75@minmax", "w8a8-bc-smooth0.5@mse", "w4a8-gptq-smooth0.5@minmax",
    "w4a8-gptq-bc-smooth0.5@minmax", "w8a8-s8-smooth0.5@minmax", "w8a8-tensor-smooth0.5@percentile99.9",
]  # fmt: skip


def tokens(net: Net, rows: int = 4) -> dict[str, np.ndarray]:
    """Rows of 16 values of which two are a hundred times as large."""
    net.input("rows", 5, 16)
    x = np.random.default_rng(1).standard_normal((rows, 5, 16)).astype(np.float32)
    x[..., [3, 9]] *= 100
    return {"x": x}


def _matmul(net: Net, x: str = "x", outputs: int = 6) -> str:
    return str(net.add("Add", net.add("MatMul", x, net.weight(16, outputs)), net.weight(outputs)))


def one(build: Callable[[Net], str], seed: int = 0) -> tuple[Lowered, dict[str, np.ndarray]]:
    net = Net(seed)
    feeds = tokens(net)
    return lowered(net.model(build(net)), SCHEMES, feeds), feeds


def smoothed_product(subject: Lowered, layer: Layer, scheme: Scheme) -> np.ndarray:
    """What the first layer computes, by hand: integers of x / s times integers of W s."""
    assert scheme.weight is not None and scheme.activation is not None and scheme.weight.smoothing is not None
    s = subject.lowering.smoothing[layer.name, scheme.weight.smoothing]
    scale, zero = subject.lowering.affines[f"x::smooth{scheme.weight.smoothing!r}", scheme.activation]
    divided = subject.feeds["x"] * (np.float32(1) / s)
    low, high = (-128, 127) if scheme.activation.signed else (0, 255)
    steps = quantize(divided, scale, zero, low, high).astype(np.float64) - zero
    entry = subject.lowering.bank[layer.name, scheme.weight]
    weight = subject.graph.constant(layer.weight)
    assert weight is not None
    if "w8a8" in str(scheme) and entry.axis is not None:
        # Half a step, or what the scale of least squared error clips.
        assert np.abs(entry.dequantize() - weight * s[:, None]).max() < 4 * float(entry.scale.max())
    return np.asarray(steps @ entry.dequantize().astype(np.float64) * float(scale))


@pytest.mark.parametrize("text", [text for text in SCHEMES if "smooth" in text])
def test_meaning_and_kernel(text: str) -> None:
    subject, feeds = one(_matmul)
    (layer,) = subject.layers
    candidate = subject.build(text)
    check(candidate)
    outputs, _, counts = run_optimized(candidate, feeds)
    (output,), (unfused,) = outputs.values(), run_unfused(candidate, feeds).values()
    scheme = Scheme.parse(text)
    add = next(node for node in subject.graph.model.graph.node if node.op_type == "Add")
    bias = subject.graph.constant(next(name for name in add.input if name in subject.graph.initializers))
    assert bias is not None
    expected = smoothed_product(subject, layer, scheme) + bias
    if "-bc" in text:
        expected += subject.lowering.corrections[layer.name, scheme.weight]
    assert distance(output, expected) < 1e-5
    assert distance(unfused, expected) < 1e-5
    expected_nodes = Counter(["Mul", "QuantizeLinear", "MatMulIntegerToFloat", "Add"])
    assert counts == expected_nodes, "nothing else, nothing twice"


def test_outliers_cost_less() -> None:
    subject, feeds = one(_matmul)
    (exact,) = subject.float32().values()
    errors = {}
    for text in (PLAIN, SMOOTH):
        (found,) = run(subject.build(text), feeds).values()
        errors[text] = np.square(found - exact).mean()
    assert errors[SMOOTH] < 0.3 * errors[PLAIN]


def test_without_quantization_it_is_the_same_product() -> None:
    """x / s times W s, in float."""
    subject, feeds = one(_matmul)
    (layer,) = subject.layers
    weight = subject.graph.constant(layer.weight)
    assert weight is not None
    s = subject.lowering.smoothing[layer.name, 0.5]
    assert (s != 1).all()
    np.testing.assert_allclose((feeds["x"] / s) @ (weight * s[:, None]), feeds["x"] @ weight, rtol=1e-3, atol=1e-3)


def three(net: Net) -> str:
    parts = [_matmul(net, "x") for _ in range(3)]
    return str(net.add("Concat", *parts, net.add("Relu", "x"), axis=-1))


def test_readers_share_a_division_and_a_pair() -> None:
    """Also where something else reads the tensor as it is: a residual, here a Relu."""
    subject, feeds = one(three)
    assert [len(family) for family in families(subject.layers).values()] == [3]
    scales = [subject.lowering.smoothing[layer.name, 0.5] for layer in subject.layers]
    assert all(np.array_equal(scales[0], other) for other in scales)
    _, _, counts = run_optimized(subject.build(SMOOTH), feeds)
    assert (counts["Mul"], counts["QuantizeLinear"], counts["MatMulIntegerToFloat"]) == (1, 1, 3)
    (exact,), (found,) = subject.float32().values(), run(subject.build(SMOOTH), feeds).values()
    np.testing.assert_array_equal(found[..., -16:], exact[..., -16:])
    assert distance(found, exact) < 0.02


def test_readers_with_schemes_of_their_own() -> None:
    """Smoothed, plain, stronger, weight-only: each is as if it were alone."""
    subject, feeds = one(three)
    texts = [SMOOTH, PLAIN, "w8a8-smooth0.75@minmax"]
    names = [layer.name for layer in subject.layers]
    policy = subject.canonical({name: Scheme.parse(text) for name, text in zip(names, texts, strict=True)})
    assert list(policy.to_text().values()) == texts
    (mixed,) = run(subject.build(policy), feeds).values()
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        alone = subject.canonical({other: Scheme.parse(text) if other == name else FLOAT32 for other in names})
        (found,) = run(subject.build(alone), feeds).values()
        columns = slice(6 * number, 6 * number + 6)
        np.testing.assert_array_equal(mixed[..., columns], found[..., columns])
    weight_only = subject.canonical(dict(zip(names, map(Scheme.parse, ["w8", SMOOTH, "float32"]), strict=True)))
    check(subject.build(weight_only))


def _norm(net: Net, residual: bool) -> str:
    scale, bias = (1 + net.rng.random(16)).astype(np.float32), net.rng.standard_normal(16).astype(np.float32)
    scale[5] = 30
    y = net.add("LayerNormalization", "x", net.constant(scale), net.constant(bias), axis=-1)
    parts = [_matmul(net, y, 16), _matmul(net, y, 16)]
    return str(net.add("Sum", *parts, *([y] if residual else [])))


@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_normalization_divides_where_nothing_else_reads_it(residual: bool) -> None:
    subject, feeds = one(lambda net: _norm(net, residual))
    candidate = subject.build(SMOOTH)
    check(candidate)
    outputs, _, counts = run_optimized(candidate, feeds)
    assert (counts["Mul"], counts["LayerNormalization"], counts["MatMulIntegerToFloat"]) == (int(residual), 1, 2)
    (exact,), (found,) = subject.float32().values(), outputs.values()
    assert distance(found, exact) < 0.03
    plain = subject.layers[0].name
    policy = {layer.name: Scheme.parse(PLAIN if layer.name == plain else SMOOTH) for layer in subject.layers}
    mixed, _, counts = run_optimized(subject.build(subject.canonical(policy)), feeds)
    assert counts["Mul"] == 1, "the other reader wants it as it is"
    (found,) = mixed.values()
    assert distance(found, exact) < 0.1


def test_tied_weights_are_smoothed_alike() -> None:
    """One stored weight, hence one scale, though the two inputs are others."""
    net = Net()
    feeds = tokens(net)
    shared = net.weight(16, 16, name="shared.weight")
    first = net.add("Add", net.add("MatMul", "x", shared), net.weight(16))
    y = net.add("Add", net.add("MatMul", net.add("Tanh", first), shared), net.weight(16))
    subject = lowered(net.model(y), SCHEMES, feeds)
    assert [len(family) for family in families(subject.layers).values()] == [2]
    candidate = subject.build("w4a8-gptq-bc-smooth0.5@minmax")
    parsed = check(candidate)
    assert sum(tensor.name.endswith("::w") for tensor in parsed.graph.initializer) == 1
    # The second input has no outliers, and pays for those of the first.
    (exact,), (found,) = subject.float32().values(), run(subject.build(SMOOTH), feeds).values()
    assert distance(found, exact) < 0.15


def test_behind_integers_and_moves() -> None:
    """The input of a smoothed layer may come from an integer convolution, through a Reshape and a Transpose."""
    net = Net(seed=4)
    y = net.add("Relu", net.conv(net.input("rows", 3, 4, 4), 3, 16))
    y = net.add("Transpose", net.add("Reshape", y, net.ints(0, 16, 16)), perm=[0, 2, 1])
    model = net.model(_matmul(net, y))
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 3, 4, 4)).astype(np.float32)}
    subject = lowered(model, SCHEMES, feeds)
    policy = subject.policy(SMOOTH)
    assert sorted(str(scheme) for scheme in dict(policy).values()) == [SMOOTH, PLAIN]
    outputs, _, counts = run_optimized(subject.build(policy), feeds)
    assert (counts["QLinearConv"], counts["MatMulIntegerToFloat"], counts["Mul"]) == (1, 1, 1)
    (exact,), (found,) = subject.float32().values(), outputs.values()
    assert distance(found, exact) < 0.05


def test_gemm_in_both_orders() -> None:
    net = Net(seed=6)
    x = net.input("rows", 16)
    y = net.add("Relu", net.add("Gemm", x, net.weight(16, 12), net.weight(12)))
    model = net.model(net.add("Gemm", y, net.weight(5, 12), net.weight(5), transB=1))
    values = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    values[:, 2] *= 50
    subject = lowered(model, SCHEMES, {"x": values})
    (exact,) = subject.float32().values()
    outputs, _, counts = run_optimized(subject.build(SMOOTH), {"x": values})
    (found,) = outputs.values()
    assert distance(found, exact) < 0.03
    _, _, plain = run_optimized(subject.build(PLAIN), {"x": values})
    assert counts["QGemm"] == plain["QGemm"] == 2


def test_layers_that_are_not_smoothed() -> None:
    net = Net()
    x = net.input("rows", 4, 6, 6)
    y = net.add("MatMul", net.conv(x, 4, 4), net.weight(6, 5))
    graph = Graph(net.model(net.add("MatMul", net.weight(3, 6), y)))
    problems = [smoothing_problem(layer) for layer in read_layers(graph)]
    assert "cross-layer" in problems[0] and not problems[1] and "left" in problems[2]


def test_an_unknown_strength_fails_in_words() -> None:
    subject, _ = one(_matmul)
    scheme = Scheme.parse("w8a8-smooth0.3@minmax")
    with pytest.raises(Exception, match=r"no scales to smooth its inputs by 0\.3"):
        subject.build(subject.canonical({layer.name: scheme for layer in subject.layers}))


def test_nothing_is_named_twice() -> None:
    subject, _ = one(three)
    graph = onnx.ModelProto.FromString(subject.build(SMOOTH)).graph
    names = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    assert len(set(names)) == len(names)
