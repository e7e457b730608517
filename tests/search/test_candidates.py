"""What each layer may become, and why not: reasons come from the model, the runtime and the profile."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from autoq.core.scheme import Scheme
from autoq.errors import ProfileError
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from autoq.search.candidates import (
    Candidates,
    activation_specs,
    all_candidates,
    candidates,
    corrected_specs,
    smoothing_strengths,
    weight_specs,
)
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.profile_fields import OpRules
from autoq.spec.space import Rule, Space
from tests.models import Net


@pytest.fixture(scope="module")
def cpu() -> Profile:
    return load_profile("cpu-x86-onnxruntime", ".")


def space_of(*texts: str, rules: tuple[Rule, ...] = ()) -> Space:
    schemes = tuple(map(Scheme.parse, texts))
    return Space(name="test", description="", schemes=schemes, rules=rules, seeds=schemes)


def found_in(model: onnx.ModelProto, space: Space, profile: Profile) -> dict[str, Candidates]:
    prepared = prepare(model)
    graph = Graph(prepared.model)
    found = all_candidates(graph, read_layers(graph), space, profile, prepared.opset)
    return {entry.layer.name: entry for entry in found}


def texts(entry: Candidates) -> list[str]:
    return [str(scheme) for scheme in entry.schemes]


def reasons(entry: Candidates) -> dict[str, str]:
    return {str(scheme): why for scheme, why in entry.refused}


def test_the_spaces_order_is_kept(cpu: Profile) -> None:
    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4))
    listed = ("w8a8@mse", "float32", "w4-gptq", "float16", "w2a8@minmax")
    (entry,) = found_in(model, space_of(*listed), cpu).values()
    assert (texts(entry), entry.refused) == (list(listed), ())


def test_product_quantization_is_for_tables(cpu: Profile) -> None:
    net = Net()
    ids = net.input("rows", name="ids", kind=TensorProto.INT64)
    large = net.add("Gather", net.weight(1024, 4, name="large.weight"), ids)
    middle = net.add("Gather", net.weight(1023, 4, name="middle.weight"), ids)
    y = net.add("MatMul", net.add("Add", large, middle), net.weight(4, 3, name="product.weight"))
    found = found_in(net.model(y), space_of("float32", "w4-pq", "w2-pq"), cpu)
    assert {name: texts(entry) for name, entry in found.items()} == {
        "large": ["float32", "w4-pq", "w2-pq"],
        "middle": ["float32", "w4-pq"],
        "product": ["float32"],
    }
    assert "with 1023 rows, codebooks would take more room than codes" in reasons(found["middle"])["w2-pq"]
    assert "codes the rows of embedding tables" in reasons(found["product"])["w4-pq"]


def test_layers_that_integers_cannot_run(cpu: Profile) -> None:
    net = Net()
    x = net.input("rows", 4, 6, 6)
    table = net.add(
        "Gather", net.weight(9, 4, name="table.weight"), net.input("rows", name="ids", kind=TensorProto.INT64)
    )
    up = net.add("ConvTranspose", x, net.weight(4, 2, 2, 2, name="up.weight"))
    left = net.add("MatMul", net.weight(5, 6, name="left.weight"), x)
    thick = net.add("MatMul", x, net.weight(4, 6, 3, name="thick.weight"))
    scaled = net.add("Gemm", table, net.weight(4, 3, name="scaled.weight"), alpha=0.5)
    found = found_in(
        net.model(up, left, thick, scaled), space_of("float32", "w8", "w8a8@minmax", "w4-kmeans", "w4-gptq"), cpu
    )
    # GPTQ is for Conv, Gemm and 2-D MatMul; elsewhere the scheme is what it would really be. Codebooks are for all.
    assert all("w4-kmeans" in texts(entry) for entry in found.values())
    assert {name: texts(entry)[-1] for name, entry in found.items()} == {
        "table": "w4",
        "up": "w4",
        "left": "w4",
        "thick": "w4",
        "scaled": "w4-gptq",
    }
    expected = {"table": "look-up", "up": "ConvTranspose", "left": "left", "thick": "3 dimensions", "scaled": "alpha"}
    for name, word in expected.items():
        assert list(reasons(found[name])) == ["w8a8@minmax"]
        assert word in reasons(found[name])["w8a8@minmax"]


def test_a_correction_needs_a_bias(cpu: Profile) -> None:
    """Without one the scheme less its correction stands in, and the reason says so; for all layers of one weight."""
    net = Net()
    x, shared = net.input("rows", 3, 4), net.weight(4, 4, name="shared.weight")
    y = net.add("Add", net.add("MatMul", x, shared), net.weight(4))
    bare = net.add("MatMul", y, shared)
    own = net.add("Add", net.add("MatMul", bare, net.weight(4, 5, name="own.weight")), net.weight(5))
    found = found_in(net.model(own), space_of("float32", "w4", "w4-bc", "w4a8-gptq-bc@mse"), cpu)
    assert texts(found["own"]) == ["float32", "w4", "w4-bc", "w4a8-gptq-bc@mse"]
    for name in ("shared", "shared#2"):
        assert texts(found[name]) == ["float32", "w4", "w4a8-gptq@mse"]
        assert "no constant is added" in reasons(found[name])["w4-bc"]
        assert ("w4a8-gptq-bc@mse", "w4a8-gptq@mse") in [(str(a), str(b)) for a, b in found[name].replaced]
    entries = tuple(found.values())
    assert [(layer.name, str(Scheme(weight=spec))) for layer, spec in corrected_specs(entries)] == [
        ("own", "w4-bc"),
        ("own", "w4-gptq-bc"),
    ]


def test_every_layer_of_a_shared_weight_has_a_correction(cpu: Profile) -> None:
    net = Net()
    shared, x = net.weight(4, 4, 3, 3, name="shared.weight"), net.input("rows", 4, 6, 6)
    model = net.model(net.add("Conv", net.add("Conv", x, shared), shared))
    entries = tuple(found_in(model, space_of("w4", "w4-bc"), cpu).values())
    assert [layer.name for layer, _ in corrected_specs(entries)] == ["shared", "shared#2"]


def test_what_blocks_and_run_time_ranges_are_for(cpu: Profile) -> None:
    net = Net()
    ids = net.input("rows", name="ids", kind=TensorProto.INT64)
    odd = net.add("Gather", net.weight(9, 3, name="odd.weight"), ids)
    even = net.add("Gather", net.weight(9, 4, name="even.weight"), ids)
    plain = net.add("Gemm", even, net.weight(4, 3, name="plain.weight"))
    scaled = net.add("Gemm", even, net.weight(4, 3, name="scaled.weight"), alpha=0.5)
    image = net.input("rows", 4, 6, 6)
    conv = net.add("Conv", image, net.weight(2, 4, 1, 1, name="conv.weight"))
    left = net.add("MatMul", net.weight(5, 6, name="left.weight"), image)
    model = net.model(odd, plain, scaled, conv, left)
    found = found_in(model, space_of("float32", "w8-b32", "w4-b32-gptq", "w2-b64-asym", "w8a8@dynamic"), cpu)
    kept = {name: texts(entry)[1:] for name, entry in found.items()}
    assert kept == {
        "odd": ["w8-b32"],
        "even": ["w8-b32", "w4-b32", "w2-b64-asym"],
        "plain": ["w8-b32", "w4-b32-gptq", "w2-b64-asym", "w8a8@dynamic"],
        "scaled": [],
        "conv": [],
        "left": [],
    }
    assert "3 columns do not fill bytes of 2 values" in reasons(found["odd"])["w4-b32"]
    assert "look-up" in reasons(found["even"])["w8a8@dynamic"]
    assert "MatMul, Gemm and embedding tables" in reasons(found["conv"])["w8-b32"]
    assert "slower than in float32" in reasons(found["conv"])["w8a8@dynamic"]
    assert "alpha" in reasons(found["scaled"])["w8-b32"] and "left" in reasons(found["left"])["w8-b32"]
    assert activation_specs(list(found.values())) == []


def test_smoothing_is_for_products(cpu: Profile) -> None:
    """A convolution has the scheme without it, with the reason; ranges found at run time have none to go by."""
    net = Net()
    y = net.add("Conv", net.input("rows", 4, 6, 6), net.weight(4, 4, 1, 1, name="conv.weight"))
    y = net.add("MatMul", y, net.weight(6, 5, name="product.weight"))
    listed = ("float32", "w8a8-smooth0.5@mse", "w8a8@mse", "w8a8-smooth0.25@dynamic")
    found = found_in(net.model(y), space_of(*listed), cpu)
    assert texts(found["conv"]) == ["float32", "w8a8@mse"]
    assert "cross-layer" in reasons(found["conv"])["w8a8-smooth0.5@mse"]
    assert texts(found["product"]) == ["float32", "w8a8-smooth0.5@mse", "w8a8@mse"]
    assert "calibrated ranges" in reasons(found["product"])["w8a8-smooth0.25@dynamic"]
    entries = tuple(found.values())
    assert smoothing_strengths(entries) == [0.5]
    assert [str(spec.calibration) for spec in activation_specs(entries)] == ["mse"], "of tensors as they are"


def test_schemes_that_become_equal_are_one(cpu: Profile) -> None:
    net = Net()
    up = net.add("ConvTranspose", net.input("rows", 4, 6, 6), net.weight(4, 2, 2, 2))
    (entry,) = found_in(net.model(up), space_of("w4", "w4-gptq", "float32"), cpu).values()
    assert texts(entry) == ["w4", "float32"]


def test_float16_holds_no_such_number(cpu: Profile) -> None:
    net = Net()
    weight = net.constant(np.full((4, 3), 70000, np.float32), "w.weight")
    (entry,) = found_in(
        net.model(net.add("MatMul", net.input("rows", 4), weight)), space_of("float16", "w8"), cpu
    ).values()
    assert texts(entry) == ["w8"]
    assert "65504" in reasons(entry)["float16"]


def test_the_profile_puts_another_scheme_in_place_of_one() -> None:
    net = Net()
    up = net.add("ConvTranspose", net.input("rows", 4, 6, 6), net.weight(4, 2, 2, 2, name="up.weight"))
    model = net.model(net.conv(up, 2, 4), up)
    profile = load_profile("cpu-x86-avx2-onnxruntime", ".")
    listed = ("float32", "w8", "w8a8@minmax", "w8a8-s8-gptq@mse", "w7a8@minmax", "w4a8@minmax")
    up_found, conv = found_in(model, space_of(*listed), profile).values()
    assert texts(conv) == ["float32", "w8", "w7a8@minmax", "w7a8-s8-gptq@mse", "w4a8@minmax"]
    assert [(str(a), str(b)) for a, b in conv.replaced] == [
        ("w8a8@minmax", "w7a8@minmax"),
        ("w8a8-s8-gptq@mse", "w7a8-s8-gptq@mse"),
    ]
    # What is refused is told by the name that it has here, and so is what GPTQ is not for.
    assert list(reasons(up_found)) == ["w7a8@minmax", "w7a8-s8@mse", "w4a8@minmax"]
    assert ("w8a8-s8-gptq@mse", "w7a8-s8@mse") in [(str(a), str(b)) for a, b in up_found.replaced]


def test_gptq_needs_room_for_its_matrix(cpu: Profile) -> None:
    net = Net()
    y = net.add("MatMul", net.input("rows", 8193), net.weight(8193, 2))
    (entry,) = found_in(net.model(y), space_of("w4-gptq", "float32"), cpu).values()
    assert texts(entry) == ["w4", "float32"]


def test_an_old_opset_has_no_small_integers(cpu: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", fails)
    monkeypatch.setattr("onnxscript.version_converter.convert_version", fails)
    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4), opset=15, ir_version=8)
    (entry,) = found_in(model, space_of("w8", "w4", "w2", "w8a8@minmax", "w4a8@minmax"), cpu).values()
    assert texts(entry) == ["w8", "w8a8@minmax"]
    assert all("opset 15" in why and "21" in why for why in reasons(entry).values())


def test_two_bits_only_where_the_runtime_knows_every_operator_anew(cpu: Profile) -> None:
    """RoiAlign has a kernel in opset 21 and, in ONNX Runtime 1.31.1, none in opset 25, which 2-bit integers need."""
    net = Net()
    y = net.conv(net.input("rows", 3, 6, 6), 3, 4)
    boxes = net.input("boxes", 4, name="boxes")
    index = net.add(
        "Squeeze", net.add("Cast", net.add("Slice", boxes, net.ints(0), net.ints(1), net.ints(1)), to=7), net.ints(1)
    )
    y = net.add("RoiAlign", y, boxes, index, output_height=2, output_width=2)
    (entry,) = found_in(net.model(y), space_of("w8", "w4", "w2", "w2a8@minmax"), cpu).values()
    assert texts(entry) == ["w8", "w4"]
    assert all("opset 25" in why and "RoiAlign" in why for why in reasons(entry).values())


def test_rules_and_profile(cpu: Profile) -> None:
    net = Net()
    y = net.add("Conv", net.input("rows", 3, 6, 6), net.weight(4, 3, 3, 3, name="first.weight"))
    y = net.add("Conv", y, net.weight(4, 4, 3, 3, name="second.weight"))
    rule = Rule(match="first", op=("Conv",), schemes=(Scheme.parse("float16"),))
    found = found_in(net.model(y), space_of("float32", "w8", "w4", rules=(rule,)), cpu)
    assert [texts(entry) for entry in found.values()] == [["float16"], ["float32", "w8", "w4"]]


def profile_allowing(*globs: str, base: Profile) -> Profile:
    return Profile(
        name="narrow",
        kind="cpu",
        description="",
        runtime=base.runtime,
        latency=base.latency,
        match=base.match,
        ops={"Conv": OpRules(allow=globs)},
        costs={},
    )


def test_no_choice_at_all_is_an_error_that_says_why(cpu: Profile) -> None:
    net = Net()
    prepared = prepare(net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4)))
    graph = Graph(prepared.model)
    layers = read_layers(graph)
    narrow = profile_allowing("float32", base=cpu)
    with pytest.raises(ProfileError, match=r"'narrow' and space 'test'.*nothing to search.*only float32"):
        candidates(graph, layers, space_of("w8", "w4"), narrow, prepared.opset)
    with pytest.raises(ProfileError, match="offers float32 only"):
        candidates(graph, layers, space_of("float32"), cpu, prepared.opset)
    (entry,) = all_candidates(graph, layers, space_of("w8"), narrow, prepared.opset)
    assert texts(entry) == ["float32"], "a layer left with nothing stays float32"
    assert candidates(graph, layers, space_of("float32", "w8"), cpu, prepared.opset)[0].layer == layers[0]


def test_what_must_be_prepared(cpu: Profile) -> None:
    net = Net()
    shared, x = net.weight(4, 4, 3, 3, name="shared.weight"), net.input("rows", 4, 6, 6)
    y = net.add("Conv", net.add("Conv", x, shared), shared)
    y = net.add("Relu", net.add("Conv", y, net.weight(4, 4, 1, 1, name="own.weight")))
    found = tuple(found_in(net.model(y), space_of("float16", "w8", "w4-gptq", "w8a8@mse", "w4a8-s8@ema"), cpu).values())
    bank = [(layer.name, spec.bits, spec.rounding) for layer, spec in weight_specs(found)]
    own = [(8, "nearest"), (4, "gptq"), (4, "nearest")]
    assert bank == [(name, *spec) for name in ("shared", "own") for spec in own], "a tied layer uses the first one's"
    # A file has one sign, so that each calibration may be asked for with either.
    assert [(str(spec.calibration), spec.signed) for spec in activation_specs(found)] == [
        ("ema", False),
        ("mse", False),
        ("ema", True),
        ("mse", True),
    ]
