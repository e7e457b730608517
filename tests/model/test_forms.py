"""Forms of the graph: found where they should be, nowhere else, with the same values and the kernels they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from autoq.core.form import FORM_NAMES
from autoq.model.forms import FORMS, formed
from autoq.model.graph import Graph
from autoq.model.prepare import prepare
from tests.models import Net, check, distance, lowered, run, run_optimized, run_unfused

Array = np.ndarray


def graph_of(net: Net, *outputs: str) -> Graph:
    return Graph(prepare(net.model(*outputs)).model)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph.node]


def in_form(net: Net, output: str, name: str, feeds: Mapping[str, Array]) -> Graph:
    """The graph in one form, after its outputs were found to be the prepared graph's."""
    graph = graph_of(net, output)
    result = formed(graph, (name,))
    check(result.model.SerializeToString())
    before, after = (run_unfused(g.model.SerializeToString(), feeds)[output] for g in (graph, result))
    fused = run(result.model, feeds)[output]
    if FORMS[name].tolerance == 0:
        assert np.array_equal(before, after)
    assert distance(after, before) <= FORMS[name].tolerance
    assert distance(fused, before) <= 1e-5
    return result


def test_every_form_has_its_name_and_says_what_it_is() -> None:
    assert tuple(FORMS) == FORM_NAMES
    for form in FORMS.values():
        assert form.what and 0 <= form.tolerance < 1e-3


def test_no_form_no_change() -> None:
    net = Net()
    graph = graph_of(net, net.conv(net.input(None, 4, 8, 8), 4, 4))
    assert formed(graph, ()) is graph
    assert formed(graph, FORM_NAMES) is graph


# attention


def attention(
    net: Net,
    *,
    tokens: int | str = 6,
    rows: int | str = "rows",
    mask: tuple[int | str, ...] = (),
    scale: str = "scores",
    key: str = "one step",
    hidden: int = 8,
    heads: int = 2,
) -> str:
    """One attention as exporters write it, over ``x`` [rows, tokens, hidden]."""
    x = net.input(rows, tokens, hidden)
    size = hidden // heads

    def projected(perm: list[int]) -> str:
        y = net.add("MatMul", x, net.weight(hidden, hidden))
        split = net.add("Reshape", y, net.ints(0, 0, heads, size))
        return str(net.add("Transpose", split, perm=perm))

    q, v = projected([0, 2, 1, 3]), projected([0, 2, 1, 3])
    if key == "one step":
        k = projected([0, 2, 3, 1])
    else:
        k = net.add("Transpose", projected([0, 2, 1, 3]), perm=[0, 1, 3, 2])
    number = net.constant(np.float32(size**-0.5))
    if scale == "operands":
        root = net.constant(np.array([size**-0.25], np.float32))
        q, k = net.add("Mul", q, root), net.add("Mul", root, k)
    scores = net.add("MatMul", q, k)
    if scale == "scores":
        scores = net.add("Mul", scores, number)
    elif scale == "divided":
        scores = net.add("Div", scores, net.constant(np.float32(size**0.5)))
    if mask:
        scores = net.add("Add", scores, net.input(*mask, name="mask"))
    joined = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    flat = net.add("Reshape", net.add("Transpose", joined, perm=[0, 2, 1, 3]), net.ints(0, 0, hidden))
    return str(net.add("MatMul", flat, net.weight(hidden, hidden)))


def attention_feeds(tokens: int = 6, mask: tuple[int, ...] = ()) -> dict[str, Array]:
    feeds = {"x": random(3, tokens, 8)}
    return feeds | ({"mask": np.where(random(*mask, seed=5) > 1, -1e4, 0).astype(np.float32)} if mask else {})


@pytest.mark.parametrize("scale", ["scores", "divided", "operands", "none"])
@pytest.mark.parametrize("key", ["one step", "two steps"])
def test_attention_as_exporters_scale_and_transpose_it(scale: str, key: str) -> None:
    net = Net()
    result = in_form(net, attention(net, scale=scale, key=key), "attention", attention_feeds())
    found = operators(result)
    assert found.count("Attention") == 1 and not {"Softmax", "Transpose", "Reshape", "Mul", "Div"} & set(found)
    assert {entry.version for entry in result.model.opset_import if not entry.domain} == {23}


