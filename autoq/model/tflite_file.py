"""A TFLite file in the making: tensors, operators and constants in, bytes out.

The format is TensorFlow's ``schema.fbs``; its Python form comes with LiteRT (the extra ``[npu]``). Integers are what
TFLite's quantization specification allows: int8 with any zero point, int16 with zero point 0, weights int8 and
symmetric with one scale a channel, biases of 32 bits, or 64 beside int16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoq.errors import ProfileError
from autoq.runtime.litert import AXES_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The real numbers that the integers of a tensor stand for: ``(integer - zero_point) * scale``."""

    bits: int
    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The least number on the grid."""
        return (-(1 << (self.bits - 1)) - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest number on the grid."""
        return ((1 << (self.bits - 1)) - 1 - self.zero_point) * self.scale

    def fine(self) -> Grid:
        """int16 that holds each of 8 bits' numbers, and 127 between two of them."""
        return self if self.bits == 16 else Grid(bits=16, scale=self.scale / 128, zero_point=0)


# Versions of operators with int8 and with int16 activations; LiteRT has a kernel from the first on, and RESHAPE's must
# be 1 for Vela. Others: 2 and 3.
_VERSIONS: Mapping[str, tuple[int, int]] = {
    "ADD": (2, 4),
    "CONV_2D": (4, 4),
    "DEPTHWISE_CONV_2D": (4, 5),
    "FULLY_CONNECTED": (4, 7),
    "LEAKY_RELU": (2, 2),
    "MIRROR_PAD": (2, 3),
    "MUL": (2, 4),
    "QUANTIZE": (2, 2),
    "RELU6": (2, 3),
    "RELU_N1_TO_1": (1, 1),
    "RESHAPE": (1, 1),
    "RESIZE_BILINEAR": (3, 4),
    "RESIZE_NEAREST_NEIGHBOR": (3, 4),
    "STRIDED_SLICE": (2, 4),
    "TRANSPOSE": (2, 4),
}


class FlatFile:
    """One subgraph. Tensors are numbered from 0 in the order in which they are added."""

    def __init__(self) -> None:
        self.schema = _schema()
        self._model = self.schema.ModelT()
        self._model.version = 3
        self._model.description = "autoq"
        self._model.buffers = [self.schema.BufferT()]  # number 0 is empty: what tensors without data refer to
        self._model.operatorCodes = []
        self._graph = self.schema.SubGraphT()
        self._graph.name, self._graph.tensors, self._graph.operators = "main", [], []
        self._model.subgraphs = [self._graph]
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}

    def tensor(self, name: str, shape: Sequence[int], grid: Grid) -> int:
        """A tensor that an operator or the caller writes."""
        kind = np.int8 if grid.bits == 8 else np.int16
        return self._tensor(name, shape, np.dtype(kind), [grid.scale], [grid.zero_point], 0)

    def weights(self, name: str, values: np.ndarray, scale: np.ndarray, axis: int) -> int:
        """Symmetric integers, ``scale`` float32 ``[channels]`` along ``axis``, or ``[1]`` for all."""
        number = self._tensor(name, values.shape, values.dtype, scale, np.zeros(len(scale), np.int64), axis)
        self._fill(number, values)
        return number

    def ints(self, values: Any) -> int:
        """An int32 constant that an operator reads as its parameter; equal ones are stored once."""
        array = np.asarray(values, np.int32)
        key = (array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._tensor(f"::{len(self._graph.tensors)}", array.shape, array.dtype)
            self._fill(self._constants[key], array)
        return self._constants[key]

    def filler(self, grid: Grid, value: int) -> int:
        """A scalar on ``grid``, which PADV2 fills with."""
        number = self.tensor(f"::{len(self._graph.tensors)}", [], grid)
        self._fill(number, np.asarray(value, np.int8 if grid.bits == 8 else np.int16))
        return number

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], bits: int, options: Any = None
    ) -> None:
        """``code`` is the name in ``BuiltinOperator``; ``options`` an object of the schema's, or nothing."""
        schema = self.schema
        version = _VERSIONS.get(code, (2, 3))[bits == 16]
        if (code, version) not in self._codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode = getattr(schema.BuiltinOperator, code)
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self._codes[code, version] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(entry)
        made = schema.OperatorT()
        made.opcodeIndex = self._codes[code, version]
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            made.builtinOptions = options
        self._graph.operators.append(made)

    def finish(
        self, inputs: Sequence[tuple[str, int, Sequence[int]]], outputs: Sequence[tuple[str, int, Sequence[int]]]
    ) -> bytes:
        """The file. Of each input and output its ONNX name, its tensor, and the order that its axes stand in, which is
        kept under :data:`AXES_KEY`. Equal calls give equal bytes."""
        import flatbuffers

        self._graph.inputs = [number for _, number, _ in inputs]
        self._graph.outputs = [number for _, number, _ in outputs]
        for name, number, _ in (*outputs, *inputs):
            self._graph.tensors[number].name = name
        note = self.schema.MetadataT()
        note.name, note.buffer = AXES_KEY, len(self._model.buffers)
        text = json.dumps([[[name, list(order)] for name, _, order in each] for each in (inputs, outputs)])
        self._model.metadata = [note]
        self._model.buffers.append(self._buffer(text.encode()))
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _tensor(
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], scale: Any = None, zero: Any = None, axis: int = 0
    ) -> int:
        made = self.schema.TensorT()
        made.name, made.shape, made.buffer = name, [int(size) for size in shape], 0
        made.type = getattr(self.schema.TensorType, dtype.name.upper())
        if scale is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = np.asarray(scale, np.float32)
            made.quantization.zeroPoint = np.asarray(zero, np.int64)
            made.quantization.quantizedDimension = axis
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def _fill(self, number: int, values: np.ndarray) -> None:
        self._graph.tensors[number].buffer = len(self._model.buffers)
        self._model.buffers.append(self._buffer(np.ascontiguousarray(values).tobytes()))

    def _buffer(self, data: bytes) -> Any:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        return buffer


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ProfileError(f"TFLite files need LiteRT ({error}); install it: pip install 'autoq[npu]'") from error
    return schema_py_generated
