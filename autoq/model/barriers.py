"""Where ONNX Runtime would fuse what a policy keeps apart, and a copy must stand to prevent it.

Each rule below is a behaviour of version 1.31.1 that a test shows; it goes when its test passes without it. The copy is
a Sum of one tensor, which the runtime neither fuses nor takes away; it costs little more than reading the tensor once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.model.graph import Graph
from autoq.model.operators import must_not_fuse
from autoq.model.placement import Placement, Placer


@dataclass(frozen=True, slots=True, kw_only=True)
class Barriers:
    """Names of nodes: a copy goes ``before`` the first input or ``after`` the output; ``sums`` are written as Sum."""

    before: frozenset[str]
    after: frozenset[str]
    sums: frozenset[str]


def barriers(
    graph: Graph, layers: Sequence[Layer], placer: Placer, placement: Placement, policy: Mapping[str, Scheme]
) -> Barriers:
    """The barriers that a policy's placement needs."""
    made, active = placement.integer_made, {layer.node for layer in layers if policy[layer.name].calibrated is not None}
    before = {
        node.name for node in graph.model.graph.node if must_not_fuse(node) and placer.root(node.input[0]) in made
    }
    after: set[str] = set()
    sums: set[str] = set()
    for layer in layers:
        if layer.node not in active:
            between = placer.root(layer.input) in made and not _has_own_kernel(policy[layer.name])
            if between and _would_be_quantized(graph, layer, placement):
                before.add(layer.node)
        elif layer.op_type in ("Gemm", "MatMul") and placer.stored(graph.nodes[layer.node]) not in made:
            reader = graph.sole_consumer(layer.output)
            if reader is not None and reader.op_type in ("Relu", "Clip"):
                # Between an integer product and a pair the runtime drops a Relu or Clip; where no pair follows, it
                # stops to see an integer product.
                after.add(layer.node)
            if layer.op_type == "MatMul" and _becomes_gemm(graph, layer):
                readers = [reader for reader, _ in graph.consumers.get(layer.output, ())]
                sums.update(reader.name for reader in readers if reader.op_type == "Add")
    return Barriers(before=frozenset(before), after=frozenset(after), sums=frozenset(sums))


def _has_own_kernel(scheme: Scheme) -> bool:
    """Whether a product is written in operators that no pair fuses with (:mod:`autoq.model.products`)."""
    return scheme.activation is not None or (scheme.weight is not None and scheme.weight.block is not None)


def _would_be_quantized(graph: Graph, layer: Layer, placement: Placement) -> bool:
    """Between a DequantizeLinear and a QuantizeLinear, the runtime quantizes the float weights of a Conv, ConvTranspose
    or Gemm by itself, also of a Gemm that it made: to 8 bits, with one scale."""
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    names = {layer.output}
    for _ in range(2):  # a bias, and an activation
        readers = [reader for name in names for reader, _ in graph.consumers.get(name, ())]
        names |= {reader.output[0] for reader in readers if reader.op_type in ("Add", "Clip", "Relu")}
    return not names.isdisjoint(placement.quantized)


def _becomes_gemm(graph: Graph, layer: Layer) -> bool:
    """The runtime joins a MatMul and an Add to a Gemm, with a float bias, and then the Gemm is float, too: where the
    MatMul has two dimensions, or all are known, so that it can make two of them."""
    shape = graph.shapes.get(layer.output)
    return shape is not None and (len(shape) == 2 or None not in shape)
