"""A candidate's graph as one PyTorch function for inputs of given shapes, on a GPU or a CPU.

What hangs on constants and shapes alone is computed once, when the plan is made, so that nothing of it is left in the
function, which may then be compiled or captured as a CUDA graph. Products of quantized operands run as such
(:mod:`autoq.model.torch_products`): MatMulInteger, MatMulNBits, a MatMul or Gemm between DequantizeLinear, and one of
8-bit floats that the file widens. All else is computed as the file has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch

from autoq.model.graph import Graph, attribute
from autoq.model.torch_fused import FUSED, Found, fused
from autoq.model.torch_graph import UnsupportedOperator
from autoq.model.torch_ops import kernel_of
from autoq.model.torch_quantized import QUANTIZED, Built
from autoq.model.torch_spatial import Kernel, Tensor, Unsupported

# Operands that are numbers to the operator, not values to compute with: they stay on the CPU, where reading them waits
# for no GPU. (A CUDA graph could not be captured otherwise.)
_NUMBERS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Pow": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{f"Reduce{name}": (1,) for name in ("L2", "Max", "Mean", "Min", "Sum", "SumSquare")},
}

_VIEWED: dict[Any, tuple[Any, torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel: an operand is a tensor that is computed, by name, or what is known; ``done`` is read no more.

    ``node`` is the graph's, ``runs`` what it runs as: PyTorch's product of quantized operands, or its own operator.
    """

    node: str
    runs: str
    kernel: Kernel
    operands: tuple[str | Tensor | None, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The function: ``inputs`` in, ``outputs`` out, by position. ``constants`` are outputs that depend on no input."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, *feeds: Tensor) -> tuple[Tensor, ...]:
        """The outputs for tensors of the shapes that the plan was made for."""
        values: dict[str, Any] = dict(zip(self.inputs, feeds, strict=True))
        for step in self.steps:
            operands = [values[each] if isinstance(each, str) else each for each in step.operands]
            results = step.kernel(*operands)
            for name in step.done:
                values.pop(name, None)
            for name, value in zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False):
                if name:
                    values[name] = value
        return tuple(values[name] if name in values else self.constants[name] for name in self.outputs)


