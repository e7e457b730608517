"""Runs a model a part at a time, for what is looked at in the order of its layers while earlier ones change.

Between two parts the tensors that cross the cut are kept, of every batch: going on from there costs the next part
alone, and the whole way costs little more than one run. Where they are too large to keep, the way begins at the last
cut that was kept, or at the inputs.

A cut lies between nodes in graph order. DequantizeLinear nodes of activations belong to their readers: what crosses is
the integers, so that a part runs on the integer kernels that the whole model would, and keeps a quarter of the bytes.
DynamicQuantizeLinear nodes do, too: what they read is what a later reader of their integers may be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper
from onnxruntime import InferenceSession

from autoq.errors import TrialError
from autoq.model.graph import names_read
from autoq.runtime.ort import clean_message, open_session

Batch = Mapping[str, np.ndarray]

KEPT_BYTES = 512 * 2**20
"""Tensors kept at a cut, all batches together."""


class Segments:
    """``model`` on ``batches`` (input name -> array), from its inputs on. ``threads`` is ONNX Runtime's."""

    def __init__(
        self, model: onnx.ModelProto, batches: Sequence[Batch], *, threads: int = 1, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._threads, self._limit = threads, kept_bytes
        self._nodes: list[onnx.NodeProto] = []
        self._start = 0
        self._state: list[Batch] = list(batches)
        self.replace(model)

    def replace(self, model: onnx.ModelProto) -> None:
        """Goes on with a model of the same nodes whose constants differ, behind the last cut.

        Tensors may be called otherwise there: a file's own names are numbers, which another constant shifts.
        """
        before = self._nodes
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output if name}
        known = {*self._constants, *self._maker, *(value.name for value in model.graph.input)}
        # By what it makes: not every node has a name.
        self._reads = {name: names_read(node) & known for node in model.graph.node for name in node.output if name}
        self._nodes = []
        constant = set(self._constants)
        self._pulled: set[str] = set()  # tensors whose makers follow their readers instead of standing in line
        for node in model.graph.node:
            made = [name for name in node.output if name]
            if self._reads[_first(node)] <= constant:
                constant.update(made)
                self._pulled.update(made)
            elif node.op_type in ("DequantizeLinear", "DynamicQuantizeLinear"):
                self._pulled.update(made)
            else:
                self._nodes.append(node)
        self._constant = constant
        if before:
            if [node.op_type for node in before] != [node.op_type for node in self._nodes]:
                raise TrialError("build", "with other numbers the graph has other nodes")
            pairs = zip(before, self._nodes, strict=True)
            names = {old: new for a, b in pairs for old, new in zip(a.output, b.output, strict=True)}
            self._state = [{names.get(name, name): values for name, values in each.items()} for each in self._state]
        self._position = {node.name: index for index, node in enumerate(self._nodes) if node.name}

    def node(self, name: str) -> onnx.NodeProto | None:
        """The node of that name, if it computes on activations."""
        index = self._position.get(name)
        return None if index is None else self._nodes[index]

    def upto(self, node: str, wanted: Sequence[str], *, after: bool = False) -> Iterator[list[np.ndarray]]:
        """The tensors ``wanted`` of one batch after the other, which do not hang on what comes after ``node``.

        Where all batches are taken, the next call starts in front of ``node`` (``after``: behind it). Nodes are asked
        for in graph order.

        Raises :class:`TrialError` where the runtime cannot run a part.
        """
        stop = self._position[node] + after
        assert stop >= self._start, "a part that has been passed cannot be run again"
        crossing = self._crossing(stop)
        keep = self._start < stop
        session = self._session(stop, [*crossing, *wanted])
        state: list[Batch] = []
        size = 0
        for feeds in self._state:
            found = self._run(session, feeds, [*crossing, *wanted])
            yield [found[name] for name in wanted]
            if keep:
                state.append({name: found[name] for name in crossing})
                size += sum(values.nbytes for values in state[-1].values())
                if size > self._limit:
                    keep, state = False, []
        if keep:
            self._start, self._state = stop, state

    def _crossing(self, stop: int) -> list[str]:
        """What nodes from ``stop`` on, and the model's outputs, read of what is made before it, in a fixed order."""
        later = {name for node in self._nodes[stop:] for name in node.output}
        wanted = [name for node in self._nodes[stop:] for name in sorted(self._reads[_first(node)])]
        wanted += [value.name for value in self._model.graph.output]
        return [name for name in dict.fromkeys(self._sources(wanted)) if name not in later]

    def _sources(self, tensors: Sequence[str]) -> Iterator[str]:
        """Where ``tensors`` come from, past the makers that follow their readers; no constants."""
        waiting, seen = list(tensors), set()
        while waiting:
            name = waiting.pop(0)
            if name in seen or name in self._constant:
                continue
            seen.add(name)
            if name in self._pulled:
                waiting.extend(sorted(self._reads[name]))
            else:
                yield name

    def _session(self, stop: int, outputs: Sequence[str]) -> InferenceSession | None:
        """A session on what ``outputs`` need between the last cut and ``stop``; none where all are there already."""
        there = set(self._state[0]) if self._state else set()
        needed: set[str] = set()
        waiting = [name for name in outputs if name not in there]
        while waiting:
            name = waiting.pop()
            if name in needed or name in there or name in self._constants:
                continue
            needed.add(name)
            waiting.extend(self._reads[name])
        if not needed:
            return None
        nodes = [node for node in self._model.graph.node if needed & set(node.output)]
        reads = {name for node in nodes for name in self._reads[_first(node)]}
        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        model.graph.name = "part"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in reads)
        for name in sorted(reads & there):
            values = self._state[0][name]
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            open_shape = [f"{name}:{axis}" for axis in range(values.ndim)]
            model.graph.input.append(helper.make_tensor_value_info(name, kind, open_shape))
        made = [name for name in dict.fromkeys(outputs) if name in needed]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        return open_session(model.SerializeToString(), threads=self._threads)

    def _run(self, session: InferenceSession | None, feeds: Batch, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        found = {name: feeds[name] for name in outputs if name in feeds}
        if session is not None:
            try:
                names = [value.name for value in session.get_outputs()]
                fed = {value.name: feeds[value.name] for value in session.get_inputs()}
                found |= dict(zip(names, session.run(names, fed), strict=True))
            except Exception as error:  # ONNX Runtime's errors have no common base below Exception
                raise TrialError("metric", f"ONNX Runtime failed on a part: {clean_message(error)}") from error
        return found


def _first(node: onnx.NodeProto) -> str:
    """The first tensor that ``node`` makes: a name that it shares with no other."""
    return next(name for name in node.output if name)
