"""Matrix products in forms of their own: values against brute force over the integers, and the kernels that run."""

from __future__ import annotations

import numpy as np
import pytest

from autoq.core.scheme import Scheme
from autoq.model.graph import attribute
from tests.model.test_lower_layers import KINDS
from tests.models import Lowered, Net, check, distance, lowered, run_optimized

DYNAMIC = ("w8a8@dynamic", "w8a8-tensor@dynamic", "w4a8@dynamic", "w4a8-gptq@dynamic", "w2a8@dynamic")
PRODUCTS = [name for name, kind in KINDS.items() if "QGemm" in kind.integers]
U8 = "w8a8@minmax"


def found_at_run_time(x: np.ndarray) -> tuple[np.ndarray, int, np.float32]:
    """DynamicQuantizeLinear as ONNX defines it: integers, zero point, scale."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = (high - low) / np.float32(255)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), zero, scale


def dynamic_meaning(subject: Lowered, name: str, scheme: str, x: np.ndarray) -> np.ndarray:
    """``x`` times the layer's weight on integers, float64, less bias and what follows."""
    layer = next(layer for layer in subject.layers if layer.name == name)
    entry = subject.lowering.bank[name, Scheme.parse(scheme).weight]
    integers, zero, scale = found_at_run_time(x)
    transposed = attribute(subject.graph.nodes[layer.node], "transB", 0)
    matrix = entry.values.astype(np.int64).T if transposed else entry.values.astype(np.int64)
    return ((integers - zero) @ matrix) * (entry.scale.astype(np.float64) * float(scale))


@pytest.mark.parametrize("name", PRODUCTS)
def test_dynamic_products(name: str) -> None:
    kind = KINDS[name]
    net = Net(seed=len(name))
    net.input(*(kind.shape if "fixed" in name else ("rows", *kind.shape[1:])))
    feeds = {"x": np.random.default_rng(7).standard_normal(kind.shape).astype(np.float32)}
    subject = lowered(net.model(kind.model(net)), [*DYNAMIC, "w8a8-gptq@dynamic"], feeds)
    (layer,) = subject.layers
    assert not subject.lowering.affines, "nothing is calibrated"
    for scheme in DYNAMIC:
        candidate = subject.build(scheme)
        check(candidate)
        outputs, _, counts = run_optimized(candidate, feeds)
        (output,) = outputs.values()
        expected = dynamic_meaning(subject, layer.name, scheme, feeds["x"])
        if layer.bias:
            expected = expected + subject.graph.constant(layer.bias).reshape(-1)
        for reader, _ in subject.graph.consumers.get(layer.output, []):
            if reader.op_type == "Add":
                (bias,) = (subject.graph.constant(name) for name in reader.input if name in subject.graph.initializers)
                expected = expected + bias
        if "Relu" in {node.op_type for node in subject.graph.model.graph.node}:
            expected = np.maximum(expected, 0)
        assert distance(output, expected) < 2e-6, scheme
        assert counts["DynamicQuantizeMatMul"] == 1 and counts.keys() <= {"DynamicQuantizeMatMul", "Add", "Relu"}, (
            counts
        )


def test_readers_of_one_tensor_share_its_range() -> None:
    """As an attention's queries, keys and values do; a static reader of the tensor stays apart."""
    net = Net()
    x = net.input("rows", 4, 12)
    ys = [net.add("Add", net.add("MatMul", x, net.weight(12, 8)), net.weight(8)) for _ in range(4)]
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 4, 12)).astype(np.float32)}
    subject = lowered(net.model(*ys), ["w8a8@dynamic", U8], feeds)
    counts = run_optimized(subject.build("w8a8@dynamic"), feeds)[2]
    assert counts == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 4}
    names = [layer.name for layer in subject.layers]
    mixed = dict(zip(names, map(Scheme.parse, ("w8a8@dynamic", U8, "w8a8@dynamic", U8)), strict=True))
    policy = subject.canonical(mixed)
    assert dict(policy) == mixed, "neither kind of reader takes over the other's activations"
    outputs, _, counts = run_optimized(subject.build(policy), feeds)
    assert counts == {"DynamicQuantizeLinear": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 4, "Add": 2}
    exact = subject.float32()
    assert all(distance(outputs[name], exact[name]) < 0.02 for name in exact)


