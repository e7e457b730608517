"""Proves, from the file alone, that an ONNX model is in TensorRT's explicit-quantization form.

    for problem in tensorrt_problems(onnx.load("model.onnx")):
        print(problem)

Each rule is one that TensorRT's documentation states ("Working with Quantized Types", ``IQuantizeLayer`` and
``IDequantizeLayer``; onnx-tensorrt, "Supported ONNX Operators", TensorRT 10.15). They are what can be known without a
GPU; whether an engine can be built, TensorRT alone says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from autoq.errors import TrialError
from autoq.model.graph import attribute

OPSETS = (13, 24)
"""The opsets that TensorRT 10 reads with scales for each channel; 10.0 only reads up to 20."""

INT4_OPSET = 21

_UNREAD = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique
"""

UNSUPPORTED = frozenset(_UNREAD.split())
"""ONNX's operators that TensorRT does not read."""

_INTEGERS = frozenset(
    (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT4, TensorProto.UINT4)
) | frozenset(kind for name in ("INT2", "UINT2") if (kind := getattr(TensorProto, name, 0)))
_QUANTIZED = {TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A rule that a file breaks: ``rule`` in a word, the ``node`` or tensor, what was ``found`` and what ``helps``."""

    rule: str
    node: str
    found: str
    helps: str

    def __str__(self) -> str:
        return f"{self.node}: {self.found} ({self.rule}); {self.helps}"


def require(model: onnx.ModelProto) -> None:
    """Raises :class:`~autoq.errors.TrialError` (``build``) with the first few rules that ``model`` breaks."""
    problems = tensorrt_problems(model)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TrialError("build", "TensorRT does not read this file: " + "; ".join(map(str, problems[:3])) + more)


def tensorrt_problems(model: onnx.ModelProto) -> tuple[Problem, ...]:
    """Every rule of explicit quantization that ``model`` breaks, in the file's order; empty where there is none."""
    return tuple(_Check(model).problems())


class _Check:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, index))
        self.kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        self.kinds |= {name: tensor.data_type for name, tensor in self.constants.items()}
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                self.kinds[node.output[0]] = self._written_kind(node)

    def problems(self) -> Iterator[Problem]:
        yield from self._opset()
        for node in self.model.graph.node:
            if node.domain not in ("", "ai.onnx"):
                helps = "TensorRT reads ONNX's own operators: choose a scheme that is written with those"
                yield _problem("operators", node, f"{node.op_type} is of the domain {node.domain}", helps)
            elif node.op_type in UNSUPPORTED:
                yield _problem("operators", node, f"TensorRT has no {node.op_type}", _instead_of(node.op_type))
            elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield from self._pair(node)
            else:
                yield from self._other(node)
        for value in self.model.graph.output:
            if self.kinds.get(value.name) in _QUANTIZED:
                helps = "let a DequantizeLinear stand before it"
                yield Problem(rule="outputs", node=value.name, found="an output of quantized integers", helps=helps)

    def _opset(self) -> Iterator[Problem]:
        version = next((e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx")), 0)
        if not OPSETS[0] <= version <= OPSETS[1]:
            found, helps = f"opset {version}", f"TensorRT 10 reads {OPSETS[0]} to {OPSETS[1]}: export the model anew"
            yield Problem(rule="opset", node="the model", found=found, helps=helps)
        int4 = next((name for name, kind in self.kinds.items() if kind == TensorProto.INT4), None)
        if int4 is not None and version < INT4_OPSET:
            helps = f"INT4 comes with opset {INT4_OPSET}"
            yield Problem(rule="opset", node=int4, found=f"INT4 in opset {version}", helps=helps)

    def _pair(self, node: onnx.NodeProto) -> Iterator[Problem]:
        """What holds for QuantizeLinear and DequantizeLinear alike, then for each."""
        yield from self._scale(node)
        if len(node.input) > 2 and node.input[2]:
            zero = self._array(node.input[2])
            if zero is None:
                yield _problem("zero points", node, "its zero point is computed", "it must be a constant of zeros")
            elif np.any(zero.astype(np.int32) != 0):
                helps = "TensorRT quantizes symmetrically: choose signed activations, '-s8'"
                yield _problem("zero points", node, f"a zero point of {int(zero.ravel()[0])}", helps)
        quantizes = node.op_type == "QuantizeLinear"
        integers = node.output[0] if quantizes else node.input[0]
        kind = self.kinds.get(integers, TensorProto.UNDEFINED)
        if not quantizes and kind == TensorProto.INT32:
            helps = "TensorRT wants biases in float32: store the values themselves"
            yield _problem("biases", node, "int32 is dequantized", helps)
        elif kind not in _QUANTIZED:
            name = TensorProto.DataType.Name(kind).lower()
            helps = "signed 8-bit integers it is ('-s8'), for weights of a product 4-bit ones as well"
            yield _problem("types", node, f"its integers are {name}", helps)
        if quantizes:
            yield from self._quantizes(node)
        else:
            yield from self._dequantizes(node, kind)

    def _scale(self, node: onnx.NodeProto) -> Iterator[Problem]:
        scale = self._array(node.input[1])
        if scale is None:
            helps = "scales are constants when the engine is built: store the float32 values"
            yield _problem("scales", node, f"its scale {node.input[1]!r} is computed", helps)
            return
        if scale.dtype.name not in ("float32", "float16", "bfloat16"):
            yield _problem("scales", node, f"its scale is {scale.dtype.name}", "store float32")
        values = scale.astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            yield _problem("scales", node, "a scale is not above 0", "scales are positive and finite")

    def _quantizes(self, node: onnx.NodeProto) -> Iterator[Problem]:
        if node.input[0] not in self.constants and self._size(node.input[1]) > 1:
            helps = "activations have one scale for the tensor"
            yield _problem("granularity", node, f"{self._size(node.input[1])} scales of an activation", helps)
        for reader, _ in self.readers.get(node.output[0], ()):
            if reader.op_type != "DequantizeLinear":
                found = f"its integers are read by {reader.op_type} {reader.name!r}"
                yield _problem("pairs", node, found, "only a DequantizeLinear may read them: put the pair around")

    def _dequantizes(self, node: onnx.NodeProto, kind: int) -> Iterator[Problem]:
        source = node.input[0]
        if source not in self.constants:
            made = self.producer.get(source)
            if made is None or made.op_type != "QuantizeLinear":
                what = "an input of the model" if made is None else f"{made.op_type} {made.name!r}"
                helps = "integers come from a QuantizeLinear or are stored as they are"
                yield _problem("pairs", node, f"its integers come from {what}", helps)
            if self._size(node.input[1]) > 1:
                helps = "activations have one scale for the tensor"
                yield _problem("granularity", node, f"{self._size(node.input[1])} scales of an activation", helps)
            return
        shape, block = tuple(self.constants[source].dims), attribute(node, "block_size", 0)
        channels = self._size(node.input[1]) > 1 and not block
        for reader, index in self._layers_behind(node):
            if channels:
                yield from _axis_problems(node, reader, index, shape)
        if kind == TensorProto.INT4:
            yield from self._int4(node, shape, block)
        elif block:
            helps = "blocks are for INT4 weights; 8-bit ones have a scale for each channel or one"
            yield _problem("granularity", node, f"blocks of {block}", helps)

    def _int4(self, node: onnx.NodeProto, shape: tuple[int, ...], block: int) -> Iterator[Problem]:
        for reader, index in self.readers.get(node.output[0], ()):
            if reader.op_type not in ("MatMul", "Gemm") or index != 1:
                helps = "INT4 weights are for the second operand of MatMul and Gemm: take 8 bits here"
                yield _problem("INT4", node, f"read by {reader.op_type} {reader.name!r}", helps)
            elif len(shape) == 2 and block:
                inputs = 1 if reader.op_type == "Gemm" and attribute(reader, "transB", 0) else 0
                if attribute(node, "axis", 1) % 2 != inputs:
                    yield _problem("INT4", node, "its blocks do not lie along the inputs", f"set axis={inputs}")
                if shape[inputs] % block:
                    found = f"blocks of {block} do not divide {shape[inputs]} inputs"
                    yield _problem("INT4", node, found, "choose another size of blocks")
        if len(shape) != 2:
            yield _problem("INT4", node, f"weights of {len(shape)} dimensions", "INT4 weights have two")
        elif shape[-1] % 2:
            found = f"a last dimension of {shape[-1]}"
            yield _problem("INT4", node, found, "it must be even, for two values share a byte")

    def _other(self, node: onnx.NodeProto) -> Iterator[Problem]:
        if node.op_type in ("Cast", "CastLike"):
            given = self.kinds.get(node.input[0])
            wanted = attribute(node, "to") if node.op_type == "Cast" else self.kinds.get(node.input[1])
            kind = next((kind for kind in (wanted, given) if kind in _INTEGERS or kind in _QUANTIZED), None)
            if kind is not None and (kind != TensorProto.UINT8 or node.input[0] in self.constants):
                name = TensorProto.DataType.Name(kind).lower()
                helps = (
                    "quantized integers meet floats in QuantizeLinear and DequantizeLinear only: choose another scheme"
                )
                yield _problem("casts", node, f"a Cast of {name}", helps)
            return
        for name in node.input:
            if name in self.constants and self.kinds[name] in _QUANTIZED:
                helps = "let a DequantizeLinear stand before it"
                yield _problem("pairs", node, f"{node.op_type} reads the quantized constant {name!r}", helps)

    def _layers_behind(self, node: onnx.NodeProto) -> Iterator[tuple[onnx.NodeProto, int]]:
        """The layers that read a dequantized weight, and at which place."""
        yield from ((reader, at) for reader, at in self.readers.get(node.output[0], ()) if reader.op_type in _LAYERS)

    def _written_kind(self, node: onnx.NodeProto) -> int:
        if len(node.input) > 2 and node.input[2] in self.constants:
            return int(self.constants[node.input[2]].data_type)
        return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8  # ONNX, QuantizeLinear: the default

    def _array(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def _size(self, name: str) -> int:
        return int(np.prod(self.constants[name].dims)) if name in self.constants else 1


def _axis_problems(
    node: onnx.NodeProto, reader: onnx.NodeProto, index: int, shape: tuple[int, ...]
) -> Iterator[Problem]:
    rank, given = len(shape), attribute(node, "axis")
    if given is None:
        yield _problem("axes", node, "scales for each channel and no axis", "write the attribute axis out")
        return
    if reader.op_type == "Conv":
        wanted = 0
    elif reader.op_type == "ConvTranspose":
        wanted = 1
    else:
        transposed = reader.op_type == "Gemm" and attribute(reader, "transB", 0)
        wanted = rank - 2 if transposed or index == 0 else rank - 1
    if given % rank != wanted:
        found = f"scales along axis {given} of the weight of {reader.op_type} {reader.name!r}"
        yield _problem("axes", node, found, f"its output channels are axis {wanted}")


def _problem(rule: str, node: onnx.NodeProto, found: str, helps: str) -> Problem:
    name = node.name or (node.output[0] if node.output else node.op_type)
    return Problem(rule=rule, node=f"{node.op_type} {name!r}", found=found, helps=helps)


def _instead_of(op_type: str) -> str:
    if op_type in ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"):
        return "choose calibrated ranges in place of '@dynamic'"
    if op_type.startswith("QLinear"):
        return "write QuantizeLinear and DequantizeLinear around the float operator"
    return "the model cannot run there as it is"
