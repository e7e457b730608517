"""Where Q/DQ pairs stand for a policy, as a value; :mod:`autoq.model.lower` writes it down.

The rules, in the order in which they apply:

1. The tensor that a layer with 8-bit activations reads is quantized, at its *root*: the tensor before all the carry
   operators (Reshape, Slice, Pad, …) on the way, which then run on integers.
2. A Conv with 8-bit activations has its output quantized (after a Relu or Clip that the quantization absorbs), since
   the runtime's integer convolution writes integers. MatMul and Gemm have kernels that write floats.
3. An integer operator (Add, Mul, Concat, pools) whose output is quantized and whose inputs all come from integers has
   its inputs quantized too, so that it runs on integers; the rule repeats until nothing changes.

A policy is first made *canonical*: what the graph forces to be equal is made equal, so that the policy in every record
is the one that really runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import ActivationSpec, Scheme
from autoq.model.graph import Graph
from autoq.model.operators import fused_activation, is_carry, is_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """``quantized`` maps each root tensor to how it is quantized, in graph order.

    ``integer_made`` are the roots that an integer kernel writes: their float form exists only behind the pair, so every
    reader takes that. ``integer_nodes`` are the names of the nodes (layers and operators) that run on integers.
    """

    quantized: dict[str, ActivationSpec]
    integer_made: frozenset[str]
    integer_nodes: frozenset[str]


@dataclass(slots=True)
class Placer:
    """Places pairs for policies over one graph. ``layers`` are in graph order."""

    graph: Graph
    layers: tuple[Layer, ...]
    _roots: dict[str, str] = field(init=False, default_factory=dict)
    _by_node: dict[str, Layer] = field(init=False)

    def __post_init__(self) -> None:
        self._by_node = {layer.node: layer for layer in self.layers}

    def root(self, tensor: str) -> str:
        """The tensor that ``tensor`` has its scale from: itself, or what the carry operators above it carry."""
        if tensor not in self._roots:
            node = self.graph.producer.get(tensor)
            carried = node is not None and is_carry(self.graph, node) and node.input[0] not in self.graph.initializers
            self._roots[tensor] = self.root(node.input[0]) if node is not None and carried else tensor
        return self._roots[tensor]

    def stored(self, node: onnx.NodeProto, signed: bool) -> str:
        """The tensor that an integer kernel for ``node`` writes: past an absorbed activation, where there is one.

        A signed symmetric range reaches below zero, so it absorbs no Relu.
        """
        if not signed:
            activation = fused_activation(self.graph, node.output[0])
            if activation is not None:
                return activation.output[0]
        return node.output[0]

    def canonical(self, policy: Policy) -> Policy:
        """``policy`` with equal schemes where the graph forces them to be equal.

        Layers that share a weight share a scheme; layers that read one tensor share its calibration; a file has one
        type of activations. The earlier layer decides.
        """
        schemes: dict[str, Scheme] = {}
        inputs: dict[str, ActivationSpec] = {}
        signed: bool | None = None
        for layer in self.layers:
            scheme = schemes[layer.tied_to] if layer.tied_to else policy[layer.name]
            if scheme.activation is not None:
                signed = scheme.activation.signed if signed is None else signed
                wanted = dataclasses.replace(scheme.activation, signed=signed)
                activation = inputs.setdefault(self.root(layer.input), wanted)
                scheme = dataclasses.replace(scheme, activation=activation)
            schemes[layer.name] = scheme
        return Policy.of(schemes)

    def place(self, policy: Mapping[str, Scheme]) -> Placement:
        """The placement for a canonical policy."""
        active = [layer for layer in self.layers if policy[layer.name].activation is not None]
        specs: dict[str, ActivationSpec] = {}
        for layer in active:
            specs.setdefault(self.root(layer.input), _activation(policy, layer))
        for layer in active:
            if layer.op_type == "Conv":
                spec = _activation(policy, layer)
                specs.setdefault(self.stored(self.graph.nodes[layer.node], spec.signed), spec)
        self._pull_in_integer_operators(specs)
        return self._finish(specs, {layer.node for layer in active})

    def tensors_to_calibrate(self, signed: Iterable[bool]) -> tuple[str, ...]:
        """Every tensor that any policy could quantize, given the signednesses in use, in graph order.

        The placement only grows with the set of layers that have 8-bit activations, so the placement with all of them
        holds every other.
        """
        from autoq.core.scheme import Calibration, WeightSpec

        found: set[str] = set()
        for is_signed in signed:
            activation = ActivationSpec(calibration=Calibration(method="minmax"), signed=is_signed)
            full = Scheme(weight=WeightSpec(bits=8), activation=activation)
            policy = {layer.name: Scheme() if layer.integer_problem else full for layer in self.layers}
            found |= self.place(policy).quantized.keys()
        return tuple(name for name in self._tensor_order() if name in found)

    def _pull_in_integer_operators(self, specs: dict[str, ActivationSpec]) -> None:
        changed = True
        while changed:
            changed = False
            for node in reversed(self.graph.model.graph.node):
                if not is_integer(self.graph, node):
                    continue
                spec = self._output_spec(node, specs)
                if spec is None:
                    continue
                roots = [self.root(name) for name in node.input if name]
                if all(self._comes_from_integers(root, specs, spec.signed) for root in roots):
                    for root in roots:
                        if root not in specs:
                            specs[root], changed = spec, True

    def _output_spec(self, node: onnx.NodeProto, specs: Mapping[str, ActivationSpec]) -> ActivationSpec | None:
        for signed in (False, True):
            spec = specs.get(self.stored(node, signed))
            if spec is not None and spec.signed == signed:
                return spec
        return None

    def _comes_from_integers(self, root: str, specs: Mapping[str, ActivationSpec], signed: bool) -> bool:
        if root in specs:
            return True
        node = self._kernel_of(root, signed)
        if node is None or not is_integer(self.graph, node):
            return False
        return all(self._comes_from_integers(self.root(name), specs, signed) for name in node.input if name)

    def _kernel_of(self, root: str, signed: bool) -> onnx.NodeProto | None:
        """The node whose integer kernel would write ``root``: its producer, or what an absorbed activation follows."""
        node = self.graph.producer.get(root)
        if node is None:
            return None
        before = self.graph.producer.get(node.input[0]) if node.input else None
        if before is not None and self.stored(before, signed) == root:
            return before
        return node if self.stored(node, signed) == root else None

    def _finish(self, specs: dict[str, ActivationSpec], active: set[str]) -> Placement:
        made: set[str] = set()
        nodes = set(active)
        for root, spec in specs.items():
            node = self._kernel_of(root, spec.signed)
            if node is None:
                continue
            if node.name in active:
                made.add(root)
            elif is_integer(self.graph, node) and all(self.root(name) in specs for name in node.input if name):
                made.add(root)
                nodes.add(node.name)
        ordered = {name: specs[name] for name in self._tensor_order() if name in specs}
        return Placement(quantized=ordered, integer_made=frozenset(made), integer_nodes=frozenset(nodes))

    def _tensor_order(self) -> list[str]:
        return [*self.graph.inputs, *(name for node in self.graph.model.graph.node for name in node.output if name)]


def _activation(policy: Mapping[str, Scheme], layer: Layer) -> ActivationSpec:
    activation = policy[layer.name].activation
    assert activation is not None
    return activation
