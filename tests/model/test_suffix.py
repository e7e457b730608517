"""Outputs from parts of a model: against the whole file, wherever a graph may be cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import TrialError
from autoq.model import suffix
from autoq.model.suffix import Suffixes
from autoq.numerics.distortion import relative_noise
from autoq.runtime.ort import open_session, run_batches
from tests.models import Lowered, Net, in_forms, lowered

SCHEMES = ("float16", "w8", "w4", "w2", "w8a8@minmax", "w4a8@mse", "w8a8@dynamic", "w4-b32")
ROWS = 21


def skips(rng: np.random.Generator) -> tuple[Any, dict[str, np.ndarray]]:
    """Convolutions with skips around them, a strided shortcut, and a second output from the middle."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("batch", 3, 8, 8), 3, 8))
    y = net.add("Relu", net.conv(x, 8, 8))
    x = net.add("Relu", net.add("Add", net.conv(y, 8, 8), x))
    y = net.add("Add", net.conv(x, 8, 16, 3, strides=[2, 2]), net.conv(x, 8, 16, 1, strides=[2, 2]))
    flat = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", y)))
    z = net.add("Gemm", flat, net.weight(5, 16), net.constant(np.ones(5, np.float32)), transB=1)
    return net.model(z, flat), {"x": rng.standard_normal((ROWS, 3, 8, 8)).astype(np.float32)}


