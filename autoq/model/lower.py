"""Policy + calibrated ranges + quantized weights -> the ONNX file that is scored and shipped.

The forms are those that stock ONNX Runtime executes fast (measured; see docs/lowering.md):

* 8-bit activations: ``QuantizeLinear -> DequantizeLinear`` pairs that the runtime fuses into integer kernels; carry
  operators (Reshape, Slice, Pad, …) run on the integers themselves;
* 4- and 2-bit weights of integer layers: ``Cast`` to int8, which folds when the session loads, then
  ``DequantizeLinear``: full int8 speed at 4 or 2 bits on disk;
* weight-only: ``Cast`` to float32 and ``Mul`` by the scales, both folded when the session loads: full float speed;
* float16: one ``Cast``, folded likewise;
* 16-bit activations: the same pairs with int16, which stock ONNX Runtime computes in float between two roundings; they
  are for targets that have the kernels;
* 8-bit activations with ranges found at run time, and weights in blocks: see :mod:`autoq.model.products`.

Names: a quantized tensor ``T`` has ``T::q`` (integers), ``T::s`` and ``T::z`` (scale, zero point), ``T::ws`` and
``T::wz`` where they are written at others, and ``T::dq`` where its float form lives on beside the pair.
:mod:`autoq.model.stored` names what belongs to weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import ActivationSpec, Floats, Scheme, WeightSpec
from autoq.errors import TrialError
from autoq.model.activations import ACTIVATIONS, UNIT, slope, written_at
from autoq.model.aligned import aligned, rescalable
from autoq.model.assemble import assemble, live, without_notes
from autoq.model.barriers import barriers
from autoq.model.corrections import added_bias
from autoq.model.entries import Entry
from autoq.model.floats import short_product, shortened
from autoq.model.forms import form_candidate, formed
from autoq.model.graph import Graph, attribute
from autoq.model.operators import is_carry
from autoq.model.placement import Placement, Placer
from autoq.model.products import (
    blockwise_look_up,
    blockwise_product,
    coded_look_up,
    dynamic_product,
    found_range,
)
from autoq.model.smoothing import Scales, absorbing, smoothed_name
from autoq.model.stored import Stored
from autoq.numerics.affine import half
from autoq.numerics.product import ProductCodes
from autoq.numerics.weights import QuantizedWeight

Affine = tuple[np.float32, int]
"""Scale and zero point of one tensor."""


@dataclass(slots=True)
class Lowering:
    """Builds candidates over one prepared graph.

    ``affines`` maps (root tensor, its :class:`ActivationSpec`) to scale and zero point; ``bank`` maps (layer name,
    :class:`WeightSpec`) to quantized weights, ``corrections`` to what is added to the bias, and ``smoothing`` (layer
    name, strength) to what the input is divided by. All hold whatever the space can ask for. ``accuracy_level`` is what
    products with weights in blocks compute with (:class:`autoq.spec.profile_fields.LoweringChoice`).
    ``forms`` names the forms (:mod:`autoq.model.forms`) that candidates are written in; ``formed`` is ``graph`` in
    those that come first. ``integer_products`` is as in :class:`autoq.model.placement.Placer`.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    affines: Mapping[tuple[str, ActivationSpec], Affine]
    bank: Mapping[tuple[str, WeightSpec], Entry]
    corrections: Mapping[tuple[str, WeightSpec], np.ndarray] = field(default_factory=dict)
    smoothing: Scales = field(default_factory=dict)
    accuracy_level: int = 4
    forms: tuple[str, ...] = ()
    integer_products: bool = False
    formed: Graph = field(init=False)
    placer: Placer = field(init=False)

    def __post_init__(self) -> None:
        self.formed = formed(self.graph, self.forms)
        self.placer = Placer(self.formed, self.layers, self.integer_products)

    def canonical(self, policy: Policy) -> Policy:
        """See :meth:`autoq.model.placement.Placer.canonical`."""
        return self.placer.canonical(policy)

    def build(self, policy: Policy) -> bytes:
        """The serialized ONNX model of a canonical policy. The same policy gives the same bytes.

        Raises :class:`TrialError` (``build``) when the policy needs statistics or weights that were not prepared.
        """
        return assemble(self.formed, *self.lower(policy))

    def lower(self, policy: Policy) -> tuple[list[onnx.NodeProto], dict[str, TensorProto]]:
        """The nodes of that model, every one needed, and its own constants by name, before names are shortened.

        Raises as :meth:`build`.
        """
        return _Builder(self, dict(policy), self.placer.place(dict(policy))).lower()


