"""How weights and biases are stored in a candidate, and the nodes that turn them into what a layer reads.

Everything here hangs on constants alone, so it stands at the start of the graph. Every stored tensor's name begins with
the weight's own, which is how a reader of the file finds it again:

* ``WEIGHT::w``, ``::s``, ``::z``: integers, scales and zero points;
* ``WEIGHT::book``: the int8 codebook that unsigned ``::w`` are indices into;
* ``WEIGHT::codes``, ``::centroids``, ``::first``: codes, what they stand for, where each run of columns begins in that;
* ``WEIGHT::f16``: float16;
* ``BIAS::NODE::b``, ``::s``: a Gemm's int32 bias and its scales, or a Conv's float one; ``BIAS::NODE::bc`` a corrected
  one, ``BIAS::bc`` a rounded one. A layer that had none has one named after its weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.numerics.affine import MIN_SCALE, half
from autoq.numerics.codebook import grid
from autoq.numerics.packing import pack_indices, pack_int2, pack_int4, pack_rows
from autoq.numerics.product import ProductCodes
from autoq.numerics.weights import QuantizedWeight

_INT32_MAX = 2**31 - 1
_LARGEST_BIAS = 2.0**30  # leaves the other half of int32 to the products


class Stored:
    """The constants of one candidate: ``initializers`` by name, and ``nodes`` over them."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._stems = _stems(layers)
        self._written: set[str] = set()

    def float16(self, layer: Layer, weight: np.ndarray) -> str:
        """The tensor a layer reads whose weight is stored as float16; the Cast folds when the session loads."""
        target = f"{layer.weight}::f16::f32"
        if self._begin(target):
            self.array(f"{layer.weight}::f16", weight.astype(np.float16))
            self._node("Cast", [f"{layer.weight}::f16"], target, to=TensorProto.FLOAT)
        return target

    def weight_only(self, layer: Layer, spec: WeightSpec, weight: QuantizedWeight) -> str:
        """The tensor a float layer reads. Cast and Mul fold when the session loads; DequantizeLinear would not."""
        stem = self._stem(layer)
        target = f"{stem}::f32"
        if self._begin(target):
            if weight.codebook is None:
                integers = f"{stem}::w"
                self._integers(integers, spec.stored_bits, weight.values)
            else:
                integers = self._int8(stem, spec, weight)
            self.array(f"{stem}::s", weight.scale.reshape(_broadcast_shape(weight)))
            self._node("Cast", [integers], f"{stem}::c", to=TensorProto.FLOAT)
            self._node("Mul", [f"{stem}::c", f"{stem}::s"], target)
        return target

    def table(self, layer: Layer, spec: WeightSpec, weight: QuantizedWeight) -> tuple[str, str]:
        """The integers and the scales that a look-up reads; it dequantizes the rows that it takes, not the table.

        So the table stays small in memory, too: 4 and 2 bits are widened to int8 when the session loads, no further.
        """
        stem = self._stem(layer)
        self.array(f"{stem}::s", weight.scale.reshape(_broadcast_shape(weight)))
        return self._int8(stem, spec, weight), f"{stem}::s"

    def integer(
        self,
        layer: Layer,
        spec: WeightSpec,
        weight: QuantizedWeight,
        bias: np.ndarray | None,
        input_scale: np.float32,
    ) -> tuple[str, str | None]:
        """The weight and bias tensors that an integer layer reads.

        ``bias`` is float32 ``[channels]``, or ``None``; the integer kernels add it as int32 at the product of the
        input's and the weight's scale (ONNX, QLinearConv).
        """
        stem = self._stem(layer)
        target = None
        if bias is not None:
            roomy = _with_room_for_bias(weight, input_scale, bias)
            if roomy is not weight:  # scales of this layer's own, also where the weight itself is shared
                weight, stem = roomy, f"{layer.weight}::{layer.node}"
            target = self._bias(layer, weight, bias, input_scale)
        # Without a written zero point ONNX Runtime leaves Gemm and MatMul in float; a Conv needs none.
        return self._integer_weight(stem, spec, weight, zero_point=layer.op_type != "Conv"), target

    def integer_matrix(
        self, layer: Layer, spec: WeightSpec, weight: QuantizedWeight, *, transposed: bool
    ) -> tuple[str, str]:
        """The int8 matrix ``[K, N]`` and its scales (``[N]``, or one) that an integer product reads.

        ``transposed`` says that the weight is ``[N, K]``. What turns it round and widens 4 and 2 bits folds when the
        session loads.
        """
        stem = self._stem(layer)
        name = self._int8(stem, spec, weight)
        if transposed and self._begin(f"{stem}::t"):
            self._node("Transpose", [name], f"{stem}::t", perm=[1, 0])
        self._scale(stem, weight)
        return (f"{stem}::t" if transposed else name), f"{stem}::s"

    def blocks(self, layer: Layer, spec: WeightSpec, weight: QuantizedWeight) -> tuple[str, str, str]:
        """Packed integers, scales and zero points (or nothing) as MatMulNBits and GatherBlockQuantized read them.

        Integers are unsigned, uint8 ``[channels, blocks, bytes]``, for a table ``[rows, bytes]``, with a zero point of
        ``2**(bits - 1)`` where none is stored; a channel's last block is filled up with what stands for zero.
        """
        assert weight.block is not None and weight.axis is not None
        stem, half = self._stem(layer), 1 << (spec.bits - 1)
        if self._begin(f"{stem}::w"):
            zeros = np.zeros(weight.scale.shape, np.int8) if weight.zero_point is None else weight.zero_point
            rows = np.moveaxis(weight.values, weight.axis, 0).reshape(len(weight.scale), -1)
            if layer.op_type != "Gather":
                padded = np.repeat(zeros, weight.block, axis=1)
                padded[:, : rows.shape[1]] = rows
                rows = padded.reshape(*weight.scale.shape, weight.block)
            self.array(f"{stem}::w", pack_rows((rows.astype(np.int16) + half).astype(np.uint8), spec.bits))
            if weight.zero_point is not None:
                self.array(f"{stem}::z", pack_rows((zeros.astype(np.int16) + half).astype(np.uint8), spec.bits))
            self.array(f"{stem}::s", weight.scale)
        return f"{stem}::w", f"{stem}::s", "" if weight.zero_point is None else f"{stem}::z"

    def selection(self, weight: str, values: np.ndarray) -> str:
        """The tensor that an integer convolution reads which only selects: ``values`` int8, 0 and 1, with scale 1."""
        target = f"{weight}::dq"
        if self._begin(target):
            self.array(f"{weight}::w", values)
            self.array(f"{weight}::s", np.asarray(1, np.float32))
            self._dequantize([f"{weight}::w", f"{weight}::s"], target, None)
        return target

    def codes(self, layer: Layer, entry: ProductCodes) -> tuple[str, str, str, str]:
        """Codes, centroids, where each run's begin, and scales, as a look-up in a table of codes reads them."""
        stem = self._stem(layer)
        if self._begin(f"{stem}::codes"):
            parts, count, sub = entry.centroids.shape
            self.array(f"{stem}::codes", entry.codes)
            self.array(f"{stem}::centroids", entry.centroids.reshape(parts * count, sub))
            self.array(f"{stem}::first", np.arange(0, parts * count, count, dtype=np.int32))
            self.array(f"{stem}::s", entry.scale[:, None])
        return f"{stem}::codes", f"{stem}::centroids", f"{stem}::first", f"{stem}::s"

    def array(self, name: str, value: np.ndarray) -> None:
        """Stores ``value`` unless something is stored under ``name`` already."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def _integer_weight(self, stem: str, spec: WeightSpec, weight: QuantizedWeight, *, zero_point: bool) -> str:
        target = f"{stem}::dq"
        if self._begin(target):
            integers, scale = self._int8(stem, spec, weight), self._scale(stem, weight)
            inputs = [integers, f"{stem}::s"]
            if zero_point:
                self.array(f"{stem}::z", np.zeros(scale.shape, np.int8))
                inputs.append(f"{stem}::z")
            self._dequantize(inputs, target, weight.axis)
        return target

    def _int8(self, stem: str, spec: WeightSpec, weight: QuantizedWeight) -> str:
        """The tensor that holds the integers as int8, in the weight's own shape.

        What makes it of fewer bits folds when the session loads: int8 kernels, 4 or 2 bits on disk.
        """
        if self._begin(f"{stem}::i8"):
            if weight.codebook is not None:
                self._indices(f"{stem}::w", spec.bits, weight.indices)
                self.array(f"{stem}::book", weight.codebook)
                self._node("Cast", [f"{stem}::w"], f"{stem}::i32", to=TensorProto.INT32)
                self._node("Gather", [f"{stem}::book", f"{stem}::i32"], f"{stem}::i8", axis=0)
            else:
                self._integers(f"{stem}::w", spec.stored_bits, weight.values)
                if spec.stored_bits < 8:
                    self._node("Cast", [f"{stem}::w"], f"{stem}::i8", to=TensorProto.INT8)
        return f"{stem}::w" if spec.stored_bits == 8 else f"{stem}::i8"

    def _scale(self, stem: str, weight: QuantizedWeight) -> np.ndarray:
        scale = weight.scale if weight.axis is not None else weight.scale.reshape(())
        self.array(f"{stem}::s", scale)
        return scale

    def _bias(self, layer: Layer, weight: QuantizedWeight, bias: np.ndarray, input_scale: np.float32) -> str:
        stem = f"{layer.bias or layer.weight}::{layer.node}"
        if layer.op_type == "Conv":  # the runtime rounds it, as below, when the session loads
            self.array(f"{stem}::b", half(bias))
            return f"{stem}::b"
        scale = (np.float32(input_scale) * weight.scale).astype(np.float32)
        values = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        self.array(f"{stem}::b", np.clip(values, -_INT32_MAX, _INT32_MAX).astype(np.int32))
        self.array(f"{stem}::s", scale if weight.axis is not None else scale.reshape(()))
        self._dequantize([f"{stem}::b", f"{stem}::s"], f"{stem}::dq", None if weight.axis is None else 0)
        return f"{stem}::dq"

    def _stem(self, layer: Layer) -> str:
        return self._stems[layer.tied_to or layer.name]

    def _begin(self, target: str) -> bool:
        """Whether ``target`` is still to be written; shared weights are written once."""
        fresh = target not in self._written
        self._written.add(target)
        return fresh

    def _dequantize(self, inputs: list[str], target: str, axis: int | None) -> None:
        self._node("DequantizeLinear", inputs, target, **({} if axis is None else {"axis": axis}))

    def _integers(self, name: str, bits: int, values: np.ndarray) -> None:
        if bits == 8:
            self.array(name, values)
            return
        kind, pack = {4: (TensorProto.INT4, pack_int4), 2: (TensorProto.INT2, pack_int2)}[bits]
        self.initializers[name] = TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=pack(values))

    def _indices(self, name: str, bits: int, values: np.ndarray) -> None:
        kind = {4: TensorProto.UINT4, 2: TensorProto.UINT2}[bits]
        packed = pack_indices(values, bits)
        self.initializers[name] = TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=packed)

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], f"{output}::{op_type}", **attributes))


def _with_room_for_bias(weight: QuantizedWeight, input_scale: np.float32, bias: np.ndarray) -> QuantizedWeight:
    """Raises the scale of channels whose bias would not fit 32 bits; their weights are tiny beside the bias.

    Nor may the bias's own scale, the product of both, vanish.
    """
    step = float(input_scale)
    least = np.maximum(np.abs(bias.astype(np.float64)) / (step * _LARGEST_BIAS), 2 * float(MIN_SCALE) / step)
    if weight.axis is None:
        least = least.max(initial=0.0, keepdims=True)
    old = weight.scale.astype(np.float64)
    scale = np.minimum(np.maximum(old, least), float(np.finfo(np.float32).max))
    if (scale == old).all():
        return weight
    shrunk = weight.values * (old / scale).reshape(_broadcast_shape(weight))
    levels = np.rint(shrunk) if weight.codebook is None else grid(weight.codebook.astype(np.float64))(shrunk)
    return dataclasses.replace(weight, values=levels.astype(np.int8), scale=scale.astype(np.float32))


def _broadcast_shape(weight: QuantizedWeight) -> list[int]:
    """The shape in which the scales broadcast over the values."""
    if weight.axis is None:
        return []
    return [-1 if axis == weight.axis else 1 for axis in range(weight.values.ndim)]


def _stems(layers: Sequence[Layer]) -> Mapping[str, str]:
    """Layer name -> the name its stored tensors begin with: the weight's, and the node's where weights are shared."""
    first: dict[str, str] = {}
    for layer in layers:
        first.setdefault(layer.weight, layer.name)
    return {
        layer.name: layer.weight if first[layer.weight] == layer.name else f"{layer.weight}::{layer.node}"
        for layer in layers
    }
