"""Outputs of models that differ from float32 in few layers, without running again what these leave as it was.

A probe of one layer changes a few nodes of the graph. Before them everything is float32's own: its tensors at the cut
are kept from one run. Behind them the nodes are float32's again, over other values: one session on these serves all
schemes of the layer. What is built and opened for each scheme is the few nodes between.

What is what is read off the lowered graphs alone: a node belongs to the first part where it, its constants and all
that it reads are float32's, to the middle where it differs or leads to one that does, and to the last part otherwise.
So it holds with skips, tied layers, tables, several outputs and bodies of If and Loop alike.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32
from autoq.errors import TrialError
from autoq.model.assemble import part
from autoq.model.graph import Graph, names_read
from autoq.model.lower import Lowering
from autoq.runtime.ort import batches_of, input_specs, joined, open_session, rows_of_output, run_batch, run_batches

KEPT_BYTES = 512 * 2**20
"""Float32's tensors kept at cuts, all batches together."""

_OPEN = 2  # sessions on what follows a layer: workers are at one layer, or at two neighbours

Tensors = list[dict[str, np.ndarray]]
"""Tensors by name, of one batch after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class _Lowered:
    """A lowered model with its edges: what each node reads (bodies too), which tensors hang on constants alone."""

    graph: Graph
    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, TensorProto]
    reads: list[set[str]] = field(init=False)
    content: dict[str, bytes] = field(init=False, default_factory=dict)  # of a node, by its first output
    maker: dict[str, int] = field(init=False, default_factory=dict)
    fixed: set[str] = field(init=False)

    def __post_init__(self) -> None:
        known = {*self.graph.inputs, *self.graph.initializers, *self.constants}
        known.update(name for node in self.nodes for name in node.output if name)
        fixed = {*self.graph.initializers, *self.constants}
        reads = []
        for index, node in enumerate(self.nodes):
            own = names_read(node) & known
            reads.append(own)
            self.content[first_output(node)] = node.SerializeToString(deterministic=True)
            self.maker.update((name, index) for name in node.output if name)
            if own <= fixed:
                fixed.update(name for name in node.output if name)
        object.__setattr__(self, "reads", reads)
        object.__setattr__(self, "fixed", fixed)

    def needed(self, tensors: Iterable[str], given: Iterable[str]) -> list[int]:
        """The nodes that ``tensors`` need where ``given`` are there, in order."""
        found: set[int] = set()
        waiting, there = set(tensors) - set(given), set(given)
        while waiting:
            index = self.maker.get(waiting.pop())
            if index is not None and index not in found:
                found.add(index)
                waiting |= self.reads[index] - there
        return sorted(found)


class Suffixes:
    """What policies over ``lowering`` give for ``inputs``, ``batch`` rows at a time. Safe to call from threads.

    ``reference`` are float32's outputs. ``kept_bytes`` bounds what is kept of its tensors. A model that cannot be cut
    there, or where a part does not run, is built and run whole: the outputs are the same but for rounding.
    """

    def __init__(
        self, lowering: Lowering, inputs: Mapping[str, np.ndarray], batch: int, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._lowering, self._inputs, self._batch = lowering, inputs, batch
        names = [layer.name for layer in lowering.layers]
        float32 = lowering.canonical(Policy.of(dict.fromkeys(names, FLOAT32)))
        session = open_session(lowering.build(float32))
        self.reference: Mapping[str, np.ndarray] = run_batches(session, inputs, batch)
        self._batches = list(batches_of(input_specs(session), inputs, batch))
        self._float = _Lowered(lowering.formed, *lowering.lower(float32))
        self._kept = _Kept(self._float, [feeds for feeds, _ in self._batches], lowering, kept_bytes)
        self._rests: OrderedDict[Any, Any] = OrderedDict()
        self._turn = threading.Lock()

    def outputs(self, policy: Policy) -> dict[str, np.ndarray]:
        """The outputs by name, with as many rows as the inputs.

        Raises :class:`TrialError` for a model that does not build, load or run.
        """
        try:
            found = self._from_parts(policy)
        except TrialError:  # of a part: the whole file says whether it is the model's own fault
            found = None
        if found is None:
            return run_batches(open_session(self._lowering.build(policy)), self._inputs, self._batch)
        return found

    def _from_parts(self, policy: Policy) -> dict[str, np.ndarray] | None:
        own = _Lowered(self._lowering.formed, *self._lowering.lower(policy))
        middle, rest, clean = split(self._float, own)
        makes = {name for index in middle for name in own.nodes[index].output if name}
        outputs = [value.name for value in own.graph.model.graph.output]
        read = {name for index in rest for name in own.reads[index]} | set(outputs)
        crossing = sorted(read & makes)
        given = {name for index in [*middle, *rest] for name in own.reads[index]} & clean - own.fixed
        kept = self._kept.take(given, policy)
        if kept is None:
            return None
        state = self._through(own, crossing, kept)
        behind = sorted(name for name in outputs if name in own.maker and own.maker[name] in set(rest))
        if behind:
            state = self._behind(own, tuple(rest), behind, state)
        found = {}
        for name in outputs:
            if name in clean:
                found[name] = self.reference[name]
                continue
            parts = []
            for each, (feeds, count) in zip(state, self._batches, strict=True):
                fed = next(len(values) for values in feeds.values())
                parts.append(rows_of_output(name, each[name], fed)[:count])
            found[name] = joined(name, parts)
        return found

    def _through(self, own: _Lowered, wanted: Sequence[str], state: Tensors) -> Tensors:
        """``state`` with what the middle makes of it."""
        if not wanted:
            return state
        session, reads = _opened(own, wanted, state)
        return _run(session, reads, wanted, state)

    def _behind(self, own: _Lowered, rest: tuple[int, ...], wanted: Sequence[str], state: Tensors) -> Tensors:
        """``state`` with the outputs that float32's own nodes make of it; their session serves the next scheme."""
        kinds = tuple(sorted((name, values.dtype.str, values.ndim) for name, values in state[0].items()))
        key = (frozenset(first_output(own.nodes[index]) for index in rest), kinds)
        with self._turn:
            if key not in self._rests:
                self._rests[key] = _opened(own, wanted, state)
                while len(self._rests) > _OPEN:
                    self._rests.popitem(last=False)
            self._rests.move_to_end(key)
            session, reads = self._rests[key]
        return _run(session, reads, wanted, state)