@dataclass(frozen=True, slots=True)
class Weights:
    """What plans of one graph share, whatever the shapes: constants on the device, and kernels over weights."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    kernels: dict[str, Built] = field(default_factory=dict)


def make_plan(graph: Graph, feeds: Mapping[str, Tensor], weights: Weights | None = None) -> Plan:
    """The plan of ``graph`` for inputs of the shapes and on the device of ``feeds``, which are computed on the way.

    ``weights`` are shared with other plans of the same graph on the same device. Raises
    :class:`~autoq.model.torch_graph.UnsupportedOperator`, naming the node, for what PyTorch cannot compute.
    """
    return _Planner(graph, feeds, weights or Weights()).plan()


class _Planner:
    def __init__(self, graph: Graph, feeds: Mapping[str, Tensor], weights: Weights) -> None:
        self.graph = graph
        self.weights = weights
        self.device = next(iter(feeds.values())).device if feeds else torch.device("cpu")
        self.known: dict[str, Tensor] = {}
        self.here: dict[str, Tensor] = {}
        self.fixed: dict[str, bool] = {}
        self.values: dict[str, Any] = {name: feeds[name] for name in graph.inputs}
        self.found: dict[str, Found] = {}
        self.steps: list[tuple[onnx.NodeProto, Kernel, list[str | Tensor | None]]] = []

    def plan(self) -> Plan:
        for name in self.graph.initializers:
            self.known[name] = constant(self.graph.constant(name))
        nodes = list(self.graph.model.graph.node)
        for node in nodes:
            if node.op_type in FUSED and (found := fused(node, self.graph.producer, self._is_known)) is not None:
                self.found[node.output[0]] = found
        needed = self._needed(nodes)
        for node in nodes:
            if any(name in needed for name in node.output):
                self._place(node)
        return self._finished()

    def _is_known(self, name: str) -> bool:
        """Whether ``name`` hangs on constants alone: what it takes to lay out a weight."""
        if name not in self.fixed:
            node = self.graph.producer.get(name)
            self.fixed[name] = (
                name in self.graph.initializers
                if node is None
                else node.op_type != "Shape" and all(self._is_known(each) for each in node.input if each)
            )
        return self.fixed[name]

    def _needed(self, nodes: Sequence[onnx.NodeProto]) -> set[str]:
        needed = set(self.graph.outputs)
        for node in reversed(nodes):
            if any(name in needed for name in node.output):
                found = self.found.get(node.output[0])
                needed.update(node.input if found is None else [*found.operands, *found.constants])
        return needed

    def _place(self, node: onnx.NodeProto) -> None:
        try:
            found = self.found.get(node.output[0])
            if found is not None:
                built = self._shared(node, lambda: (found.build(*map(self._on_device, found.constants)), ()))
                self._run(node, built[0], list(found.operands))
            elif node.op_type in ("Shape", "Constant"):
                self._learn(node)
            elif node.op_type in QUANTIZED and not all(self._given(name) for name in node.input):
                kernel, kept = self._shared(node, lambda: QUANTIZED[node.op_type](node, self._constants_of(node)))
                self._run(node, kernel, [node.input[index] for index in kept])
            elif all(self._given(name) for name in node.input) and node.input:
                self._learn(node)
            else:
                self._run(node, kernel_of(node), list(node.input))
        except Unsupported as why:
            raise UnsupportedOperator(f"node {node.name!r}: {why}") from None

    def _shared(self, node: onnx.NodeProto, build: Callable[[], Built]) -> Built:
        kernels = self.weights.kernels
        if node.output[0] not in kernels:
            kernels[node.output[0]] = build()
        return kernels[node.output[0]]

    def _constants_of(self, node: onnx.NodeProto) -> dict[int, Tensor]:
        return {i: self._on_device(name) for i, name in enumerate(node.input) if name and self._is_known(name)}

    def _given(self, name: str) -> bool:
        return not name or name in self.known

    def _learn(self, node: onnx.NodeProto) -> None:
        """Computes a node that depends on constants and shapes alone, on the CPU."""
        if node.op_type == "Constant":
            self.known[node.output[0]] = constant(_constant_value(node))
            return
        results: Any
        if node.op_type == "Shape":
            value = self.known.get(node.input[0], self.values.get(node.input[0]))
            assert value is not None, "its input was placed before"
            sizes = list(value.shape)[attribute(node, "start", 0) : attribute(node, "end")]
            results = torch.tensor(sizes, dtype=torch.int64)
        else:
            operands = {index: self.known[name] for index, name in enumerate(node.input) if name}
            kernel, kept = QUANTIZED[node.op_type](node, operands) if node.op_type in QUANTIZED else _plain(node)
            results = kernel(*[operands.get(index) for index in kept])
        for name, value in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
            self.known[name] = value

    def _run(self, node: onnx.NodeProto, kernel: Kernel, names: Sequence[str]) -> None:
        numbers = _NUMBERS.get(node.op_type, ())
        operands: list[str | Tensor | None] = []
        for index, name in enumerate(names):
            if not name:
                operands.append(None)
            elif name in self.known:
                is_number = index in numbers and (node.op_type != "Pow" or self.known[name].numel() == 1)
                operands.append(self.known[name] if is_number else self._on_device(name))
            else:
                operands.append(name)
        results = kernel(*[self.values[each] if isinstance(each, str) else each for each in operands])
        for name, value in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
            if name:
                self.values[name] = value
        self.steps.append((node, kernel, operands))

    def _on_device(self, name: str) -> Tensor:
        kept = self.weights.tensors if self._is_known(name) else self.here
        if name not in kept:
            kept[name] = self.known[name].to(self.device)
        return kept[name]

    def _finished(self) -> Plan:
        outputs = tuple(value.name for value in self.graph.model.graph.output)
        last: dict[str, int] = {}
        for index, (node, _, operands) in enumerate(self.steps):
            last.update((name, index) for name in (*node.output, *operands) if isinstance(name, str))
        steps = []
        for index, (node, kernel, operands) in enumerate(self.steps):
            kept = {*outputs, *node.output}
            done = tuple(name for name, at in last.items() if at == index and name not in kept)
            found = self.found.get(node.output[0])
            runs = node.op_type if found is None else found.runs
            steps.append(Step(node.name, runs, kernel, tuple(operands), tuple(node.output), done))
        constants = {name: self._on_device(name) for name in outputs if name in self.known}
        return Plan(inputs=self.graph.inputs, outputs=outputs, steps=tuple(steps), constants=constants)


def constant(values: np.ndarray | None) -> Tensor:
    """An initializer as a tensor on the CPU, short floats as such, integers of fewer than 8 bits as int8 or uint8."""
    assert values is not None
    if values.dtype in _VIEWED:
        stored, kind = _VIEWED[values.dtype]
        return torch.from_numpy(np.array(values).view(stored)).view(kind)
    if values.dtype.name in ("int4", "int2"):
        values = values.astype(np.int8)
    elif values.dtype.name in ("uint4", "uint2"):
        values = values.astype(np.uint8)
    try:
        return torch.from_numpy(np.array(values))
    except TypeError:
        raise UnsupportedOperator(f"a constant of type {values.dtype.name}") from None


def _constant_value(node: onnx.NodeProto) -> np.ndarray:
    for name, kind in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32)):
        if (found := attribute(node, name)) is not None:
            return np.asarray(found, kind)
    if (floats := attribute(node, "value_floats")) is not None:
        return np.asarray(floats, np.float32)
    value = attribute(node, "value")
    if value is None:
        raise Unsupported("a Constant of text, or a sparse one")
    return np.asarray(onnx.numpy_helper.to_array(value))


def _plain(node: onnx.NodeProto) -> Built:
    return kernel_of(node), tuple(range(len(node.input)))
