"""Second moments against brute force: the patches of a convolution, one position at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autoq.model import moments
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.moments import FirstMoment, SecondMoment
from tests.models import Net, run

CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "padded, strided": ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "dilated": ((2, 3, 9, 8), (4, 3, 3, 2), {"dilations": [2, 3]}),
    "same upper": ((2, 3, 7, 6), (4, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((2, 3, 7, 6), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "valid": ((2, 3, 7, 6), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    "grouped": ((2, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 4, 5, 5), (8, 1, 3, 3), {"group": 4}),
    "1-D": ((2, 3, 11), (4, 3, 4), {"pads": [2, 1], "strides": [2]}),
    "3-D": ((2, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": [1, 0, 0, 0, 1, 1]}),
}


def moment(model: Any, x: np.ndarray) -> tuple[np.ndarray, Graph]:
    graph = Graph(model)
    (layer,) = read_layers(graph)
    second = SecondMoment.of_layer(layer, graph)
    for part in np.array_split(x, 2):
        second.update(part)
    return second.matrix(), graph


def means_of(model: Any, x: np.ndarray) -> list[np.ndarray]:
    """The mean input, as the first moment has it and as the second does."""
    graph = Graph(model)
    (layer,) = read_layers(graph)
    found = [FirstMoment.of_layer(layer, graph), SecondMoment.of_layer(layer, graph)]
    for part in np.array_split(x, 2):
        for moment in found:
            moment.update(part)
    return [moment.mean() for moment in found]


@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """H is what the convolution itself sees: with one weight at a time at 1, its outputs are the patches' columns."""
    monkeypatch.setattr(moments, "POSITIONS_PER_COLUMN", 10**6)  # every position
    shape, weight, attributes = CONVS[name]
    net = Net()
    model = net.model(net.add("Conv", net.input("rows", *shape[1:]), net.weight(*weight), **attributes))
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    found, _ = moment(model, x)
    groups, columns = attributes.get("group", 1), int(np.prod(weight[1:]))
    probe = Net()
    eye = np.tile(np.eye(columns, dtype=np.float32).reshape(columns, *weight[1:]), (groups, *[1] * (len(weight) - 1)))
    patches = run(
        probe.model(probe.add("Conv", probe.input("rows", *shape[1:]), probe.constant(eye), **attributes)), {"x": x}
    )
    (values,) = patches.values()  # [n, groups * K, *out]
    expected, means = [], []
    for group in np.split(values.astype(np.float64), groups, axis=1):
        flat = np.moveaxis(group, 1, -1).reshape(-1, columns)
        expected.append(flat.T @ flat / len(flat))
        means.append(flat.mean(axis=0))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-6)
    for mean in means_of(model, x):
        np.testing.assert_allclose(mean, np.stack(means), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ["Gemm", "Gemm of a transposed input", "MatMul", "MatMul 3-D"])
def test_product(op: str) -> None:
    net = Net()
    shape = {"Gemm of a transposed input": (5, 8), "MatMul 3-D": (4, 3, 5)}.get(op, (8, 5))
    attributes = {"transA": 1} if op.endswith("input") else {}
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    graph = Graph(net.model(net.add(op.split()[0], net.input(*shape), net.weight(5, 6), **attributes)))
    (layer,) = read_layers(graph)
    second = SecondMoment.of_layer(layer, graph)
    second.update(x)
    rows = (x.T if attributes else x).reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(second.matrix()[0], rows.T @ rows / len(rows), rtol=1e-5)


def test_many_positions_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond enough positions only every n-th is taken, n odd, and the estimate stays near."""
    net = Net()
    x = np.random.default_rng(3).standard_normal((32, 3, 64, 64)).astype(np.float32)
    model = net.model(net.conv(net.input("rows", 3, 64, 64), 3, 4))
    sampled, graph = moment(model, x)
    monkeypatch.setattr(moments, "POSITIONS_PER_COLUMN", 10**9)
    monkeypatch.setattr(moments, "MOST_POSITIONS", 10**9)
    whole, _ = moment(model, x)
    assert not np.array_equal(sampled, whole)
    assert np.abs(sampled - whole).max() < 0.1 * np.abs(whole).max()
    (layer,) = read_layers(graph)
    second = SecondMoment.of_layer(layer, graph)
    monkeypatch.undo()
    for rows in (1, 5, 32):
        for per_row in (1, 54, 55, 1024, 10**5):
            stride = second._stride(rows * per_row, rows)
            assert stride % 2 and per_row / stride <= 64 * 27 / 32
            assert stride == second._stride(per_row, 1), "no denser for being divided"


def test_nothing_seen() -> None:
    net = Net()
    graph = Graph(net.model(net.conv(net.input("rows", 3, 5, 5), 3, 4)))
    assert not SecondMoment.of_layer(read_layers(graph)[0], graph).matrix().any()
