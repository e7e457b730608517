"""Layers that break quantizers, under every option of the grammar of schemes: handled, or refused in a sentence.

For each problem the whole way is gone: candidates, calibration and bank, lowering, ONNX Runtime. What the runtime
gives is held against what the file means, which ONNX's reference evaluator works out in NumPy, and against the float
model. Schemes come from the grammar, so that one which is built tomorrow is in the matrix by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from autoq.core.policy import Policy
from autoq.core.scheme import CALIBRATION_METHODS, FLOAT32, WEIGHT_BITS, Granularity, Rounding, Scheme
from autoq.errors import ModelError, ProfileError
from autoq.model.source import SourceModel, read_model
from autoq.runtime.data import Split
from autoq.runtime.ort import input_specs
from autoq.search.candidates import all_candidates, candidates
from autoq.search.groundwork import lay_groundwork
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.schemes import all_schemes
from autoq.spec.space import Space
from tests.models import Net, distance, run
from tests.reference import CONTRIB

Arrays = dict[str, np.ndarray]


def single_options() -> tuple[Scheme, ...]:
    """Schemes with at most one option that is not the default: every option with every number of bits."""
    found: dict[str, Scheme] = {}
    for scheme in all_schemes():
        options = str(scheme).partition("@")[0].split("-")[1:]
        calibration = scheme.activation and scheme.activation.calibration.method
        if calibration not in (None, "minmax", "dynamic"):
            options.append(calibration)
            if scheme.weight_bits != 8 or scheme.weight is None or scheme.weight.bits != 8:
                continue  # ranges of activations know nothing of weights
        if len(options) - ("asym" in options) <= 1:
            found.setdefault(str(scheme).partition("percentile")[0], scheme)
    return tuple(found.values())


SCHEMES = single_options()


def test_the_matrix_has_every_option() -> None:
    texts = " ".join(map(str, SCHEMES))
    roundings, granularities = get_args(Rounding), get_args(Granularity)
    for option in (*roundings[1:], *granularities[1:], "asym", "bc", "smooth", "s8", *CALIBRATION_METHODS):
        assert option in texts, option
    assert {scheme.weight.bits for scheme in SCHEMES if scheme.weight} == {16, *WEIGHT_BITS}


# The problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Changes to a model of a Conv [rows, 4, 6, 6] -> [rows, 6, 4, 4], a MatMul [rows, 3, 32] -> [rows, 3, 8], a table.

    ``weights`` changes their weights, ``data`` what the layers read. ``refuses`` are words of the reason for
    which a scheme (a part of its text) may be refused besides what layers of these kinds never have.
    """

    conv: tuple[int, int, int] = (6, 4, 3)
    matmul: tuple[int, int] = (32, 8)
    rows: int = 8
    weights: Callable[[np.ndarray, int], np.ndarray] = field(default=lambda weight, axis: weight)
    data: Callable[[np.ndarray], np.ndarray] = field(default=lambda values: values)
    shared: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)


def first_channel(value: float) -> Callable[[np.ndarray, int], np.ndarray]:
    def change(weight: np.ndarray, axis: int) -> np.ndarray:
        changed = np.moveaxis(weight.copy(), axis, 0)
        changed[0] *= value
        return np.ascontiguousarray(np.moveaxis(changed, 0, axis))

    return change


