"""Small models for tests, and short ways to lower and run them. Random weights come from a seed."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from autoq.core.form import FORM_NAMES
from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import BY_BLOCK, FLOAT32, Scheme
from autoq.model.analytic import analytic_means, input_moments
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate, calibrate_smoothed, smoothed_affines
from autoq.model.corrections import Corrections, bias_problem
from autoq.model.forms import formed
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.moments import sees_data
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.model.reconstruct import reconstruct
from autoq.model.smoothing import divisors, smoothing_problem, smoothing_table
from autoq.runtime.ort import open_session
from autoq.search.candidates import Candidates, activation_specs, corrected_specs, smoothing_strengths, weight_specs


class Net:
    """A model in the making: every method gives back the name of the tensor that it adds."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self._count = 0

    def input(self, *shape: int | str | None, name: str = "x", kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, values: Any, name: str = "") -> str:
        name = name or self._name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape: int, scale: float = 0.3, name: str = "") -> str:
        values = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return self.constant(values, name or f"{self._name('layer')}.weight")

    def add(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """One node; a tuple of names where it has several outputs."""
        stem = self._name("t")
        names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        node = helper.make_node(op_type, inputs, names, f"{op_type}_{stem}", domain=domain, **attributes)
        self.nodes.append(node)
        return names[0] if outputs == 1 else tuple(names)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, **attributes: Any) -> str:
        attributes.setdefault("pads", [kernel // 2] * 4)
        parameters = [self.weight(outputs, inputs // attributes.get("group", 1), kernel, kernel)]
        if bias:
            parameters.append(self.constant(self.rng.standard_normal(outputs).astype(np.float32)))
        return str(self.add("Conv", x, *parameters, **attributes))

    def model(self, *outputs: str, opset: int = 21, ir_version: int = 10, functions: Sequence[Any] = ()) -> Any:
        """The checked model; the outputs' types and ranks are inferred."""
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, infos, self.initializers)
        domains = sorted({node.domain for node in self.nodes} | {function.domain for function in functions})
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains if domain)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
            value.CopyFrom(found)
            if not value.type.tensor_type.elem_type:
                value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None]))
        onnx.checker.check_model(model)
        return model

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A model with everything laid out to lower it under some schemes."""

    graph: Graph
    layers: tuple[Layer, ...]
    lowering: Lowering
    feeds: dict[str, np.ndarray]

    def policy(self, scheme: str | Scheme) -> Policy:
        """The same scheme wherever a layer can take it, canonical."""
        wanted = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
        return self.canonical({layer.name: self.possible(layer, wanted) for layer in self.layers})

    def possible(self, layer: Layer, scheme: Scheme) -> Scheme:
        """What the layer is offered in place of ``scheme``: that, where it can have it."""
        return possible(self.graph, layer, scheme)

    def canonical(self, schemes: Mapping[str, Scheme]) -> Policy:
        return self.lowering.canonical(Policy.of(schemes))

    def build(self, scheme: str | Scheme | Policy) -> bytes:
        return self.lowering.build(scheme if isinstance(scheme, Policy) else self.policy(scheme))

    def float32(self) -> dict[str, np.ndarray]:
        """The prepared model's own outputs."""
        return run(self.graph.model, self.feeds)


def possible(graph: Graph, layer: Layer, scheme: Scheme) -> Scheme:
    """``scheme`` as far as the layer can have it."""
    by_data = scheme.weight is not None and scheme.weight.rounding not in ("nearest", "kmeans", "pq")
    if scheme.weight is not None and by_data and layer.op_type == "ConvTranspose":
        scheme = dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, rounding="nearest"))
    if scheme.activation is not None and layer.integer_problem:
        return FLOAT32
    if scheme.weight is not None and scheme.weight.bias_correction and bias_problem(graph, layer):
        scheme = dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, bias_correction=None))
    if scheme.weight is not None and scheme.activation is not None and smoothing_problem(layer):
        weight = dataclasses.replace(scheme.weight, smoothing=None)
        scheme = Scheme(weight=weight, activation=dataclasses.replace(scheme.activation, smoothing=None))
    return scheme


