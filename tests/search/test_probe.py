"""What a probe builds, times, drops and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.model.calibrate import output_shapes
from autoq.model.graph import Graph
from autoq.model.layers import read_layers, with_macs
from autoq.model.prepare import prepare
from autoq.model.single import among_integers, inputs_of, integer_input, single
from autoq.model.target import Target
from autoq.runtime.ort import open_session
from autoq.runtime.timing import TimingPlan
from autoq.search.candidates import all_candidates
from autoq.search.probe import ProbeResult, Shape, build_forms, judged, measured_costs, probe, shapes_of
from autoq.spec.hardware import load_profile
from autoq.spec.probed import Finding
from autoq.spec.space import load_space
from tests.cli.calls import call
from tests.models import Net

LAYER = Layer(
    name="c", op_type="Conv", node="c", weight="w", weight_index=1, weight_shape=(8, 1, 3, 3), channel_axis=0,
    input="x", output="y", groups=8, macs=7200,
)  # fmt: skip


def shape(*forms: str, layer: Layer = LAYER) -> Shape:
    schemes = {text: Scheme.parse(f"{text}@minmax" if "a8" in text and "@" not in text else text) for text in forms}
    return Shape(layer=layer, layers=2, forms=schemes, input_shape=(1, 8, 10, 10), dtype=np.dtype(np.float32))


def finding(scheme: str, alone: float, size: float, among: float | None = None, ms: float = 1.0) -> Finding:
    def spread(ratio: float) -> tuple[float, float, float]:
        return ratio, ratio - 0.02, ratio + 0.02

    return Finding(
        kind="depthwise Conv", weight=(8, 1, 3, 3), uses=100.0, scheme=scheme, float32_ms=ms,
        beside_float=spread(alone), among_integers=None if among is None else spread(among), size=size,
    )  # fmt: skip


def dropped(*found: Finding) -> dict[str, bool]:
    kept = judged(shape(*(each.scheme for each in found)), found)
    return {each.scheme: bool(each.dropped) for each in kept}


def test_what_gains_neither_speed_nor_size_over_a_gentler_scheme_is_dropped() -> None:
    w8, w4 = finding("w8", 1.0, 0.27), finding("w4", 1.0, 0.15)
    # Slower in both surroundings, and as large as the same weights with float activations.
    assert dropped(w8, w4, finding("w8a8", 1.5, 0.28, 1.2)) == {"w8": False, "w4": False, "w8a8": True}
    # Faster in one of them.
    assert not dropped(w8, finding("w8a8", 1.5, 0.28, 0.8))["w8a8"]
    assert not dropped(w8, finding("w8a8", 0.5, 0.28))["w8a8"]
    # Not surely slower.
    assert not dropped(w8, finding("w8a8", 1.0, 0.28, 1.0))["w8a8"]
    # Smaller than all that is gentler.
    assert not dropped(w8, finding("w4a8", 1.5, 0.15, 1.2))["w4a8"]
    assert dropped(w8, w4, finding("w4a8", 1.5, 0.15, 1.2))["w4a8"]
    # Of a layer that is done at once, the call is most of the time.
    assert not dropped(w8, finding("w8a8", 1.5, 0.28, 1.2, ms=0.01))["w8a8"]


def test_a_gentler_scheme_that_is_slow_itself_lets_others_stay() -> None:
    assert not dropped(finding("w8", 2.0, 0.27), finding("w8a8", 1.5, 0.28, 1.4))["w8a8"]
    assert dropped(finding("float16", 1.1, 1.0))["float16"]  # as large as float32 and no faster


def test_costs_are_geometric_means_weighted_by_arithmetic() -> None:
    one = (shape("w8a8"), (finding("w8a8", 0.5, 0.3),))
    other = (shape("w8a8"), (finding("w8a8", 0.8, 0.3, 0.2),))
    costs = measured_costs(ProbeResult(shapes=(one, other), left=0))
    assert costs == {"depthwise Conv": {"w8a8": round((0.5 * 0.4) ** 0.5, 4)}}


@pytest.fixture(scope="module")
def net() -> Net:
    net = Net(seed=3)
    x = net.input(None, 8, 12, 12)
    x = net.add("Relu", net.conv(x, 8, 8, group=8))
    x = net.add("Relu", net.conv(x, 8, 16))
    x = net.add("Relu", net.conv(x, 16, 16))
    net.outputs.append(net.conv(x, 16, 16))
    return net


def setting(net: Net) -> tuple[Graph, tuple[Layer, ...], Mapping[str, np.ndarray]]:
    graph = Graph(prepare(net.model(*net.outputs)).model)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 12, 12)).astype(np.float32)}
    layers = read_layers(graph)
    return graph, with_macs(layers, output_shapes(graph, layers, feeds)), feeds


def test_between_integers_a_layer_computes_what_it_does_between_conversions(net: Net) -> None:
    graph, layers, feeds = setting(net)
    layer = layers[1]
    size, dtype = inputs_of(graph, layers, feeds)[layer.input]
    assert (size, dtype) == ((2, 8, 12, 12), np.float32)
    alone = single(graph, layer, size, dtype)
    profile = load_profile("cpu-x86-onnxruntime", ".")
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    built = build_forms(alone, layer, {"w8a8": Scheme.parse("w8a8@minmax")}, {layer.input: values}, profile)
    inside = among_integers(alone, layer, built["w8a8"])
    assert inside is not None
    model, floats, kind = inside
    given = integer_input(kind, size, np.random.default_rng(2))
    (integers,) = given.values()
    whole = onnx.load_from_string(built["w8a8"])
    nodes = {
        node.op_type: node for node in whole.graph.node if layer.input in node.input or layer.output in node.output
    }
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in whole.graph.initializer}
    scale, zero = (constants[name] for name in nodes["QuantizeLinear"].input[1:])
    # The file with conversions, fed what these integers stand for.
    real = (integers.astype(np.int32) - int(zero)).astype(np.float32) * scale
    (expected,) = open_session(built["w8a8"]).run(None, {layer.input: real})
    out_scale, out_zero = (constants[name] for name in nodes["DequantizeLinear"].input[1:])
    (codes,) = open_session(model).run(None, given)
    assert np.array_equal((codes.astype(np.int32) - int(out_zero)).astype(np.float32) * out_scale, expected)
    # Float32 between the same neighbours: the same but for the rounding of its weights.
    (floated,) = open_session(floats).run(None, given)
    assert np.abs(floated.astype(int) - codes.astype(int)).max() <= 4
    assert among_integers(alone, layer, built["float32"]) is None


def test_layers_of_one_shape_are_timed_once_and_the_cache_goes_on(net: Net, tmp_path: Path) -> None:
    graph, layers, feeds = setting(net)
    profile, space = load_profile("npu-generic-int8", "."), load_space("default", Path())
    found = shapes_of(graph, all_candidates(graph, layers, space, profile, 21), feeds)
    counted = [(each.layers, each.layer.weight_shape) for each in found]
    assert counted == [(2, (16, 16, 3, 3)), (1, (16, 8, 3, 3)), (1, (8, 1, 3, 3))]
    assert set(found[0].forms) == {"w8a8", "w4a8", "w2a8"}
    target = Target.load("onnxruntime")

    def taken(limit_s: float) -> ProbeResult:
        times = iter(range(1000))
        options: dict[str, Any] = {"threads": 1, "batch": 2, "limit_s": limit_s, "cache_dir": tmp_path}
        return probe(graph, found, profile, target, clock=lambda: next(times), **options)

    first = taken(1.5)
    assert (len(first.shapes), first.left, first.problems) == (1, 2, ())
    second = taken(0.5)  # no time at all but for what is cached
    assert (len(second.shapes), second.left) == (1, 2) and second.shapes == first.shapes
    whole = taken(100)
    assert len(whole.shapes) == 3 and whole.left == 0 and whole.shapes[0] == first.shapes[0]
    ratios = {each.scheme: each.beside_float for _, each in [(s, f) for s, fs in whole.shapes[:1] for f in fs]}
    assert all(ratio[0] < 1 for ratio in ratios.values())  # the host runs float32


def test_the_command_writes_a_profile_that_layers_obeys(
    net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOQ_CACHE", str(tmp_path / "cache"))
    model, out = tmp_path / "m.onnx", tmp_path / "probed.yaml"
    onnx.save(net.model(*net.outputs), model)
    command = ("profile", "probe", model, "--profile", "npu-generic-int8", "--out", out)
    done = call(capsys, *command)
    assert done.code == 0 and "These figures are estimates" in done.out and f"hardware: {out}" in done.out
    profile = load_profile(out, tmp_path)
    assert profile.probed is not None and len(profile.probed.findings) == 9
    assert profile.costs_are == "measured" and profile.cost("Conv", Scheme.parse("w8a8@mse")) < 1
    values = yaml.safe_load(out.read_text())
    for each in values["probed"]["findings"]:
        if each["scheme"] == "w8a8" and each["weight"] == [16, 16, 3, 3]:
            each["dropped"] = "probed: slow"
    out.write_text(yaml.safe_dump(values))
    listed = json.loads(call(capsys, "layers", model, "--hardware", out, "--json").out)
    refused = [entry["layer"] for entry in listed if entry["refused"].get("w8a8@mse") == "probed: slow"]
    assert refused == [entry["layer"] for entry in listed if entry["weight_shape"] == [16, 16, 3, 3]]
    assert "measured by a probe of m.onnx" in " ".join(call(capsys, "profile", "show", str(out)).out.split())
    values["probed"]["machine"] = "Another CPU"
    out.write_text(yaml.safe_dump(values))
    assert "it was probed on Another CPU" in call(capsys, "profile", "show", str(out)).out
    # What is probed again is looked at whole.
    again = call(capsys, *command[:3], "--profile", out, "--json")
    assert again.code == 0 and len(json.loads(again.out)["probed"]["findings"]) == 9


def test_real_timings_of_a_layer(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TimingPlan(block_s=0.001, warm_s=0.001, max_sittings=4, limit_s=0.0)
    monkeypatch.setattr(sys.modules[probe.__module__], "PLAN", plan)
    graph, layers, feeds = setting(net)
    profile, space = load_profile("cpu-x86-onnxruntime", "."), load_space("int8", Path())
    found = shapes_of(graph, all_candidates(graph, layers[3:], space, profile, 21), feeds)
    options: dict[str, Any] = {"threads": 1, "batch": 2, "limit_s": 60.0, "cache_dir": None}
    result = probe(graph, found, profile, Target.load("onnxruntime"), clock=lambda: 0.0, **options)
    ((_, findings),) = result.shapes
    assert {each.scheme for each in findings} <= {"w8", "w8a8", "w8a8-tensor", "w8a8-s8", "float16"}
    for each in findings:
        assert 0 < each.beside_float[1] <= each.beside_float[0] <= each.beside_float[2] and each.float32_ms > 0
        assert each.size < 0.6
