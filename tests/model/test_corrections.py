"""Bias correction in candidates: the mean output is float32's, in the same kernels, whoever shares the weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoq.core.scheme import FLOAT32, Scheme
from autoq.model import corrections as module
from autoq.model.bank import Bank
from autoq.model.corrections import Corrections, bias_problem
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.prepare import prepare
from tests.models import Lowered, Net, check, lowered, run, run_optimized, run_unfused

PLAIN, CORRECTED = "w2-tensor", "w2-tensor-bc"
INTEGER, INTEGER_CORRECTED = "w4a8-tensor@minmax", "w4a8-tensor-bc@minmax"
DYNAMIC = ("w4a8-tensor@dynamic", "w4a8-tensor-bc@dynamic")
SCHEMES = ["float32", PLAIN, CORRECTED, INTEGER, INTEGER_CORRECTED, "w4-gptq", "w4-gptq-bc", *DYNAMIC]


def _matmul(bias: tuple[int, ...] | None, first: bool = True) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        y = net.add("MatMul", "x", net.weight(9, 6))
        if bias is None:
            return str(y)
        constant = net.constant(net.rng.standard_normal(bias).astype(np.float32))
        return str(net.add("Add", *((y, constant) if first else (constant, y))))

    return build


KINDS: dict[str, tuple[tuple[int, ...], Callable[[Net], str]]] = {
    "conv, padded": ((8, 4, 7, 6), lambda n: n.conv("x", 4, 6)),
    "conv without bias": ((8, 4, 7, 6), lambda n: n.conv("x", 4, 6, bias=False, strides=[2, 1])),
    "conv, grouped": ((8, 4, 7, 6), lambda n: n.conv("x", 4, 6, group=2)),
    "conv, depthwise": ((8, 4, 7, 6), lambda n: n.conv("x", 4, 4, group=4, bias=False)),
    "conv, same lower": (
        (8, 4, 7),
        lambda n: n.add("Conv", "x", n.weight(5, 4, 4), auto_pad="SAME_LOWER", strides=[2]),
    ),
    "gemm": ((30, 9), lambda n: n.add("Gemm", "x", n.weight(6, 9), n.weight(6), transB=1)),
    "gemm without bias": ((30, 9), lambda n: n.add("Gemm", "x", n.weight(9, 6))),
    "gemm, bias of one value": ((30, 9), lambda n: n.add("Gemm", "x", n.weight(9, 6), n.constant(np.float32(0.3)))),
    "matmul": ((5, 7, 9), _matmul((6,))),
    "matmul, bias on the left": ((5, 7, 9), _matmul((1, 1, 6), first=False)),
    "matmul, bias of one value": ((5, 7, 9), _matmul(())),
    "matmul, bias of rows": ((5, 7, 9), _matmul((7, 1))),
    "matmul 2-D": ((30, 9), _matmul((6,))),
}


def subject_of(name: str) -> tuple[Lowered, dict[str, np.ndarray]]:
    shape, build = KINDS[name]
    net = Net(seed=len(name))
    net.input("rows", *shape[1:])
    # Positive inputs, as behind a Relu: their means are what makes rounding shift the outputs.
    feeds = {"x": np.abs(np.random.default_rng(1).standard_normal(shape)).astype(np.float32)}
    return lowered(net.model(build(net)), SCHEMES, feeds), feeds


def means(output: np.ndarray, name: str) -> np.ndarray:
    axes = [axis for axis in range(output.ndim) if axis != (1 if "conv" in name else output.ndim - 1)]
    return np.asarray(output.astype(np.float64).mean(axis=tuple(axes)))


@pytest.mark.parametrize("name", KINDS)
def test_the_mean_output_is_float32s(name: str) -> None:
    subject, feeds = subject_of(name)
    (exact,) = subject.float32().values()
    shifts = {}
    for text in (PLAIN, CORRECTED, INTEGER, INTEGER_CORRECTED, "w4-gptq-bc"):
        candidate = subject.build(text)
        check(candidate)
        (found,) = run(candidate, feeds).values()
        (unfused,) = run_unfused(candidate, feeds).values()
        np.testing.assert_allclose(means(found, name), means(unfused, name), atol=2e-3 * np.abs(exact).max())
        shifts[text] = np.abs(means(found, name) - means(exact, name)).max()
    scale = np.abs(means(exact, name)).max()
    # A layer's bias is stored as float16.
    assert shifts[CORRECTED] < 1e-3 * scale < shifts[PLAIN]
    assert shifts["w4-gptq-bc"] < 1e-3 * scale
    # What quantizing the inputs shifts is left: a small share of what rounding the weights did.
    assert shifts[INTEGER_CORRECTED] < max(0.15 * shifts[INTEGER], 2e-3 * scale)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_kernels_run(name: str) -> None:
    subject, feeds = subject_of(name)
    for text in (PLAIN, INTEGER):
        _, _, plain = run_optimized(subject.build(text), feeds)
        _, graph, corrected = run_optimized(subject.build(text.replace("-tensor", "-tensor-bc")), feeds)
        assert corrected == plain, text
        stored = {tensor.name for tensor in graph.initializer}
        assert not [n.op_type for n in graph.node if n.input and all(i in stored for i in n.input if i)], text


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("conv")])
def test_ranges_found_at_run_time(name: str) -> None:
    subject, feeds = subject_of(name)
    (exact,) = subject.float32().values()
    shifts, counts = [], []
    for text in DYNAMIC:
        outputs, _, ran = run_optimized(subject.build(text), feeds)
        (found,) = outputs.values()
        shifts.append(np.abs(means(found, name) - means(exact, name)).max())
        counts.append(ran)
    assert shifts[1] < max(0.15 * shifts[0], 2e-3 * np.abs(means(exact, name)).max())
    # An Add of one value stays an Add; with a correction it has a value a channel, which the kernel takes in.
    assert counts[1] in (counts[0], counts[0] - Counter(Add=1))


def test_tied_weights_are_stored_once_and_each_bias_is_its_own() -> None:
    net = Net()
    shared = net.weight(4, 4, 3, 3, name="shared.weight")
    x = net.input("rows", 4, 6, 6)
    first = net.add("Relu", net.add("Conv", x, shared, net.weight(4), pads=[1, 1, 1, 1]))
    model = net.model(first, net.add("Conv", first, shared, pads=[1, 1, 1, 1]))
    feeds = {"x": np.abs(np.random.default_rng(1).standard_normal((4, 4, 6, 6))).astype(np.float32)}
    subject = lowered(model, SCHEMES, feeds)
    corrections = subject.lowering.corrections
    one, two = (corrections[layer.name, Scheme.parse(CORRECTED).weight] for layer in subject.layers)
    assert not np.allclose(one, two)
    candidate = check(subject.build(CORRECTED))
    assert sum(tensor.name.endswith("::w") for tensor in candidate.graph.initializer) == 1
    # The second layer's mean is right for the float inputs that it was corrected for.
    only_second = subject.canonical({layer.name: Scheme.parse(CORRECTED) for layer in subject.layers})
    assert len(set(dict(only_second).values())) == 1
    integer = subject.build(INTEGER_CORRECTED)
    _, _, counts = run_optimized(integer, feeds)
    assert counts["QLinearConv"] == 2


def test_a_correction_is_the_same_whatever_the_other_layers_become() -> None:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 3, 6, 6), 3, 4))
    model = net.model(net.conv(y, 4, 2))
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 3, 6, 6)).astype(np.float32)}
    subject = lowered(model, SCHEMES, feeds)
    last = subject.layers[-1]
    biases = []
    for other in (FLOAT32, Scheme.parse(CORRECTED)):
        policy = subject.canonical({subject.layers[0].name: other, last.name: Scheme.parse(CORRECTED)})
        candidate = check(subject.build(policy))
        name = next(node for node in candidate.graph.node if node.name == last.node).input[2]
        biases.append(next(t for t in candidate.graph.initializer if t.name == name).raw_data)
    assert biases[0] == biases[1]


def test_gptq_with_a_free_bias_errs_no_more() -> None:
    """It minimises the error that is left after the correction; with it, plain GPTQ's integers err more."""
    subject, feeds = subject_of("conv, padded")
    (exact,) = subject.float32().values()
    errors = {}
    for text in ("w4-gptq", "w4-gptq-bc"):
        (found,) = run(subject.build(text), feeds).values()
        errors[text] = np.square(found - exact).mean()
    assert errors["w4-gptq-bc"] < errors["w4-gptq"]
    (layer,) = subject.layers
    plain, free = (subject.lowering.bank[layer.name, Scheme.parse(f"w4-gptq{bc}").weight] for bc in ("", "-bc"))
    assert not np.array_equal(plain.values, free.values)