@pytest.mark.parametrize("rows_in_mask", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6, 6), (2, 6, 6)])
def test_attention_with_a_mask(rows_in_mask: int, shape: tuple[int, ...]) -> None:
    net = Net()
    declared = ("rows" if rows_in_mask == 3 else 1, *shape)
    output = attention(net, mask=declared)
    result = in_form(net, output, "attention", attention_feeds(mask=(rows_in_mask, *shape)))
    assert operators(result).count("Attention") == 1
    # The kernel wants a row of the mask for every query.
    assert ("Expand" in operators(result)) == (shape[1] == 1)


def test_attention_over_an_open_number_of_tokens() -> None:
    net = Net()
    output = attention(net, tokens="tokens", mask=("rows", 1, 1, "tokens"))
    for tokens in (6, 9):
        result = in_form(net, output, "attention", attention_feeds(tokens, (3, 1, 1, tokens)))
        assert operators(result).count("Attention") == 1


def test_masks_are_widened_once_for_all_layers() -> None:
    net = Net()
    x, mask = net.input("rows", 2, 6, 4), net.input("rows", 1, 1, 6, name="mask")
    for _ in range(3):  # heads split already: keys are transposed, and no projection is in sight
        scores = net.add("Add", net.add("MatMul", x, net.add("Transpose", x, perm=[0, 1, 3, 2])), mask)
        x = net.add("MatMul", net.add("Softmax", scores, axis=-1), x)
    y = net.conv(x, 2, 2)
    feeds = {"x": random(3, 2, 6, 4), "mask": np.zeros((3, 1, 1, 6), np.float32)}
    found = operators(in_form(net, y, "attention", feeds))
    assert (found.count("Attention"), found.count("Expand")) == (3, 1)


def test_queries_keys_and_values_from_one_projection() -> None:
    net = Net()
    x = net.input("rows", 6, 8)
    qkv = net.add("Reshape", net.add("MatMul", x, net.weight(8, 24)), net.ints(0, 0, 3, 2, 4))
    parts = net.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.add("Gather", parts, net.constant(np.int64(index)), axis=0) for index in range(3))
    scores = net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2]))
    joined = net.add("MatMul", net.add("Softmax", scores, axis=-1), v)
    y = net.add("Reshape", net.add("Transpose", joined, perm=[0, 2, 1, 3]), net.ints(0, 0, 8))
    assert operators(in_form(net, y, "attention", {"x": random(3, 6, 8)})).count("Attention") == 1


@pytest.mark.parametrize(
    "what", ["axis", "scores read twice", "more rows in the mask", "factor is computed", "unequal"]
)
def test_what_is_no_attention_is_left_alone(what: str) -> None:
    net = Net()
    x = net.input(1, 2, 6, 6)
    y = net.input(1, 1 if what == "unequal" else 2, 6, 6, name="y")
    scores = net.add("MatMul", x, net.add("Transpose", y, perm=[0, 1, 3, 2]))
    if what == "factor is computed":
        scores = net.add("Mul", scores, net.add("ReduceMax", x, keepdims=0))
    if what == "more rows in the mask":
        scores = net.add("Add", scores, net.input(3, 1, 6, 6, name="mask"))
    soft = net.add("Softmax", scores, axis=2 if what == "axis" else -1)
    out = net.add("MatMul", soft, x)
    kept = [scores] if what == "scores read twice" else []
    graph = graph_of(net, net.conv(out, 2, 2), *kept)
    assert formed(graph, ("attention",)) is graph


# selecting-conv