class _Builder:
    """One candidate in the making: nodes in the order in which they will stand, after the stored weights."""

    def __init__(self, lowering: Lowering, policy: dict[str, Scheme], placement: Placement) -> None:
        self.graph = lowering.formed
        self.forms = lowering.forms
        self.policy = policy
        self.placement = placement
        self.affines = lowering.affines
        self.bank = lowering.bank
        self.corrections = lowering.corrections
        self.smoothing = lowering.smoothing
        self.read = lowering.placer.read
        self.accuracy_level = lowering.accuracy_level
        self.placer = lowering.placer
        self.root = lowering.placer.root
        self.barriers = barriers(self.graph, lowering.layers, lowering.placer, placement, policy)
        makers = {name: self.graph.producer.get(name) for name in placement.integer_made}
        self.unit = {name for name, node in makers.items() if node is not None and node.op_type == "HardSigmoid"}
        self.layer_at = {layer.node: layer for layer in lowering.layers}
        self.stored = Stored(lowering.layers)
        self.biased: dict[str, str] = {}
        if lowering.integer_products:
            self.biased = self._biased()
            self.affines = {**self.affines, **aligned(self.placer, placement, self._affine, self.unit)}
        self.nodes: list[onnx.NodeProto] = []
        self.ranged: set[str] = set()
        self.shortened: set[tuple[str, Floats]] = set()
        self.corrected_adds: dict[str, tuple[int, np.ndarray]] = {}
        self.smoothed: set[str] = set()
        self.absorbers = self._absorbers()

    def lower(self) -> tuple[list[onnx.NodeProto], dict[str, TensorProto]]:
        for name in self.graph.inputs:
            if name in self.placement.quantized:
                self._pair(name, name, f"{name}::dq")
        for node in self.graph.model.graph.node:
            self._place(node)
        nodes = live(self.graph, [*self.stored.nodes, *self.nodes])
        nodes = form_candidate(self.graph, nodes, self.stored.initializers, self.forms)
        return nodes, self.stored.initializers

    def _place(self, original: onnx.NodeProto) -> None:
        node = without_notes(original)
        quantized, made = self.placement.quantized, self.placement.integer_made
        if is_carry(self.graph, node) and (root := self.root(node.output[0])) in quantized:
            if root not in made:
                self.nodes.append(node)  # float readers keep the float path; unread, it is dropped below
            self._carry(original, root)
            return
        if node.op_type in ACTIVATIONS and (root := node.output[0]) in made and self._activation(original, root):
            return
        if node.op_type == "Shape" and self.root(node.input[0]) in made:
            node.input[0] = f"{node.input[0]}::q"  # or the runtime dequantizes the whole tensor for its shape
        if node.name in self.barriers.sums:
            node.op_type = "Sum"
        if node.name in self.absorbers:
            self._absorb(node)
        layer = self.layer_at.get(node.name)
        if layer is not None and self._strength(layer) is not None:
            node.input[1 - layer.weight_index] = self._smooth(layer)
        elif node.name in self.placement.integer_nodes:
            for index, name in enumerate(node.input):
                if name and (root := self.root(name)) in quantized and root not in made:
                    node.input[index] = f"{name}::dq"
        elif node.name in self.barriers.before:
            node.input[0] = self._copied(node.input[0], f"{node.output[0]}::in")
        if layer is not None and layer.op_type == "Gather":
            node = self._look_up(layer, node)
        elif layer is not None and self.policy[layer.name].floats is not None:
            node = self._short_floats(layer, node)
        elif layer is not None and self._at_run_time(layer):
            node = self._dynamic(layer, node)
        elif layer is not None and self._in_blocks(layer):
            node = self._blockwise(layer, node)
        elif layer is not None:
            self._weight(layer, node)
        elif node.name in self.corrected_adds:
            index, shift = self.corrected_adds[node.name]
            node.input[index] = self._shifted(node.input[index], node.name, shift)
        for index, name in enumerate(node.output):
            if name in made:
                node.output[index] = f"{name}::raw"
        self.nodes.append(node)
        if node.name in self.barriers.after:
            target, node.output[0] = node.output[0], f"{node.output[0]}::raw"
            self._copied(node.output[0], target)
        for name in original.output:
            if name in made:
                self._pair(name, f"{name}::raw", name)
            elif name in quantized:
                self._pair(name, name, f"{name}::dq")

    def _pair(self, root: str, source: str, target: str) -> None:
        """``source -> QuantizeLinear -> root::q -> DequantizeLinear -> target`` with the scale of ``root``."""
        if root in self.unit:
            scale, zero_point = written_at(self.graph.producer[root])
            written = (scale, 0 if root in self.biased.values() else zero_point)
            self._codes(root, source, target, written, UNIT)
            return
        self._quantize(root, source, f"{root}::q")
        self._dequantize(root, root, target)

    def _codes(self, root: str, source: str, target: str, written: Affine, read: Affine) -> None:
        """A pair whose integers are written at one scale and read at another."""
        for suffix, (scale, zero_point) in (("w", written), ("", read)):
            self.stored.array(f"{root}::{suffix}s", np.asarray(scale, np.float32))
            self.stored.array(f"{root}::{suffix}z", np.asarray(zero_point, np.uint8))
        self._node("QuantizeLinear", [source, f"{root}::ws", f"{root}::wz"], f"{root}::q")
        self._dequantize(root, root, target)

    def _activation(self, node: onnx.NodeProto, root: str) -> bool:
        """Writes an activation on integers (see :mod:`autoq.model.activations`); ``False`` where the runtime does that.

        It stands right behind a layer or an operator that writes ``root``, or reads a quantized tensor.
        """
        source, reads_integers = node.input[0], node.name in self.placement.integer_nodes
        spec = self.placement.quantized[root]
        if spec.bits == 16:  # its targets cut off in the kernel before it, and have one for HardSwish
            return False
        if reads_integers and (read := self.root(source)) not in self.placement.integer_made:
            source = f"{source}::dq" if read in self.placement.quantized else source
        if node.op_type == "HardSigmoid" and not reads_integers:
            self._pair(root, source, root)
        elif node.op_type == "HardSigmoid":
            self._node("LeakyRelu", [source], f"{root}::raw", alpha=1.0)
            self._pair(root, f"{root}::raw", root)
        elif node.op_type == "HardSwish":
            self._hard_swish(node, source, root)
        elif reads_integers:
            self._node("LeakyRelu", [source], f"{root}::raw", alpha=slope(self.graph, node))
            self._pair(root, f"{root}::raw", root)
        elif spec.signed:
            # Unsigned, the runtime absorbs the float activation into the pair; signed it does not, and would run the
            # layer in float for it. With symmetric integers zero is zero, and a LeakyRelu has a kernel.
            raw = f"{root}::raw"
            self._quantize(root, source, f"{raw}::q")
            self._dequantize(raw, root, f"{raw}::dq")
            self._node("LeakyRelu", [f"{raw}::dq"], raw, alpha=0.0)
            self._pair(root, raw, root)
        else:
            return False
        return True

    def _hard_swish(self, node: onnx.NodeProto, source: str, root: str) -> None:
        gate, raw = f"{root}::gate", f"{root}::raw"
        self._node("LeakyRelu", [source], f"{gate}::raw", alpha=1.0)
        self._codes(gate, f"{gate}::raw", gate, written_at(node), UNIT)
        self._node("Mul", [source, gate], raw)
        self._pair(root, raw, root)

    def _quantize(self, root: str, source: str, target: str) -> None:
        spec = self.placement.quantized[root]
        scale, zero_point = self._affine(root, spec)
        self.stored.array(f"{root}::s", np.asarray(scale, np.float32))
        self.stored.array(f"{root}::z", np.asarray(zero_point, spec.dtype))
        self._node("QuantizeLinear", [source, f"{root}::s", f"{root}::z"], target)

    def _affine(self, root: str, spec: ActivationSpec) -> Affine:
        if root in self.unit:
            return UNIT
        try:
            return self.affines[root, spec]
        except KeyError:
            raise TrialError("build", f"tensor {root!r} has no calibrated range for {spec.calibration}") from None

    def _dequantize(self, tensor: str, root: str, target: str) -> None:
        self._node("DequantizeLinear", [f"{tensor}::q", f"{root}::s", f"{root}::z"], target)

    def _carry(self, original: onnx.NodeProto, root: str) -> None:
        """The same operator on the integers.

        Unsigned, it stands between Q and DQ. Signed, it stands between pairs, which the runtime takes away: on x86 it
        runs signed integers as unsigned ones, and turns them into such only where Q and DQ touch.
        """
        node = without_notes(original)
        node.name = f"{original.name}::q"
        selects = node.op_type == "Conv"  # by weights of 0 and 1, in an integer kernel: a form of Slice and Pad
        paired = selects or self.placement.quantized[root].signed
        node.input[0] = self._float_name(original.input[0], root) if paired else f"{original.input[0]}::q"
        if selects:
            weight = self._constant(original.input[1]).astype(np.int8)
            node.input[1] = self.stored.selection(original.input[1], weight)
        if node.op_type == "Pad" and not paired:  # zero, in integers, is the zero point
            while len(node.input) < 3:
                node.input.append("")
            node.input[2] = f"{root}::z"
        for index, name in enumerate(original.output):
            if name:
                node.output[index] = f"{name}::raw" if paired else f"{name}::q"
        self.nodes.append(node)
        for name in original.output:
            if name and paired:
                self._quantize(root, f"{name}::raw", f"{name}::q")
            if name:
                self._dequantize(name, root, self._float_name(name, root))

    def _float_name(self, tensor: str, root: str) -> str:
        """What the float form of ``tensor`` behind its pair is called."""
        return tensor if root in self.placement.integer_made else f"{tensor}::dq"

    def _weight(self, layer: Layer, node: onnx.NodeProto) -> None:
        scheme = self.policy[layer.name]
        if scheme.weight is None:
            return
        if scheme.weight.bits == 16:
            node.input[layer.weight_index] = self.stored.float16(layer, self._constant(layer.weight))
            self._short_bias(layer, node, None)
            return
        weight = self._banked(layer, scheme)
        shift = self._correction(layer, scheme)
        if scheme.activation is None:
            node.input[layer.weight_index] = self.stored.weight_only(layer, scheme.weight, weight)
            self._short_bias(layer, node, shift)
            return
        bias = self._bias(layer, shift)
        if layer.node in self.biased:
            gate = self.graph.producer[self.biased[layer.node]]
            line = np.full(layer.channels, attribute(gate, "beta", 0.5) / attribute(gate, "alpha", 0.2), np.float32)
            bias = line if bias is None else bias + line
        input_scale = self._affine(self.read(layer, scheme.activation), scheme.activation)[0]
        if layer.node in self.biased:
            scales = rescalable(np.atleast_1d(weight.scale), input_scale, written_at(gate)[0], UNIT[0])
            weight = dataclasses.replace(weight, scale=scales.reshape(weight.scale.shape))
        if scheme.activation.bits == 16 and bias is not None:
            # Beside steps this fine 32 bits are too few for integers, and float16 too coarse.
            self.stored.array(name := f"{layer.bias or layer.weight}::{layer.node}::f32", bias.astype(np.float32))
            _set_input(node, 2, name)
            bias = None
        node.input[layer.weight_index], bias_name = self.stored.integer(layer, scheme.weight, weight, bias, input_scale)
        if bias_name is not None:
            _set_input(node, 2, bias_name)

    def _biased(self) -> dict[str, str]:
        """Nodes of layers that a HardSigmoid stands right behind, and what that writes.

        The constant of its line is then part of the layer's bias, in steps far finer than those of a zero point, and
        TFLite, whose tensors have one zero point for writers and readers, writes the very same integers.
        """
        layers = [self.graph.nodes[layer.node] for layer in self.layer_at.values() if layer.op_type in ("Conv", "Gemm")]
        stored = {node.name: self.placer.stored(node) for node in layers if node.name in self.placement.integer_nodes}
        return {name: root for name, root in stored.items() if root in self.unit}

    def _short_bias(self, layer: Layer, node: onnx.NodeProto, shift: np.ndarray | None) -> None:
        """The bias of a layer with float activations: corrected, and stored as float16 where that is as good."""
        if shift is not None:
            _set_input(node, 2, self._shifted(layer.bias or f"{layer.weight}::bias", node.name, shift))
        elif layer.bias is not None and (value := self.graph.constant(layer.bias)) is not None:
            short = half(value)
            if short is not value:
                self.stored.array(f"{layer.bias}::bc", short)
                node.input[2] = f"{layer.bias}::bc"

    def _correction(self, layer: Layer, scheme: Scheme) -> np.ndarray | None:
        """What to add to the bias that the layer itself reads; an Add behind it gets its share when its turn comes."""
        assert scheme.weight is not None
        shift = self.corrections.get((layer.name, scheme.weight))
        if shift is None and scheme.weight.bias_correction:
            raise TrialError("build", f"layer {layer.name!r}: no correction of its bias for {scheme}")
        if shift is None or layer.op_type != "MatMul":
            return shift
        found = added_bias(self.graph, layer)
        assert found is not None, "no correction is offered to other layers"
        self.corrected_adds[found[0].name] = (found[1], shift)
        return None

    def _shifted(self, bias: str, node: str, shift: np.ndarray) -> str:
        """A constant of ``node``'s own: ``bias``, or nothing where there is none yet, and ``shift``."""
        value, name = self.graph.constant(bias), f"{bias}::{node}::bc"
        self.stored.array(name, half(shift if value is None else value + shift))
        return name

    def _strength(self, layer: Layer) -> float | None:
        activation = self.policy[layer.name].calibrated
        return None if activation is None else activation.smoothing

    def _divisor(self, layer: Layer, strength: float) -> np.ndarray:
        try:
            return self.smoothing[layer.name, strength]
        except KeyError:
            raise TrialError("build", f"layer {layer.name!r}: no scales to smooth its inputs by {strength:g}") from None

    def _smooth(self, layer: Layer) -> str:
        """The layer's input, smoothed and behind its pair; written once for all layers that read it so."""
        activation = self.policy[layer.name].calibrated
        assert activation is not None and activation.smoothing is not None
        name = smoothed_name(layer, activation.smoothing)
        if name not in self.smoothed:
            self.smoothed.add(name)
            source = layer.input
            if source not in {tensor for tensor, _ in self.absorbers.values()}:
                self.stored.array(f"{name}::f", np.float32(1) / self._divisor(layer, activation.smoothing))
                self._node("Mul", [source, f"{name}::f"], name)
                source = name
            scale, zero_point = self._affine(name, activation)
            self.stored.array(f"{name}::s", np.asarray(scale, np.float32))
            self.stored.array(f"{name}::z", np.asarray(zero_point, activation.dtype))
            self._node("QuantizeLinear", [source, f"{name}::s", f"{name}::z"], f"{name}::q")
            self._dequantize(name, name, f"{name}::dq")
        return f"{name}::dq"

    def _absorbers(self) -> dict[str, tuple[str, np.ndarray]]:
        """LayerNormalizations that divide in place of a Mul: node name -> the tensor, and by what."""
        readers: dict[tuple[str, float], list[Layer]] = {}
        for layer in self.layer_at.values():
            if (strength := self._strength(layer)) is not None:
                readers.setdefault((layer.input, strength), []).append(layer)
        found = {}
        for (tensor, strength), layers in readers.items():
            node = absorbing(self.graph, tensor, {layer.node for layer in layers})
            if node is not None and tensor not in self.placement.quantized:
                found[node.name] = (tensor, self._divisor(layers[0], strength))
        return found

    def _absorb(self, node: onnx.NodeProto) -> None:
        factor = np.float32(1) / self.absorbers[node.name][1]
        for index in (1, 2):
            if index < len(node.input) and node.input[index]:
                name = f"{node.input[index]}::{node.name}::f"
                self.stored.array(name, self._constant(node.input[index]) * factor)
                node.input[index] = name

    def _at_run_time(self, layer: Layer) -> bool:
        activation = self.policy[layer.name].activation
        return activation is not None and activation.dynamic

    def _dynamic(self, layer: Layer, node: onnx.NodeProto) -> onnx.NodeProto:
        """The product of integers whose ranges are found at run time; returns the last of its nodes."""
        scheme = self.policy[layer.name]
        assert scheme.weight is not None
        tensor = node.input[0]
        if tensor not in self.ranged:
            self.nodes.append(found_range(tensor))
            self.ranged.add(tensor)
        matrix, scales = self.stored.integer_matrix(
            layer, scheme.weight, self._banked(layer, scheme), transposed=bool(attribute(node, "transB", 0))
        )
        *before, last = dynamic_product(node, tensor, matrix, scales, self._float_bias(layer, scheme))
        self.nodes += before
        return last

    def _short_floats(self, layer: Layer, node: onnx.NodeProto) -> onnx.NodeProto:
        """The product of bfloat16, float16 or 8-bit floats; returns the last of its nodes."""
        floats = self.policy[layer.name].floats
        assert floats is not None
        tensor = node.input[0]
        if (tensor, floats) not in self.shortened:
            self.shortened.add((tensor, floats))
            self.nodes += shortened(tensor, floats, self.stored)
        *before, last = short_product(
            node, layer, floats, self._constant(layer.weight), self._own_bias(layer), self.stored
        )
        self.nodes += before
        return last

    def _own_bias(self, layer: Layer) -> str | None:
        """The name of a layer's own bias, float32 ``[channels]``, where it has one."""
        bias = self._bias(layer, None)
        if bias is None:
            return None
        name = f"{layer.bias}::{layer.node}::f32"
        self.stored.array(name, bias)
        return name

    def _in_blocks(self, layer: Layer) -> bool:
        weight = self.policy[layer.name].weight
        return weight is not None and weight.block is not None

    def _blockwise(self, layer: Layer, node: onnx.NodeProto) -> onnx.NodeProto:
        scheme = self.policy[layer.name]
        assert scheme.weight is not None
        stored = self.stored.blocks(layer, scheme.weight, self._banked(layer, scheme))
        bias = self._float_bias(layer, scheme)
        return blockwise_product(node, layer, scheme.weight, stored, bias, self.accuracy_level)

    def _float_bias(self, layer: Layer, scheme: Scheme) -> str | None:
        """The name of a layer's own bias with its correction, float32 ``[channels]``."""
        bias = self._bias(layer, self._correction(layer, scheme))
        if bias is None:
            return None
        name = f"{layer.bias or layer.weight}::{layer.node}::f32"
        self.stored.array(name, bias)
        return name

    def _bias(self, layer: Layer, shift: np.ndarray | None) -> np.ndarray | None:
        """A layer's own bias with its correction, float32 ``[channels]``."""
        if layer.bias is None:
            return shift
        bias = np.broadcast_to(self._constant(layer.bias).reshape(-1), (layer.channels,))
        return bias if shift is None else bias + shift

    def _look_up(self, layer: Layer, node: onnx.NodeProto) -> onnx.NodeProto:
        """The look-up in a small table, and what makes float32 of the rows taken; returns the last of these nodes."""
        scheme = self.policy[layer.name]
        if scheme.weight is None:
            return node
        target, rows = node.output[0], f"{node.output[0]}::rows"
        if scheme.weight.bits == 16:
            self.stored.array(f"{layer.weight}::f16", self._constant(layer.weight).astype(np.float16))
            node.input[0], node.output[0] = f"{layer.weight}::f16", rows
            self.nodes.append(node)
            return helper.make_node("Cast", [rows], [target], f"{target}::Cast", to=TensorProto.FLOAT)
        if scheme.weight.rounding == "pq":
            codes = self._entry(layer, scheme)
            assert isinstance(codes, ProductCodes)
            *before, last = coded_look_up(node, codes, *self.stored.codes(layer, codes))
            self.nodes += before
            return last
        weight = self._banked(layer, scheme)
        if scheme.weight.block is not None:
            return blockwise_look_up(node, scheme.weight, self.stored.blocks(layer, scheme.weight, weight))
        integers, scales = self.stored.table(layer, scheme.weight, weight)
        node.input[0], node.output[0] = integers, rows
        self.nodes.append(node)
        self._node("Cast", [rows], f"{rows}::f32", to=TensorProto.FLOAT)
        if weight.axis is not None:
            self._node("Gather", [scales, node.input[1]], f"{rows}::s", axis=0)
            scales = f"{rows}::s"
        return helper.make_node("Mul", [f"{rows}::f32", scales], [target], f"{target}::Mul")

    def _banked(self, layer: Layer, scheme: Scheme) -> QuantizedWeight:
        entry = self._entry(layer, scheme)
        assert isinstance(entry, QuantizedWeight)
        return entry

    def _entry(self, layer: Layer, scheme: Scheme) -> Entry:
        assert scheme.weight is not None
        try:
            return self.bank[layer.tied_to or layer.name, scheme.weight]
        except KeyError:
            raise TrialError("build", f"layer {layer.name!r}: the bank has no {scheme} weights") from None

    def _constant(self, name: str) -> np.ndarray:
        value = self.graph.constant(name)
        assert value is not None, "read_layers takes constant weights only, and refuses integers for other biases"
        return value

    def _copied(self, source: str, target: str) -> str:
        self._node("Sum", [source], target)
        return target

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], f"{output}::{op_type}", **attributes))


def _set_input(node: onnx.NodeProto, index: int, name: str) -> None:
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = name