def dead_inputs(values: np.ndarray) -> np.ndarray:
    """The first half of the channels, or of the features, is always 0."""
    changed = values.copy()
    axis = 1 if values.ndim == 4 else -1
    np.moveaxis(changed, axis, 0)[: changed.shape[axis] // 2] = 0
    return changed


PROBLEMS = {
    "nothing is wrong": Problem(),
    "a channel of zeros": Problem(weights=first_channel(0)),
    "all weights zero": Problem(weights=lambda weight, axis: np.zeros_like(weight)),
    "all weights equal": Problem(weights=lambda weight, axis: np.full_like(weight, 0.25)),
    "subnormal scales": Problem(weights=lambda weight, axis: (weight * 1e-39).astype(np.float32)),
    "a subnormal channel": Problem(weights=first_channel(1e-41)),
    "huge weights": Problem(weights=lambda weight, axis: weight * np.float32(1e30), refuses={"float16": "65504"}),
    "constant activations": Problem(data=lambda values: np.full_like(values, 0.7)),
    "activations of zero": Problem(data=np.zeros_like),
    "negative activations": Problem(data=lambda values: -1 - np.abs(values)),
    "tiny activations": Problem(data=lambda values: values * np.float32(1e-37)),
    "inputs that never fire": Problem(data=dead_inputs),
    "one calibration row": Problem(rows=1),
    "one input channel": Problem(conv=(6, 1, 3), matmul=(1, 8)),
    "one output channel": Problem(conv=(1, 4, 3), matmul=(32, 1)),
    "blocks that do not divide K": Problem(matmul=(50, 8)),
    "K shorter than a block": Problem(matmul=(7, 8)),
    "odd dimensions": Problem(conv=(5, 3, 3), matmul=(33, 7)),
    "one weight in all": Problem(conv=(1, 1, 1), matmul=(1, 1)),
    "shared weights": Problem(shared=True),
}


def built(problem: Problem, folder: Path) -> tuple[SourceModel, Arrays]:
    net = Net(seed=3)
    (outputs, inputs, kernel), (k, n) = problem.conv, problem.matmul
    x, z = net.input("rows", inputs, 6, 6, name="x"), net.input("rows", 3, k, name="z")
    ids = net.input("rows", 3, name="ids", kind=TensorProto.INT64)
    shapes = {
        "conv.weight": ((outputs, inputs, kernel, kernel), 0),
        "matmul.weight": ((k, n), 1),
        "table.weight": ((9, k), 0),
    }
    for name, (shape, axis) in shapes.items():
        weight = (net.rng.standard_normal(shape) * 0.3).astype(np.float32)
        net.constant(problem.weights(weight, axis), name)
    y = net.add("Conv", x, "conv.weight", net.constant(net.rng.standard_normal(outputs).astype(np.float32)))
    w = net.add("MatMul", z, "matmul.weight")
    results = [net.add("Relu", y), w, net.add("Gather", "table.weight", ids)]
    if problem.shared:
        results += [
            net.add("Conv", net.add("Neg", x), "conv.weight"),
            net.add("MatMul", net.add("Neg", z), "matmul.weight"),
        ]
    path = folder / "model.onnx"
    path.write_bytes(net.model(*results).SerializeToString())
    rows = problem.rows
    feeds = {
        "x": problem.data(net.rng.standard_normal((rows, inputs, 6, 6)).astype(np.float32)),
        "z": problem.data(net.rng.standard_normal((rows, 3, k)).astype(np.float32)),
        "ids": net.rng.integers(-9, 9, (rows, 3)),
    }
    return read_model(path), feeds


def everything(schemes: tuple[Scheme, ...] = SCHEMES) -> Space:
    return Space(name="all", description="", schemes=schemes, rules=(), seeds=schemes[:1])


@pytest.fixture(scope="module")
def cpu() -> Profile:
    return load_profile("cpu-x86-onnxruntime", ".")


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_bad_layer(name: str, cpu: Profile, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    model, feeds = built(problem, tmp_path)
    found = all_candidates(model.graph, model.layers, everything(), cpu, model.opset)
    for entry in found:
        assert set(entry.schemes) & {FLOAT32}
        for scheme, why in entry.refused:
            assert len(why.split()) > 3, (entry.layer.name, scheme, why)
    refused = {(scheme, why) for entry in found for scheme, why in entry.refused}
    for text, words in problem.refuses.items():
        assert any(text in str(scheme) and words in why for scheme, why in refused), (text, words)
    lowering = lay_groundwork(model, found, Split(inputs=feeds, targets=None), input_specs(model.path), cache_dir=None)
    exact = run(model.graph.model, feeds)
    wrong = []
    for scheme in dict.fromkeys(scheme for entry in found for scheme in entry.schemes):
        policy = {entry.layer.name: scheme if scheme in entry.schemes else FLOAT32 for entry in found}
        candidate = lowering.build(lowering.canonical(Policy.of(policy)))
        outputs = run(candidate, feeds)
        wrong += [f"{scheme}: {what}" for what in complaints(candidate, feeds, outputs, exact, scheme, name)]
    assert wrong == []


# How far so many bits may take an output from the float model's, as a share of its largest value.
FAR = {32: 1e-6, 16: 2e-3, 8: 0.03, 7: 0.05, 6: 0.1, 5: 0.2, 4: 0.45, 3: 0.8, 2: 1.3}
# Scales, or their products, have so few digits there that levels are lost between two float32 numbers.
UNLIKE_FLOAT = ("subnormal scales", "tiny activations")
TINY = float(np.finfo(np.float32).tiny)
NEAR_TIE = 1e-3  # see tests/model/test_lower_layers.py


def complaints(
    candidate: bytes, feeds: Arrays, outputs: Arrays, exact: Arrays, scheme: Scheme, name: str
) -> Iterator[str]:
    bits = 32 if scheme.weight is None else scheme.weight.bits
    calibration = scheme.activation and scheme.activation.calibration.method
    for output, value in outputs.items():
        if not np.isfinite(value).all():
            yield f"{output} is not finite"
        far = distance(value, exact[output])
        if far > FAR[bits] and name not in UNLIKE_FLOAT and calibration in (None, "minmax", "dynamic"):
            yield f"{output} is {far:.2g} from the float model's"
    yield from disagreements(candidate, feeds, outputs, 2e-5 if name in UNLIKE_FLOAT else 2e-6)


def disagreements(candidate: bytes, feeds: Arrays, outputs: Arrays, tolerance: float = 2e-6) -> Iterator[str]:
    """Where the runtime's outputs are not what the file means, as ONNX's reference implementation has it in NumPy.

    Integers that an integer kernel writes are the same to the last, but for ties, which ONNX leaves open.
    """
    model = onnx.ModelProto.FromString(candidate)
    meant = ReferenceEvaluator(model, new_ops=CONTRIB).run(None, feeds, intermediate=True)
    meant |= {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for output, value in outputs.items():
        expected = meant[output]
        assert value.shape == expected.shape
        pair = makers[output]
        quantize = makers[pair.input[0]] if pair.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            size = float(np.abs(expected).max(initial=0))
            if not (off := np.abs(value - expected).max(initial=0)) <= tolerance * size + TINY:
                yield f"{output} is {off:.2g} from what the file means, whose largest value is {size:.2g}"
            continue
        source, scale, zero = (meant[name].astype(np.float64) for name in quantize.input)
        activation = makers.get(quantize.input[0])
        if activation is not None and activation.op_type == "LeakyRelu":  # a signed Relu: rounded before it, and after
            inner = makers[makers[activation.input[0]].input[0]]
            source = np.maximum(meant[inner.input[0]].astype(np.float64), 0)
        info = np.iinfo(meant[quantize.input[2]].dtype)
        exact = np.clip(source / scale + zero, info.min, info.max)
        found = value.astype(np.float64) / scale + zero
        near = NEAR_TIE + bias_step(model, makers, meant) / float(scale.max())
        tie = np.abs(exact - np.floor(exact) - 0.5) < near
        wrong = np.abs(found - np.rint(exact)) > 1e-3
        if (wrong & ~tie).any() or np.abs(found - exact).max(initial=0) > 0.5 + 2 * near:
            yield f"{output}: {int((wrong & ~tie).sum())} of {wrong.size} integers are not what the file means"


def bias_step(model: onnx.ModelProto, makers: dict[str, onnx.NodeProto], meant: Arrays) -> float:
    """The most by which the runtime moves a bias that the file holds as floats: half a step of its integer sums."""
    steps = [0.0]
    for node in model.graph.node:
        pairs = [makers.get(name) for name in node.input[:2]]
        if node.op_type == "Conv" and len(node.input) > 2 and all(p and p.op_type == "DequantizeLinear" for p in pairs):
            steps.append(0.5 * float(np.prod([meant[pair.input[1]].max() for pair in pairs if pair])))
    return max(steps)


# What no scheme can help ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", ["conv.weight", "matmul.weight"])
def test_weights_that_are_no_numbers(value: float, weight: str, tmp_path: Path) -> None:
    built(Problem(), tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[5] = value
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, tmp_path / "model.onnx")
    layer = weight.removesuffix(".weight")
    with pytest.raises(
        ModelError, match=f"layer '{layer}': its weight '{weight}' holds NaN or infinity; repair the model"
    ):
        read_model(tmp_path / "model.onnx")


def test_a_weight_that_is_an_input_is_no_layer(cpu: Profile, tmp_path: Path) -> None:
    net = Net()
    x, weight = net.input("rows", 4, name="x"), net.input(4, 3, name="w")
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.add("MatMul", x, weight)).SerializeToString())
    with pytest.raises(
        ModelError, match=r"nothing to quantize: the model has no Conv, .* with a constant float32 weight"
    ):
        read_model(path)
    # Beside others it stays as it is, and does no harm.
    path.write_bytes(net.model(net.add("MatMul", net.add("MatMul", x, net.weight(4, 4)), weight)).SerializeToString())
    model = read_model(path)
    assert len(model.layers) == 1
    (entry,) = all_candidates(model.graph, model.layers, everything(), cpu, model.opset)
    feeds = {"x": np.ones((2, 4), np.float32), "w": np.ones((4, 3), np.float32)}
    lowering = lay_groundwork(
        model, [entry], Split(inputs={"x": feeds["x"], "w": feeds["w"]}, targets=None), (), cache_dir=None
    )
    for scheme in entry.schemes:
        (value,) = run(lowering.build(Policy.of({entry.layer.name: scheme})), feeds).values()
        assert np.isfinite(value).all()


def test_a_weight_that_an_input_may_override_is_a_constant(tmp_path: Path) -> None:
    """The form of old exporters: each initializer is listed among the inputs as well."""
    net = Net()
    x = net.input("rows", 4, name="x")
    model = net.model(net.add("MatMul", x, net.weight(4, 3, name="w.weight")))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w.weight", TensorProto.FLOAT, [4, 3]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (layer,) = read_model(tmp_path / "model.onnx").layers
    assert layer.name == "w"


def test_nothing_left_says_why(cpu: Profile, tmp_path: Path) -> None:
    model, _ = built(Problem(weights=lambda weight, axis: weight * np.float32(1e30)), tmp_path)
    space = everything((FLOAT32, Scheme.parse("float16")))
    with pytest.raises(
        ProfileError, match=r"nothing to search\. For one: a weight exceeds float16's largest value, 65504"
    ):
        candidates(model.graph, model.layers, space, cpu, model.opset)


def test_problems_meet(cpu: Profile, tmp_path: Path) -> None:
    """Two at a time, under the schemes that differ most."""
    schemes = tuple(map(Scheme.parse, ("float32", "w2", "w4a8-gptq@minmax", "w8a8-s8-tensor@mse")))
    changes = [problem for name, problem in PROBLEMS.items() if name != "huge weights"]
    for number, (first, second) in enumerate(itertools.combinations(changes, 2)):
        if number % 19:
            continue
        both = Problem(conv=second.conv, matmul=second.matmul, rows=first.rows, weights=first.weights, data=second.data)
        model, feeds = built(both, tmp_path)
        found = all_candidates(model.graph, model.layers, everything(schemes), cpu, model.opset)
        split = Split(inputs=feeds, targets=None)
        lowering = lay_groundwork(model, found, split, input_specs(model.path), cache_dir=None)
        for scheme in schemes:
            policy = {entry.layer.name: scheme if scheme in entry.schemes else FLOAT32 for entry in found}
            for value in run(lowering.build(lowering.canonical(Policy.of(policy))), feeds).values():
                assert np.isfinite(value).all(), (first, second, scheme)
