"""Policy + calibrated ranges + quantized weights -> the ONNX file that is scored and shipped.

The forms are those that stock ONNX Runtime executes fast (measured; see docs/lowering.md):

* 8-bit activations: ``QuantizeLinear -> DequantizeLinear`` pairs that the runtime fuses into integer kernels, with
  carry operators (Reshape, Slice, Pad, …) between the two, on the integers themselves;
* 4- and 2-bit weights of integer layers: ``Cast`` to int8, which folds when the session loads, then
  ``DequantizeLinear``: full int8 speed at 4 or 2 bits on disk;
* weight-only: ``Cast`` to float32 and ``Mul`` by the scales, both folded when the session loads: full float speed;
* float16: one ``Cast``, folded likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import ActivationSpec, Scheme, WeightSpec
from autoq.errors import TrialError
from autoq.model.graph import Graph
from autoq.model.operators import is_carry
from autoq.model.placement import Placement, Placer
from autoq.numerics.packing import pack_int2, pack_int4
from autoq.numerics.weights import QuantizedWeight

Affine = tuple[np.float32, int]
"""Scale and zero point of one tensor."""

INT2_OPSET, INT2_IR_VERSION = 25, 13
"""2-bit integers came with opset 25 (ONNX 1.20). Between 21 and 25 operators only gained types, so the graph of a
candidate with 2-bit weights is the same graph under a later number."""

_INT32_MAX = 2**31 - 1


@dataclass(slots=True)
class Lowering:
    """Builds candidates over one prepared graph.

    ``affines`` maps (root tensor, its :class:`ActivationSpec`) to scale and zero point; ``bank`` maps (layer name,
    :class:`WeightSpec`) to quantized weights. Both hold whatever the space can ask for.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    affines: Mapping[tuple[str, ActivationSpec], Affine]
    bank: Mapping[tuple[str, WeightSpec], QuantizedWeight]
    placer: Placer = field(init=False)

    def __post_init__(self) -> None:
        self.placer = Placer(self.graph, self.layers)

    def canonical(self, policy: Policy) -> Policy:
        """See :meth:`autoq.model.placement.Placer.canonical`."""
        return self.placer.canonical(policy)

    def build(self, policy: Policy) -> bytes:
        """The serialized ONNX model of a canonical policy. The same policy gives the same bytes.

        Raises :class:`TrialError` (``build``) when the policy needs statistics or weights that were not prepared.
        """
        return _Builder(self, dict(policy), self.placer.place(dict(policy))).build()

    def affine_of(self, policy: Policy) -> dict[str, Affine]:
        """Root tensor -> scale and zero point: what the manifest records."""
        quantized = self.placer.place(dict(policy)).quantized
        return {tensor: self.affines[tensor, spec] for tensor, spec in quantized.items()}


