"""A candidate -> the TFLite file with the same integers, scales and zero points, for LiteRT and microcontroller NPUs.

The ONNX candidate says everything: which integers are stored, on which grid each tensor is rounded, which activation
falls into a layer. This writes it in TFLite's operators, with images as batch, height, width, channels. It takes
candidates whose layers all have 8-bit (or 16-bit) activations; what would be computed in float is refused, since an NPU
would leave it to its host. docs/npu.md lists what is written how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from autoq.errors import TrialError
from autoq.model import tflite_layers, tflite_moves, tflite_operators
from autoq.model.tflite_read import grid_of, read_candidate, refusal
from autoq.model.tflite_values import Emitter, usual_order

OPERATORS: Mapping[str, Callable[[Emitter, onnx.NodeProto], None]] = {
    "Add": tflite_operators.add,
    "AveragePool": tflite_operators.average_pool,
    "Clip": tflite_operators.clip,
    "Concat": tflite_operators.concat,
    "Conv": tflite_layers.conv,
    "DequantizeLinear": Emitter.dequantized,
    "Flatten": tflite_moves.reshape,
    "Gemm": tflite_layers.gemm,
    "GlobalAveragePool": tflite_operators.global_average,
    "HardSwish": tflite_operators.hard_swish,
    "LeakyRelu": tflite_operators.leaky_relu,
    "MatMul": tflite_layers.gemm,
    "MaxPool": tflite_operators.max_pool,
    "Mul": tflite_operators.mul,
    "Pad": tflite_moves.pad,
    "QuantizeLinear": lambda emitter, node: _quantize(emitter, node),
    "Relu": tflite_operators.clip,
    "Reshape": tflite_moves.reshape,
    "Resize": tflite_moves.resize,
    "Sigmoid": tflite_operators.sigmoid,
    "Slice": tflite_moves.slice_,
    "Softmax": tflite_operators.softmax,
    "Split": tflite_moves.split,
    "Squeeze": tflite_moves.reshape,
    "Sum": tflite_operators.add,
    "Transpose": tflite_moves.transpose,
    "Unsqueeze": tflite_moves.reshape,
}
"""ONNX operators and what writes them."""


def to_tflite(candidate: bytes) -> bytes:
    """The TFLite file (batch 1) of a serialized ONNX candidate. The same candidate gives the same bytes.

    Inputs and outputs are integers, on the grids of the candidate; axes stand as
    the file says under :data:`autoq.runtime.litert.AXES_KEY`. Weights of fewer than 8 bits are stored as int8.

    Raises :class:`TrialError` (``build``), naming the node, for what cannot be written or would run in float, and
    :class:`ProfileError` where LiteRT is not installed.
    """
    graph = read_candidate(candidate)
    emitter = Emitter(graph)
    inputs = [_input(emitter, name) for name in graph.inputs]
    for node in graph.model.graph.node:
        constant = node.op_type == "DequantizeLinear" and node.input[0] in graph.initializers
        if node.name in emitter.done or constant:
            continue
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise refusal(node, f"has no TFLite form here; known: {', '.join(OPERATORS)}")
        OPERATORS[node.op_type](emitter, node)
    outputs = [_output(emitter, value.name) for value in graph.model.graph.output]
    return emitter.file.finish(inputs, outputs)


def _quantize(emitter: Emitter, node: onnx.NodeProto) -> None:
    emitter.values[node.output[0]] = emitter.at(emitter.value(node), grid_of(emitter.graph, node))


def _input(emitter: Emitter, name: str) -> tuple[str, int, tuple[int, ...]]:
    """The input's tensor, which holds the integers that the candidate rounds the float input to."""
    graph = emitter.graph
    readers = [node for node, _ in graph.consumers.get(name, ())]
    grids = {grid_of(graph, node) for node in readers if node.op_type == "QuantizeLinear"}
    floats = [node for node in readers if node.op_type != "QuantizeLinear"]
    if floats and floats[0].op_type not in OPERATORS:
        raise refusal(floats[0], f"reads the input {name!r} and has no TFLite form here; known: {', '.join(OPERATORS)}")
    if len(grids) != 1 or floats:
        how = f"in float by {floats[0].op_type} {floats[0].name!r}" if floats else "on several grids"
        raise TrialError(
            "build",
            f"TFLite: input {name!r} is read {how}; give every layer that reads it the same 8-bit activations",
        )
    shape = tuple(size or 1 for size in graph.shapes[name])
    value = emitter.new(name, shape, usual_order(len(shape)), grids.pop())
    for node in readers:
        emitter.values[node.output[0]] = value
        emitter.done.add(node.name)
    return name, value.index, value.order


def _output(emitter: Emitter, name: str) -> tuple[str, int, tuple[int, ...]]:
    if name not in emitter.values:
        raise TrialError("build", f"TFLite: output {name!r} is computed in float; give every layer 8-bit activations")
    value = emitter.values[name]
    value = emitter.ordered(value, usual_order(len(value.shape)))
    return name, value.index, value.order
