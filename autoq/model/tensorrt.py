"""A candidate -> ONNX in TensorRT's explicit-quantization form, with the searched integers and scales as they are.

TensorRT quantizes where a file has QuantizeLinear and DequantizeLinear, and reads fewer forms of them than ONNX allows
(NVIDIA, "Explicit Quantization"; onnx-tensorrt, "Supported ONNX Operators"): signed integers, zero points of 0,
constant scales, float biases, no Cast to or from integers that are quantized. What a candidate has for ONNX Runtime's
sake is rewritten here:

* a Cast of a constant (scales, biases, float16 weights) is computed, and so is an int32 bias's DequantizeLinear;
* MatMulNBits of 4 bits becomes INT4 weights ``[K, N]``, DequantizeLinear in blocks along K, and MatMul. Blocks with a
  negative scale get a positive one, which may cost precision (:func:`autoq.numerics.blocks.with_positive_scales`);
* LeakyRelu with slope 0 is a Relu again, a Sum of two an Add, a Sum of one nothing;
* a file without INT4 has opset 20, which the first TensorRT 10 reads.

What cannot be rewritten (unsigned activations, ranges found at run time, 2 bits) is refused by
:func:`autoq.model.tensorrt_check.require`, which names the rule. The file runs in ONNX Runtime on the CPU, too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.errors import TrialError
from autoq.model.graph import attribute
from autoq.model.tensorrt_check import require
from autoq.numerics.blocks import with_positive_scales
from autoq.numerics.packing import pack_int4

_OPSET, _IR_VERSION = 20, 9
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def to_tensorrt(candidate: bytes) -> bytes:
    """The file for TensorRT of a candidate's bytes. Equal bytes give equal bytes.

    Raises :class:`~autoq.errors.TrialError` (``build``) where the candidate has what TensorRT does not read.
    """
    rewriting = _Rewriting(onnx.ModelProto.FromString(candidate))
    model = rewriting.model()
    require(model)
    return model.SerializeToString(deterministic=True)


class _Rewriting:
    """One file in the making; ``renamed`` maps tensors to what stands for them."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self.source = source
        self.constants = {tensor.name: tensor for tensor in source.graph.initializer}
        self.kept = {value.name for value in source.graph.output}
        self.renamed: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def model(self) -> onnx.ModelProto:
        for original in self.source.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for index, name in enumerate(node.input):
                node.input[index] = self.renamed.get(name, name)
            self._place(node)
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        used = {name for node in self.nodes for name in (*node.input, *_read_inside(node))} | self.kept
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        if all(node.domain in ("", "ai.onnx") for node in self.nodes):
            standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
            del model.opset_import[:]
            model.opset_import.extend(standard)
        _lower_opset(model)
        return model

    def _place(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Cast" and self._folds_to_float(node):
            self._fold(node, numpy_helper.to_array(self.constants[node.input[0]]).astype(np.float32))
        elif node.op_type == "DequantizeLinear" and self._is_bias(node):
            self._fold(node, self._dequantized(node))
        elif node.op_type == "Sum" and len(node.input) == 1:
            self._skip(node)
        elif node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"
            self.nodes.append(node)
        elif node.op_type == "LeakyRelu" and attribute(node, "alpha", 0.01) == 0:
            node.op_type = "Relu"
            del node.attribute[:]
            self.nodes.append(node)
        elif node.op_type == "MatMulNBits" and attribute(node, "bits") == 4:
            self._blockwise(node)
        else:
            self.nodes.append(node)

    def _folds_to_float(self, node: onnx.NodeProto) -> bool:
        constant = self.constants.get(node.input[0])
        return constant is not None and constant.data_type in _FLOATS and attribute(node, "to") == TensorProto.FLOAT

    def _is_bias(self, node: onnx.NodeProto) -> bool:
        constant = self.constants.get(node.input[0])
        return constant is not None and constant.data_type == TensorProto.INT32 and node.input[1] in self.constants

    def _dequantized(self, node: onnx.NodeProto) -> np.ndarray:
        """An int32 bias ``[channels]`` in float32; its scale is one number or has as many."""
        values = numpy_helper.to_array(self.constants[node.input[0]]).astype(np.float64)
        return (values * numpy_helper.to_array(self.constants[node.input[1]]).astype(np.float64)).astype(np.float32)

    def _fold(self, node: onnx.NodeProto, value: np.ndarray) -> None:
        name = node.output[0]
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def _skip(self, node: onnx.NodeProto) -> None:
        if node.output[0] in self.kept:  # an output's name is the model's own
            node.op_type = "Identity"
            self.nodes.append(node)
        else:
            self.renamed[node.output[0]] = node.input[0]

    def _blockwise(self, node: onnx.NodeProto) -> None:
        """MatMulNBits: uint8 ``[N, K / block, block / 2]`` around a zero point of 8, scales ``[N * K / block]``."""
        k, n, block = (int(attribute(node, name)) for name in ("K", "N", "block_size"))
        problem = ""
        if len(node.input) > 3 and node.input[3]:
            problem = "has zero points, and TensorRT's are 0: take a scheme without '-asym'"
        elif k % block:
            problem = f"has blocks of {block} that do not divide its {k} inputs, as TensorRT's must"
        elif n % 2:
            problem = f"has {n} outputs, and TensorRT packs INT4 weights by two along them"
        if problem:
            raise TrialError("build", f"node {node.name!r} {problem}")
        packed = numpy_helper.to_array(self.constants[node.input[1]]).reshape(n, k // 2)
        values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, k).astype(np.int8) - np.int8(8)
        scales = numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float32).reshape(n, k // block)
        values, scales = with_positive_scales(values, scales, bits=4, block=block)
        stem, out = node.input[1], node.output[0]
        weight, scale, made = f"{stem}::int4", f"{stem}::int4::s", f"{stem}::int4::dq"
        if weight not in self.constants:
            self.constants[weight] = TensorProto(
                name=weight, data_type=TensorProto.INT4, dims=(k, n), raw_data=pack_int4(np.ascontiguousarray(values.T))
            )
            self.constants[scale] = numpy_helper.from_array(np.ascontiguousarray(scales.T), scale)
            self.nodes.append(helper.make_node("DequantizeLinear", [weight, scale], [made], axis=0, block_size=block))
        bias = node.input[5] if len(node.input) > 5 else ""
        product = f"{out}::product" if bias else out
        self.nodes.append(helper.make_node("MatMul", [node.input[0], made], [product], node.name))
        if bias:
            self.nodes.append(helper.make_node("Add", [product, bias], [out], f"{node.name}::bias"))


def _read_inside(node: onnx.NodeProto) -> Iterable[str]:
    """What the bodies of If, Loop and Scan read."""
    for entry in node.attribute:
        for body in [entry.g] if entry.HasField("g") else list(entry.graphs):
            for inner in body.node:
                yield from inner.input
                yield from _read_inside(inner)
            yield from (value.name for value in body.output)


def _lower_opset(model: onnx.ModelProto) -> None:
    """Opset 20 in place of 21, where nothing needs that: from one to the other operators only gained types (ONNX,
    Changelog), but for GroupNormalization, and the blocks of quantization."""
    entry = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    needed = any(tensor.data_type == TensorProto.INT4 for tensor in model.graph.initializer) or any(
        node.op_type == "GroupNormalization"
        or any(given.name in ("block_size", "output_dtype") for given in node.attribute if given.i)
        for node in model.graph.node
    )
    if entry.version == 21 and not needed:
        entry.version = _OPSET
        model.ir_version = min(model.ir_version, _IR_VERSION)
