"""Matrix products in forms of their own: values against brute force over the integers, and the kernels that run."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.model.graph import attribute
from tests.model.test_lower_layers import KINDS
from tests.models import Lowered, Net, check, distance, lowered, run, run_optimized

DYNAMIC = ("w8a8@dynamic", "w8a8-tensor@dynamic", "w4a8@dynamic", "w4a8-gptq@dynamic", "w2a8@dynamic")
PRODUCTS = [name for name, kind in KINDS.items() if "QGemm" in kind.integers]
U8 = "w8a8@minmax"


def found_at_run_time(x: np.ndarray) -> tuple[np.ndarray, int, np.float32]:
    """DynamicQuantizeLinear as ONNX defines it: integers, zero point, scale."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = (high - low) / np.float32(255)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), zero, scale


def dynamic_meaning(subject: Lowered, layer: Layer, scheme: str, x: np.ndarray) -> np.ndarray:
    """``x`` times the layer's weight on integers, float64, less bias and what follows."""
    spec = Scheme.parse(scheme).weight
    assert spec is not None
    entry = subject.lowering.bank[layer.name, spec]
    integers, zero, scale = found_at_run_time(x)
    transposed = attribute(subject.graph.nodes[layer.node], "transB", 0)
    matrix = entry.values.astype(np.int64).T if transposed else entry.values.astype(np.int64)
    return ((integers - zero) @ matrix) * (entry.scale.astype(np.float64) * float(scale))


def after(subject: Lowered, layer: Layer, product: np.ndarray) -> np.ndarray:
    """The model's output, from the product: its bias, and a Relu."""
    graph = subject.graph
    biases = [layer.bias] if layer.bias else []
    adds = [reader for reader, _ in graph.consumers.get(layer.output, []) if reader.op_type == "Add"]
    biases += [name for add in adds for name in add.input if name in graph.initializers]
    for name in biases:
        value = graph.constant(name)
        assert value is not None
        product = product + value.reshape(-1)
    return np.maximum(product, 0) if any(node.op_type == "Relu" for node in graph.nodes.values()) else product


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
        expected = dynamic_meaning(subject, layer, scheme, feeds["x"])
        assert distance(output, after(subject, layer, expected)) < 2e-6, scheme
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


BLOCKS = [f"w{bits}-{block}{asym}" for bits in (8, 4, 2) for block in ("b32", "b64", "b128") for asym in ("", "-asym")]


