"""Polishing one candidate: later layers make up for earlier ones, claims hold on the real runtime, guards hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.lower import Lowering
from autoq.model.polish import LayerPolish, polish
from autoq.search.polish_point import computing_nodes
from tests.models import Lowered, Net, lowered, run

ROWS = 96


def rows(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def batches(x: np.ndarray, name: str = "x", size: int = 32) -> list[dict[str, np.ndarray]]:
    return [{name: x[start : start + size]} for start in range(0, len(x), size)]


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def chosen(net: Lowered, **schemes: str) -> Policy:
    return net.canonical({layer.name: Scheme.parse(schemes[layer.name]) for layer in net.layers})


def two_layers(x: np.ndarray) -> Lowered:
    """Gemm, Gemm: what the first loses at 2 bits the second, with enough levels, can give back in part."""
    net = Net(seed=3)
    out = net.input("N", 12)
    for inputs, outputs, name in ((12, 24, "first"), (24, 6, "second")):
        out = net.add("Gemm", out, net.weight(inputs, outputs, name=f"{name}.weight"), net.weight(outputs))
    return lowered(net.model(out), ["w2-gptq", "w8", "w8a8@minmax"], {"x": x})


def test_the_second_layer_makes_up_for_the_first() -> None:
    """Its new weights are as good as least squares on the inputs that it really gets, and 12 numbers in 24 suffice."""
    x, unseen = rows(256, 12), rows(64, 12, seed=1)
    net = two_layers(x)
    policy = chosen(net, first="w2-gptq", second="w8")
    new, results = polish(net.lowering, policy, batches(x), batches(unseen))
    second = results[1]
    assert second.kept and second.before is not None and second.after is not None
    assert second.after < 0.5 * second.before

    (y,) = (run(net.graph.model, {"x": each})[net.layers[1].output] for each in (unseen,))
    # Biases are constant, so that relative to the outputs' own power the claim is what the file gives.
    model = new.build(policy)
    (output,) = run(model, {"x": unseen}).values()
    assert relative(output, y) == pytest.approx(second.after, rel=0.02)

    weights = new.bank["first", Scheme.parse("w2-gptq").weight].dequantize()  # type: ignore[index]
    bias = net.graph.constant(net.layers[0].bias or "")
    shift = new.corrections.get(("first", Scheme.parse("w2-gptq").weight), 0.0)  # type: ignore[arg-type]
    got = np.column_stack([x @ weights + bias + shift, np.ones(len(x))])
    target = run(net.graph.model, {"x": x})[net.layers[1].output]
    best = np.linalg.lstsq(got, target, rcond=None)[0]
    got_unseen = np.column_stack([unseen @ weights + bias + shift, np.ones(len(unseen))])
    assert second.after <= relative(got_unseen @ best, y) + 5e-4  # 8 bits, and damping


def conv_net(x: np.ndarray, schemes: tuple[str, ...] = ("w4a8-gptq@minmax", "w8a8@minmax")) -> Lowered:
    """Convolutions, a residual sum, a grouped convolution, a classifier."""
    net = Net(seed=5)
    one = net.add("Relu", net.conv(net.input("N", 3, 8, 8), 3, 8))
    two = net.add("Relu", net.add("Add", net.conv(one, 8, 8), one))
    three = net.add("Relu", net.conv(two, 8, 8, group=4))
    flat = net.add("Flatten", net.add("GlobalAveragePool", three))
    return lowered(net.model(net.add("Gemm", flat, net.weight(8, 5), net.weight(5))), schemes, {"x": x})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return rows(ROWS, 3, 8, 8)


@pytest.fixture(scope="module")
def conv(images: np.ndarray) -> Lowered:
    return conv_net(images)


def polished(net: Lowered, policy: Policy, x: np.ndarray) -> tuple[Lowering, tuple[LayerPolish, ...]]:
    return polish(net.lowering, policy, batches(x[: 3 * len(x) // 4]), batches(x[3 * len(x) // 4 :]))


def test_a_polished_file_keeps_its_form_and_its_claims(conv: Lowered, images: np.ndarray) -> None:
    policy = conv.policy("w4a8-gptq@minmax")
    new, results = polished(conv, policy, images)
    before, after = conv.lowering.build(policy), new.build(policy)
    assert computing_nodes(before) == computing_nodes(after)
    assert abs(len(before) - len(after)) < 0.03 * len(before) and before != after
    unseen = images[3 * ROWS // 4 :]
    exact = next(iter(conv.float32().values()))[3 * ROWS // 4 :]
    errors = [relative(next(iter(run(model, {"x": unseen}).values())), exact) for model in (before, after)]
    assert errors[1] < 0.7 * errors[0]
    # The last layer's error is that of the file.
    assert results[-1].kept and results[-1].after == pytest.approx(errors[1], rel=0.05)
    assert all(layer.kept == (layer.after < layer.before) for layer in results)  # type: ignore[operator]


def test_the_same_inputs_give_the_same_bytes(conv: Lowered, images: np.ndarray) -> None:
    policy = conv.policy("w4a8-gptq@minmax")
    files = {polished(conv, policy, images)[0].build(policy) for _ in range(2)}
    fit, held = batches(images[:72]), batches(images[72:])
    files.add(polish(conv.lowering, policy, fit, held, threads=2)[0].build(policy))
    assert len(files) == 1


def test_the_lowering_that_all_share_stays_as_it_is(conv: Lowered, images: np.ndarray) -> None:
    policy = conv.policy("w4a8-gptq@minmax")
    before = conv.lowering.build(policy)
    polished(conv, policy, images)
    assert conv.lowering.build(policy) == before


def test_a_layer_makes_up_for_what_the_other_summand_lost() -> None:
    """x + f(x) where x lost a constant share: f's layer can return it, and only the sum shows that it did."""
    net = Net(seed=2)
    stem = net.add("Gemm", net.input("N", 8), net.weight(8, 8, name="stem.weight"), net.weight(8))
    branch = net.add("Gemm", stem, net.weight(8, 8, name="branch.weight"), net.weight(8))
    x = rows(128, 8)
    found = lowered(net.model(net.add("Add", stem, branch)), ["w2-gptq", "w8"], {"x": x})
    policy = chosen(found, stem="w2-gptq", branch="w8")
    new, results = polish(found.lowering, policy, batches(x[:96]), batches(x[96:]))
    exact = next(iter(found.float32().values()))[96:]
    after = relative(next(iter(run(new.build(policy), {"x": x[96:]}).values())), exact)
    before = relative(next(iter(run(found.lowering.build(policy), {"x": x[96:]}).values())), exact)
    assert results[-1].kept
    assert after < 0.2 * before  # the sum is linear in the stem's output: all but damping and 8 bits comes back


