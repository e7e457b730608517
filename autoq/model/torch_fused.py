"""Products that a file spells out in several nodes and a GPU has one kernel for: found by their shape in the graph.

``DequantizeLinear x DequantizeLinear`` behind a MatMul or Gemm is a product of integers; two Casts from 8-bit floats
before one are a product of these. What is computed is what the file says, in another order of the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import torch

from autoq.model.graph import attribute
from autoq.model.torch_products import Float8Matrix, IntegerMatrix, float8_product, integer_product
from autoq.model.torch_spatial import Kernel, Tensor, Unsupported

FUSED = frozenset(["Gemm", "MatMul"])
_FP8 = onnx.TensorProto.FLOAT8E4M3FN


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A product: ``build`` makes its kernel of ``constants`` (names); it is called with ``operands`` (names).

    ``runs`` is PyTorch's name of it.
    """

    runs: str
    constants: tuple[str, ...]
    operands: tuple[str, ...]
    build: Callable[..., Kernel]


def fused(
    node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], is_known: Callable[[str], bool]
) -> Found | None:
    """The product that a MatMul or Gemm is, or ``None`` where it is one of floats."""
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return None
    left, right = (producer.get(name) for name in node.input[:2])
    if left is None or right is None or is_known(node.input[0]):
        return None
    transposed = bool(attribute(node, "transB", 0))
    bias = (node.input[2],) if len(node.input) > 2 and node.input[2] else ()
    if left.op_type == right.op_type == "DequantizeLinear":
        return _of_integers(left, right, bias, is_known, transposed=transposed)
    if left.op_type == right.op_type == "Cast" and _is_fp8(left, producer) and is_known(right.input[0]):
        return _of_short_floats(left, right, bias, transposed=transposed)
    return None


def _of_integers(
    left: onnx.NodeProto,
    right: onnx.NodeProto,
    bias: tuple[str, ...],
    is_known: Callable[[str], bool],
    *,
    transposed: bool,
) -> Found | None:
    zero = (left.input[2],) if len(left.input) > 2 and left.input[2] else ()
    weight_zero = (right.input[2],) if len(right.input) > 2 and right.input[2] else ()
    if not all(is_known(name) for name in (*left.input[1:], *right.input)) or is_known(left.input[0]):
        return None
    if attribute(right, "block_size", 0):
        return None
    axis = attribute(right, "axis", 1) % 2

    def build(weight: Tensor, weight_scale: Tensor, scale: Tensor, *zeros: Tensor) -> Kernel:
        own, theirs = zeros[: len(zero)], zeros[len(zero) :]
        if weight.dtype != torch.int8 or weight.ndim != 2 or any(each.any() for each in theirs):
            raise Unsupported("a product of integers by weights that are not symmetric int8 ones")
        if weight_scale.numel() > 1 and axis != (0 if transposed else 1):
            raise Unsupported("a product of integers whose weight's scales do not lie along its outputs")
        matrix = IntegerMatrix.of(weight.T if transposed else weight)
        factor = scale.reshape(()) * weight_scale.reshape(-1)

        def kernel(x: Tensor, *added: Tensor) -> Tensor:
            y = integer_product(x, own[0] if own else None, matrix).to(torch.float32) * factor
            return y + added[0] if added else y

        return kernel

    constants = (right.input[0], right.input[1], left.input[1], *zero, *weight_zero)
    return Found(runs="_int_mm", constants=constants, operands=(left.input[0], *bias), build=build)


def _of_short_floats(left: onnx.NodeProto, right: onnx.NodeProto, bias: tuple[str, ...], *, transposed: bool) -> Found:
    def build(weight: Tensor) -> Kernel:
        if weight.dtype != torch.float8_e4m3fn or weight.ndim != 2:
            wide = weight.to(torch.float32)
            return lambda x, *added: sum(added, start=x.to(torch.float32) @ (wide.T if transposed else wide))
        matrix = Float8Matrix.of((weight.T if transposed else weight).contiguous())
        return lambda x, *added: sum(added, start=float8_product(x, matrix))

    return Found(runs="_scaled_mm", constants=(right.input[0],), operands=(left.input[0], *bias), build=build)


def _is_fp8(cast: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]) -> bool:
    before = producer.get(cast.input[0])
    widened = attribute(cast, "to") == onnx.TensorProto.FLOAT
    return widened and before is not None and before.op_type == "Cast" and attribute(before, "to") == _FP8
