"""Nodes and constants -> the bytes of a candidate: only what its outputs need, the same bytes every time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from autoq.model.compact import compact
from autoq.model.graph import Graph, names_read
from autoq.model.opset import INT2_IR_VERSION, INT2_OPSET, raise_opset
from autoq.model.products import OWN_DOMAIN


def assemble(graph: Graph, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, TensorProto]) -> bytes:
    """The serialized model with the inputs and outputs of ``graph``, made of ``nodes`` (in topological order).

    ``constants`` are its own initializers by name; what else the nodes read comes from ``graph``. Equal arguments give
    equal bytes.
    """
    source = graph.model
    model = _empty(graph)
    # What users keep there (class names, strides); exporters' own notes stay behind.
    model.metadata_props.extend(entry for entry in source.metadata_props if not entry.key.startswith("pkg."))
    model.graph.input.extend(value for value in source.graph.input if value.name not in graph.initializers)
    model.graph.output.extend(source.graph.output)
    needed = live(graph, nodes)
    used = {name for node in needed for name in node.input} | graph.captured | graph.outputs
    needed, own = compact(needed, {name: tensor for name, tensor in constants.items() if name in used})
    _fill(model, needed, own.values())
    model.graph.initializer.extend(tensor for name, tensor in graph.initializers.items() if name in used)
    return model.SerializeToString(deterministic=True)


def part(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, TensorProto],
    inputs: Mapping[str, tuple[np.dtype[Any], Sequence[int | None]]],
    outputs: Sequence[str],
) -> bytes:
    """The serialized model of some nodes of a candidate over ``graph``, as :func:`assemble` has them, names and all.

    ``inputs`` are the tensors that it is fed, each with its dtype and its shape, ``None`` where that is open. It is
    run, never shipped.
    """
    model = _empty(graph)
    for name, (dtype, shape) in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    # Bodies may read any constant: a name that none reads costs nothing but its bytes.
    used = {name for node in nodes for name in names_read(node)}
    own = {name: tensor for name, tensor in {**graph.initializers, **constants}.items() if name in used}
    _fill(model, nodes, own.values())
    return bytes(model.SerializeToString())


def _empty(graph: Graph) -> onnx.ModelProto:
    source = graph.model
    model = onnx.ModelProto(ir_version=source.ir_version, producer_name="autoq")
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    model.graph.name = source.graph.name
    return model


def _fill(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], own: Collection[TensorProto]) -> None:
    """Adds nodes and constants, and what these ask of the model's opsets."""
    model.graph.node.extend(nodes)
    if any(node.domain == OWN_DOMAIN for node in nodes) and all(e.domain != OWN_DOMAIN for e in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(OWN_DOMAIN, 1))
    model.graph.initializer.extend(own)
    if any(tensor.data_type in (TensorProto.INT2, TensorProto.UINT2) for tensor in own):
        raise_opset(model, INT2_OPSET, INT2_IR_VERSION)


def without_notes(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy of the node less what exporters note on it."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("metadata_props")
    copy.ClearField("doc_string")
    return copy


def live(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those of ``nodes`` that the outputs of ``graph`` need, in their order."""
    needed = set(graph.outputs) | set(graph.captured)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
