"""Where Q/DQ pairs stand for a policy, as a value; :mod:`autoq.model.lower` writes it down.

The rules, in the order in which they apply:

1. The tensor that a layer with integer activations reads is quantized, at its *root*: the tensor before all the carry
   operators (Reshape, Slice, Pad, …) on the way, which then run on integers. Activations whose range is found at run
   time are none of these: to their neighbours, such a layer is one that reads and writes floats.
2. A Conv with integer activations has its output quantized (after a Relu or Clip that the quantization absorbs), since
   the runtime's integer convolution writes integers. MatMul and Gemm have kernels that write floats; where they
   have none (``integer_products``), theirs is, too.
   What a layer reads has the bits that its scheme says, and what it writes those of the layer that reads that, else its
   own; a kernel with 16 bits on either side computes in 16.
3. An integer operator (Add, Mul, Concat, pools) whose output is quantized and whose inputs come from integers has its
   inputs quantized too, so that it runs on integers, and so on up the graph. An Add, Mul or Concat may have inputs from
   float as well, if they are at most half of the rest: a gate, part of a Concat, one of two.
4. A GlobalAveragePool of integers has its output quantized, whoever reads it: that costs less than to leave the
   integers with the whole image.

A policy is first made *canonical*: what the graph forces to be equal is made equal, so that the policy in every record
is the one that really runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from math import prod

import onnx

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import ActivationSpec, Calibration, Scheme, WeightSpec
from autoq.model.graph import Graph
from autoq.model.operators import UNSIGNED, absorbed_activation, is_carry, is_integer
from autoq.model.smoothing import smoothed_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """``quantized`` maps each root tensor to how it is quantized, in graph order.

    ``integer_made`` are the roots that an integer kernel writes: their float form exists only behind the pair, so every
    reader takes that. ``integer_nodes`` are the names of the nodes (layers and operators) that run on integers.
    ``signed``: bytes are signed and symmetric in this file (:meth:`Placer.stored`).
    """

    quantized: dict[str, ActivationSpec]
    integer_made: frozenset[str]
    integer_nodes: frozenset[str]
    signed: bool = False


@dataclass(slots=True)
class Placer:
    """Places pairs for policies over one graph. ``layers`` are in graph order.

    ``integer_products`` is for runtimes whose MatMul and Gemm write integers, as a Conv does.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    integer_products: bool = False
    _roots: dict[str, str] = field(init=False, default_factory=dict)
    _operators: list[onnx.NodeProto] = field(init=False)
    _tensors: list[str] = field(init=False)

    def __post_init__(self) -> None:
        nodes = self.graph.model.graph.node
        for node in nodes:  # in topological order, so that the input's root is known
            if is_carry(self.graph, node):
                self._roots.update((name, self.root(node.input[0])) for name in node.output)
        self._operators = [node for node in nodes if is_integer(self.graph, node)]
        self._tensors = [*self.graph.inputs, *(name for node in nodes for name in node.output if name)]

    def root(self, tensor: str) -> str:
        """The tensor that ``tensor`` has its scale from: itself, or what the carry operators above it carry."""
        return self._roots.get(tensor, tensor)

    def stored(self, node: onnx.NodeProto, *, signed: bool = False) -> str:
        """The tensor that an integer kernel for ``node`` writes: past an absorbed activation, where there is one."""
        activation = absorbed_activation(self.graph, node.output[0], signed=signed)
        return activation.output[0] if activation is not None else node.output[0]

    def canonical(self, policy: Policy) -> Policy:
        """``policy`` with equal schemes where the graph forces them to be equal.

        Layers that share a weight share how it is stored; layers that read one tensor share its calibration, if they do
        not find its range at run time; of 8-bit activations a file has one type. The earlier layer decides. A
        tensor that is smoothed for some layers is another one to them.
        """
        schemes: dict[str, Scheme] = {}
        inputs: dict[str, ActivationSpec] = {}
        signed: bool | None = None
        for layer in self.layers:
            scheme = schemes[layer.tied_to] if layer.tied_to else policy[layer.name]
            if (wanted := scheme.calibrated) is not None:
                if wanted.bits == 8:
                    signed = wanted.signed if signed is None else signed
                    wanted = dataclasses.replace(wanted, signed=signed)
                activation = inputs.setdefault(self.read(layer, wanted), wanted)
                scheme = dataclasses.replace(scheme, activation=activation)
            schemes[layer.name] = scheme
        return Policy.of(schemes)

    def read(self, layer: Layer, activation: ActivationSpec) -> str:
        """The tensor that is quantized for a layer: its input's root, or its input smoothed."""
        if activation.smoothing is not None:
            return smoothed_name(layer, activation.smoothing)
        return self.root(layer.input)

    def place(self, policy: Mapping[str, Scheme]) -> Placement:
        """The placement for a canonical policy."""
        active = [layer for layer in self.layers if policy[layer.name].calibrated is not None]
        signed = any(_activation(policy, layer).dtype == "int8" for layer in active)
        specs: dict[str, ActivationSpec] = {}
        for layer in active:
            if _activation(policy, layer).smoothing is None:  # what is smoothed is quantized where the layer stands
                specs.setdefault(self.root(layer.input), _activation(policy, layer))
        for layer in active:
            if layer.op_type == "Conv" or self.integer_products:
                stored = self.stored(self.graph.nodes[layer.node], signed=signed)
                specs.setdefault(stored, _activation(policy, layer))
        layers = [self.graph.nodes[layer.node] for layer in active]
        kernels = [*layers, *self._pull_in_operators(specs, layers, signed=signed)]
        made = specs.keys() & {self.stored(node, signed=signed) for node in kernels}
        for name in made:
            if specs[name].bits == 16 and self.graph.producer[name].op_type == "HardSigmoid":
                # Its form is a saturation of bytes (autoq.model.activations), which is as fine as its two ends need.
                specs[name] = dataclasses.replace(specs[name], bits=8, signed=False)
        return Placement(
            quantized={name: specs[name] for name in self._tensors if name in specs},
            integer_made=frozenset(made),
            integer_nodes=frozenset(node.name for node in kernels),
            signed=signed,
        )

    def tensors_to_calibrate(self) -> tuple[str, ...]:
        """Every tensor that any policy could quantize, in graph order.

        The placement only grows with the set of layers that have 8-bit activations, so the placements with all of them,
        unsigned and signed, hold every other.
        """
        found: set[str] = set()
        for signed in (False, True):
            spec = ActivationSpec(calibration=Calibration(method="minmax"), signed=signed)
            everywhere = Scheme(weight=WeightSpec(bits=8), activation=spec)
            policy = {layer.name: Scheme() if layer.integer_problem else everywhere for layer in self.layers}
            found |= self.place(policy).quantized.keys()
        return tuple(name for name in self._tensors if name in found)

    def _pull_in_operators(
        self, specs: dict[str, ActivationSpec], layers: list[onnx.NodeProto], *, signed: bool
    ) -> list[onnx.NodeProto]:
        """Adds the inputs of integer operators to ``specs``; gives back the operators that run on integers.

        ``layers`` are the nodes of the layers with 8-bit activations.
        """
        on_integers = set(specs)  # roots that are quantized, or could be, since an integer operator writes them
        operators = [node for node in self._operators if not (signed and node.op_type in UNSIGNED)]
        for node in operators:
            if self._pays(node, on_integers):
                on_integers.add(self.stored(node, signed=signed))
        pulled = []
        for node in reversed(operators):  # readers before what they read
            spec = specs.get(self.stored(node, signed=signed))
            if spec is not None and self._pays(node, on_integers):
                pulled.append(node)
                for root in self._input_roots(node):
                    specs.setdefault(root, spec)
        made = {self.stored(node, signed=signed) for node in (*layers, *pulled)}
        for node in operators:
            root, target = self.root(node.input[0]), self.stored(node, signed=signed)
            if node.op_type == "GlobalAveragePool" and root in specs and root in made and target not in specs:
                specs[target] = specs[root]
                pulled.append(node)
        return pulled

    def _pays(self, node: onnx.NodeProto, on_integers: Set[str]) -> bool:
        """Whether ``node`` is to run on integers: in float, what comes from integers and its output would need pairs.

        On integers it is what comes from float that needs one; that must be at most half of it, for it also costs
        precision.
        """
        roots = self._input_roots(node)
        floats = [root for root in roots if root not in on_integers]
        if not floats or len(floats) == len(roots) or node.op_type not in ("Add", "Concat", "Mul"):
            return not floats
        needed = [self._elements(name) for name in floats]
        spared = [self._elements(name) for name in (*(set(roots) - set(floats)), node.output[0])]
        return None not in (*needed, *spared) and 2 * sum(filter(None, needed)) <= sum(filter(None, spared))

    def _elements(self, tensor: str) -> int | None:
        """Elements of a tensor, for comparison: an open dimension counts as 32."""
        shape = self.graph.shapes.get(tensor)
        return None if shape is None else prod(32 if size is None else size for size in shape)

    def _input_roots(self, node: onnx.NodeProto) -> list[str]:
        constants = self.graph.initializers  # bounds of a Clip; other operators with a constant are not integer ones
        return [self.root(name) for name in node.input if name and name not in constants]


def _activation(policy: Mapping[str, Scheme], layer: Layer) -> ActivationSpec:
    activation = policy[layer.name].calibrated
    assert activation is not None
    return activation