def in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    """``x`` ``[..., K]`` as level 4 of MatMulNBits has it: 8 bits, symmetric, one scale for a row's part of a block."""
    padded = np.zeros((*x.shape[:-1], -(-x.shape[-1] // block) * block), np.float32)
    padded[..., : x.shape[-1]] = x
    parts = padded.reshape(*x.shape[:-1], -1, block)
    peak = np.abs(parts).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.where(peak > 0, np.rint(parts * (np.float32(127) / peak)), 0)
    values = integers.astype(np.float64) * (peak / np.float32(127)).astype(np.float64)
    return values.reshape(padded.shape)[..., : x.shape[-1]]


def block_meaning(subject: Lowered, layer: Layer, scheme: str, x: np.ndarray) -> np.ndarray:
    spec = Scheme.parse(scheme).weight
    assert spec is not None and spec.block is not None
    weight = subject.lowering.bank[layer.name, spec].dequantize().astype(np.float64)
    weight = weight.T if attribute(subject.graph.nodes[layer.node], "transB", 0) else weight
    return in_blocks(x, spec.block) @ weight


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("scheme", ["w8-b32", "w4-b32-asym-gptq", "w2-b64-gptq"])
def test_kinds_of_products_in_blocks(name: str, scheme: str) -> None:
    """K is 9 or less here: the only block is all but empty."""
    kind = KINDS[name]
    net = Net(seed=len(name))
    net.input(*(kind.shape if "fixed" in name else ("rows", *kind.shape[1:])))
    feeds = {"x": np.random.default_rng(7).standard_normal(kind.shape).astype(np.float32)}
    subject = lowered(net.model(kind.model(net)), [scheme], feeds)
    (layer,) = subject.layers
    candidate = subject.build(scheme)
    check(candidate)
    outputs, _, counts = run_optimized(candidate, feeds)
    (output,) = outputs.values()
    expected = block_meaning(subject, layer, scheme, feeds["x"])
    assert distance(output, after(subject, layer, expected)) < 2e-6
    assert counts["MatMulNBits"] == 1 and counts.keys() <= {"MatMulNBits", "Relu"}, counts


@pytest.mark.parametrize("scheme", BLOCKS)
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 8), (160, 5), (33, 3), (1, 7), (200, 1)])
def test_blocks_that_do_and_do_not_divide_the_inputs(inputs: int, outputs: int, scheme: str) -> None:
    net = Net()
    y = net.add("MatMul", net.input("rows", 3, inputs), net.weight(inputs, outputs))
    subject = lowered(net.model(y), [scheme], {"x": np.zeros((1, 3, inputs), np.float32)})
    (layer,) = subject.layers
    candidate = subject.build(scheme)
    for rows in (1, 4):
        x = np.random.default_rng(rows).standard_normal((rows, 3, inputs)).astype(np.float32)
        x[..., : inputs // 3] *= 20  # outliers in some blocks
        expected = block_meaning(subject, layer, scheme, x)
        assert distance(run(candidate, {"x": x})[y], expected) < 3e-6
        subject.lowering.accuracy_level = 1
        exact = subject.lowering.bank[layer.name, Scheme.parse(scheme).weight].dequantize()
        assert distance(run(subject.build(scheme), {"x": x})[y], x @ exact) < 3e-6
        subject.lowering.accuracy_level = 4


def test_scales_are_stored_as_float16_where_that_can_hold_them() -> None:
    for scale, kind in ((0.1, TensorProto.FLOAT16), (1e-6, TensorProto.FLOAT), (1e30, TensorProto.FLOAT)):
        net = Net()
        y = net.add("MatMul", net.input("rows", 64), net.weight(64, 16, scale=scale))
        subject = lowered(net.model(y), ["w4-b32"], {"x": np.ones((2, 64), np.float32)})
        candidate = check(subject.build("w4-b32"))
        (scales,) = [tensor for tensor in candidate.graph.initializer if list(tensor.dims) == [16, 2]]
        assert scales.data_type == kind
        (found,), (exact,) = run(candidate, subject.feeds).values(), subject.float32().values()
        assert distance(found, exact) < 0.3


@pytest.mark.parametrize("scheme", ["w8-b32", "w8-b64-asym", "w4-b32", "w4-b128-asym", "w2-b32", "w2-b32-asym"])
@pytest.mark.parametrize("columns", [8, 40, 128])
def test_tables_in_blocks(columns: int, scheme: str) -> None:
    """The table's own rows, bit for bit, from packed bytes; the file keeps them packed, and so does the session."""
    net = Net()
    ids = net.input("rows", 3, name="ids", kind=TensorProto.INT64)
    rows = net.add("Gather", net.weight(50, columns, name="embed.weight"), ids)
    feeds = {"ids": np.random.default_rng(0).integers(-50, 50, (4, 3))}
    subject = lowered(net.model(rows), [scheme], feeds)
    candidate = subject.build(scheme)
    check(candidate)
    outputs, _, counts = run_optimized(candidate, feeds)
    weight = subject.lowering.bank["embed", Scheme.parse(scheme).weight].dequantize()
    np.testing.assert_array_equal(outputs[rows], weight[feeds["ids"]])
    assert counts == {"GatherBlockQuantized": 1}


def test_blocks_beside_other_layers() -> None:
    """One weight for two layers is stored once; static neighbours keep their integer kernels."""
    net = Net()
    weight = net.weight(16, 16, name="shared.weight")
    x = net.add("MatMul", net.input("rows", 4, 16), net.weight(16, 16))
    y = net.add("MatMul", net.add("Relu", net.add("MatMul", x, weight)), weight)
    last = net.add("MatMul", y, net.weight(16, 4))
    feeds = {"x": np.random.default_rng(2).standard_normal((2, 4, 16)).astype(np.float32)}
    subject = lowered(net.model(last), ["w8-b32", U8], feeds)
    names = [layer.name for layer in subject.layers]
    schemes = (U8, "w8-b32", "w8-b32", U8)
    policy = subject.canonical({name: Scheme.parse(scheme) for name, scheme in zip(names, schemes, strict=True)})
    candidate = check(subject.build(policy))
    assert sum(tensor.name.startswith("shared.weight::w") for tensor in candidate.graph.initializer) == 1
    outputs, _, counts = run_optimized(candidate.SerializeToString(), feeds)
    assert (counts["MatMulNBits"], counts["MatMulIntegerToFloat"]) == (2, 2)
    assert distance(outputs[last], subject.float32()[last]) < 0.05
