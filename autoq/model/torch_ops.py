"""ONNX operators as PyTorch functions with gradients: one line of :data:`OPERATORS` each.

A builder reads a node's attributes once and gives back its kernel: tensors in (``None`` for an input left out), one
tensor or a tuple out. Meanings are those of the ONNX operator specification, opset 13 and later; defaults too.
Operators that only arrange values are in :mod:`autoq.model.torch_layout`, convolutions, pools and resizing in
:mod:`autoq.model.torch_spatial`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.nn.functional as F

from autoq.model.graph import attribute
from autoq.model.torch_layout import LAYOUT, ints, plain
from autoq.model.torch_spatial import SPATIAL, Kernel, Tensor, Unsupported

__all__ = ["OPERATORS", "Kernel", "Unsupported", "kernel_of"]

Builder = Callable[[onnx.NodeProto], Kernel]

_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def kernel_of(node: onnx.NodeProto) -> Kernel:
    """The kernel of ``node``; raises :class:`Unsupported` for an operator or attribute that is not known here."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise Unsupported(f"operator {node.domain + '.' if node.domain else ''}{node.op_type} is not known in PyTorch")
    return OPERATORS[node.op_type](node)


def _fold(binary: Callable[[Tensor, Tensor], Tensor]) -> Builder:
    return lambda node: lambda *values: functools.reduce(binary, values)


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(a: Tensor, b: Tensor) -> Tensor:
    # A constant exponent has exact derivatives where a tensor's (x log x) do not, as for 0.
    return a ** b.item() if b.numel() == 1 and not b.requires_grad else a**b


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _gelu(node: onnx.NodeProto) -> Kernel:
    return functools.partial(F.gelu, approximate=attribute(node, "approximate", "none"))


def _hard_sigmoid(node: onnx.NodeProto) -> Kernel:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _leaky(node: onnx.NodeProto) -> Kernel:
    return functools.partial(F.leaky_relu, negative_slope=attribute(node, "alpha", 0.01))


def _elu(node: onnx.NodeProto) -> Kernel:
    return functools.partial(F.elu, alpha=attribute(node, "alpha", 1.0))


def _swish(node: onnx.NodeProto) -> Kernel:
    alpha = attribute(node, "alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _softmax(function: Callable[..., Tensor]) -> Builder:
    return lambda node: functools.partial(function, dim=attribute(node, "axis", -1))


def _layer_norm(node: onnx.NodeProto) -> Kernel:
    axis, epsilon = attribute(node, "axis", -1), attribute(node, "epsilon", 1e-5)
    if any(node.output[1:]):
        raise Unsupported("LayerNormalization with the outputs Mean or InvStdDev")

    def kernel(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis if axis >= 0 else x.ndim + axis :]
        normal = F.layer_norm(x, shape, None, None, epsilon) * scale
        return normal if bias is None else normal + bias

    return kernel


def _rms_norm(node: onnx.NodeProto) -> Kernel:
    axis, epsilon = attribute(node, "axis", -1), attribute(node, "epsilon", 1e-5)

    def kernel(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis if axis >= 0 else x.ndim + axis, x.ndim))
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * scale

    return kernel


def _group_norm(node: onnx.NodeProto) -> Kernel:
    groups, epsilon = attribute(node, "num_groups"), attribute(node, "epsilon", 1e-5)
    return lambda x, scale, bias: F.group_norm(x, groups, scale, bias, epsilon)