REFUSED: dict[str, tuple[tuple[int, ...], Callable[[Net], str], str]] = {
    "matmul without bias": ((5, 7, 9), _matmul(None), "no constant is added"),
    "matmul on the left": ((9, 5), lambda n: n.add("MatMul", n.weight(6, 9), "x"), "a matrix on the right"),
    "matmul, 3-D weight": ((4, 5, 9), lambda n: n.add("MatMul", "x", n.weight(4, 9, 6)), "a matrix on the right"),
    "gemm scaled": ((5, 9), lambda n: n.add("Gemm", "x", n.weight(9, 6), n.weight(6), beta=2.0), "beta"),
    "conv transpose": ((2, 4, 5, 5), lambda n: n.add("ConvTranspose", "x", n.weight(4, 3, 2, 2)), "pixel to pixel"),
    "computed bias": (
        (5, 9),
        lambda n: n.add("Gemm", "x", n.weight(9, 6), n.add("ReduceMean", "x")),
        "not constant",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_a_bias_to_correct(name: str) -> None:
    shape, build, reason = REFUSED[name]
    net = Net()
    net.input(*(shape if name == "computed bias" else ("rows", *shape[1:])))
    graph = Graph(prepare(net.model(build(net))).model)
    (layer,) = read_layers(graph)
    assert reason in bias_problem(graph, layer)


def _found(folder: Path | None, calibration: str = "data") -> tuple[Corrections, int]:
    net = Net()
    graph = Graph(net.model(net.conv(net.input("rows", 3, 6, 6), 3, 4)))
    (layer,) = read_layers(graph)
    spec = Scheme.parse(CORRECTED).weight
    assert spec is not None
    bank = Bank(graph, calibration_id=calibration, cache_dir=folder)
    bank.compute([(layer, spec)], {})
    corrections = Corrections(bank)
    missing = corrections.read_cache([(layer, spec)])
    corrections.compute(missing, {layer.name: np.full((1, 27), 0.5 if calibration == "data" else 0.7)})
    return corrections, len(missing)


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found again for the same data; computed again for other data, another version, or from a damaged file."""
    first, computed = _found(tmp_path)
    second, again = _found(tmp_path)
    assert (computed, again) == (1, 0)
    (one,), (two,) = first.entries.values(), second.entries.values()
    np.testing.assert_array_equal(one, two)
    assert _found(tmp_path, "other")[1] == 1
    for path in (tmp_path / "corrections").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:40])
    assert _found(tmp_path)[1] == 1
    assert _found(tmp_path)[1] == 0
    monkeypatch.setattr(module, "CORRECTION_VERSION", 999)
    assert _found(tmp_path)[1] == 1
    assert _found(None)[1] == 1
