"""What holds for every layer and scheme, on layers and values that nobody thought of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.numerics.weights import quantize_weight
from autoq.search.candidates import all_candidates
from autoq.spec.hardware import load_profile
from tests.models import Net, lowered, run
from tests.robustness.test_bad_layers import SCHEMES, disagreements, everything


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    spread=st.floats(0, 6),
    bits=st.sampled_from(sorted(WEIGHT_LEVELS)),
    axis=st.sampled_from([0, 1, None]),
)
def test_a_weight_inside_the_range_comes_back_within_half_a_scale(
    seed: int, shape: tuple[int, int], spread: float, bits: int, axis: int | None
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal(shape) * 10 ** rng.uniform(-spread, spread, shape)).astype(np.float32)
    found = quantize_weight(weight, bits=bits, axis=axis)
    scale = np.broadcast_to(np.expand_dims(found.scale, 1 - axis) if axis is not None else found.scale, shape)
    low, high = WEIGHT_LEVELS[bits]
    inside = (weight >= low * scale) & (weight <= high * scale)
    error = np.abs(found.dequantize().astype(np.float64) - weight)
    assert (error[inside] <= scale[inside].astype(np.float64) * 0.5 * (1 + 1e-6)).all()
    # And outside it is clipped to the end of the range, never wrapped.
    assert (found.values[~inside] == np.where(weight > 0, high, low)[~inside]).all()


CPU = load_profile("cpu-x86-onnxruntime", ".")


@st.composite
def layers(draw: st.DrawFn) -> tuple[Net, str, tuple[int, ...]]:
    net = Net(seed=draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([0.01, 0.3, 20.0]))
    if draw(st.booleans()):
        groups = draw(st.sampled_from([1, 1, 2]))
        inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
        kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        x = net.input("rows", inputs, 5, 6)
        parameters = [net.weight(outputs, inputs // groups, *kernel, scale=scale)]
        if draw(st.booleans()):
            parameters.append(net.constant(net.rng.standard_normal(outputs).astype(np.float32)))
        strides = draw(st.sampled_from([[1, 1], [2, 1]]))
        y = net.add("Conv", x, *parameters, group=groups, strides=strides, pads=[1, 0, 0, 1])
        shape: tuple[int, ...] = (inputs, 5, 6)
    else:
        k, n = draw(st.integers(1, 70)), draw(st.integers(1, 9))
        x = net.input("rows", 2, k)
        y = net.add("MatMul", x, net.weight(k, n, scale=scale))
        shape = (2, k)
    return net, net.add("Relu", y) if draw(st.booleans()) else y, shape


@pytest.mark.parametrize("half", [0, 1])
@given(layer=layers(), data=st.data())
@settings(max_examples=25)
def test_a_lowered_layer_computes_what_its_file_means(
    half: int, layer: tuple[Net, str, tuple[int, ...]], data: st.DataObject
) -> None:
    net, output, shape = layer
    model = net.model(output)
    prepared = prepare(model)
    graph = Graph(prepared.model)
    (found,) = all_candidates(graph, read_layers(graph), everything(SCHEMES), CPU, prepared.opset)
    offered = [scheme for scheme in found.schemes if scheme != FLOAT32]
    chosen: list[Scheme] = data.draw(st.lists(st.sampled_from(offered), min_size=4, max_size=4, unique=True))
    rows = data.draw(st.integers(1, 4))
    size = data.draw(st.sampled_from([1e-3, 1.0, 1e4]))
    feeds = {"x": (net.rng.standard_normal((rows, *shape)) * size + half * size).astype(np.float32)}
    subject = lowered(model, map(str, chosen), feeds)
    for scheme in chosen:
        candidate = subject.build(scheme)
        assert list(disagreements(candidate, feeds, run(candidate, feeds))) == [], scheme
