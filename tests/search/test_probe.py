"""What a probe builds, times, drops and writes."""

from __future__ import annotations

import json
import re
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
from autoq.search.pays import Shape, gentler, judged, measured_costs
from autoq.search.probe import ProbeResult, build_forms, probe, shapes_of
from autoq.spec.hardware import load_profile
from autoq.spec.probed import Finding
from autoq.spec.space import load_space
from tests.cli.calls import call
from tests.models import Net

LAYER = Layer(
    name="c", op_type="Conv", node="c", weight="w", weight_index=1, weight_shape=(8, 1, 3, 3), channel_axis=0,
    input="x", output="y", groups=8, macs=7200,
)  # fmt: skip


def scheme_of(text: str) -> Scheme:
    return Scheme.parse(f"{text}@minmax" if "a8" in text and "@" not in text else text)


def shape(*forms: str, layer: Layer = LAYER, reference: str = "float32") -> Shape:
    schemes = {text: scheme_of(text) for text in forms}
    size, dtype = (1, 8, 10, 10), np.dtype(np.float32)
    own = scheme_of(reference)
    return Shape(layer=layer, layers=2, forms=schemes, input_shape=size, dtype=dtype, reference=own)


def finding(scheme: str, alone: float, size: float, among: float | None = None, ms: float = 1.0) -> Finding:
    def spread(ratio: float) -> tuple[float, float, float]:
        return ratio, ratio - 0.02, ratio + 0.02

    return Finding(
        kind="depthwise Conv", weight=(8, 1, 3, 3), uses=100.0, scheme=scheme, reference_ms=ms,
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


@pytest.mark.parametrize(
    ("scheme", "gentle"),
    [
        ("float16", "float32"),
        ("w4a8-tensor", "float32 float16 w8 w4 w8a8 w4a8"),
        ("w8a8-s8", "float32 float16 w8 w8a8"),
        ("w4a8", "float32 float16 w8 w4 w8a8"),
        ("w8a8", "float32 float16 w8"),
        ("w4a8@dynamic", "float32 float16 w8 w4"),
        ("w4-b32", "float32 float16 w4-b32-asym"),
        ("w4-kmeans", "float32 float16"),
        ("bf16", "float32"),
        ("float32", ""),
    ],
)
def test_what_is_gentler_whatever_the_model(scheme: str, gentle: str) -> None:
    every = "float32 float16 bf16 w8 w4 w8a8 w4a8 w4a8-tensor w8a8-s8 w4a8@dynamic w4-b32 w4-b32-asym w4-kmeans"
    assert [each for each in every.split() if gentler(scheme_of(each), scheme_of(scheme))] == gentle.split()


def test_integers_are_held_against_wider_ones_in_the_same_place() -> None:
    """Where nothing is computed in floats: fewer bits that save neither time nor flash lose precision for nothing."""

    def alone(scheme: str, ratio: float, size: float) -> Finding:
        exact = (ratio, ratio, ratio)
        values = finding(scheme, 1.0, size).model_dump() | {"beside_float": None, "among_integers": exact}
        return Finding.model_validate({**values, "reference": "w8a8", "reference_ms": 0.001})

    own = shape("w8a8", "w4a8", "w2a8", reference="w8a8")
    found = [alone("w8a8", 1.0, 1.0), alone("w4a8", 1.0, 0.99), alone("w2a8", 1.0, 0.5)]
    kept = judged(own, found, estimated=True)
    assert [bool(each.dropped) for each in kept] == [False, True, False]
    assert kept[1].dropped == ("probed, by estimates: it takes 1.00 of w8a8's time, and w8a8 is no slower and as small")
    assert not any(each.dropped for each in judged(own, found))  # measured, so short a time would tell nothing
    quicker = [found[0], alone("w4a8", 0.9, 1.0)]
    assert not any(each.dropped for each in judged(own, quicker, estimated=True))


def test_what_is_unknown_of_a_gentler_scheme_drops_nothing() -> None:
    # Between integers w4a8 is known, w8a8 is not.
    found = [finding("w8a8", 0.5, 1.0), finding("w4a8", 0.55, 1.0, 0.5)]
    assert not any(dropped(*found).values())
    assert dropped(finding("w8a8", 0.5, 1.0, 0.4), finding("w4a8", 0.55, 1.0, 0.42))["w4a8"]
    assert not dropped(finding("w8a8", 0.5, 1.0, 0.4), finding("w4a8", 0.55, 1.0, 0.3))["w4a8"]


def test_a_gentler_scheme_that_is_slow_itself_lets_others_stay() -> None:
    assert not dropped(finding("w8", 2.0, 0.27), finding("w8a8", 1.5, 0.28, 1.4))["w8a8"]
    assert dropped(finding("float16", 1.1, 1.0))["float16"]  # as large as float32 and no faster


def test_costs_are_geometric_means_weighted_by_arithmetic() -> None:
    one = (shape("w8a8"), (finding("w8a8", 0.5, 0.3),))
    other = (shape("w8a8"), (finding("w8a8", 0.8, 0.3, 0.2),))
    costs = measured_costs((one, other), load_profile("cpu-x86-onnxruntime", "."))
    assert costs == {"depthwise Conv": {"w8a8": round((0.5 * 0.4) ** 0.5, 4)}}


def test_costs_against_another_reference_are_relative_to_float32_where_there_is_one() -> None:
    own = shape("float32", "w8a8", "w4a8", reference="w8a8")
    found = [finding("float32", 50.0, 4.0), finding("w8a8", 1.0, 1.0), finding("w4a8", 0.5, 0.6)]
    costs = measured_costs([(own, found)], load_profile("npu-generic-int8", "."))
    assert costs == {"depthwise Conv": {"w8a8": 0.02, "w4a8": 0.01}}
    # Without any float32, the reference keeps the cost that the profile gave it: 1.
    costs = measured_costs([(own, found[1:])], load_profile("npu-ethos-u55-256", "."))
    assert costs == {"depthwise Conv": {"w8a8": 1.0, "w4a8": 0.5}}


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
    found = shapes_of(graph, all_candidates(graph, layers, space, profile, 21), feeds, profile.reference)
    counted = [(each.layers, each.layer.weight_shape) for each in found]
    assert counted == [(2, (16, 16, 3, 3)), (1, (16, 8, 3, 3)), (1, (8, 1, 3, 3))]
    assert set(found[0].forms) == {"float32", "w8a8", "w4a8", "w2a8"}
    target = Target.load("onnxruntime")

    def taken(limit_s: float) -> ProbeResult:
        times = iter(range(1000))
        options: dict[str, Any] = {"threads": 1, "batch": 2, "limit_s": limit_s, "cache_dir": tmp_path}
        return probe(graph, found, profile, target, clock=lambda: next(times), **options)

    first = taken(1.5)
    assert (len(first.shapes), first.left, first.problems) == (1, 2, ())
    assert first.estimated and first.by == "roofline, 512 GMAC/s int8, 2 GB/s"
    second = taken(0.5)  # no time at all but for what is cached
    assert (len(second.shapes), second.left) == (1, 2) and second.shapes == first.shapes and second.by == first.by
    whole = taken(100)
    assert len(whole.shapes) == 3 and whole.left == 0 and whole.shapes[0] == first.shapes[0]
    by_form = {each.scheme: each for each in whole.shapes[0][1]}
    assert by_form["w8a8"].beside_float == (1, 1, 1) and by_form["w8a8"].reference == "w8a8"
    assert by_form["float32"].beside_float is not None and by_form["float32"].beside_float[0] > 1  # the host runs it
    assert not by_form["float32"].dropped and by_form["float32"].size > 1 > by_form["w4a8"].size
    # An estimate costs nothing: all have one between integers, where floats are what must be converted.
    assert by_form["float32"].among_integers is not None and by_form["w2a8"].among_integers is not None
    assert by_form["float32"].among_integers[0] > by_form["float32"].beside_float[0]


def among(result: ProbeResult) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    return {str(own.layer.weight_shape): {each.scheme: each.among_integers for each in f} for own, f in result.shapes}


def test_a_target_that_holds_no_floats_has_estimates_against_its_reference(net: Net) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ethosu")
    graph, layers, feeds = setting(net)
    feeds = {name: values[:1] for name, values in feeds.items()}
    profile, space = load_profile("npu-ethos-u55-256", "."), load_space("low-bits", Path())
    found = shapes_of(graph, all_candidates(graph, layers[1:3], space, profile, 21), feeds, profile.reference)
    options: dict[str, Any] = {"threads": 1, "batch": 1, "limit_s": 60.0, "cache_dir": None}
    result = probe(graph, found, profile, Target.load("litert"), clock=lambda: 0.0, **options)
    assert result.problems == () and result.estimated and re.match(r"Vela [\d.]+, ethos-u55-256", result.by)
    for _, findings in result.shapes:
        assert {each.scheme for each in findings} >= {"w8a8", "w4a8", "w2a8"}
        assert all(each.beside_float is None and each.reference == "w8a8" for each in findings)
        sizes = {each.scheme: each.size for each in findings}
        assert sizes["w2a8"] < sizes["w4a8"] < sizes["w8a8"] == 1  # in flash; the files are as large


def test_a_target_that_holds_no_floats_is_timed_against_its_reference(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    plan = TimingPlan(block_s=0.001, warm_s=0.001, max_sittings=4, limit_s=0.0)
    monkeypatch.setattr(sys.modules[probe.__module__], "PLAN", plan)
    graph, layers, feeds = setting(net)
    feeds = {name: values[:1] for name, values in feeds.items()}
    profile, space = load_profile("cpu-litert", "."), load_space("default", Path())
    found = shapes_of(graph, all_candidates(graph, layers[2:3], space, profile, 21), feeds, profile.reference)
    options: dict[str, Any] = {"threads": 1, "batch": 1, "limit_s": 60.0, "cache_dir": None}
    result = probe(graph, found, profile, Target.load("litert"), clock=lambda: 0.0, **options)
    assert result.problems == () and not result.estimated and result.by == ""
    ((_, findings),) = result.shapes
    assert {each.scheme for each in findings} == set(found[0].forms) and among(result)["(16, 16, 3, 3)"]["w8a8"]
    for each in findings:
        assert each.beside_float is None and each.reference == "w8a8" and each.reference_ms > 0


def test_the_command_writes_a_profile_that_layers_obeys(
    net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOQ_CACHE", str(tmp_path / "cache"))
    model, out = tmp_path / "m.onnx", tmp_path / "probed.yaml"
    onnx.save(net.model(*net.outputs), model)
    command = ("profile", "probe", model, "--profile", "npu-generic-int8", "--out", out)
    done = call(capsys, *command)
    assert done.code == 0 and "These figures are estimates by roofline" in done.out and f"hardware: {out}" in done.out
    profile = load_profile(out, tmp_path)
    assert profile.probed is not None and len(profile.probed.findings) == 12
    assert profile.costs_are == "estimated" and profile.cost("Conv", Scheme.parse("w8a8@mse")) < 1
    values = yaml.safe_load(out.read_text())
    for each in values["probed"]["findings"]:
        if each["scheme"] == "w8a8" and each["weight"] == [16, 16, 3, 3]:
            each["dropped"] = "probed: slow"
    out.write_text(yaml.safe_dump(values))
    listed = json.loads(call(capsys, "layers", model, "--hardware", out, "--json").out)
    refused = [entry["layer"] for entry in listed if entry["refused"].get("w8a8@mse") == "probed: slow"]
    assert refused == [entry["layer"] for entry in listed if entry["weight_shape"] == [16, 16, 3, 3]]
    words = "estimated by roofline, 512 GMAC/s int8, 2 GB/s in a probe of m.onnx"
    assert words in " ".join(call(capsys, "profile", "show", str(out)).out.split())
    values["probed"]["machine"] = "Another CPU"  # which is nothing to an estimate
    out.write_text(yaml.safe_dump(values))
    assert "this machine  fits" in call(capsys, "profile", "show", str(out)).out
    del values["probed"]["estimated"]
    out.write_text(yaml.safe_dump(values))
    assert "it was probed on Another CPU" in call(capsys, "profile", "show", str(out)).out
    # What is probed again is looked at whole.
    again = call(capsys, *command[:3], "--profile", out, "--json")
    assert again.code == 0 and len(json.loads(again.out)["probed"]["findings"]) == 12


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
        assert 0 < each.beside_float[1] <= each.beside_float[0] <= each.beside_float[2] and each.reference_ms > 0
        assert each.size < 0.6
