"""One layer as a model by itself, and its candidates between integer neighbours: what a probe times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from autoq.core.layer import Layer
from autoq.model.calibrate import with_outputs
from autoq.model.graph import Graph
from autoq.runtime.ort import open_session, run_batch

_IN, _OUT = "::integers", "::result"


def inputs_of(
    graph: Graph, layers: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """The shape and dtype of what each layer reads in one inference, by tensor.

    Raises :class:`autoq.errors.TrialError` where the model does not run on ``feeds``.
    """
    names = list(dict.fromkeys(layer.input for layer in layers))
    values = {name: np.asarray(feeds[name]) for name in names if name in feeds}
    made = [name for name in names if name not in feeds]
    if made:
        values |= run_batch(open_session(with_outputs(graph, made)), dict(feeds), made, "the inputs of an inference")
    return {name: (value.shape, value.dtype) for name, value in values.items()}


def single(graph: Graph, layer: Layer, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Graph:
    """The model of one layer alone, for an input of this shape."""
    node = onnx.NodeProto()
    node.CopyFrom(graph.nodes[layer.node])
    model = onnx.ModelProto(ir_version=graph.model.ir_version, producer_name="autoq")
    model.opset_import.extend(graph.model.opset_import)
    model.graph.name = "layer"
    model.graph.node.append(node)
    model.graph.initializer.extend(graph.initializers[name] for name in node.input if name in graph.initializers)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.graph.input.append(helper.make_tensor_value_info(layer.input, kind, list(shape)))
    model.graph.output.append(helper.make_tensor_value_info(layer.output, onnx.TensorProto.FLOAT, None))
    return Graph(model)


def among_integers(alone: Graph, layer: Layer, candidate: bytes) -> tuple[bytes, bytes, np.dtype[np.generic]] | None:
    """``candidate`` less the conversions at its ends, as it runs between integer neighbours.

    With it the float layer as it would run there, with conversions at its ends, and the dtype of their input. ``None``
    for a candidate whose input is not quantized by calibration.
    """
    model = onnx.load_from_string(candidate)
    nodes = list(model.graph.node)
    first = next((n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] == layer.input), None)
    view = first and next((n for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] == first.output[0]), None)
    if first is None or view is None:
        return None
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kind = constants[first.input[2]].data_type
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    given = helper.make_tensor_value_info(first.output[0], kind, shape)
    last = next((n for n in nodes if n.op_type == "DequantizeLinear" and n.output[0] == layer.output), None)
    narrow = last and next((n for n in nodes if n.op_type == "QuantizeLinear" and n.output[0] == last.input[0]), None)
    result = None
    if last is not None and narrow is not None:
        result = helper.make_tensor_value_info(last.input[0], constants[narrow.input[2]].data_type, None)
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    _replace(inside.graph, [n for n in nodes if n is not first and (result is None or n is not last)], given, result)
    floats = onnx.ModelProto()
    floats.CopyFrom(alone.model)
    ends = [helper.make_node("DequantizeLinear", [_IN, *view.input[1:]], [layer.input]), *alone.model.graph.node]
    used = list(view.input[1:])
    if result is not None and narrow is not None:
        ends.append(helper.make_node("QuantizeLinear", [layer.output, *narrow.input[1:]], [_OUT]))
        used += narrow.input[1:]
        result = helper.make_tensor_value_info(_OUT, constants[narrow.input[2]].data_type, None)
    _replace(floats.graph, ends, helper.make_tensor_value_info(_IN, kind, shape), result)
    given.name = _IN
    _rename(inside.graph, first.output[0], _IN)
    if result is not None and last is not None:
        _rename(inside.graph, last.input[0], _OUT)
    floats.graph.initializer.extend(constants[name] for name in dict.fromkeys(used))
    dtype: np.dtype[np.generic] = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return inside.SerializeToString(), floats.SerializeToString(), dtype


def integer_input(dtype: np.dtype[np.generic], shape: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """An input of both files."""
    limits = np.iinfo(str(dtype))
    return {_IN: rng.integers(limits.min, limits.max, tuple(shape), dtype=dtype, endpoint=True)}


def _replace(
    graph: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    given: onnx.ValueInfoProto,
    result: onnx.ValueInfoProto | None,
) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.input[:]
    graph.input.append(given)
    if result is not None:
        del graph.output[:]
        graph.output.append(result)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
