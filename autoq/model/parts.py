"""What a candidate's latency is made of: the parts of its file that take time, as values.

Two candidates with the same parts run the same kernels on the same shapes, so that no timing can tell them apart. A
part is what one layer runs in, or what stands where precisions meet: a tensor that is quantized for the integer kernels
behind it, or dequantized for the float ones; an operator between layers that runs on integers; a range found at run
time; inputs that are smoothed; a copy that keeps the runtime from fusing. They follow the rules of
:mod:`autoq.model.lower` and :mod:`autoq.model.placement`.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import NamedTuple

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.barriers import barriers
from autoq.model.graph import Graph
from autoq.model.operators import is_carry
from autoq.model.placement import Placer
from autoq.model.smoothing import absorbing, smoothed_name

_CLASSES = {"uint8": "int8", "int8": "int8-s8", "int16": "int16"}
_SIGNS = {"uint8": "u8", "int8": "s8", "int16": "s16"}

FLOAT = "float32"
"""The class of a layer that runs as float32 does; it is no part, for everything is told against float32."""


class Part(NamedTuple):
    """``kind`` of thing, the ``name`` of the layer, tensor or node, and the ``form`` that it takes there.

    ``like`` is the same for parts that do the same work elsewhere in the model: on equal shapes, in equal form.
    """

    kind: str
    name: str
    form: str
    like: str


def latency_class(layer: Layer, scheme: Scheme, *, packed: bool = False) -> str:
    """What ``layer`` runs in under ``scheme``; schemes of one class differ in values and in bytes on disk alone.

    Rounding, calibration and corrections change values. Weights of fewer than 8 bits and codebooks are widened to int8
    when the session loads; those of layers with float activations to float32. Look-ups convert the rows that they take
    at run time, and weights in blocks are read as they are packed. Where all are (``packed``), bits and codebooks of
    integer layers make classes, too.
    """
    weight, activation = scheme.weight, scheme.activation
    if weight is None:
        return scheme.floats or FLOAT
    if weight.block is not None:
        return f"w{weight.bits}-{weight.granularity}" + ("" if weight.symmetric else "-asym")
    if layer.op_type == "Gather":
        if weight.bits == 16:
            return "float16"
        return f"w{weight.bits}-pq" if weight.rounding == "pq" else f"int8-{weight.granularity}"
    if activation is None:
        return FLOAT
    if activation.dynamic:
        return "int8@dynamic"
    integers = _CLASSES[activation.dtype]
    if packed:
        return f"{integers}-w{weight.bits}" + ("-kmeans" if weight.rounding == "kmeans" else "")
    return integers


@dataclass(slots=True)
class Parts:
    """Tells the parts of canonical policies over one graph (:attr:`autoq.model.lower.Lowering.formed`).

    ``packed`` is as in :func:`latency_class`.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    placer: Placer
    packed: bool = False
    _float_reads: dict[str, list[str]] = field(init=False)
    _carries: dict[str, list[str]] = field(init=False)
    _like: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._float_reads, self._carries = {}, {}
        for node in self.graph.model.graph.node:
            if is_carry(self.graph, node):
                self._carries.setdefault(self.placer.root(node.input[0]), []).append(node.name)
            elif node.op_type != "Shape":
                for name in node.input:
                    if name:
                        self._float_reads.setdefault(self.placer.root(name), []).append(node.name)
        for name in (*self.graph.outputs, *self.graph.captured):
            self._float_reads.setdefault(self.placer.root(name), []).append("")
        self._like = {layer.name: f"{layer.kind} {layer.weight_shape} {layer.uses:.0f}" for layer in self.layers}

    def of(self, policy: Policy) -> tuple[Part, ...]:
        """The parts of a canonical policy that float32 has not."""
        schemes = dict(policy)
        placement = self.placer.place(schemes)
        made, nodes = placement.integer_made, {layer.node for layer in self.layers}
        found: dict[Part, None] = {}

        def add(kind: str, name: str, form: str, like: str) -> None:
            found[Part(kind, name, form, f"{kind} {form} {like}")] = None

        wide = {root for root, spec in placement.quantized.items() if spec.bits == 16}
        for layer in self.layers:
            scheme = schemes[layer.name]
            form = latency_class(layer, scheme, packed=self.packed)
            if scheme.calibrated is not None and self._touches(layer.node, wide):
                form = form.replace("int8", "int16")  # 16 bits on one side, and the kernel has them throughout
            if form != FLOAT:
                add("layer", layer.name, form, self._like[layer.name])
            if scheme.activation is not None and scheme.activation.dynamic:
                add("range", layer.input, "", self._shape(layer.input))
            if scheme.calibrated is not None and scheme.calibrated.smoothing is not None:
                # Only a LayerNormalization absorbs the Mul, where nothing else reads what it writes.
                name = smoothed_name(layer, scheme.calibrated.smoothing)
                readers = {
                    other.node
                    for other in self.layers
                    if other.input == layer.input
                    and (spec := schemes[other.name].calibrated) is not None
                    and spec.smoothing == scheme.calibrated.smoothing
                }
                absorbed = absorbing(self.graph, layer.input, readers) is not None
                add("quantize", name, "absorbed" if absorbed else "smoothed", self._shape(layer.input))
        for root, spec in placement.quantized.items():
            sign = _SIGNS[spec.dtype]
            if root not in made:
                add("quantize", root, sign, self._shape(root))
            elif any(reader not in placement.integer_nodes for reader in self._float_reads.get(root, ())):
                add("dequantize", root, sign, self._shape(root))
            for name in self._carries.get(root, ()):
                add("carry", name, sign, self._operator(name))
        for name in placement.integer_nodes - nodes:
            add("operator", name, "s16" if self._touches(name, wide) else "", self._operator(name))
        copies = barriers(self.graph, self.layers, self.placer, placement, schemes)
        for kind, names in (("before", copies.before), ("after", copies.after), ("sum", copies.sums)):
            for name in names:
                add("barrier", name, kind, self._operator(name))
        return tuple(sorted(found))

    def _touches(self, name: str, roots: Set[str]) -> bool:
        """Whether a node that runs on integers reads or writes one of ``roots``."""
        node = self.graph.nodes[name]
        return any(root in roots for root in (self.placer.stored(node), *map(self.placer.root, node.input)))

    def _shape(self, tensor: str) -> str:
        return "x".join("?" if size is None else str(size) for size in self.graph.shapes.get(tensor, ()))

    def _operator(self, node: str) -> str:
        made = self.graph.nodes[node]
        return f"{made.op_type} {self._shape(made.output[0])}"
