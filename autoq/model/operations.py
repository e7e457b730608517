"""What an accelerator would have to do for a candidate file: its operations, each with its arithmetic and its bytes.

Read from the file's Q/DQ form. An operation runs on integers where all that it reads comes from a DequantizeLinear and
what it writes goes to a QuantizeLinear, which is then part of it; a product of integers may also leave as a float. All
else is float. Where a float operation reads integers, or integers are made of floats, the conversion is an operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from autoq.errors import TrialError
from autoq.model.graph import attribute
from autoq.runtime.ort import open_session, run_batch

_FREE = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
    **dict.fromkeys((TensorProto.INT64, TensorProto.DOUBLE), 64),
}
_SMALL = frozenset(kind for kind, bits in _BITS.items() if bits <= 16) - {TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of an inference. ``integer``: on integers throughout.

    ``macs`` are its multiply-accumulates, ``results`` what it computes one by one where it has none (a pool: once for
    each value that it reads). ``weight_bits`` are as stored, ``weight_bytes`` all its constants; ``working_bytes`` are
    its other inputs and its outputs.
    """

    name: str
    op_type: str
    integer: bool
    macs: int = 0
    results: int = 0
    weight_bits: int = 8
    activation_bits: int = 8
    weight_bytes: float = 0.0
    working_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class _Constant:
    bytes: float
    bits: int
    integer: bool = False


