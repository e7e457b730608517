"""What a file's time is made of: by hand on small graphs, and against the kernels that the runtime really runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from autoq.core.scheme import Scheme
from autoq.model.parts import FLOAT, Part, Parts, latency_class
from tests.models import Lowered, Net, lowered, run_optimized

SCHEMES = [
    "float32",
    "float16",
    "w8",
    "w4",
    "w2",
    "w4-gptq",
    "w4-kmeans",
    "w4-b32",
    "w4-b128",
    "w8-b32",
    "w8a8@minmax",
    "w7a8@mse",
    "w6a8@mse",
    "w3a8-gptq@minmax",
    "w4a8@minmax",
    "w2a8-gptq@mse",
    "w8a8-s8@minmax",
    "w8a8-tensor@minmax",
    "w8a8@dynamic",
    "w4a8@dynamic",
]


def parts(subject: Lowered, **schemes: str) -> tuple[Part, ...]:
    """Of a policy given by layers' names, the others float32."""
    chosen = {layer.name: Scheme.parse(schemes.get(layer.name, "float32")) for layer in subject.layers}
    told = Parts(subject.lowering.formed, subject.layers, subject.lowering.placer)
    return told.of(subject.canonical(chosen))


def kinds(found: tuple[Part, ...]) -> Counter[str]:
    return Counter(part.kind for part in found)


@pytest.fixture(scope="module")
def chain() -> Lowered:
    """Three convolutions one behind the other, Relus between."""
    net = Net()
    x = net.input("rows", 8, 8, 8)
    for _ in range(2):
        x = net.add("Relu", net.conv(x, 8, 8))
    model = net.model(net.conv(x, 8, 8))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 8, 8)).astype(np.float32)}
    return lowered(model, ["float32", "w4", "w8a8@minmax", "w4a8@mse"], feeds)


def test_float_kernels_are_no_part(chain: Lowered) -> None:
    first, second, third = (layer.name for layer in chain.layers)
    assert parts(chain) == parts(chain, **{first: "w4", third: "float16"}) == ()
    assert kinds(parts(chain, **{second: "w8a8@minmax"})) == {"layer": 1, "quantize": 1, "dequantize": 1}


def test_boundaries_count_where_precisions_meet(chain: Lowered) -> None:
    first, second, third = (layer.name for layer in chain.layers)
    integers = dict.fromkeys((first, second, third), "w8a8@minmax")
    assert kinds(parts(chain, **integers)) == {"layer": 3, "quantize": 1, "dequantize": 1}
    between = parts(chain, **{first: "w8a8@minmax", third: "w8a8@minmax"})
    assert kinds(between)["quantize"] == kinds(between)["dequantize"] == 2
    pair = parts(chain, **{first: "w8a8@minmax", second: "w4a8@mse"})
    assert kinds(pair) == {"layer": 2, "quantize": 1, "dequantize": 1}
    # Equal shapes in equal form are alike.
    assert kinds(between) == {"layer": 2, "quantize": 2, "dequantize": 2, "barrier": 1}
    assert len({part.like for part in between}) == 4


def test_the_parts_tell_where_the_runtime_quantizes_and_dequantizes(chain: Lowered) -> None:
    names = [layer.name for layer in chain.layers]
    for number in range(8):
        chosen = {name: "w8a8@minmax" for bit, name in enumerate(names) if number >> bit & 1}
        found = kinds(parts(chain, **chosen))
        policy = {name: Scheme.parse(chosen.get(name, "float32")) for name in names}
        _, _, operators = run_optimized(chain.build(chain.canonical(policy)), chain.feeds)
        assert found["quantize"] == operators["QuantizeLinear"]
        assert found["dequantize"] == operators["DequantizeLinear"]
        assert found["layer"] == operators["QLinearConv"]


def one_layer(op: str) -> Lowered:
    net, rng = Net(), np.random.default_rng(0)
    if op == "Conv":
        model = net.model(net.conv(net.input("rows", 8, 8, 8), 8, 8))
        feeds = {"x": rng.standard_normal((2, 8, 8, 8)).astype(np.float32)}
    elif op == "Gather":
        ids = net.input("rows", 4, name="ids", kind=7)
        model = net.model(net.add("Gather", net.weight(32, 128), ids))
        return lowered(
            model,
            [text for text in SCHEMES if "a8" not in text and "gptq" not in text],
            {"ids": rng.integers(0, 32, (2, 4))},
        )
    else:
        x = net.input("rows", 256)
        y = net.add("MatMul", x, net.weight(256, 16)) if op == "MatMul" else net.add("Gemm", x, net.weight(256, 16))
        model, feeds = net.model(y), {"x": rng.standard_normal((4, 256)).astype(np.float32)}
    return lowered(
        model, [text for text in SCHEMES if op != "Conv" or ("-b" not in text and "@dyn" not in text)], feeds
    )


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm", "Gather"])
def test_schemes_of_one_class_run_the_same_kernels(op: str) -> None:
    subject = one_layer(op)
    (layer,) = subject.layers
    ran: dict[str, dict[str, object]] = {}
    for text in SCHEMES:
        scheme = Scheme.parse(text)
        if (op == "Conv" and ("-b" in text or "@dyn" in text)) or (op == "Gather" and ("a8" in text or "gptq" in text)):
            continue
        _, _, operators = run_optimized(subject.build(subject.canonical({layer.name: scheme})), subject.feeds)
        ran.setdefault(latency_class(layer, scheme), {})[text] = operators
    for name, by_scheme in ran.items():
        first, *others = by_scheme.values()
        assert all(other == first for other in others), (name, by_scheme)
    assert len(ran) > 1 and FLOAT in ran


def test_16_bits_on_one_side_of_a_kernel_are_its_form() -> None:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 4, 8, 8), 4, 4))
    y = net.add("MaxPool", net.add("Add", y, net.conv(y, 4, 4)), kernel_shape=[2, 2])
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    subject = lowered(net.model(net.conv(y, 4, 4)), ["w8a8@minmax", "w8a16@minmax"], feeds)
    names = [layer.name for layer in subject.layers]
    schemes = dict(zip(names, ("w8a8@minmax", "w8a8@minmax", "w8a16@minmax"), strict=True))
    forms = {part.name: part.form for part in parts(subject, **schemes) if part.kind in ("layer", "operator")}
    # The Add writes what the last layer reads; the layer before it writes its own bits, as no layer reads them.
    (add,) = forms.keys() - set(names)
    assert forms[add] == "s16"
    assert [forms[name] for name in names] == ["int8", "int8", "int16"]
    eight = dict.fromkeys(names, "w8a8@minmax")
    forms = {part.name: part.form for part in parts(subject, **eight) if part.kind in ("layer", "operator")}
    assert {*forms.values()} == {"int8", ""}