def test_a_shortcut_of_slices_and_padding_is_one_convolution() -> None:
    net = Net()
    x = net.input("rows", 4, 9, 8)
    y = net.add("Slice", x, net.ints(0), net.ints(2**63 - 1), net.ints(2), net.ints(2))
    y = net.add("Slice", y, net.ints(0), net.ints(8), net.ints(3), net.ints(2))
    y = net.add("Pad", y, net.ints(0, 2, 0, 0, 0, 1, 0, 0))
    result = in_form(net, y, "selecting-conv", {"x": random(2, 4, 9, 8)})
    assert operators(result) == ["Conv"]
    (weight,) = (graph_weight for graph_weight in result.initializers if graph_weight.endswith("::Pick"))
    expected = np.zeros((7, 4, 1, 1))
    expected[[2, 3, 4, 5], [0, 1, 2, 3]] = 1
    assert np.array_equal(result.constant(weight), expected)


def test_strides_alone_are_a_pool_and_reversed_channels_a_convolution() -> None:
    net = Net()
    x = net.input("rows", 4, 8, 8)
    y = net.add("Slice", x, net.ints(0, 0), net.ints(2**31 - 1, 2**31 - 1), net.ints(2, -1), net.ints(2, 4))
    assert operators(in_form(net, y, "selecting-conv", {"x": random(2, 4, 8, 8)})) == ["MaxPool"]
    net = Net()
    y = net.add("Slice", net.input("rows", 4, 8, 8), net.ints(1), net.ints(3), net.ints(1), net.ints(1))
    assert operators(in_form(net, y, "selecting-conv", {"x": random(2, 4, 8, 8)})) == ["Conv"]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Slice", ([1], [2**31 - 1], [2], [2]), {}),  # begins with the second row
        ("Slice", ([0], [6], [2], [2]), {}),  # leaves out the last rows
        ("Slice", ([-1], [-(2**31)], [3], [-1]), {}),  # backwards
        ("Slice", ([0], [1], [0], [1]), {}),  # rows of the batch
        ("Pad", ([0, 1, 1, 0, 0, 0, 0, 0],), {}),  # the image, too
        ("Pad", ([0, 1, 0, 0, 0, 0, 0, 0],), {"mode": "edge"}),
        ("Pad", ([0, -1, 0, 0, 0, 0, 0, 0],), {}),
    ],
)
def test_moves_that_no_convolution_does_are_left_alone(
    op: str, inputs: tuple[list[int], ...], attributes: dict[str, Any]
) -> None:
    net = Net()
    y = net.add(op, net.input("rows", 4, 8, 8), *(net.ints(*values) for values in inputs), **attributes)
    graph = graph_of(net, net.conv(y, 3 if inputs[0] == [0, -1, 0, 0, 0, 0, 0, 0] else 4, 4) if op == "Slice" else y)
    assert formed(graph, ("selecting-conv",)) is graph


def test_a_selecting_convolution_has_constants_other_than_zero_left_alone() -> None:
    net = Net()
    x = net.input("rows", 4, 8, 8)
    y = net.add("Pad", x, net.ints(0, 1, 0, 0, 0, 0, 0, 0), net.constant(np.float32(1)))
    assert formed(graph_of(net, y), ("selecting-conv",)) is not None
    assert operators(formed(graph_of(net, y), ("selecting-conv",))) == ["Pad"]


