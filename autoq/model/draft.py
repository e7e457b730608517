"""A graph that is being rewritten: its nodes in topological order, with who makes and who reads each tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from autoq.model.graph import Graph

Shape = tuple[int | str | None, ...]


class Draft:
    """``nodes`` in topological order over ``constants`` by name.

    ``kept`` are tensors that something outside the nodes reads: outputs, and what bodies capture. ``shapes`` has the
    float tensors whose rank is known, with each dimension's size, its symbol, or ``None``; a tensor that a rewrite adds
    is not in it.
    """

    def __init__(
        self,
        nodes: Iterable[onnx.NodeProto],
        constants: MutableMapping[str, TensorProto],
        *,
        kept: Collection[str],
        shapes: Mapping[str, Shape],
        opset: int,
    ) -> None:
        self.nodes = list(nodes)
        self.constants = constants
        self.kept = frozenset(kept)
        self.shapes = shapes
        self.opset = opset
        self._producer: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for node in self.nodes:
            self._link(node)

    @classmethod
    def of(cls, graph: Graph, opset: int) -> Draft:
        """A draft of a prepared graph, which stays as it is."""
        nodes = []
        for node in graph.model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            nodes.append(copy)
        kept = graph.outputs | graph.captured
        return cls(nodes, dict(graph.initializers), kept=kept, shapes=float_shapes(graph.model), opset=opset)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes ``tensor``; ``None`` for an input or a constant."""
        return self._producer.get(tensor)

    def made_by(self, tensor: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes ``tensor`` if it is one of these operators of ONNX."""
        node = self._producer.get(tensor)
        return node if node is not None and node.op_type in op_types and is_onnx(node) else None

    def readers(self, tensor: str) -> Sequence[onnx.NodeProto]:
        """The nodes that read ``tensor``, each once for every input that does."""
        return self._readers.get(tensor, ())

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The only node that reads ``tensor``, or ``None`` where several do or it is kept."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.kept else None

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of a constant, or ``None`` where ``tensor`` is computed."""
        if tensor not in self.constants:
            return None
        if tensor not in self._arrays:
            self._arrays[tensor] = numpy_helper.to_array(self.constants[tensor])
        return self._arrays[tensor]

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Stores ``value`` under ``name``, which is new or holds the same already."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def replace(self, dead: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Puts ``new`` where the last of ``dead`` stood; it makes what that made. The others, which nothing else reads,
        go as well."""
        gone = {id(node) for node in dead}
        place = max(index for index, node in enumerate(self.nodes) if id(node) in gone)
        for node in dead:
            self._unlink(node)
        for node in new:
            self._link(node)
        self.nodes[place : place + 1] = new
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def insert(self, before: onnx.NodeProto, new: Sequence[onnx.NodeProto]) -> None:
        """Puts ``new`` in front of a node."""
        place = next(index for index, node in enumerate(self.nodes) if node is before)
        self.nodes[place:place] = new
        for node in new:
            self._link(node)

    def reconnect(self, node: onnx.NodeProto, index: int, tensor: str) -> None:
        """Makes input ``index`` of ``node`` read ``tensor``."""
        readers = self._readers[node.input[index]]
        readers.remove(next(reader for reader in readers if reader is node))
        node.input[index] = tensor
        self._readers.setdefault(tensor, []).append(node)

    def prune(self) -> None:
        """Takes away the nodes whose outputs nothing reads."""
        for node in reversed(list(self.nodes)):
            if not any(name in self.kept or self.readers(name) for name in node.output):
                self._unlink(node)
                self.nodes.remove(node)

    def _link(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            if name:
                self._producer[name] = node
        for name in node.input:
            if name:
                self._readers.setdefault(name, []).append(node)

    def _unlink(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            if self._producer.get(name) is node:
                del self._producer[name]
        for name in node.input:
            if name:
                self._readers[name] = [reader for reader in self._readers[name] if reader is not node]


def float_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every float32 tensor of ``model`` whose rank is known."""
    shapes: dict[str, Shape] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type == TensorProto.FLOAT and tensor.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim
            )
    return shapes


def is_onnx(node: onnx.NodeProto) -> bool:
    """Whether ``node``'s operator is one of ONNX itself."""
    return node.domain in ("", "ai.onnx")
