"""Tables of codes on the real runtime: their rows bit for bit, in every shape of indices, and nothing unpacked."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from autoq.core.scheme import Scheme
from autoq.numerics.product import ProductCodes
from tests.models import Lowered, Net, check, lowered, run_optimized

SCHEMES = ["w4-pq", "w2-pq"]


def table_of(rows: int, columns: int, ids: tuple[int | str, ...], feed: np.ndarray) -> tuple[Lowered, str]:
    net = Net()
    table = net.weight(rows, columns, name="embed.weight")
    y = net.add("Gather", table, net.input(*ids, name="ids", kind=TensorProto.INT64))
    return lowered(net.model(y), SCHEMES, {"ids": feed}), y


def entry(subject: Lowered, scheme: str) -> ProductCodes:
    found = subject.lowering.bank["embed", Scheme.parse(scheme).weight]
    assert isinstance(found, ProductCodes)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("columns", [8, 7, 5, 1])
@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 3, 2), (0, 3)])
def test_rows_come_back(scheme: str, columns: int, shape: tuple[int, ...]) -> None:
    """Negative indices count from the end, as in any Gather; no index at all gives no row."""
    ids = np.random.default_rng(0).integers(-300, 300, shape)
    some = np.zeros((1, *shape[1:]) if shape else (), np.int64)
    subject, y = table_of(300, columns, ("rows", *shape[1:]) if shape else (), some)
    candidate = subject.build(scheme)
    check(candidate)
    outputs, graph, counts = run_optimized(candidate, {"ids": np.asarray(ids)})
    np.testing.assert_array_equal(outputs[y], entry(subject, scheme).dequantize()[ids])
    assert counts["Gather"] == 3, "codes, what they stand for, and scales"
    sizes = {tensor.data_type: numpy_helper.to_array(tensor).size for tensor in graph.initializer}
    assert max(sizes.get(TensorProto.FLOAT, 0), sizes.get(TensorProto.INT32, 0)) <= 300, "unpacked when it is loaded"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_has_the_codes_and_little_else(scheme: str) -> None:
    subject, _ = table_of(3000, 64, ("rows", 3), np.zeros((2, 3), np.int64))
    parsed, found = check(subject.build(scheme)), entry(subject, scheme)
    stored = {tensor.name.removeprefix("embed.weight::"): tensor for tensor in parsed.graph.initializer}
    assert stored["codes"].data_type == TensorProto.UINT8
    assert len(stored["codes"].raw_data) == 3000 * 64 * Scheme.parse(scheme).weight_bits // 8
    assert len(stored["centroids"].raw_data) == found.centroids.nbytes == 256 * 64
    (scales,) = [tensor for tensor in stored.values() if tensor.data_type == TensorProto.FLOAT16]
    assert len(scales.raw_data) == 2 * 3000
    assert {entry.version for entry in parsed.opset_import} == {21}, "bytes need no later opset"
    assert len(subject.build(scheme)) < sum(len(tensor.raw_data) for tensor in stored.values()) + 3000


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_look_ups_share_one_table(scheme: str) -> None:
    net = Net()
    ids = net.input("rows", 3, name="ids", kind=TensorProto.INT64)
    first = net.add("Gather", net.weight(300, 8, name="embed.weight"), ids)
    second = net.add("Gather", "embed.weight", net.add("Neg", net.add("Sign", ids)))
    data = {"ids": np.random.default_rng(0).integers(-300, 300, (4, 3))}
    subject = lowered(net.model(first, second), [scheme], data)
    candidate = subject.build(scheme)
    assert [tensor.name for tensor in check(candidate).graph.initializer].count("embed.weight::codes") == 1
    table = entry(subject, scheme).dequantize()
    outputs = run_optimized(candidate, data)[0]
    np.testing.assert_array_equal(outputs[first], table[data["ids"]])
    np.testing.assert_array_equal(outputs[second], table[-np.sign(data["ids"])])


def test_scales_beyond_float16() -> None:
    net = Net()
    table = (np.random.default_rng(0).standard_normal((300, 8)) * 1e-9).astype(np.float32)
    y = net.add("Gather", net.constant(table, "embed.weight"), net.input("rows", name="ids", kind=TensorProto.INT64))
    subject = lowered(net.model(y), ["w4-pq"], {"ids": np.arange(300)})
    outputs = run_optimized(subject.build("w4-pq"), subject.feeds)[0]
    np.testing.assert_array_equal(outputs[y], entry(subject, "w4-pq").dequantize())
    assert np.abs(outputs[y] - table).max() < 0.5 * np.abs(table).max()


def test_an_integer_layer_behind_it() -> None:
    net = Net()
    ids = net.input("rows", 9, name="ids", kind=TensorProto.INT64)
    rows = net.add("Gather", net.weight(300, 8, name="embed.weight"), ids)
    y = net.add("MatMul", rows, net.weight(8, 5))
    subject = lowered(net.model(y), ["w2-pq", "w8a8@minmax"], {"ids": np.arange(36).reshape(4, 9)})
    table, product = subject.layers
    policy = subject.canonical({table.name: Scheme.parse("w2-pq"), product.name: Scheme.parse("w8a8@minmax")})
    _, _, counts = run_optimized(subject.build(policy), subject.feeds)
    assert (counts["MatMulIntegerToFloat"], counts["MatMul"]) == (1, 0)