class _Builder:
    """One candidate in the making: nodes and initializers in the order in which they will stand."""

    def __init__(self, lowering: Lowering, policy: dict[str, Scheme], placement: Placement) -> None:
        self.graph = lowering.graph
        self.policy = policy
        self.placement = placement
        self.affines = lowering.affines
        self.bank = lowering.bank
        self.root = lowering.placer.root
        self.layer_at = {layer.node: layer for layer in lowering.layers}
        self.stems = _stems(lowering.layers)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.written: set[str] = set()

    def build(self) -> bytes:
        source = self.graph.model
        for name in self.graph.inputs:
            if name in self.placement.quantized:
                self._pair(name, name, f"{name}::dq")
        for node in source.graph.node:
            self._place(node)
        model = onnx.ModelProto(ir_version=source.ir_version, producer_name="autoq")
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        graph = model.graph
        graph.name = source.graph.name
        graph.input.extend(value for value in source.graph.input if value.name not in self.graph.initializers)
        graph.output.extend(source.graph.output)
        nodes = self._live_nodes()
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | self.graph.captured | self.graph.outputs
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in used)
        graph.initializer.extend(tensor for name, tensor in self.graph.initializers.items() if name in used)
        if any(tensor.data_type == TensorProto.INT2 for tensor in self.initializers.values()):
            model.ir_version = max(model.ir_version, INT2_IR_VERSION)
            for entry in model.opset_import:
                if entry.domain in ("", "ai.onnx"):
                    entry.version = max(entry.version, INT2_OPSET)
        return model.SerializeToString(deterministic=True)

    def _place(self, original: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        quantized, made = self.placement.quantized, self.placement.integer_made
        if is_carry(self.graph, node) and (root := self.root(node.output[0])) in quantized:
            if root not in made:
                self.nodes.append(node)  # float readers keep the float path; unread, it is dropped below
            self._carry(original, root)
            return
        if node.name in self.placement.integer_nodes:
            for index, name in enumerate(node.input):
                if name and (root := self.root(name)) in quantized and root not in made:
                    node.input[index] = f"{name}::dq"
        layer = self.layer_at.get(node.name)
        if layer is not None:
            self._weight(layer, node)
        for index, name in enumerate(node.output):
            if name in made:
                node.output[index] = f"{name}::raw"
        self.nodes.append(node)
        for name in original.output:
            if name in made:
                self._pair(name, f"{name}::raw", name)
            elif name in quantized:
                self._pair(name, name, f"{name}::dq")

    def _pair(self, root: str, source: str, target: str) -> None:
        """``source -> QuantizeLinear -> root::q -> DequantizeLinear -> target`` with the scale of ``root``."""
        spec = self.placement.quantized[root]
        try:
            scale, zero_point = self.affines[root, spec]
        except KeyError:
            raise TrialError("build", f"tensor {root!r} has no calibrated range for {spec.calibration}") from None
        self._initializer(f"{root}::s", np.asarray(scale, np.float32))
        self._initializer(f"{root}::z", np.asarray(zero_point, np.int8 if spec.signed else np.uint8))
        self._node("QuantizeLinear", [source, f"{root}::s", f"{root}::z"], f"{root}::q")
        self._dequantize(root, root, target)

    def _dequantize(self, tensor: str, root: str, target: str) -> None:
        self._node("DequantizeLinear", [f"{tensor}::q", f"{root}::s", f"{root}::z"], target)

    def _carry(self, original: onnx.NodeProto, root: str) -> None:
        """The same operator between Q and DQ, on the integers."""
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.name = f"{original.name}::q"
        node.input[0] = f"{original.input[0]}::q"
        if node.op_type == "Pad":  # zero, in integers, is the zero point
            while len(node.input) < 3:
                node.input.append("")
            node.input[2] = f"{root}::z"
        for index, name in enumerate(original.output):
            if name:
                node.output[index] = f"{name}::q"
        self.nodes.append(node)
        for name in original.output:
            if name:
                self._dequantize(name, root, name if root in self.placement.integer_made else f"{name}::dq")

    def _weight(self, layer: Layer, node: onnx.NodeProto) -> None:
        scheme = self.policy[layer.name]
        if scheme.weight is None:
            return
        if scheme.weight.bits == 16:
            node.input[layer.weight_index] = self._float16(layer)
            return
        try:
            weight = self.bank[layer.tied_to or layer.name, scheme.weight]
        except KeyError:
            raise TrialError("build", f"layer {layer.name!r}: the bank has no {scheme} weights") from None
        if scheme.activation is None:
            node.input[layer.weight_index] = self._weight_only(layer, scheme.weight, weight)
            return
        stem = self.stems[layer.tied_to or layer.name]
        if layer.bias is not None:
            input_scale = self.affines[self.root(layer.input), scheme.activation][0]
            roomy = _with_room_for_bias(weight, input_scale, self._constant(layer.bias))
            node.input[2] = self._bias(layer, roomy, input_scale)
            if roomy is not weight:  # scales of this layer's own, also where the weight itself is shared
                weight, stem = roomy, f"{layer.weight}::{layer.node}"
        # Without a written zero point ONNX Runtime leaves Gemm and MatMul in float; for Conv it is a wasted byte a channel.
        zero_point = layer.op_type != "Conv"
        node.input[layer.weight_index] = self._integer_weight(stem, scheme.weight, weight, zero_point=zero_point)

    def _constant(self, name: str) -> np.ndarray:
        value = self.graph.constant(name)
        assert value is not None, "read_layers refuses integer kernels for a bias that is not constant"
        return value

    def _float16(self, layer: Layer) -> str:
        target = f"{layer.weight}::f16::f32"
        if target not in self.written:
            self.written.add(target)
            self._initializer(f"{layer.weight}::f16", self._constant(layer.weight).astype(np.float16))
            self._node("Cast", [f"{layer.weight}::f16"], target, to=TensorProto.FLOAT)
        return target

    def _weight_only(self, layer: Layer, spec: WeightSpec, weight: QuantizedWeight) -> str:
        stem = self.stems[layer.tied_to or layer.name]
        target = f"{stem}::f32"
        if target not in self.written:
            self.written.add(target)
            self._stored(f"{stem}::w", spec.bits, weight.values)
            self._initializer(f"{stem}::s", weight.scale.reshape(_broadcast_shape(weight)))
            self._node("Cast", [f"{stem}::w"], f"{stem}::c", to=TensorProto.FLOAT)
            self._node("Mul", [f"{stem}::c", f"{stem}::s"], target)
        return target

    def _integer_weight(self, stem: str, spec: WeightSpec, weight: QuantizedWeight, *, zero_point: bool) -> str:
        if f"{stem}::dq" in self.written:
            return f"{stem}::dq"
        self.written.add(f"{stem}::dq")
        self._stored(f"{stem}::w", spec.bits, weight.values)
        integers = f"{stem}::w"
        if spec.bits < 8:
            integers = f"{stem}::i8"
            self._node("Cast", [f"{stem}::w"], integers, to=TensorProto.INT8)
        scale = weight.scale if weight.axis is not None else weight.scale.reshape(())
        self._initializer(f"{stem}::s", scale)
        inputs = [integers, f"{stem}::s"]
        if zero_point:
            self._initializer(f"{stem}::z", np.zeros(scale.shape, np.int8))
            inputs.append(f"{stem}::z")
        self._dequantize_constant(inputs, f"{stem}::dq", weight.axis)
        return f"{stem}::dq"

    def _bias(self, layer: Layer, weight: QuantizedWeight, input_scale: np.float32) -> str:
        # int32 at the product of both scales, as the integer kernels add it (ONNX QLinearConv).
        assert layer.bias is not None
        stem = f"{layer.bias}::{layer.node}"
        scale = (np.float32(input_scale) * weight.scale).astype(np.float32)
        values = np.rint(self._constant(layer.bias).astype(np.float64) / scale.astype(np.float64))
        self._initializer(f"{stem}::b", np.clip(values, -_INT32_MAX, _INT32_MAX).astype(np.int32))
        self._initializer(f"{stem}::s", scale if weight.axis is not None else scale.reshape(()))
        self._dequantize_constant([f"{stem}::b", f"{stem}::s"], f"{stem}::dq", None if weight.axis is None else 0)
        return f"{stem}::dq"

    def _dequantize_constant(self, inputs: list[str], target: str, axis: int | None) -> None:
        self._node("DequantizeLinear", inputs, target, **({} if axis is None else {"axis": axis}))

    def _stored(self, name: str, bits: int, values: np.ndarray) -> None:
        if bits == 8:
            self._initializer(name, values)
            return
        kind, pack = {4: (TensorProto.INT4, pack_int4), 2: (TensorProto.INT2, pack_int2)}[bits]
        self.initializers[name] = TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=pack(values))

    def _initializer(self, name: str, value: np.ndarray) -> None:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: int) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}::{op_type}", **attributes))

    def _live_nodes(self) -> list[onnx.NodeProto]:
        needed = set(self.graph.outputs) | set(self.graph.captured)
        live: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                needed.update(node.input)
                live.append(node)
        return live[::-1]