def test_a_layer_that_comes_no_nearer_keeps_its_numbers(conv: Lowered) -> None:
    """What is fitted on other data than what is held out does harm there, and is not kept."""
    policy = conv.policy("w8a8@minmax")
    constant = np.ones((32, 3, 8, 8), np.float32) * 50
    new, results = polish(conv.lowering, policy, [{"x": constant}], batches(rows(32, 3, 8, 8, seed=8)))
    kept = [layer for layer in results if layer.kept]
    assert len(kept) < len(results)
    for layer in results:
        key = (layer.layer, policy[layer.layer].weight)
        assert (new.bank[key] is conv.lowering.bank[key]) == (not layer.kept)  # type: ignore[index]
        assert layer.kept or key not in new.corrections


@pytest.mark.parametrize("scheme", ["w4-gptq", "w2-kmeans", "w8a8@dynamic", "w4a8-s8-tensor-gptq@mse", "w8-bc"])
def test_every_kind_of_weights(scheme: str) -> None:
    """A MatMul in three dimensions whose bias an Add behind it has, after a layer at 2 bits."""
    net = Net(seed=4)
    x = net.input("N", 5, 16)
    for inputs, outputs, name in ((16, 24, "first"), (24, 16, "second")):
        product = net.add("MatMul", x, net.weight(inputs, outputs, name=f"{name}.weight"))
        x = net.add("Add", product, net.weight(outputs, name=f"{name}.bias"))
    data = rows(64, 5, 16)
    found = lowered(net.model(x), ["w2-gptq", scheme], {"x": data})
    policy = chosen(found, first="w2-gptq", second=scheme)
    new, results = polish(found.lowering, policy, batches(data[:48]), batches(data[48:]))
    assert not any(layer.skipped for layer in results)
    exact = next(iter(found.float32().values()))[48:]
    errors = [
        relative(next(iter(run(lowering.build(policy), {"x": data[48:]}).values())), exact)
        for lowering in (found.lowering, new)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_what_cannot_be_rounded_anew_is_said() -> None:
    net = Net()
    ids = net.input("N", 4, name="ids", kind=onnx.TensorProto.INT64)
    table = net.weight(20, 6, name="table.weight")
    shared = net.weight(6, 6, name="shared.weight")
    x = net.add("MatMul", net.add("MatMul", net.add("Gather", table, ids), shared), shared)
    x = net.add("Transpose", x, perm=[0, 2, 1])
    up = net.add("ConvTranspose", x, net.weight(6, 3, 2, name="up.weight"))
    feeds: dict[str, Any] = {"ids": np.random.default_rng(0).integers(0, 20, (32, 4))}
    found = lowered(net.model(up), ["w8"], feeds)
    policy = found.policy("w8")
    new, results = polish(found.lowering, policy, [feeds], [feeds])
    assert {layer.layer: layer.skipped for layer in results} == {
        "shared": "other layers use its weight, too",
        "shared#2": "other layers use its weight, too",
        "up": "there is no rounding of ConvTranspose weights that sees their inputs",
    }
    assert new.build(policy) == found.lowering.build(policy)


def test_float_layers_are_left_alone(conv: Lowered, images: np.ndarray) -> None:
    names = [layer.name for layer in conv.layers]
    policy = conv.canonical(dict.fromkeys(names, FLOAT32) | {names[2]: Scheme.parse("w4a8-gptq@minmax")})
    _, results = polished(conv, policy, images)
    assert [layer.layer for layer in results] == [names[2]]


def test_what_stands_at_padded_positions_changes_nothing() -> None:
    net = Net(seed=5)
    y = net.add("MatMul", net.input("N", 5, 12), net.weight(12, 12))
    y = net.add("MatMul", net.add("Relu", y), net.weight(12, 4))
    clean, noise = rows(64, 5, 12), 50 * rows(64, 5, 12, seed=1)
    mask = np.repeat([[1, 1, 1, 0, 0]], len(clean), axis=0)
    dirty = np.where(mask[:, :, None] == 1, clean, noise)
    subject = lowered(net.model(y), ["w2-gptq"], {"x": clean})
    policy = chosen(subject, **{layer.name: "w2-gptq" for layer in subject.layers})

    def polished(x: np.ndarray, name: str | None) -> bytes:
        fit, held = ([{"x": x[part], "mask": mask[part]}] for part in (slice(48), slice(48, None)))
        return polish(subject.lowering, policy, fit, held, padding_mask=name)[0].build(policy)

    assert polished(clean, "mask") == polished(dirty, "mask")
    assert polished(clean, None) != polished(dirty, None)


def test_two_readers_of_a_tensor_whose_range_is_found_at_run_time() -> None:
    """Between them the file's own names shift, since the first gets a bias of its own."""
    net = Net(seed=6)
    x = net.add("Relu", net.add("MatMul", net.input("N", 12), net.weight(12, 12)))
    sums = [net.add("Add", net.add("MatMul", x, net.weight(12, 8)), net.weight(8)) for _ in range(3)]
    data, scheme = rows(128, 12), "w2a8-gptq@dynamic"
    subject = lowered(net.model(net.add("Add", net.add("Add", *sums[:2]), sums[2])), [scheme], {"x": data})
    policy = chosen(subject, **{layer.name: scheme for layer in subject.layers})
    _, results = polish(subject.lowering, policy, batches(data[:96]), batches(data[96:]))
    assert [result.skipped for result in results] == [""] * 4
    assert sum(result.kept for result in results) >= 2
