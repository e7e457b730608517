"""Products of short floats, in ONNX's own operators: bfloat16 and float16 by Cast, 8-bit floats with scales.

``bf16`` and ``fp16``: input and weight are cast, multiplied, and the product is cast back; the bias is added to that in
float32. ``fp8`` (e4m3: 4 bits of exponent, 3 of mantissa, up to 448; Micikevicius et al., "FP8 Formats for Deep
Learning", 2022): each row of the input has the scale that brings its peak to 448, found at run time, and so has each
output channel of the weight, found beforehand. ONNX has no product of 8-bit floats, so they are widened again and
multiplied in float32, which is exact; :mod:`autoq.model.torch_plan` multiplies them as they are.

Names: ``T::bf16``, ``T::fp16`` or ``T::fp8`` is a tensor in short floats, ``T::fp8::s`` its scales.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from autoq.core.layer import Layer
from autoq.core.scheme import Floats
from autoq.model.graph import attribute
from autoq.model.stored import Stored

LARGEST_FP8 = 448.0
_TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "fp8": TensorProto.FLOAT8E4M3FN}
_DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp8": ml_dtypes.float8_e4m3fn}
_LEAST = np.float32(2.0**-100)  # a row of zeros has this peak: its values stay zeros


def floats_problem(layer: Layer, floats: Floats) -> str | None:
    """Why ``layer``, of an op that may be one (:mod:`autoq.core.op_rules`), cannot be a product of short floats."""
    if len(layer.weight_shape) != 2 and floats == "fp8":
        return "fp8 multiplies by weights of two dimensions"
    return layer.integer_problem or None


def shortened(tensor: str, floats: Floats, stored: Stored) -> list[onnx.NodeProto]:
    """The nodes that write ``tensor`` in short floats, for all layers that read it so."""
    short = f"{tensor}::{floats}"
    if floats != "fp8":
        return [_node("Cast", [tensor], short, to=_TYPES[floats])]
    for name, value in (("::fp8::least", _LEAST), ("::fp8::step", np.float32(1 / LARGEST_FP8))):
        stored.array(name, np.asarray(value))
    stored.array("::fp8::last", np.array([-1], np.int64))
    return [
        _node("Abs", [tensor], f"{short}::abs"),
        _node("ReduceMax", [f"{short}::abs", "::fp8::last"], f"{short}::top", keepdims=1),
        _node("Max", [f"{short}::top", "::fp8::least"], f"{short}::peak"),
        _node("Mul", [f"{short}::peak", "::fp8::step"], f"{short}::s"),
        _node("Div", [tensor, f"{short}::s"], f"{short}::x"),
        _node("Cast", [f"{short}::x"], short, to=_TYPES["fp8"]),
        _node("Cast", [short], f"{short}::f32", to=TensorProto.FLOAT),
    ]


def short_product(
    node: onnx.NodeProto, layer: Layer, floats: Floats, weight: np.ndarray, bias: str | None, stored: Stored
) -> list[onnx.NodeProto]:
    """The nodes of a layer behind :func:`shortened`; the last one has its output.

    ``weight`` is float32; ``bias`` names float32 ``[channels]``, or is ``None``.
    """
    short, out = f"{node.input[0]}::{floats}", node.output[0]
    source, product = layer.weight, helper.make_node(node.op_type, [], [f"{out}::product"], node.name)
    product.attribute.extend(entry for entry in node.attribute if entry.name not in ("alpha", "beta"))
    made: list[onnx.NodeProto] = []
    if floats == "fp8":
        axis = 0 if attribute(node, "transB", 0) else 1
        levels, scale = to_fp8(weight, axis)
        stored.array(f"{source}::fp8", levels)
        stored.array(f"{source}::fp8::s", scale)
        made.append(_node("Cast", [f"{source}::fp8"], f"{out}::w", to=TensorProto.FLOAT))
        product.input.extend([f"{short}::f32", f"{out}::w"])
        made += [
            product,
            _node("Mul", [f"{short}::s", f"{source}::fp8::s"], f"{out}::scale"),
            _node("Mul", [product.output[0], f"{out}::scale"], f"{out}::sum"),
        ]
    else:
        stored.array(f"{source}::{floats}", weight.astype(_DTYPES[floats]))
        operands = [short, f"{source}::{floats}"]
        product.input.extend(operands if layer.weight_index == 1 else operands[::-1])
        made += [product, _node("Cast", [product.output[0]], f"{out}::sum", to=TensorProto.FLOAT)]
    if bias is None:
        made[-1].output[0] = out
        return made
    if layer.op_type == "Conv":
        stored.array(f"{out}::along", np.array([-1, *[1] * (len(layer.weight_shape) - 2)], np.int64))
        made.append(_node("Reshape", [bias, f"{out}::along"], f"{out}::bias"))
        bias = f"{out}::bias"
    made.append(_node("Add", [f"{out}::sum", bias], out))
    return made


def to_fp8(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """8-bit floats of ``weight`` ``[rows, columns]`` and float32 scales for each index of ``axis``.

    ``weight`` is near ``levels * scale``; the peak of each channel is 448 exactly, up to float32's rounding.
    """
    peak = np.abs(weight).max(axis=1 - axis, initial=0.0).astype(np.float32)
    scale = np.maximum(peak, _LEAST) * np.float32(1 / LARGEST_FP8)
    levels = np.clip(weight / np.expand_dims(scale, 1 - axis), -LARGEST_FP8, LARGEST_FP8)
    return levels.astype(ml_dtypes.float8_e4m3fn), scale


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], f"{output}::{op_type}", **attributes)