def tables(rng: np.random.Generator) -> tuple[Any, dict[str, np.ndarray]]:
    """A table that is also the head's matrix, positions, a mask, attention, products, a norm, and open lengths."""
    net = Net()
    table, tokens = net.weight(40, 32), net.input("batch", "length", name="tokens", kind=TensorProto.INT64)
    mask = net.add("Unsqueeze", net.input("batch", "length", name="mask"), net.ints(2))
    x = net.add("Add", net.add("Gather", table, tokens), net.add("Mul", mask, net.weight(32)))
    heads, merged = net.ints(0, 0, 4, 8), net.ints(0, 0, 32)
    q, k, v = (
        net.add("Transpose", net.add("Reshape", net.add("MatMul", x, net.weight(32, 32)), heads), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    weights = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = net.add("Reshape", net.add("Transpose", net.add("MatMul", weights, v), perm=[0, 2, 1, 3]), merged)
    x = net.add("Add", x, y)
    for _ in range(2):
        y = net.add("Gelu", net.add("Add", net.add("MatMul", x, net.weight(32, 64)), net.weight(64)))
        y = net.add("Add", net.add("MatMul", y, net.weight(64, 32)), x)
        x = net.add("LayerNormalization", y, net.weight(32), net.weight(32), axis=-1)
    head = net.add("MatMul", x, net.add("Transpose", table, perm=[1, 0]))
    mean = net.add("ReduceMean", net.add("Mul", head, mask), net.ints(1), keepdims=0)
    feeds = {
        "tokens": rng.integers(0, 40, (ROWS, 6)),
        "mask": rng.integers(0, 2, (ROWS, 6)).astype(np.float32),
    }
    return net.model(mean), feeds


def branches(rng: np.random.Generator) -> tuple[Any, dict[str, np.ndarray]]:
    """An If whose body reads what a layer made; a batch of fixed size."""
    net = Net()
    x = net.add("MatMul", net.input(4, 32), net.weight(32, 32))
    body = [
        helper.make_graph([helper.make_node("Mul", [x, by], [f"{x}::{by}"])], by, [], [net_output(f"{x}::{by}")])
        for by in (net.constant(np.float32([2.0]), "two"), net.constant(np.float32([3.0]), "three"))
    ]
    yes = net.add("Greater", net.add("ReduceMean", x, keepdims=0), net.constant(np.float32(1e9)))
    y = net.add("If", yes, then_branch=body[0], else_branch=body[1])
    return net.model(net.add("MatMul", y, net.weight(32, 6))), {"x": rng.standard_normal((ROWS, 32)).astype(np.float32)}


def net_output(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


MODELS: list[Callable[[np.random.Generator], tuple[Any, dict[str, np.ndarray]]]] = [skips, tables, branches]


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def subject(request: Any) -> tuple[Lowered, dict[str, np.ndarray]]:
    model, feeds = request.param(np.random.default_rng(0))
    fixed = {name: values[:4] for name, values in feeds.items()} if request.param is branches else feeds
    return lowered(model, SCHEMES, fixed), feeds


def alone(laid: Lowered, text: str) -> list[Policy]:
    """The scheme at one layer after the other, wherever one can have it."""
    found = []
    for layer in laid.layers:
        scheme = laid.possible(layer, Scheme.parse(text))
        for_products = text in ("w8a8@dynamic", "w4-b32")
        if layer.tied_to is None and scheme != FLOAT32 and not (for_products and layer.op_type == "Conv"):
            schemes = dict.fromkeys([each.name for each in laid.layers], FLOAT32) | {layer.name: scheme}
            found.append(laid.canonical(schemes))
    return found


def whole(laid: Lowered, policy: Policy, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run_batches(open_session(laid.lowering.build(policy)), feeds, 8)


def assert_same(laid: Lowered, feeds: dict[str, np.ndarray], runs: Suffixes, text: str) -> int:
    policies = alone(laid, text)
    for policy in policies:
        expected, found = whole(laid, policy, feeds), runs.outputs(policy)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name].shape == values.shape and found[name].dtype == values.dtype
            own, reference = relative_noise(runs.reference[name], values), runs.reference[name]
            assert relative_noise(reference, found[name]) == pytest.approx(own, rel=2e-3, abs=1e-11), (policy, name)
    return len(policies)


@pytest.mark.parametrize("text", SCHEMES)
def test_parts_give_what_the_whole_file_gives(subject: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laid, feeds = subject
    runs = Suffixes(laid.lowering, feeds, 8)
    # And it is the parts that are compared.
    monkeypatch.setattr(suffix, "run_batches", None)
    assert assert_same(laid, feeds, runs, text)


def test_parts_of_graphs_in_other_forms(subject: Any) -> None:
    laid, feeds = subject
    forms = in_forms(laid, ["sum-before-norm", "selecting-conv", "tanh-gelu", "product-bias", "wide-input"])
    assert assert_same(forms, feeds, Suffixes(forms.lowering, feeds, 8), "w8a8@minmax")


def test_little_memory_costs_time_alone(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laid, feeds = subject
    for kept_bytes in (0, 20_000):
        runs = Suffixes(laid.lowering, feeds, 8, kept_bytes=kept_bytes)
        assert_same(laid, feeds, runs, "w4a8@mse")
        kept = sum(values.nbytes for each in runs._kept._tensors for values in each.values())
        assert kept <= kept_bytes + sum(values.nbytes for values in feeds.values()) * 2


def test_a_layer_deep_in_the_graph_runs_little_of_it(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laid, feeds = subject
    runs = Suffixes(laid.lowering, feeds, 8)
    opened: list[int] = []
    real = suffix.open_session
    monkeypatch.setattr(suffix, "open_session", lambda model: opened.append(len(model)) or real(model))
    policy = alone(laid, "w8")[-1]
    runs.outputs(policy)
    opened.clear()
    runs.outputs(alone(laid, "w2")[-1])
    # What is float32's own is there by now, before and behind: the layer alone is opened.
    assert len(opened) == 1 and opened[0] < len(laid.lowering.build(policy))


def test_what_does_not_build_or_run_says_so(subject: Any) -> None:
    laid, feeds = subject
    policy = alone(laid, "w8")[0]
    runs = Suffixes(dataclasses.replace(laid.lowering, bank={}), feeds, 8)
    with pytest.raises(TrialError, match="the bank has no"):
        runs.outputs(policy)


def test_where_a_part_does_not_run_the_whole_does(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    laid, feeds = subject
    runs = Suffixes(laid.lowering, feeds, 8)

    def refuse(*_: Any) -> Any:
        raise TrialError("load", "not this part")

    monkeypatch.setattr(suffix, "part", refuse)
    policy = alone(laid, "w8")[0]
    for name, values in whole(laid, policy, feeds).items():
        np.testing.assert_array_equal(runs.outputs(policy)[name], values)