@pytest.mark.parametrize("middle", ["w8a8@dynamic", "w4a8@dynamic"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_between_static_layers(dimensions: int, middle: str) -> None:
    """A dynamic layer reads and writes floats: the pairs of its neighbours stand as beside a float layer."""
    net = Net()
    first = net.add("Relu", net.conv(net.input("rows", 4, 6, 6), 4, 4))
    y = net.add("Reshape", first, net.ints(*([0, -1] if dimensions == 2 else [0, 12, 12])))
    y = net.add("MatMul", y, net.weight(144 if dimensions == 2 else 12, 12))
    y = net.add("Relu", net.add("Add", y, net.weight(12)))
    last = net.add("MatMul", net.add("MatMul", y, net.weight(12, 12)), net.weight(12, 4))
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 4, 6, 6)).astype(np.float32)}
    subject = lowered(net.model(last), [U8, middle, "w8"], feeds)
    names = [layer.name for layer in subject.layers]
    for schemes in ((U8, middle, U8, U8), (U8, middle, middle, U8), (middle.replace("w4", "w8"), U8, middle, U8)):
        wanted = {name: Scheme.parse(scheme) for name, scheme in zip(names, schemes, strict=True)}
        if wanted[names[0]].calibrated is None:
            wanted[names[0]] = Scheme.parse("w8")  # a convolution has no dynamic form
        policy = subject.canonical(wanted)
        candidate = subject.build(policy)
        check(candidate)
        outputs, _, counts = run_optimized(candidate, feeds)
        dynamic = sum(scheme.activation is not None and scheme.calibrated is None for scheme in policy.values())
        assert counts["DynamicQuantizeMatMul"] == dynamic
        static = counts["QLinearConv"] + counts["MatMulIntegerToFloat"] + counts["QGemm"] + counts["QLinearMatMul"]
        assert static == sum(scheme.calibrated is not None for scheme in policy.values())
        (found,), (exact,) = outputs.values(), subject.float32().values()
        assert distance(found, exact) < (0.3 if "w4" in middle else 0.05)


@pytest.mark.parametrize("values", [0.0, 3.0, -2.0, 1e-40, 1e30])
def test_ranges_that_a_run_may_find(values: float) -> None:
    """All zero, one sign only, subnormal, huge: finite, and as near as 8 bits come."""
    net = Net()
    y = net.add("Gemm", net.input("rows", 12), net.weight(12, 8), net.constant(np.ones(8, np.float32)))
    feeds = {"x": np.full((2, 12), values, np.float32)}
    subject = lowered(net.model(y), ["w8a8@dynamic"], feeds)
    (found,), (exact,) = run_optimized(subject.build("w8a8@dynamic"), feeds)[0].values(), subject.float32().values()
    assert np.isfinite(found).all() and distance(found, exact) < 0.02


def test_one_input_of_one_channel_and_shared_weights() -> None:
    net = Net()
    weight = net.weight(1, 1, name="shared.weight")
    y = net.add("MatMul", net.add("MatMul", net.input("rows", 3, 1), weight), weight)
    feeds = {"x": np.random.default_rng(2).standard_normal((2, 3, 1)).astype(np.float32)}
    subject = lowered(net.model(y), ["w4a8@dynamic"], feeds)
    candidate = check(subject.build("w4a8@dynamic"))
    assert sum(tensor.name.endswith("::w") for tensor in candidate.graph.initializer) == 1
    outputs, _, counts = run_optimized(candidate.SerializeToString(), feeds)
    assert counts["DynamicQuantizeMatMul"] == 2
    assert distance(outputs[y], subject.float32()[y]) < 0.02
