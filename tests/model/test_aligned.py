"""Sums that every runtime rounds alike: their scales have ratios that no middle between two integers is near to."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autoq.model.aligned import DENOMINATOR, rescalable, rescaled
from autoq.model.graph import Graph
from tests.models import Lowered, Net, lowered, run


@pytest.fixture(scope="module")
def residual() -> Lowered:
    """Two blocks, of which the second reads what the first one's Add writes."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("N", 3, 12, 10), 3, 6))
    for _ in range(2):
        x = net.add("Relu", net.add("Add", net.conv(x, 6, 6), x))
    x = net.conv(x, 6, 4)
    feeds = {"x": np.random.default_rng(3).standard_normal((64, 3, 12, 10)).astype(np.float32)}
    return lowered(net.model(x), ["w8a8@minmax"], feeds, integer_products=True)


def _sums(candidate: bytes) -> list[tuple[float, float, float]]:
    """The scales of both inputs and of the output of each Add."""
    graph = Graph(onnx.load_from_string(candidate))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.model.graph.initializer}
    found = []
    for node in graph.model.graph.node:
        if node.op_type == "Add":
            reads = [values[graph.producer[name].input[1]].item() for name in node.input]
            relu = graph.sole_consumer(node.output[0])
            assert relu is not None
            quantize = graph.sole_consumer(relu.output[0])
            assert quantize is not None
            found.append((*reads, values[quantize.input[1]].item()))
    return found


def test_ratios_are_multiples_of_an_odd_fraction(residual: Lowered) -> None:
    sums = _sums(residual.build("w8a8@minmax"))
    assert len(sums) == 2
    for *reads, writes in sums:
        for scale in reads:
            multiple = scale / writes * DENOMINATOR
            assert multiple == pytest.approx(round(multiple), abs=1e-3)
    # So the exact sums of any two integers keep their distance from every middle.
    first, second, writes = sums[-1]
    ratios = [Fraction(round(scale / writes * DENOMINATOR), DENOMINATOR) for scale in (first, second)]
    off = [abs((a * ratios[0] + b * ratios[1]) % 1 - Fraction(1, 2)) for a in range(256) for b in range(0, 256, 5)]
    assert min(off) >= Fraction(1, 2 * DENOMINATOR)


def test_scales_hardly_move(residual: Lowered) -> None:
    """By less than 1 % of what calibration found; and what the model gives, by a few steps at most."""
    plain = lowered(onnx.load_from_string(residual.graph.model.SerializeToString()), ["w8a8@minmax"], residual.feeds)
    before, after = (_sums(each.build("w8a8@minmax")) for each in (plain, residual))
    for old, new in zip(before, after, strict=True):
        assert np.allclose(old, new, rtol=0.01) and not np.array_equal(old, new)
    outputs = [run(each.build("w8a8@minmax"), residual.feeds) for each in (plain, residual)]
    (one,), (other,) = (list(each.values()) for each in outputs)
    assert 0 < np.abs(one - other).max() <= 0.05 * np.abs(one).max()


def test_a_factor_is_the_same_on_both_grids() -> None:
    """Of a HardSigmoid's layer, whose integers are written on one grid and read on another; many scales stay."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        source, written, read = (np.float32(value) for value in (rng.uniform(1e-3, 1), 6 / 255, 1 / 255))
        scale = rng.uniform(1e-4, 1e-1, 64).astype(np.float32)
        moved = rescalable(scale, source, written, read)
        assert np.abs(moved.view(np.int32) - scale.view(np.int32)).max() <= 4
        assert np.mean(moved == scale) > 0.3
        other, same = rescaled(moved, source, written, read)
        assert same.all() and np.array_equal(source * other / read, source * moved / written)
