"""A prepared model with its edges indexed: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from autoq.errors import ModelError


@dataclass(slots=True)
class Graph:
    """Read-only view of a prepared model. ``consumers[t]`` lists ``(node, input index)`` in graph order.

    ``captured`` are the names that the bodies of If, Loop and Scan read; ``shapes`` has the tensors whose rank is
    known, with ``None`` for each dimension that is open. ``norms`` has, for tensors that a batch norm wrote before it
    was folded, the mean and the variance that it gave each channel.
    """

    model: onnx.ModelProto
    norms: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    nodes: dict[str, onnx.NodeProto] = field(init=False)
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(init=False)
    initializers: dict[str, onnx.TensorProto] = field(init=False)
    inputs: tuple[str, ...] = field(init=False)
    outputs: frozenset[str] = field(init=False)
    captured: frozenset[str] = field(init=False)
    shapes: dict[str, tuple[int | None, ...]] = field(init=False)
    _arrays: dict[str, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        for number, node in enumerate(graph.node):
            node.name = node.name or f"::{number}"  # what lowering adds to a candidate has no name
        self.nodes = {node.name: node for node in graph.node}
        if len(self.nodes) != len(graph.node):
            raise ModelError("two nodes of the prepared model share a name")
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.initializers)
        self.outputs = frozenset(value.name for value in graph.output)
        self.consumers = {}
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append((node, index))
        # Tensors that If, Loop or Scan bodies read from outside must keep their names and meaning.
        self.captured = frozenset(captured_names(graph))
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {
            value.name: tuple(
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            )
            for value in values
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
        }

    def constant(self, name: str) -> np.ndarray | None:
        """The value of the initializer ``name``, or ``None`` where the tensor is not constant."""
        if name not in self.initializers:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.initializers[name])
        return self._arrays[name]

    def sole_consumer(self, name: str) -> onnx.NodeProto | None:
        """The only node that reads ``name``, or ``None`` where several do or it leaves the graph."""
        readers = self.consumers.get(name, [])
        if len(readers) != 1 or name in self.outputs or name in self.captured:
            return None
        return readers[0][0]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; strings come back as ``str``."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """What the bodies in ``graph`` read and make; those of its own tensors among them are read from outside."""
    names: set[str] = set()
    for node in graph.node:
        for entry in node.attribute:
            bodies = [entry.g] if entry.HasField("g") else list(entry.graphs)
            for body in bodies:
                names |= {name for inner in body.node for name in inner.input if name}
                names |= {value.name for value in body.output}
                names |= captured_names(body)
    return names


def names_read(node: onnx.NodeProto) -> set[str]:
    """What ``node`` and its bodies read, and names that its bodies make."""
    names = {name for name in node.input if name}
    if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
        names |= captured_names(onnx.GraphProto(node=[node]))
    return names
