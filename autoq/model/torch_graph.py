"""A graph, or the part of it between given tensors, computed in PyTorch float32 with gradients.

What tunes weights against the float model (rounding by block, polish) needs derivatives, which ONNX Runtime has not.
Scores never come from here: what ships is what ONNX Runtime runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch

from autoq.errors import ModelError
from autoq.model.graph import Graph
from autoq.model.torch_ops import OPERATORS, Kernel, Unsupported, kernel_of

Operand = tuple[str, int]
"""A node's name and the index of one of its inputs."""

Hook = Callable[[torch.Tensor], torch.Tensor]

_OLDEST_OPSET = 13

# Types of ONNX that NumPy knows by extension only.
_STORED_AS = {"int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8", "bfloat16": "float32"}


class UnsupportedOperator(ModelError):
    """The part has a node that cannot be computed in PyTorch. Callers fall back to work that needs no gradients."""


@dataclass(slots=True)
class TorchGraph:
    """``outputs`` of ``graph`` as functions of ``inputs`` (tensor names; default: the graph's own).

    Raises :class:`UnsupportedOperator`, naming the node, where an operator, or one of its attributes, is not known
    here, and where ``outputs`` depend on a graph input that is not among ``inputs``.

    ``nodes`` are the part's, in graph order; ``constants`` the initializers that they read, by name.
    """

    graph: Graph
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    device: str = "cpu"
    nodes: tuple[onnx.NodeProto, ...] = field(init=False)
    constants: dict[str, torch.Tensor] = field(init=False, default_factory=dict)
    _steps: list[tuple[onnx.NodeProto, Kernel, tuple[str, ...]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = tuple(self.inputs) or self.graph.inputs
        self.outputs = tuple(self.outputs) or tuple(value.name for value in self.graph.model.graph.output)
        self.nodes = nodes_between(self.graph, self.inputs, self.outputs)
        opset = next((e.version for e in self.graph.model.opset_import if e.domain in ("", "ai.onnx")), 0)
        if opset < _OLDEST_OPSET:
            raise UnsupportedOperator(f"opset {opset} is older than {_OLDEST_OPSET}")
        last: dict[str, int] = {name: index for index, node in enumerate(self.nodes) for name in node.input}
        kept = {*self.outputs}
        for index, node in enumerate(self.nodes):
            try:
                kernel = kernel_of(node)
            except Unsupported as why:
                raise UnsupportedOperator(f"node {node.name!r}: {why}") from None
            done = tuple(name for name in dict.fromkeys(node.input) if last[name] == index and name not in kept)
            self._steps.append((node, kernel, done))
            for name in node.input:
                if name in self.graph.initializers and name not in self.constants and name not in self.inputs:
                    self.constants[name] = _tensor(self.graph.constant(name), self.device)
        for name in self.outputs:
            if name in self.graph.initializers:
                self.constants[name] = _tensor(self.graph.constant(name), self.device)

    def __call__(
        self,
        feeds: Mapping[str, torch.Tensor],
        *,
        operands: Mapping[Operand, torch.Tensor] | None = None,
        hooks: Mapping[str, Hook] | None = None,
        operand_hooks: Mapping[Operand, Hook] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The outputs by name for ``feeds``, one tensor for each of ``inputs``.

        ``operands`` replaces what one node reads at one place: ``(layer.node, layer.weight_index)`` is a layer's
        weight, ``(layer.node, 2)`` its bias where it has one. ``hooks`` changes a tensor, fed or computed, for all of
        its readers, as a Q/DQ pair does; ``operand_hooks`` for one reader. Tensors are let go after their last reader,
        but for what gradients need.

        Raises :class:`UnsupportedOperator` where a value turns out to be of a kind that a kernel does not know.
        """
        operands, hooks, operand_hooks = operands or {}, hooks or {}, operand_hooks or {}
        values: dict[str, Any] = dict(self.constants)
        for name in self.inputs:
            values[name] = hooks[name](feeds[name]) if name in hooks else feeds[name]
        for index in range(len(self._steps)):
            self.step(index, values, operands=operands, hooks=hooks, operand_hooks=operand_hooks)
        return {name: values[name] for name in self.outputs}

    def step(
        self,
        index: int,
        values: dict[str, Any],
        *,
        operands: Mapping[Operand, torch.Tensor] = MappingProxyType({}),
        hooks: Mapping[str, Hook] = MappingProxyType({}),
        operand_hooks: Mapping[Operand, Hook] = MappingProxyType({}),
        keep: bool = False,
    ) -> None:
        """Computes node ``index`` of :attr:`nodes` on ``values``, which hold constants and what came before.

        With ``keep`` nothing is let go; see :meth:`forget`.
        """
        node, kernel, _ = self._steps[index]
        arguments: list[Any] = []
        for place, name in enumerate(node.input):
            key = (node.name, place)
            value: Any = operands[key] if key in operands else values[name] if name else None
            arguments.append(operand_hooks[key](value) if key in operand_hooks else value)
        try:
            results = kernel(*arguments)
        except Unsupported as why:
            raise UnsupportedOperator(f"node {node.name!r}: {why}") from None
        for name, value in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
            if name:
                values[name] = hooks[name](value) if name in hooks else value
        if not keep:
            self.forget(index, values)

    def forget(self, index: int, values: dict[str, Any]) -> None:
        """Drops from ``values`` what node ``index`` was the last to read."""
        for name in self._steps[index][2]:
            values.pop(name, None)

    def kernel(self, index: int) -> Kernel:
        """The function of node ``index``: its inputs' tensors in, ``None`` for one left out."""
        return self._steps[index][1]


def nodes_between(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[onnx.NodeProto, ...]:
    """The nodes that compute ``outputs`` from ``inputs`` and constants, in graph order.

    Raises :class:`UnsupportedOperator` where ``outputs`` depend on a graph input that is not among ``inputs``.
    """
    wanted, names, seen = list(outputs), set(), set(inputs)
    while wanted:
        tensor = wanted.pop()
        if tensor in seen or not tensor:
            continue
        seen.add(tensor)
        node = graph.producer.get(tensor)
        if node is not None:
            names.add(node.name)
            wanted.extend(node.input)
        elif tensor not in graph.initializers:
            raise UnsupportedOperator(f"{', '.join(outputs)} depend on {tensor!r}, which is not given")
    return tuple(node for node in graph.model.graph.node if node.name in names)


def supports(node: onnx.NodeProto) -> bool:
    """Whether the operator of ``node`` is known here; its attributes may still be refused."""
    return node.domain in ("", "ai.onnx") and node.op_type in OPERATORS


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: the same bytes on every machine's number of cores, and no threads spinning for others.

    It holds for all threads of the process; work side by side is given to threads of one's own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensor(values: np.ndarray | None, device: str) -> torch.Tensor:
    assert values is not None
    if values.dtype.name in _STORED_AS:
        values = values.astype(_STORED_AS[values.dtype.name])
    try:
        return torch.from_numpy(np.array(values)).to(device)  # a copy: what is read from a proto cannot be written
    except TypeError:
        raise UnsupportedOperator(f"a constant of type {values.dtype.name}") from None
