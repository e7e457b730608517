"""Whether the weights that a layer reads in a file are those that its scheme asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from autoq.core.scheme import IN_BYTES, Scheme
from autoq.numerics.product import width
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.runtime.executed import LayerNames
from autoq.runtime.litert_executed import TfliteLayer, layers_of

# What stands between a stored weight and the layer that reads it.
_UNPACKING = frozenset(["Cast", "DequantizeLinear", "Gather", "Mul", "Pad", "Transpose"])
_STORED = {8: TensorProto.INT8, 4: TensorProto.INT4, 2: TensorProto.INT2, 16: TensorProto.FLOAT16}
_SHORT = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "fp8": TensorProto.FLOAT8E4M3FN}
_INDICES = {4: TensorProto.UINT4, 2: TensorProto.UINT2}

WeightProblem = Callable[[Mapping[str, Any]], str]
"""From a layer's record in the manifest to what is wrong with its weight in the file, or nothing."""


def onnx_weights(model: bytes, layers: Sequence[LayerNames]) -> WeightProblem:
    """What judges the weights in an ONNX file."""
    graph = onnx.ModelProto.FromString(model).graph
    return lambda record: _weight_problem(record, graph)


def tflite_weights(model: bytes, layers: Sequence[LayerNames]) -> WeightProblem:
    """What judges the weights in a TFLite file, where all integers have 8 bits: fewer show in their values."""
    found = layers_of(model, layers)
    return lambda record: _tflite_problem(Scheme.parse(record["scheme"]), found.get(record["layer"]))


STORED: Mapping[str, Callable[[bytes, Sequence[LayerNames]], WeightProblem]] = {
    ".onnx": onnx_weights,
    ".tflite": tflite_weights,
}
"""Suffix of a file -> what reads the weights in it."""


def _tflite_problem(scheme: Scheme, layer: TfliteLayer | None) -> str:
    if layer is None:
        return "the file has no operator that reads its weight"
    if scheme.weight is None or layer.types[1] != "INT8":
        return f"asked for {scheme}, the file holds {layer.types[1]}"
    if np.any(layer.zero_points):
        return f"asked for {scheme}, the file's weights have zero points"
    if scheme.weight.granularity == "tensor" and len(np.unique(layer.scales)) > 1:
        return f"asked for one scale, the file has {len(np.unique(layer.scales))}"
    bits, values = scheme.weight.bits, layer.weights
    if scheme.weight.rounding == "kmeans":
        count = len(np.unique(values))
        return f"asked for {2**bits} values, the file's weights have {count}" if count > 2**bits else ""
    low, high = WEIGHT_LEVELS[bits]
    if values.min(initial=0) < low or values.max(initial=0) > high:
        return f"asked for {bits}-bit weights, the file's go from {values.min()} to {values.max()}"
    return ""


def _weight_problem(record: Mapping[str, Any], graph: onnx.GraphProto) -> str:
    """What is wrong with the weight that a layer's node reads in the file, or nothing."""
    scheme, weight = Scheme.parse(record["scheme"]), record["weight"]
    producers = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    node = next((node for node in graph.node if node.name == record["node"]), None)
    if node is None or record["weight_index"] >= len(node.input):
        return "the file has no such node"
    name = node.input[record["weight_index"]]
    while name in producers and producers[name].op_type in _UNPACKING:
        unpacking = producers[name]
        name = unpacking.input[1 if unpacking.op_type == "Gather" else 0]  # a codebook's indices
    if name not in stored:
        return "its weight is computed at every inference, from no stored one"
    if name != weight and not name.startswith(f"{weight}::"):
        return f"reads the weight {name!r}, not its own"
    if scheme.weight is not None and scheme.weight.block is not None:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        if (given.get("bits"), given.get("block_size")) != (scheme.weight.bits, scheme.weight.block):
            return f"asked for {scheme}, the file's {node.op_type} has other bits or blocks"
        return ""
    kind = TensorProto.DataType.Name(stored[name].data_type)
    coded = scheme.weight is not None and scheme.weight.rounding == "kmeans"
    expected = (_INDICES if coded else _STORED).get(32 if scheme.weight is None else scheme.weight.stored_bits)
    if scheme.floats is not None:
        expected = _SHORT[scheme.floats]
    if scheme.weight is not None and scheme.weight.rounding == "pq":
        columns = _columns_of_a_code(graph, name)
        if stored[name].data_type != TensorProto.UINT8 or columns != width(scheme.weight.bits):
            return f"asked for {scheme}, the file holds {kind} with {columns or 'no'} columns to a code"
        return ""
    if scheme.weight is not None and scheme.weight.bits in IN_BYTES and stored[name].data_type == expected:
        low, high = WEIGHT_LEVELS[scheme.weight.bits]
        values = numpy_helper.to_array(stored[name])
        if values.min(initial=0) < low or values.max(initial=0) > high:
            return f"asked for {scheme.weight.bits}-bit weights, the file's go from {values.min()} to {values.max()}"
    if expected is None and name != weight:
        return f"asked for float32 weights, the file holds {kind}"
    if expected is not None and stored[name].data_type != expected:
        what = "indices into a codebook" if coded else "weights"
        return f"asked for {scheme.weight_bits}-bit {what}, the file holds {kind}"
    return ""


def _columns_of_a_code(graph: onnx.GraphProto, codes: str) -> int | None:
    """How many columns each code of product quantization stands for, from the centroids beside the codes."""
    name = f"{codes.removesuffix('::codes')}::centroids"
    return next((int(t.dims[-1]) for t in graph.initializer if t.name == name and len(t.dims) == 2), None)