def lowered(
    model: onnx.ModelProto,
    schemes: Iterable[str],
    feeds: Mapping[str, np.ndarray],
    forms: Iterable[str] = (),
    *,
    integer_products: bool = False,
) -> Lowered:
    """Calibrates on ``feeds``, one batch, and fills the bank for all ``schemes``."""
    prepared = prepare(model)
    graph = Graph(prepared.model, norms=prepared.norms)
    layers = read_layers(graph)
    parsed = tuple(dict.fromkeys(Scheme.parse(text) for text in schemes))
    found = [
        Candidates(layer=layer, schemes=tuple(dict.fromkeys(possible(graph, layer, scheme) for scheme in parsed)))
        for layer in layers
    ]
    wanted = weight_specs(found)
    # What other forms ask for as well, so that the same model can be looked at in each (`in_forms`).
    placers = [Placer(formed(graph, names), layers, integer_products) for names in ((), tuple(forms), FORM_NAMES)]
    tensors = list(dict.fromkeys(tensor for placer in placers for tensor in placer.tensors_to_calibrate()))
    rounded = {layer.name: layer for layer, spec in wanted if sees_data(layer, spec)}
    corrected, strengths = corrected_specs(found), smoothing_strengths(found)
    smoothable = [layer for layer in layers if not smoothing_problem(layer)]
    statistics = calibrate(
        graph,
        [dict(feeds)],
        tensors=tensors,
        moment_layers=list(rounded.values()),
        mean_layers=list({layer.name: layer for layer, _ in corrected}.values()),
        peak_tensors=[layer.input for layer in smoothable] if strengths else (),
    )
    specs = activation_specs(found)
    affines = affine_table(statistics.statistics, specs)
    smoothing = smoothing_table(graph, layers, statistics.peaks, strengths) if strengths else {}
    affines |= smoothed_affines(calibrate_smoothed(graph, [dict(feeds)], divisors(smoothable, smoothing)), specs)
    bank = Bank(graph, calibration_id="test", smoothing=smoothing)
    alone = [(layer, spec) for layer, spec in wanted if spec.rounding not in BY_BLOCK]
    bank.compute(alone, statistics.moments, statistics.sample_means)
    for spec in dict.fromkeys(spec for _, spec in wanted if spec.rounding in BY_BLOCK):
        own = [layer for layer, each in wanted if each == spec]
        for name, entry in reconstruct(graph, layers, [layer.name for layer in own], spec, [feeds]).items():
            bank.add(next(layer for layer in own if layer.name == name), spec, entry)
    corrections = Corrections(bank)
    inputs = {name: moments for name, values in feeds.items() if (moments := input_moments(values)) is not None}
    corrections.compute(corrected, statistics.means, analytic_means(graph, layers, inputs))
    lowering = Lowering(
        graph,
        layers,
        affines,
        bank.entries,
        corrections.entries,
        smoothing=smoothing,
        forms=tuple(forms),
        integer_products=integer_products,
    )
    return Lowered(graph=graph, layers=layers, lowering=lowering, feeds=dict(feeds))


def in_forms(subject: Lowered, forms: Iterable[str]) -> Lowered:
    """The same ranges and weights, lowered in other forms."""
    return dataclasses.replace(subject, lowering=dataclasses.replace(subject.lowering, forms=tuple(forms)))


def run(model: onnx.ModelProto | bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, by name, in stock ONNX Runtime."""
    session = open_session(model if isinstance(model, bytes) else model.SerializeToString())
    return dict(zip((value.name for value in session.get_outputs()), session.run(None, dict(feeds)), strict=True))


def run_unfused(model: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs with every optimization off: each QuantizeLinear and DequantizeLinear runs as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip((value.name for value in session.get_outputs()), session.run(None, dict(feeds)), strict=True))


def run_optimized(
    model: bytes, feeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], onnx.GraphProto, Counter[str]]:
    """The outputs in stock ONNX Runtime, the graph that it really ran, and how often that has each operator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session = open_session(model, optimized_path=path)
        graph = onnx.load(path).graph
    outputs = dict(zip((value.name for value in session.get_outputs()), session.run(None, dict(feeds)), strict=True))
    return outputs, graph, Counter(node.op_type for node in graph.node)


def check(model: bytes) -> onnx.ModelProto:
    """The parsed model, after ONNX's checker has been through it with types and shapes."""
    parsed = onnx.load_from_string(model)
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest expected magnitude."""
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    return float(np.abs(found - expected).max(initial=0) / max(float(np.abs(expected).max(initial=0)), 1e-12))