class _Kept:
    """Float32's tensors at the cuts of one group of layers after the other, as many as the bound allows."""

    def __init__(self, float32: _Lowered, batches: Tensors, lowering: Lowering, limit: int) -> None:
        self._float, self._batches, self._limit = float32, batches, limit
        cuts = {}
        for layer in lowering.layers:
            index = float32.maker.get(layer.output)
            if index is not None:
                cuts[layer.name] = index, crossing(float32, index)
        self._cuts = {name: cut for name, (_, cut) in sorted(cuts.items(), key=lambda item: item[1][0])}
        self._sizes: dict[str, float] | None = None
        self._tensors: Tensors = [dict(feeds) for feeds in batches]
        self._turn = threading.Lock()

    def take(self, names: set[str], policy: Policy) -> Tensors | None:
        """``names`` of each batch; ``None`` where they take more than the bound."""
        with self._turn:
            if not names <= self._tensors[0].keys():
                if self._size(names) > self._limit:
                    return None
                self._fetch(names, policy)
            return [{name: each[name] for name in names} for each in self._tensors]

    def _fetch(self, names: set[str], policy: Policy) -> None:
        """Runs float32 for ``names`` and for the cuts of the layers that follow, to half of the bound."""
        there = self._tensors[0].keys() - self._batches[0].keys()
        wanted = names - there
        changed = {layer for layer, scheme in dict(policy).items() if scheme != FLOAT32}
        order = list(self._cuts)
        start = min((order.index(layer) for layer in changed & self._cuts.keys()), default=len(order))
        for layer in order[start:]:
            more = wanted | (self._cuts[layer] - there)
            if self._size(more) > self._limit / 2:
                break
            wanted = more
        if self._size(there | wanted) > self._limit:
            wanted |= names
            self._tensors = [dict(feeds) for feeds in self._batches]
        targets = sorted(wanted - self._tensors[0].keys())
        session, reads = _opened(self._float, targets, self._batches)
        found = _run(session, reads, targets, self._batches)
        for each, new in zip(self._tensors, found, strict=True):
            each.update({name: new[name] for name in targets})

    def _size(self, names: Iterable[str]) -> float:
        """Bytes of ``names`` in all batches, from a run of one row."""
        if self._sizes is None:
            self._sizes = self._measured()
        unknown = max(self._sizes.values(), default=0.0)  # no layer's usual cut
        return sum(self._sizes.get(name, unknown) for name in names)

    def _measured(self) -> dict[str, float]:
        first = self._batches[0]
        rows = sum(len(next(iter(feeds.values()))) for feeds in self._batches)
        names = sorted(set().union(*self._cuts.values()) - first.keys())
        share = 1
        try:
            row = [{name: values[:1] for name, values in first.items()}]
            (found,) = _run(*_opened(self._float, names, row), names, row)
        except TrialError:  # a fixed number of rows
            (found,) = _run(*_opened(self._float, names, [first]), names, [first])
            share = len(next(iter(first.values())))
        return {name: found[name].nbytes * rows / share for name in names}


