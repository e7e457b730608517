"""The health of real candidates: held against integer convolutions in NumPy, and against what was done to them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.health import HealthCheck, LayerHealth
from autoq.numerics.affine import quantize
from tests.models import Lowered, Net, lowered, run
from tests.small_job import small_data, small_model

SCHEMES = ("float32", "float16", "w8", "w2", "w8a8@minmax", "w7a8@minmax", "w4a8-gptq@minmax", "w8a8@dynamic", "w4-b32")


@pytest.fixture(scope="module")
def subject() -> Lowered:
    model = small_model()
    return lowered(model, SCHEMES, {"x": small_data(model, rows=16)["x"]})


def health(subject: Lowered, policy: Policy) -> dict[str, LayerHealth]:
    check = HealthCheck(subject.lowering, subject.feeds)
    found = check.take(policy, subject.build(policy), banked=True)
    own = check.take(policy, subject.build(policy), banked=False)
    for layer, alone in zip(found, own, strict=True):  # the bank fills in what the file does not show, and no more
        assert alone == layer or (alone.weight_sqnr_db is None and layer.weight_sqnr_db is not None)
    return {layer.layer: layer for layer in found}


def uniform(subject: Lowered, scheme: str) -> dict[str, LayerHealth]:
    parsed = Scheme.parse(scheme)
    convs = scheme.endswith("dynamic") or "-b32" in scheme  # not for convolutions
    schemes = {layer.name: FLOAT32 if convs and layer.op_type == "Conv" else parsed for layer in subject.layers}
    return health(subject, subject.canonical(schemes))


def test_float_layers_have_none(subject: Lowered) -> None:
    assert uniform(subject, "float32") == {}


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_every_form(subject: Lowered, scheme: str) -> None:
    found = uniform(subject, scheme)
    assert found
    for layer in found.values():
        assert layer.weight_sqnr_db is not None and layer.weight_sqnr_db > (3 if "w2" in scheme else 10)
        assert layer.output_sqnr_db is not None and layer.output_sqnr_db > (0 if "w2" in scheme else 10)
        calibrated = "a8" in scheme and "dynamic" not in scheme
        assert (layer.input is not None) == (layer.accumulator is not None) == (layer.tensor is not None) == calibrated
    if calibrated:
        assert all(layer.input.saturated < 1e-3 for layer in found.values() if layer.input)  # min-max clips nothing


def test_outputs_are_those_of_the_candidate(subject: Lowered) -> None:
    policy = subject.policy("w4a8-gptq@minmax")
    last = health(subject, policy)["fc2"]
    # The classifier's output leaves the graph after a subtraction, which does not change the noise.
    exact, found = subject.float32()["y"], run(subject.build(policy), subject.feeds)["y"]
    shift = subject.graph.constant("b4")
    noise = np.square(found - exact).sum() / np.square(exact + shift).sum()
    assert last.output_sqnr_db == pytest.approx(-10 * np.log10(noise), abs=0.3)


def test_sums_are_those_of_an_integer_convolution(subject: Lowered) -> None:
    scheme = Scheme.parse("w8a8@minmax")
    found = uniform(subject, "w8a8@minmax")["conv1"].accumulator
    assert found is not None and scheme.activation is not None and scheme.weight is not None
    scale, zero = subject.lowering.affines["x", scheme.activation]
    integers = quantize(subject.feeds["x"], scale, zero, 0, 255).astype(np.int64)
    padded = np.pad(integers, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=zero)
    weight = subject.lowering.bank["conv1", scheme.weight].values.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, weight)
    assert found.sum_seen <= np.abs(sums).max() <= found.sum_possible
    assert found.sum_seen >= np.quantile(np.abs(sums), 0.99)  # some patches stand for all
    rows = weight.reshape(len(weight), -1)
    assert found.sum_possible == 255 * max(np.maximum(rows, 0).sum(1).max(), np.maximum(-rows, 0).sum(1).max())


def test_seven_bits_leave_room_for_pairs(subject: Lowered) -> None:
    eight, seven = (uniform(subject, scheme) for scheme in ("w8a8@minmax", "w7a8@minmax"))
    for name in eight:
        assert eight[name].accumulator.pair_possible > 32767 >= seven[name].accumulator.pair_possible  # type: ignore


def test_a_range_that_is_too_narrow_shows(subject: Lowered) -> None:
    spec = Scheme.parse("w8a8@minmax").activation
    scale, zero = subject.lowering.affines["x", spec]
    narrow = dict(subject.lowering.affines) | {("x", spec): (np.float32(scale / 4), zero)}
    before = uniform(subject, "w8a8@minmax")["conv1"]
    spoiled = dataclasses.replace(subject, lowering=dataclasses.replace(subject.lowering, affines=narrow))
    after = uniform(spoiled, "w8a8@minmax")["conv1"]
    assert before.input.saturated < 1e-3 < 0.1 < after.input.saturated  # type: ignore[union-attr]
    assert after.input.clipping > 0.9 > before.input.clipping  # type: ignore[union-attr]
    assert after.output_sqnr_db < before.output_sqnr_db - 10  # type: ignore[operator]


def test_grouped_and_signed_layers() -> None:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 4, 7, 7), 4, 4, group=4))
    y = net.conv(y, 4, 6, strides=[2, 2], group=2)
    feeds = {"x": np.random.default_rng(3).standard_normal((3, 4, 7, 7)).astype(np.float32)}
    subject = lowered(net.model(y), ["w8a8-s8@minmax"], feeds)
    found = health(subject, subject.policy("w8a8-s8@minmax"))
    assert len(found) == 2
    for layer in found.values():
        assert layer.accumulator is not None and 0 < layer.accumulator.sum_seen <= layer.accumulator.sum_possible
        assert layer.output_sqnr_db is not None and layer.output_sqnr_db > 20
