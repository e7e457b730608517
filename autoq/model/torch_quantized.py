"""Operators of quantization in PyTorch on the integers themselves, for running a candidate, not for gradients.

A builder gets a node and what of its operands is known, by place; it gives back the kernel and the places of the
operands that the kernel is still called with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch

from autoq.model.graph import attribute
from autoq.model.torch_ops import _TYPES, kernel_of
from autoq.model.torch_products import BlockMatrix, IntegerMatrix, block_product, integer_product
from autoq.model.torch_spatial import Kernel, Tensor, Unsupported

Built = tuple[Kernel, tuple[int, ...]]
Builder = Callable[[onnx.NodeProto, Mapping[int, Tensor]], Built]

_CAST = {
    **_TYPES,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
_COMPUTED_IN = {2: torch.float16, 3: torch.bfloat16}
_LARGEST_FP8 = 448.0


def _places(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(range(len(node.input)))


def _cast(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    kind = attribute(node, "to")
    if kind not in _CAST:
        raise Unsupported(f"Cast to {onnx.TensorProto.DataType.Name(kind)}")
    dtype = _CAST[kind]
    if dtype == torch.float8_e4m3fn:  # saturates (ONNX, Cast); PyTorch's conversion may not
        return lambda x: torch.clamp(x, -_LARGEST_FP8, _LARGEST_FP8).to(dtype), (0,)
    return lambda x: x.to(dtype), (0,)


def _quantize(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    axis, kind = attribute(node, "axis", 1), attribute(node, "output_dtype", 0)
    if attribute(node, "block_size", 0) or kind not in (0, onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        raise Unsupported("QuantizeLinear to blocks, or to other than 8 bits")

    def kernel(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        dtype = zero.dtype if zero is not None else _TYPES[kind or onnx.TensorProto.UINT8]
        low, high = (-128, 127) if dtype == torch.int8 else (0, 255)
        steps = torch.round(x / along(scale, x, axis))
        steps = steps if zero is None else steps + along(zero, x, axis).to(steps.dtype)
        return torch.clamp(steps, low, high).to(dtype)

    return kernel, _places(node)


def _dequantize(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)

    def spread(parameter: Tensor, x: Tensor) -> Tensor:
        if not block:
            return along(parameter, x, axis)
        return parameter.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])

    def kernel(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = x.to(scale.dtype)
        steps = steps if zero is None else steps - spread(zero, x).to(scale.dtype)
        return steps * spread(scale, x)

    return kernel, _places(node)


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """``parameter`` as it broadcasts over ``x``: one number, or one for each index of ``axis``."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _dynamic(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    """ONNX, DynamicQuantizeLinear: the range has 0 in it; a tensor of zeros has the scale 1, as in ONNX Runtime."""

    def kernel(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = torch.clamp(x.amin(), max=0.0), torch.clamp(x.amax(), min=0.0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = torch.clamp(torch.round(-low / scale), 0, 255)
        levels = torch.clamp(torch.round(x / scale) + zero, 0, 255)
        return levels.to(torch.uint8), scale, zero.to(torch.uint8)

    return kernel, (0,)


def _product_of_integers(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    weight, zero = known.get(1), known.get(3)
    if weight is None or weight.ndim != 2 or weight.dtype != torch.int8:
        raise Unsupported("MatMulInteger by what is no constant int8 matrix")
    if len(node.input) > 3 and node.input[3] and (zero is None or zero.any()):
        raise Unsupported("MatMulInteger with a zero point of its weight")
    matrix = IntegerMatrix.of(weight)
    if len(node.input) > 2 and node.input[2]:
        return lambda x, zero: integer_product(x, zero, matrix), (0, 2)
    return lambda x: integer_product(x, None, matrix), (0,)


def _product_in_blocks(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    k, n, bits, block = (int(attribute(node, name)) for name in ("K", "N", "bits", "block_size"))
    level = attribute(node, "accuracy_level", 0)
    if level == 4:
        raise Unsupported("MatMulNBits at accuracy level 4, which rounds activations as ONNX Runtime's CPU kernel does")
    if 1 not in known or 2 not in known or (len(node.input) > 4 and node.input[4]):
        raise Unsupported("MatMulNBits by weights that are computed, or in an order of their own")
    blocks = -(-k // block)
    levels = _unpacked(known[1].reshape(n, -1), bits)[:, :k]
    if len(node.input) > 3 and node.input[3]:
        zeros = _unpacked(known[3].reshape(n, -1), bits)[:, :blocks].to(torch.float32)
    else:
        zeros = torch.full((n, blocks), float(1 << (bits - 1)), device=levels.device)
    scales = known[2].reshape(n, blocks).to(torch.float32)
    matrix = BlockMatrix.of(levels, scales, zeros, block, bits, _COMPUTED_IN.get(level, torch.float32))
    if len(node.input) > 5 and node.input[5]:
        return lambda x, bias: block_product(x, matrix) + bias, (0, 5)
    return lambda x: block_product(x, matrix), (0,)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """``[rows, bytes]`` as ``[rows, bytes * 8 / bits]``, the lowest bits first."""
    fields = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(fields, dim=-1).reshape(packed.shape[0], -1)


def _by_way_of_floats(node: onnx.NodeProto, known: Mapping[int, Tensor]) -> Built:
    """An operator that only selects values, of which PyTorch has none for 8-bit integers."""
    plain = kernel_of(node)

    def kernel(x: Tensor, *others: Any) -> Any:
        if x.dtype not in (torch.int8, torch.uint8):
            return plain(x, *others)
        return plain(x.to(torch.float32), *others).to(x.dtype)

    return kernel, _places(node)


QUANTIZED: dict[str, Builder] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _product_of_integers,
    "MatMulNBits": _product_in_blocks,
    "MaxPool": _by_way_of_floats,
    "QuantizeLinear": _quantize,
}
"""Operator -> builder of its kernel."""
