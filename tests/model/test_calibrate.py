"""One pass over the data: statistics equal to NumPy's on the same activations, in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from onnx import TensorProto

from autoq.core.scheme import ActivationSpec, Calibration
from autoq.errors import DataError
from autoq.model import calibrate as module
from autoq.model.calibrate import affine_table, calibrate, output_shapes, with_outputs, without_padding
from autoq.model.graph import Graph
from autoq.model.layers import read_layers, with_macs
from autoq.numerics.affine import activation_affine
from autoq.numerics.histogram import TensorStatistics
from tests.models import Net, run

MINMAX = ActivationSpec(calibration=Calibration(method="minmax"))


def two_convs(batch: int | str = "rows") -> Graph:
    net = Net()
    y = net.add("Relu", net.conv(net.input(batch, 3, 6, 6), 3, 4))
    y = net.conv(net.add("Add", y, y), 4, 2)
    return Graph(net.model(y))


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)


def tensors(graph: Graph) -> list[str]:
    return ["x", *(node.output[0] for node in graph.model.graph.node)]


def activations(graph: Graph, x: np.ndarray) -> dict[str, np.ndarray]:
    names = tensors(graph)[1:]
    return {"x": x, **run(with_outputs(graph, names), {"x": x})}


def test_statistics_are_those_of_the_activations() -> None:
    graph, batches = two_convs(), [rows(5), rows(7, 1), rows(2, 2)]
    seen: list[int] = []
    found = calibrate(graph, [{"x": b} for b in batches], tensors=tensors(graph), on_batch=seen.append)
    assert (found.rows, seen, list(found.statistics)) == (14, [5, 12, 14], tensors(graph))
    every = [activations(graph, batch) for batch in batches]
    for name, statistics in found.statistics.items():
        values = np.concatenate([batch[name].reshape(-1) for batch in every])
        assert (statistics.histogram.min, statistics.histogram.max) == (values.min(), values.max())
        assert statistics.histogram.count == values.size
        ranges = [(b.batch, b.low, b.high) for b in statistics.batches]
        assert ranges == [(i, batch[name].min(), batch[name].max()) for i, batch in enumerate(every)]
        merged = TensorStatistics.empty()
        for index, batch in enumerate(every):
            merged = merged.update(batch[name], batch=index)
        assert merged == statistics


def test_how_a_batch_is_divided_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, batches = two_convs(), [{"x": rows(9)}, {"x": rows(4, 1)}]
    whole = calibrate(graph, batches, tensors=tensors(graph))
    for limit in (1, 4000, 20000):
        monkeypatch.setattr(module, "ACTIVATION_BYTES", limit)
        assert calibrate(graph, batches, tensors=tensors(graph)).statistics == whole.statistics


def test_memory_is_that_of_a_part_not_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    graph = Graph(net.model(net.add("Relu", net.conv(net.input("rows", 3, 64, 64), 3, 16))))
    names = tensors(graph)
    monkeypatch.setattr(module, "ACTIVATION_BYTES", 2**20)  # two rows of 0.5 MB
    batches = ({"x": np.zeros((32, 3, 64, 64), np.float32)} for _ in range(4))
    tracemalloc.start()
    try:
        calibrate(graph, batches, tensors=names)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 128 rows make 64 MB of activations; the input batches, two at a time, are 3 MB.
    assert peak < 12 * 2**20, f"{peak:,} bytes"


def test_a_fixed_batch_is_not_divided() -> None:
    graph = two_convs(batch=4)
    found = calibrate(graph, [{"x": rows(4)}, {"x": rows(4, 1)}], tensors=tensors(graph))
    assert found.rows == 8


def test_moments_come_from_the_first_rows_only() -> None:
    graph = two_convs()
    layers = read_layers(graph)
    few = calibrate(graph, [{"x": rows(3)}], tensors=(), moment_layers=layers)
    many = calibrate(graph, [{"x": rows(3)}, {"x": rows(3, 1)}], tensors=(), moment_layers=layers, moment_rows=3)
    assert few.moments.keys() == {layer.name for layer in layers}
    for name, moment in few.moments.items():
        np.testing.assert_array_equal(many.moments[name], moment)


def test_nothing_but_the_input_is_wanted() -> None:
    graph = two_convs()
    assert calibrate(graph, [{"x": rows(3)}], tensors=["x"]).statistics["x"].histogram.count == 3 * 3 * 36


def test_activations_that_are_not_finite_are_named() -> None:
    net = Net()
    y = net.add("Log", net.conv(net.input("rows", 3, 6, 6), 3, 4))
    graph = Graph(net.model(net.conv(y, 4, 2)))
    with pytest.raises(DataError, match=rf"batch 0.*{y}"):
        calibrate(graph, [{"x": rows(2)}, {"x": rows(2)}], tensors=["x", y])


def test_a_batch_that_does_not_fit_the_model() -> None:
    graph = two_convs()
    with pytest.raises(DataError, match="calibration batch 0: ONNX Runtime failed"):
        calibrate(graph, [{"x": rows(2)[:, :2]}], tensors=tensors(graph))
    with pytest.raises(DataError, match="'x' is not fed; the data has y"):
        calibrate(graph, [{"y": rows(2)}], tensors=tensors(graph)[1:])
    with pytest.raises(DataError, match="no rows"):
        calibrate(graph, [], tensors=tensors(graph))


def test_affine_table() -> None:
    graph = two_convs()
    found = calibrate(graph, [{"x": rows(20)}], tensors=tensors(graph))
    signed = ActivationSpec(calibration=Calibration(method="percentile", percentile=97), signed=True)
    table = affine_table(found.statistics, [MINMAX, signed])
    values = activations(graph, rows(20))
    assert table.keys() == {(name, spec) for name in tensors(graph) for spec in (MINMAX, signed)}
    for name, array in values.items():
        assert table[name, MINMAX] == activation_affine(array.min(), array.max(), "uint8")
        scale, zero = table[name, signed]
        assert zero == 0 and 127 * scale == pytest.approx(np.quantile(np.abs(array), 0.97), rel=0.01)


def test_a_tensor_without_values_is_named() -> None:
    net = Net()
    y = net.add("NonZero", net.add("Less", net.input("rows", 3, 6, 6), net.constant(np.float32(-99))))
    y = net.add("Cast", net.add("Transpose", y, perm=[1, 0]), to=TensorProto.FLOAT)
    graph = Graph(net.model(net.add("MatMul", y, net.weight(4, 2))))
    found = calibrate(graph, [{"x": rows(2)}], tensors=[y])
    with pytest.raises(DataError, match=rf"{y}.*empty"):
        affine_table(found.statistics, [MINMAX])


def test_output_shapes_and_macs() -> None:
    graph = two_convs()
    layers = read_layers(graph)
    shapes = output_shapes(graph, layers, {"x": rows(3)})
    assert [shapes[layer.output] for layer in layers] == [(1, 4, 6, 6), (1, 2, 6, 6)]
    # 36 positions, 9 pixels, inputs times outputs
    assert [layer.macs for layer in with_macs(layers, shapes)] == [36 * 9 * 3 * 4, 36 * 9 * 4 * 2]


def test_padding_is_told_by_shape() -> None:
    rng, mask = np.random.default_rng(0), np.array([[1, 1, 0], [1, 0, 0]]) != 0
    tokens = rng.standard_normal((2, 3, 5))
    kept = np.stack([tokens[0, 0], tokens[0, 1], tokens[1, 0]])
    np.testing.assert_array_equal(without_padding(tokens, mask), kept)
    np.testing.assert_array_equal(without_padding(tokens.reshape(6, 5), mask), kept)
    heads = rng.standard_normal((2, 4, 3, 5))
    expected = np.stack([heads[0, :, 0], heads[0, :, 1], heads[1, :, 0]])
    np.testing.assert_array_equal(without_padding(heads, mask), expected)
    for other in (rng.standard_normal((2, 5)), rng.standard_normal((2, 4, 5)), np.zeros(())):
        assert without_padding(other, mask) is other
    assert without_padding(tokens, np.zeros((2, 3), bool)) is tokens, "all padding: better than nothing"


def test_statistics_leave_padding_out() -> None:
    """What stands at padded positions, however large, changes nothing."""
    net = Net()
    x, mask = net.input("rows", 3, 4), net.input("rows", 3, name="attention_mask", kind=TensorProto.INT64)
    y = net.add("MatMul", x, net.weight(4, 5))
    gate = net.add("Unsqueeze", net.add("Cast", mask, to=TensorProto.FLOAT), net.ints(-1))
    graph = Graph(net.model(net.add("Mul", y, gate)))
    (layer,) = read_layers(graph)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 3, 4)).astype(np.float32)
    keep = np.array([[1, 1, 0]] * 3 + [[1, 0, 0]] * 3, np.int64)
    noisy = np.where(keep[..., None] != 0, values, np.float32(1e3))
    found = [
        calibrate(
            graph,
            [{"x": data, "attention_mask": keep}],
            tensors=["x"],
            moment_layers=[layer],
            mean_layers=[layer],
            padding_mask="attention_mask",
        )
        for data in (values, noisy)
    ]
    rows = values[keep != 0].astype(np.float64)
    for each in found:
        assert each.statistics["x"].histogram.count == rows.size
        assert each.statistics["x"].histogram.max == rows.max()
        np.testing.assert_allclose(each.means[layer.name][0], rows.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(each.moments[layer.name][0], rows.T @ rows / len(rows), rtol=1e-5)
