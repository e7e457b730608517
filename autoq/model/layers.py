"""Finds the layers of a prepared model and gives them the names a person would use."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from autoq.core.layer import LAYER_OPS, Layer
from autoq.errors import ModelError
from autoq.model.graph import Graph, attribute
from autoq.numerics.cost import conv_macs, matmul_macs

# Names that exporters invent for constants; a person would not recognise the layer by them.
_GENERATED = re.compile(r"^(val_|onnx::|_val|const|tmp|t?\d|initializer|.*_token_|/?Constant)")


def read_layers(graph: Graph) -> tuple[Layer, ...]:
    """The layers of ``graph`` in graph (topological) order.

    A layer is a Conv, ConvTranspose, Gemm or MatMul whose weight is a float32 constant with at least two dimensions, or
    a Gather of rows from such a constant: an embedding table.
    Raises :class:`ModelError` when there is none, or when a weight holds NaN or infinity.
    """
    found: list[Layer] = []
    names: set[str] = set()
    first_user: dict[tuple[str, str, int, int, bool], str] = {}
    for node in graph.model.graph.node:
        layer = _read(graph, node)
        if layer is None:
            continue
        values = graph.constant(layer.weight)
        assert values is not None
        if not np.isfinite(values).all():
            raise ModelError(
                f"layer {layer.name!r}: its weight {layer.weight!r} holds NaN or infinity; repair the model"
            )
        name, count = layer.name, 2
        while name in names:
            name, count = f"{layer.name}#{count}", count + 1
        names.add(name)
        use = (layer.weight, layer.op_type, layer.channel_axis, layer.groups, bool(layer.integer_problem))
        found.append(dataclasses.replace(layer, name=name, tied_to=first_user.get(use)))
        first_user.setdefault(use, name)
    if not found:
        raise ModelError(
            "nothing to quantize: the model has no Conv, ConvTranspose, Gemm, MatMul or embedding with a constant "
            "float32 weight" + _other_weights(graph)
        )
    return tuple(found)


def with_macs(layers: tuple[Layer, ...], output_shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """The layers with ``macs`` filled in from the shape that each layer's output has for one row.

    ``output_shapes`` maps tensor name to its shape at batch 1.
    """
    return tuple(
        dataclasses.replace(layer, macs=_macs(layer, output_shapes[layer.output]))
        if layer.output in output_shapes
        else layer
        for layer in layers
    )


def _other_weights(graph: Graph) -> str:
    """What the layers' weights are instead, where that explains why none was found."""
    readers = [node for node in graph.model.graph.node if node.op_type in LAYER_OPS]
    weights = [name for node in readers for name in node.input[:2]]
    types = {graph.initializers[name].data_type for name in weights if name in graph.initializers}
    if types & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}:
        found = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in types))
        return f"; its weights are {found}. Export the model in float32"
    makers = {graph.producer[name].op_type for name in weights if name in graph.producer}
    if "DequantizeLinear" in makers:
        return "; it is quantized already. Start from the float32 model"
    return ""


def _read(graph: Graph, node: onnx.NodeProto) -> Layer | None:
    if node.op_type not in LAYER_OPS or node.domain not in ("", "ai.onnx"):
        return None
    weight_index = 0 if node.op_type == "Gather" else 1
    if node.op_type == "MatMul" and node.input[1] not in graph.initializers and node.input[0] in graph.initializers:
        weight_index = 0
    weight = node.input[weight_index]
    tensor = graph.initializers.get(weight)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or 0 in tensor.dims:
        return None
    if node.input[1 - weight_index] in graph.initializers:
        return None  # constant times constant: nothing to choose, and folding has its reasons to leave it
    shape = tuple(tensor.dims)
    if node.op_type == "Gather" and (len(shape) != 2 or attribute(node, "axis", 0) != 0):
        return None  # picks columns or slices: no table of embeddings
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    groups = int(attribute(node, "group", 1)) if node.op_type in ("Conv", "ConvTranspose") else 1
    return Layer(
        name=_readable_name(node, weight),
        op_type=node.op_type,
        node=node.name,
        weight=weight,
        weight_index=weight_index,
        weight_shape=shape,
        channel_axis=_channel_axis(node, weight_index, len(shape)),
        input=node.input[1 - weight_index],
        output=node.output[0],
        bias=bias,
        groups=groups,
        strides=tuple(attribute(node, "strides", ())) if node.op_type == "ConvTranspose" else (),
        integer_problem=_integer_problem(graph, node, weight_index, shape, bias),
    )


def _channel_axis(node: onnx.NodeProto, weight_index: int, rank: int) -> int:
    if node.op_type in ("Conv", "Gather"):
        return 0  # a look-up's rows have a scale each, as a convolution's output channels
    if node.op_type == "ConvTranspose":
        return 1  # [inputs, outputs / group, ...]: channels of different groups share a scale
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if weight_index == 1 else rank - 2


def _integer_problem(
    graph: Graph, node: onnx.NodeProto, weight_index: int, shape: tuple[int, ...], bias: str | None
) -> str:
    if node.op_type == "ConvTranspose":
        return "ONNX has no integer ConvTranspose"
    if node.op_type == "Gather":
        return "a look-up has no arithmetic and no activations to quantize"
    if node.op_type == "MatMul" and weight_index == 0:
        return "the weight is the left operand"
    if node.op_type == "MatMul" and len(shape) != 2:
        return f"the weight has {len(shape)} dimensions, not 2"
    if node.op_type == "Gemm":
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
            return "the Gemm scales or transposes its operands (alpha, beta or transA)"
        channels = shape[_channel_axis(node, weight_index, 2)]
        value = graph.constant(bias) if bias else None
        if value is not None and value.size != 1 and value.shape not in ((channels,), (1, channels)):
            return f"the Gemm adds a bias of shape {value.shape}, not one value a channel"
    if bias is not None and bias not in graph.initializers:
        return "the bias is not constant"
    return ""


def _readable_name(node: onnx.NodeProto, weight: str) -> str:
    if not _GENERATED.match(weight):
        for suffix in (".weight", "/weight", "_weight", ".W", "/kernel", ".kernel"):
            if weight.endswith(suffix) and len(weight) > len(suffix):
                return weight.removesuffix(suffix)
    scopes = next(_module_paths(node), "")
    return scopes or node.name


def _module_paths(node: onnx.NodeProto) -> Iterator[str]:
    """PyTorch's exporter notes the module path of every node: ``['', 'block', 'block.query', 'linear']``."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                continue
            if isinstance(scopes, list) and len(scopes) >= 3 and isinstance(scopes[-2], str):
                yield scopes[-2]


def _macs(layer: Layer, output: tuple[int, ...]) -> int:
    if layer.op_type == "Gather":
        return 0
    if layer.op_type == "Conv":
        return conv_macs(layer.weight_shape, output[2:], layer.groups)
    if layer.op_type == "ConvTranspose":
        # Strides spread the inputs over the output: the arithmetic is that of the input positions.
        strides = math.prod(layer.strides) or 1
        return layer.parameters * math.prod(output[2:]) // strides
    channels = layer.weight_shape[layer.channel_axis]
    rows = int(np.prod(output, dtype=np.int64)) // max(channels, 1)
    return matmul_macs(rows, layer.parameters // max(channels, 1), channels)
