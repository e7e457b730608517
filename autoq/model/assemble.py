"""Nodes and constants -> the bytes of a candidate: only what its outputs need, the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto

from autoq.model.compact import compact
from autoq.model.graph import Graph
from autoq.model.prepare import INT2_IR_VERSION, INT2_OPSET, raise_opset
from autoq.model.products import OWN_DOMAIN


def assemble(graph: Graph, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, TensorProto]) -> bytes:
    """The serialized model with the inputs and outputs of ``graph``, made of ``nodes`` (in topological order).

    ``constants`` are its own initializers by name; what else the nodes read comes from ``graph``. Equal arguments give
    equal bytes.
    """
    source = graph.model
    model = onnx.ModelProto(ir_version=source.ir_version, producer_name="autoq")
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    # What users keep there (class names, strides); exporters' own notes stay behind.
    model.metadata_props.extend(entry for entry in source.metadata_props if not entry.key.startswith("pkg."))
    model.graph.name = source.graph.name
    model.graph.input.extend(value for value in source.graph.input if value.name not in graph.initializers)
    model.graph.output.extend(source.graph.output)
    needed = live(graph, nodes)
    used = {name for node in needed for name in node.input} | graph.captured | graph.outputs
    needed, own = compact(needed, {name: tensor for name, tensor in constants.items() if name in used})
    model.graph.node.extend(needed)
    if any(node.domain == OWN_DOMAIN for node in needed) and all(e.domain != OWN_DOMAIN for e in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(OWN_DOMAIN, 1))
    model.graph.initializer.extend(own.values())
    model.graph.initializer.extend(tensor for name, tensor in graph.initializers.items() if name in used)
    if any(tensor.data_type in (TensorProto.INT2, TensorProto.UINT2) for tensor in own.values()):
        raise_opset(model, INT2_OPSET, INT2_IR_VERSION)
    return model.SerializeToString(deterministic=True)


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