def _with_room_for_bias(weight: QuantizedWeight, input_scale: np.float32, bias: np.ndarray) -> QuantizedWeight:
    """Raises the scale of channels whose bias would not fit 32 bits; their weights are tiny beside the bias."""
    least = np.abs(bias.astype(np.float64)) / (float(input_scale) * 2.0**30)
    if weight.axis is None:
        least = least.max(initial=0.0, keepdims=True)
    scale = np.maximum(weight.scale.astype(np.float64), least)
    if (scale == weight.scale).all():
        return weight
    shrunk = np.rint(weight.values * (weight.scale.astype(np.float64) / scale).reshape(_broadcast_shape(weight)))
    return QuantizedWeight(values=shrunk.astype(np.int8), scale=scale.astype(np.float32), axis=weight.axis, bits=weight.bits)


def _broadcast_shape(weight: QuantizedWeight) -> list[int]:
    """The shape in which the scales broadcast over the values."""
    if weight.axis is None:
        return []
    return [-1 if axis == weight.axis else 1 for axis in range(weight.values.ndim)]


def _stems(layers: tuple[Layer, ...]) -> dict[str, str]:
    """Layer name -> the name its stored tensors begin with: the weight's, and the node's where weights are shared."""
    first: dict[str, str] = {}
    for layer in layers:
        first.setdefault(layer.weight, layer.name)
    return {
        layer.name: layer.weight if first[layer.weight] == layer.name else f"{layer.weight}::{layer.node}"
        for layer in layers
    }
