"""A candidate as TFLite must have it: fixed shapes, constants computed, and for each tensor the grid of its integers.

TFLite's own kernels read and write integers with one scale and zero point a tensor. ``QuantizeLinear`` and
``DequantizeLinear`` of the candidate say which; unsigned integers become signed ones by taking half of their range off
the zero point (ONNX ``QuantizeLinear``; TFLite's 8-bit quantization specification).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from autoq.errors import TrialError
from autoq.model.graph import Graph
from autoq.model.operators import clip_bounds
from autoq.model.tflite_file import Grid
from autoq.runtime.ort import open_session

_BITS = {"int8": (8, 0), "uint8": (8, 128), "int16": (16, 0), "uint16": (16, 1 << 15)}
_ROUNDS = 8  # of Shape -> constant -> Reshape's shape -> Shape; real models need two


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Where the result of a node goes: cut off at ``low`` and ``high``, then rounded to a grid.

    ``written`` is that grid, ``read`` the one that the same integers are read on, which lowering chooses to differ
    behind a HardSigmoid; both are ``None`` where the result leaves the model as a float. ``names`` are the tensors
    that hold it, ``absorbed`` the nodes on the way.
    """

    written: Grid | None
    read: Grid | None
    low: float
    high: float
    names: tuple[str, ...]
    absorbed: tuple[str, ...]


def refusal(node: onnx.NodeProto, problem: str) -> TrialError:
    """The error (``build``) that says which node TFLite cannot have, and why."""
    return TrialError("build", f"TFLite: node {node.name!r} ({node.op_type}) {problem}")


def read_candidate(candidate: bytes) -> Graph:
    """The candidate for one sample, with all constants computed but the integers of weights and biases left as such.

    Raises :class:`TrialError` (``build``) where a shape stays open.
    """
    model = onnx.load_from_string(candidate)
    constant = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and value.name not in constant and not dimensions[0].HasField("dim_value"):
            dimensions[0].dim_value = 1
        if any(not size.HasField("dim_value") for size in dimensions) and value.name not in constant:
            raise TrialError("build", f"TFLite: input {value.name!r} has open dimensions besides the batch; fix them")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for _ in range(_ROUNDS):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not _fold(model):
            break
    return Graph(model)


def grid_of(graph: Graph, node: onnx.NodeProto) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear of an activation."""
    scale = graph.constant(node.input[1])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.asarray(0, np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype.name not in _BITS:
        raise refusal(node, "needs one constant scale for the tensor and 8 or 16 bits")
    bits, half = _BITS[zero.dtype.name]
    zero_point = int(zero.reshape(())) - half
    if bits == 16 and zero_point:
        raise refusal(node, f"has 16 bits and zero point {zero_point}; TFLite has symmetric ones only")
    return Grid(bits=bits, scale=float(np.float32(scale.reshape(()))), zero_point=zero_point)


def stored_integers(graph: Graph, name: str) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Integers, float32 scales ``[channels]`` (or ``[1]``) and their axis, of a constant behind DequantizeLinear.

    ``None`` where ``name`` is none. Raises :class:`TrialError` (``build``) for zero points other than 0.
    """
    node = graph.producer.get(name)
    if node is None or node.op_type != "DequantizeLinear" or (values := graph.constant(node.input[0])) is None:
        return None
    scale = graph.constant(node.input[1])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or scale.ndim > 1 or (zero is not None and np.any(zero)):
        raise refusal(node, "has weights that are not symmetric, with one scale a channel; use schemes that are")
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    return values, scale.astype(np.float32).reshape(-1), axis % max(values.ndim, 1)


def real_constant(graph: Graph, name: str) -> np.ndarray | None:
    """The float64 values of a constant, stored as floats or as integers and scales; ``None`` where it is none."""
    if (value := graph.constant(name)) is not None:
        return value.astype(np.float64)
    if (found := stored_integers(graph, name)) is None:
        return None
    values, scale, axis = found
    shape = [-1 if scale.size > 1 and each == axis else 1 for each in range(values.ndim)]
    return np.asarray(values.astype(np.float64) * scale.astype(np.float64).reshape(shape if values.ndim else ()))


def ending(graph: Graph, node: onnx.NodeProto, output: str | None = None) -> Ending:
    """Where the result of ``node`` goes. Raises :class:`TrialError` (``build``) where something reads it in float."""
    name = output or node.output[0]
    low, high = -math.inf, math.inf
    absorbed: list[str] = []
    while True:
        readers = [reader for reader, _ in graph.consumers.get(name, ())]
        if name in graph.outputs and not readers:
            return Ending(written=None, read=None, low=low, high=high, names=(name,), absorbed=tuple(absorbed))
        reader = graph.sole_consumer(name)
        bounds = _bounds(graph, reader) if reader is not None else None
        if reader is not None and bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
            absorbed.append(reader.name)
            name = reader.output[0]
            continue
        quantizers = [each for each in readers if each.op_type == "QuantizeLinear"]
        floats = [each for each in readers if each.op_type != "QuantizeLinear"]
        if floats or name in graph.outputs or not quantizers:
            where = f"{floats[0].op_type} {floats[0].name!r} reads" if floats else "the model gives"
            raise refusal(node, f"stays in float: {where} its result as a float; give all layers 8-bit activations")
        grids = {grid_of(graph, each) for each in quantizers}
        read = {_read_on(graph, each.output[0]) or grid_of(graph, each) for each in quantizers}
        if len(grids) > 1 or len(read) > 1:
            raise refusal(node, "is rounded to several grids at once")
        names = tuple(each.output[0] for each in quantizers)
        absorbed += [each.name for each in quantizers]
        return Ending(written=grids.pop(), read=read.pop(), low=low, high=high, names=names, absorbed=tuple(absorbed))


def _bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, math.inf
    return clip_bounds(graph, node) if node.op_type == "Clip" else None


def _read_on(graph: Graph, integers: str) -> Grid | None:
    """The grid on which ``integers`` are read, here or behind operators that carry them."""
    for reader, _ in graph.consumers.get(integers, ()):
        found = grid_of(graph, reader) if reader.op_type == "DequantizeLinear" else None
        found = found or next((grid for name in reader.output if (grid := _read_on(graph, name))), None)
        if found is not None:
            return found
    return None


def _fold(model: onnx.ModelProto) -> bool:
    """Computes, in place, what hangs on constants alone; whether there was anything."""
    graph = model.graph
    known = {value.name: value for value in (*graph.input, *graph.value_info)}
    constant = {tensor.name for tensor in graph.initializer}
    folded: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Shape" and (shape := _fixed(known.get(node.input[0]))) is not None:
            attributes = {entry.name: entry.i for entry in node.attribute}
            value = np.array(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
            made = numpy_helper.from_array(value)
            node.CopyFrom(onnx.helper.make_node("Constant", [], list(node.output), node.name, value=made))
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") and all(
            name in constant for name in node.input if name
        ):
            constant.update(node.output)
            folded.append(node)
    if not folded:
        return False
    written = {name for node in folded for name in node.output if name}
    rest = [node for node in graph.node if not any(name in written for name in node.output)]
    wanted = sorted(written & ({name for node in rest for name in node.input} | {value.name for value in graph.output}))
    used = {name for node in folded for name in node.input}
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(folded)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    values: list[Any] = open_session(part.SerializeToString()).run(wanted, {}) if wanted else []
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in zip(wanted, values, strict=True))
    return True


def _fixed(value: onnx.ValueInfoProto | None) -> tuple[int, ...] | None:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value for size in sizes) if all(size.HasField("dim_value") for size in sizes) else None