def split(float32: _Lowered, own: _Lowered) -> tuple[list[int], list[int], set[str]]:
    """Of a model beside float32's: the nodes of its middle and of its rest, and the tensors that are float32's own."""
    clean = set(own.graph.inputs)
    clean |= {name for name in own.fixed - own.maker.keys() if _same_constant(float32, own, name)}
    dirty, changed = [], set()
    for index, node in enumerate(own.nodes):
        same = float32.content.get(first_output(node)) == own.content[first_output(node)]
        if same and own.reads[index] <= clean:
            clean.update(name for name in node.output if name)
            continue
        dirty.append(index)
        if not same or any(name not in clean and name not in own.maker for name in own.reads[index]):
            changed.add(index)
    middle: list[int] = []
    leads: set[str] = set()
    for index in reversed(dirty):
        if index in changed or leads.intersection(own.nodes[index].output):
            middle.append(index)
            leads |= own.reads[index]
    return middle[::-1], sorted(set(dirty) - set(middle)), clean


def crossing(own: _Lowered, index: int) -> set[str]:
    """The tensors that nodes from ``index`` on, and what follows it, read of the others: where to cut before it."""
    after = {index}
    made = {name for name in own.nodes[index].output if name}
    for later in range(index + 1, len(own.nodes)):
        if own.reads[later] & made:
            after.add(later)
            made.update(name for name in own.nodes[later].output if name)
    return {name for each in after for name in own.reads[each]} - made - own.fixed


def first_output(node: onnx.NodeProto) -> str:
    """A name that a node shares with no other."""
    return next(name for name in node.output if name)


def _same_constant(float32: _Lowered, own: _Lowered, name: str) -> bool:
    before, now = float32.constants.get(name), own.constants.get(name)
    if now is None or before is None:
        return now is before
    return before is now or before == now


def _opened(own: _Lowered, wanted: Sequence[str], state: Tensors) -> tuple[Any, list[str]]:
    """A session that makes ``wanted`` of those tensors of ``state`` that it reads; and which these are."""
    indices = own.needed(wanted, state[0])
    reads = sorted({name for index in indices for name in own.reads[index]} & state[0].keys())
    shapes = {name: (state[0][name].dtype, _shape([each[name].shape for each in state])) for name in reads}
    return open_session(part(own.graph, [own.nodes[i] for i in indices], own.constants, shapes, wanted)), reads


def _shape(shapes: Sequence[tuple[int, ...]]) -> list[int | None]:
    """What the shapes of a tensor in all batches have in common, ``None`` where they differ.

    Never less: with each dimension by a name of its own, the runtime takes some that must be equal for different ones.
    """
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]


def _run(session: Any, reads: Sequence[str], wanted: Sequence[str], state: Tensors) -> Tensors:
    """``state`` with the tensors ``wanted``; raises :class:`TrialError` also for what no part can be fed."""
    done = []
    for each in state:
        found = run_batch(session, {name: each[name] for name in reads}, wanted, "a part of the model")
        if any(not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" for values in found.values()):
            raise TrialError("metric", "a value that is no tensor of numbers crosses a cut")
        done.append({**each, **found})
    return done