def residual_net() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Two blocks with a parameter-free shortcut between, from an image of three channels."""
    net = Net(seed=3)
    x = net.add("Relu", net.conv(net.input("rows", 3, 8, 8), 3, 16))
    y = net.conv(net.add("Relu", net.conv(x, 16, 32, strides=[2, 2])), 32, 32)
    s = net.add("Slice", x, net.ints(0, 0), net.ints(2**31 - 1, 2**31 - 1), net.ints(2, 3), net.ints(2, 2))
    s = net.add("Pad", s, net.ints(0, 8, 0, 0, 0, 8, 0, 0))
    z = net.add("Relu", net.add("Add", y, s))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", z))
    return net.model(net.add("Gemm", pooled, net.weight(32, 5), net.weight(5))), {"x": random(8, 3, 8, 8)}


@pytest.mark.parametrize("scheme", ["w8a8@minmax", "w4a8@minmax", "w8a8-s8@minmax", "w8"])
def test_integer_shortcuts_and_first_layers_keep_every_bit(scheme: str) -> None:
    model, feeds = residual_net()
    plain = lowered(model, [scheme], feeds).build(scheme)
    expected, _, before = run_optimized(plain, feeds)
    for forms in (("selecting-conv",), ("wide-input",), FORM_NAMES):
        candidate = lowered(model, [scheme], feeds, forms).build(scheme)
        check(candidate)
        outputs, graph, counts = run_optimized(candidate, feeds)
        assert run_unfused(candidate, feeds).keys() == outputs.keys()
        for name, value in outputs.items():
            if scheme.endswith("minmax") and "s8" not in scheme:
                assert np.array_equal(value, expected[name])
            assert distance(value, expected[name]) < (1e-5 if scheme == "w8" else 0.02)
        if scheme in ("w8a8@minmax", "w4a8@minmax"):
            selected = "selecting-conv" in forms
            assert counts["QLinearConv"] == before["QLinearConv"] + selected == 3 + selected
            assert (counts["Slice"], counts["Pad"]) == (0 if selected else 1, (not selected) + ("wide-input" in forms))
            assert not counts["DequantizeLinear"]
            first = next(node for node in graph.node if node.op_type == "QLinearConv")
            (weight,) = (tensor for tensor in graph.initializer if tensor.name == first.input[3])
            assert weight.dims[1] == (4 if "wide-input" in forms else 3)
    if scheme == "w4a8@minmax":
        assert len(candidate) < len(plain) + 2500  # the wide weights exist once the session is loaded


def test_wide_inputs_share_what_is_read_twice() -> None:
    net = Net()
    x = net.input("rows", 6, 8, 8)
    y = net.add("Add", net.conv(x, 6, 16), net.conv(x, 6, 16, 1))
    z = net.add("Add", net.conv(y, 16, 12), net.conv(x, 6, 12, 1))  # 12 output channels: no kernel for them
    model, feeds = net.model(z), {"x": random(4, 6, 8, 8)}
    candidate = lowered(model, ["w8a8@minmax"], feeds, ("wide-input",)).build("w8a8@minmax")
    nodes = onnx.load_from_string(candidate).graph.node
    pads = [node for node in nodes if node.op_type == "Pad"]
    assert len([node for node in pads if node.input[0] == "x::q"]) == 1 and len(pads) == 3
    plain = lowered(model, ["w8a8@minmax"], feeds).build("w8a8@minmax")
    assert np.array_equal(*(run(each, feeds)[z] for each in (candidate, plain)))


# sum-before-norm


def test_a_residual_sum_before_a_norm_is_not_fused() -> None:
    net = Net()
    x = net.input("rows", 6, 16)
    y = net.add("Add", net.add("MatMul", x, net.weight(16, 16)), x)
    z = net.add("LayerNormalization", y, net.weight(16), net.weight(16), axis=-1)
    out = net.add("MatMul", z, net.weight(16, 4))
    model, feeds = net.model(out), {"x": random(3, 6, 16)}
    plain, summed = (lowered(model, ["float32"], feeds, forms).build("float32") for forms in ((), ("sum-before-norm",)))
    assert np.array_equal(run_unfused(plain, feeds)[out], run_unfused(summed, feeds)[out])
    outputs = []
    for candidate, kernels in ((plain, {"SkipLayerNormalization"}), (summed, {"Sum", "LayerNormalization"})):
        found, _, counts = run_optimized(candidate, feeds)
        outputs.append(found[out])
        assert set(counts) == {"MatMul"} | kernels
    assert distance(outputs[1], outputs[0]) < 1e-5


# tanh-gelu


def gelu(net: Net, x: str, how: str) -> str:
    """Gelu of ``x`` as exporters write it."""
    if how == "one operator":
        return str(net.add("Gelu", x))
    number = {name: net.constant(np.float32(value)) for name, value in (("2", 2**0.5), ("1", 1), (".5", 0.5))}
    if how == "Mul":
        erf = net.add("Erf", net.add("Mul", x, net.constant(np.float32(0.5**0.5))))
    else:
        erf = net.add("Erf", net.add("Div", x, number["2"]))
    plus = net.add("Add", erf, number["1"])
    if how == "half first":
        return str(net.add("Mul", net.add("Mul", x, number[".5"]), plus))
    return str(net.add("Mul", net.add("Mul", x, plus), number[".5"]))


@pytest.mark.parametrize("how", ["one operator", "half first", "half last", "Mul"])
def test_a_gelu_in_front_of_a_quantization_is_computed_by_tanh(how: str) -> None:
    net = Net()
    x = net.input("rows", 6, 16)
    y = net.add(
        "MatMul",
        gelu(net, net.add("Add", net.add("MatMul", x, net.weight(16, 32)), net.weight(32)), how),
        net.weight(32, 8),
    )
    model, feeds = net.model(y), {"x": random(3, 6, 16)}
    plain, tanh = (lowered(model, ["w8a8@minmax"], feeds, forms).build("w8a8@minmax") for forms in ((), ("tanh-gelu",)))
    expected, _, before = run_optimized(plain, feeds)
    found, _, counts = run_optimized(check(tanh).SerializeToString(), feeds)
    assert before["FastGelu"] == 0 and counts["FastGelu"] == 1 and counts["MatMulIntegerToFloat"] == 2
    assert distance(found[y], expected[y]) < 0.02
    # In float it stays exact: what reads it is no quantization.
    float32 = lowered(model, ["float32"], feeds).build("float32")
    assert lowered(model, ["float32"], feeds, ("tanh-gelu",)).build("float32") == float32


def test_the_approximation_by_tanh_is_as_near_as_it_says() -> None:
    net = Net()
    x = net.input("rows")
    outputs = [net.add("Gelu", x, approximate=how) for how in ("none", "tanh")]
    values = run(net.model(*outputs), {"x": np.linspace(-8, 8, 100_001, dtype=np.float32)})
    assert 1e-4 < np.abs(values[outputs[0]] - values[outputs[1]]).max() < FORMS["tanh-gelu"].tolerance


def test_an_erf_that_is_no_gelu_is_left_alone() -> None:
    net = Net()
    x = net.input("rows", 6, 16)
    erf = net.add("Erf", net.add("Div", x, net.constant(np.float32(1.5))))
    y = net.add(
        "Mul", net.add("Mul", x, net.add("Add", erf, net.constant(np.float32(1)))), net.constant(np.float32(0.5))
    )
    model, feeds = net.model(net.add("MatMul", y, net.weight(16, 8))), {"x": random(3, 6, 16)}
    plain, tanh = (lowered(model, ["w8a8@minmax"], feeds, forms).build("w8a8@minmax") for forms in ((), ("tanh-gelu",)))
    assert plain == tanh


# product-bias


@pytest.mark.parametrize("scheme", ["w8a8@minmax", "w4a8-tensor@minmax", "w8a8-s8@minmax"])
def test_the_bias_of_an_integer_product_joins_its_kernel(scheme: str) -> None:
    net = Net()
    x = net.input("rows", 6, 16)
    y = net.add("Add", net.weight(32, name="b1"), net.add("MatMul", x, net.weight(16, 32)))
    y = net.add("Add", net.add("MatMul", net.add("Tanh", y), net.weight(32, 8)), net.weight(8, name="b2"))
    z = net.add("Add", net.add("MatMul", x, net.weight(16, 8)), net.weight(6, 8, name="no bias"))
    model, feeds = net.model(y, z), {"x": random(3, 6, 16)}
    plain, joined = (lowered(model, [scheme], feeds, forms).build(scheme) for forms in ((), ("product-bias",)))
    expected, _, before = run_optimized(plain, feeds)
    found, _, counts = run_optimized(check(joined).SerializeToString(), feeds)
    assert before["MatMulIntegerToFloat"] == counts["MatMulIntegerToFloat"] >= (1 if "s8" in scheme else 3)
    assert (before["Add"], counts["Add"]) == (3, 3 if "s8" in scheme else 1)
    for name, value in found.items():
        assert distance(value, expected[name]) <= FORMS["product-bias"].tolerance