def _instance_norm(node: onnx.NodeProto) -> Kernel:
    epsilon = attribute(node, "epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _batch_norm(node: onnx.NodeProto) -> Kernel:
    epsilon = attribute(node, "epsilon", 1e-5)
    if attribute(node, "training_mode", 0):
        raise Unsupported("BatchNormalization in training mode")
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _gemm(node: onnx.NodeProto) -> Kernel:
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    trans_a, trans_b = attribute(node, "transA", 0), attribute(node, "transB", 0)

    def kernel(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.T if trans_a else a) @ (b.T if trans_b else b)
        product = product if alpha == 1.0 else alpha * product
        return product if c is None else product + (c if beta == 1.0 else beta * c)

    return kernel


def _einsum(node: onnx.NodeProto) -> Kernel:
    equation = attribute(node, "equation")
    return lambda *operands: torch.einsum(equation, *operands)


def _cast(node: onnx.NodeProto) -> Kernel:
    kind = attribute(node, "to")
    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.INT2):
        raise Unsupported("Cast to integers of fewer than 8 bits")
    if kind not in _TYPES:
        raise Unsupported(f"Cast to {onnx.TensorProto.DataType.Name(kind)}")
    return lambda x: x.to(_TYPES[kind])


def _cum_sum(node: onnx.NodeProto) -> Kernel:
    if attribute(node, "exclusive", 0) or attribute(node, "reverse", 0):
        raise Unsupported("CumSum with exclusive or reverse")
    return lambda x, axis: torch.cumsum(x, int(axis.item())).to(x.dtype)


def _reduce(function: Callable[..., Tensor]) -> Builder:
    def build(node: onnx.NodeProto) -> Kernel:
        keep, given = bool(attribute(node, "keepdims", 1)), attribute(node, "axes")
        nothing = bool(attribute(node, "noop_with_empty_axes", 0))

        def kernel(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = tuple(given or ()) if axes is None else tuple(ints(axes))
            if not chosen and nothing:
                return x
            return function(x, chosen or tuple(range(x.ndim)), keep)

        return kernel

    return build


def _quantize(node: onnx.NodeProto) -> Kernel:
    axis, kind = attribute(node, "axis", 1), attribute(node, "output_dtype", 0)
    if attribute(node, "block_size", 0) or kind not in (0, onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
        raise Unsupported("QuantizeLinear to blocks, or to other than 8 bits")

    def kernel(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        signed = kind == onnx.TensorProto.INT8 or (zero_point is not None and zero_point.dtype == torch.int8)
        low, high = (-128, 127) if signed else (0, 255)
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(x.dtype)
        steps = x / _along(scale, x, axis)
        # Straight through (Bengio et al. 2013): rounding has the gradient 1 inside the range, saturation 0 outside.
        rounded = steps + (torch.round(steps) - steps).detach()
        return torch.clamp(rounded + _along(zero, x, axis), low, high)

    return kernel


def _dequantize(node: onnx.NodeProto) -> Kernel:
    axis = attribute(node, "axis", 1)
    if attribute(node, "block_size", 0):
        raise Unsupported("DequantizeLinear of blocks")

    def kernel(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        steps = x.to(scale.dtype)
        if zero_point is not None:
            steps = steps - _along(zero_point.to(scale.dtype), x, axis)
        return steps * _along(scale, x, axis)

    return kernel


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _identity(x: Tensor, *_: Any) -> Tensor:
    return x


OPERATORS: dict[str, Builder] = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "Ceil": plain(torch.ceil),
    "Clip": plain(_clip),
    "Cos": plain(torch.cos),
    "CumSum": _cum_sum,
    "DequantizeLinear": _dequantize,
    "Div": plain(_div),
    "Dropout": plain(_identity),
    "Einsum": _einsum,
    "Elu": _elu,
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": plain(F.hardswish),
    "Identity": plain(_identity),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": plain(torch.matmul),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mish": plain(F.mish),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": plain(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "Pow": plain(_pow),
    "QuantizeLinear": _quantize,
    "RMSNormalization": _rms_norm,
    "Reciprocal": plain(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keep)),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Softmax": _softmax(F.softmax),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": _fold(torch.add),
    "Swish": _swish,
    "Tanh": plain(torch.tanh),
    "Where": plain(torch.where),
    **LAYOUT,
    **SPATIAL,
}
"""Operator -> builder of its kernel."""