def operations(path: Path, feeds: Mapping[str, np.ndarray]) -> list[Operation]:
    """The operations of the ONNX file at ``path`` for one inference on ``feeds``, in order.

    Shapes that do not follow from those of ``feeds`` are taken from a run. Raises :class:`TrialError`: ``load`` for a
    file that is none, ``measure`` where that run fails.
    """
    try:
        model = onnx.load(path)
        for value in model.graph.input:
            if value.name in feeds:
                del value.type.tensor_type.shape.dim[:]
                for size in feeds[value.name].shape:
                    value.type.tensor_type.shape.dim.add().dim_value = size
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx and protobuf have no common base
        raise TrialError("load", f"{path}: {str(error)[:300]}") from error
    types = {
        value.name: value.type.tensor_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    unknown = [name for node in model.graph.node for name in node.output if name and not _is_known(types.get(name))]
    return _Reader(model.graph, {**types, **_run_for(model, unknown, feeds)}).read()


def _is_known(kind: onnx.TypeProto.Tensor | None) -> bool:
    return kind is not None and kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _run_for(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, onnx.TypeProto.Tensor]:
    """The types and shapes that these tensors have in a run."""
    if not names:
        return {}
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    del asked.graph.value_info[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    given = {value.name: feeds[value.name] for value in model.graph.input if value.name in feeds}
    try:
        values = run_batch(open_session(asked.SerializeToString()), given, names, "one inference")
    except TrialError as error:
        raise TrialError("measure", f"the shapes of {names[0]} and others do not follow: {error}") from error
    return {
        name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape).tensor_type
        for name, value in values.items()
    }


class _Reader:
    """One pass over a graph in topological order. ``kinds`` says what a tensor is to the accelerator.

    ``"float"``: in the host's memory; ``"integer"``; ``"view"``: the float view of an integer tensor (``bits`` has its
    width); ``"sum"``: what an integer operation wrote and no QuantizeLinear has narrowed yet.
    """

    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> None:
        self.graph = graph
        self.types = types
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self.stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.constants = {
            tensor.name: _Constant(prod(tensor.dims) * _bits(tensor.data_type) / 8, _bits(tensor.data_type))
            for tensor in graph.initializer
        }
        given = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        given = {name: kind for name, kind in given.items() if name not in self.constants}
        self.kinds = {name: "integer" if kind in _SMALL else "float" for name, kind in given.items()}
        self.bits = {name: _bits(kind) for name, kind in given.items() if kind in _SMALL}
        self.writer: dict[str, int] = {}
        self.found: list[Operation] = []
        self.converted: set[str] = set()

    def read(self) -> list[Operation]:
        for node in self.graph.node:
            given = [name for name in node.input if name]
            if all(name in self.constants for name in given):
                self._constant(node, given)
            elif node.op_type == "QuantizeLinear":
                self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                self.kinds[node.output[0]], self.bits[node.output[0]] = "view", self.bits[node.input[0]]
            else:
                self._compute(node, [name for name in given if name not in self.constants])
        for name in self.outputs & self.kinds.keys():
            self._to_float(name)
        return self.found

    def _constant(self, node: onnx.NodeProto, given: Sequence[str]) -> None:
        parts = [self.constants[name] for name in given]
        if node.op_type == "Constant":
            value = attribute(node, "value")
            kind, dims = (value.data_type, value.dims) if isinstance(value, TensorProto) else (TensorProto.FLOAT, (1,))
            made = _Constant(prod(dims) * _bits(kind) / 8, _bits(kind))
        else:
            main = max(parts, key=lambda part: part.bytes, default=_Constant(0.0, 32))
            kept = node.op_type in ("Reshape", "Transpose", "Squeeze", "Unsqueeze") and main.integer
            integer = node.op_type == "DequantizeLinear" or kept
            made = _Constant(sum(part.bytes for part in parts), main.bits, integer)
        self.constants.update({name: made for name in node.output if name})

    def _quantize(self, node: onnx.NodeProto) -> None:
        source, made = node.input[0], node.output[0]
        bits = self._type_bits(made)
        self.kinds[made], self.bits[made] = "integer", bits
        if self.kinds[source] == "sum":  # part of what wrote it
            at = self.writer[source]
            narrowed = self._elements(source) * (32 - bits) / 8
            if source not in self.converted:
                self.found[at] = replace(
                    self.found[at],
                    working_bytes=self.found[at].working_bytes - narrowed,
                    activation_bits=max(self.found[at].activation_bits, bits),
                )
                self.converted.add(source)
            return
        integer = self.kinds[source] == "view"
        count = self._elements(source)
        moved = count * (self.bits[source] if integer else 32) / 8 + count * bits / 8
        self._add(node, integer=integer, results=count, working_bytes=moved, activation_bits=bits)

    def _compute(self, node: onnx.NodeProto, data: Sequence[str]) -> None:
        kinds = {self.kinds.get(name, "float") for name in data}
        outputs = [name for name in node.output if name and (name in self.readers or name in self.outputs)]
        if kinds == {"integer"} and all(self.types[name].elem_type in _SMALL for name in outputs):
            self._move(node, data, outputs)
        elif kinds == {"sum"} and node.op_type in _ACTIVATIONS and self._quantized(outputs):
            self.kinds[outputs[0]], self.writer[outputs[0]] = "sum", self.writer[data[0]]
        elif kinds == {"view"} and self._on_integers(node, outputs):
            bits = max(self.bits[name] for name in data)
            working = sum(self._elements(name) * self.bits[name] / 8 for name in data)
            working += sum(self._elements(name) * 4 for name in outputs)  # narrowed by a QuantizeLinear to come
            for name in outputs:
                self.kinds[name], self.writer[name] = "sum", len(self.found)
            self._add(node, integer=True, working_bytes=working, activation_bits=bits, **self._arithmetic(node))
        else:
            for name in data:
                self._to_float(name)
            for name in outputs:
                self.kinds[name] = "float"
            if node.op_type in _FREE:
                return
            working = sum(self._elements(name) * self._type_bits(name) / 8 for name in (*data, *outputs))
            self._add(node, integer=False, working_bytes=working, activation_bits=32, **self._arithmetic(node))

    def _move(self, node: onnx.NodeProto, data: Sequence[str], outputs: Sequence[str]) -> None:
        for name in outputs:
            self.kinds[name], self.bits[name] = "integer", self._type_bits(name)
        if node.op_type not in _FREE:
            working = sum(self._elements(name) * self.bits[name] / 8 for name in (*data, *outputs))
            self._add(node, integer=True, working_bytes=working, activation_bits=max(self.bits[n] for n in data))

    def _on_integers(self, node: onnx.NodeProto, outputs: Sequence[str]) -> bool:
        if node.op_type in _PRODUCTS:
            constants = [self.constants[name] for name in node.input[:2] if name in self.constants]
            return all(each.integer for each in constants)
        return self._quantized(outputs)

    def _quantized(self, outputs: Sequence[str]) -> bool:
        """Whether these tensors are only read to be quantized, behind an activation or not."""
        for name in outputs:
            readers = self.readers.get(name, [])
            if name in self.outputs or not readers:
                return False
            for reader in readers:
                through = reader.op_type in _ACTIVATIONS and self._quantized(list(reader.output))
                if reader.op_type != "QuantizeLinear" and not through:
                    return False
        return True

    def _to_float(self, name: str) -> None:
        """Charges the host for reading integers, once a tensor."""
        kind = self.kinds.get(name, "float")
        if kind in ("view", "sum") and name not in self.converted:
            self.converted.add(name)
            count, bits = self._elements(name), self.bits.get(name, 32)
            working = count * (bits + 32) / 8
            made = {"name": name, "op_type": "DequantizeLinear", "integer": False, "results": count}
            self.found.append(Operation(**made, activation_bits=32, working_bytes=working))  # type: ignore[arg-type]

    def _arithmetic(self, node: onnx.NodeProto) -> dict[str, int]:
        made = self._elements(node.output[0])
        if node.op_type == "Conv":
            return {"macs": made * prod(self._shape(node.input[1])[1:])}
        if node.op_type == "ConvTranspose":
            return {"macs": self._elements(node.input[0]) * prod(self._shape(node.input[1])[1:])}
        if node.op_type in ("Gemm", "MatMul"):
            left = self._shape(node.input[0])
            return {"macs": made * (left[0] if attribute(node, "transA", 0) else left[-1])}
        window = prod(attribute(node, "kernel_shape", ()) or (1,)) if node.op_type.endswith("Pool") else 1
        read = self._elements(node.input[0]) if node.op_type.startswith(("Global", "Reduce")) else 0
        return {"results": max(made * window, read)}

    def _add(self, node: onnx.NodeProto, *, integer: bool, **figures: float) -> None:
        constants = [self.constants[name] for name in node.input if name in self.constants]
        if node.op_type in ("QuantizeLinear", *_FREE):
            constants = []
        self.found.append(
            Operation(
                name=node.name or node.output[0],
                op_type=node.op_type,
                integer=integer,
                weight_bits=max(constants, key=lambda each: each.bytes).bits if constants else 8,
                weight_bytes=sum(each.bytes for each in constants),
                **figures,  # type: ignore[arg-type]
            )
        )

    def _type_bits(self, name: str) -> int:
        return _bits(self.types[name].elem_type)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.stored:
            return self.stored[name]
        return tuple(dim.dim_value for dim in self.types[name].shape.dim)

    def _elements(self, name: str) -> int:
        return prod(self._shape(name))


def _bits(kind: int) -> int:
    return _BITS.get(kind, 32)
