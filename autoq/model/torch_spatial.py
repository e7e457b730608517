"""ONNX's convolutions, pools, padding and resizing as PyTorch functions; see :mod:`autoq.model.torch_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F

from autoq.model.graph import attribute

Tensor = torch.Tensor
Kernel = Callable[..., Any]


class Unsupported(Exception):
    """A node's operator or attribute has no kernel here; the message says which."""


def _window(
    node: onnx.NodeProto, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads before and pads after, with ``auto_pad`` worked out for ``x``."""
    spatial = len(kernel)
    strides = list(attribute(node, "strides", [1] * spatial))
    dilations = list(attribute(node, "dilations", [1] * spatial))
    pads = list(attribute(node, "pads", [0] * (2 * spatial)))
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return strides, dilations, pads[:spatial], pads[spatial:]
    before, after = [0] * spatial, [0] * spatial
    if auto != "VALID":
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            before[i], after[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    return strides, dilations, before, after


def _pad_spatial(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(node: onnx.NodeProto) -> Kernel:
    groups = attribute(node, "group", 1)

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = weight.ndim - 2
        if spatial not in (1, 2, 3):
            raise Unsupported(f"a Conv with {spatial} spatial dimensions")
        strides, dilations, before, after = _window(node, x, weight.shape[2:])
        padding = before if before == after else [0] * spatial
        x = x if before == after else _pad_spatial(x, before, after)
        function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        return function(x, weight, bias, strides, padding, dilations, groups)

    return kernel


def _conv_transpose(node: onnx.NodeProto) -> Kernel:
    groups, auto = attribute(node, "group", 1), attribute(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "", "VALID") or attribute(node, "output_shape"):
        raise Unsupported("ConvTranspose with auto_pad or output_shape")

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        spatial = weight.ndim - 2
        if spatial not in (1, 2, 3):
            raise Unsupported(f"a ConvTranspose with {spatial} spatial dimensions")
        strides, dilations, before, after = _window(node, x, weight.shape[2:])
        extra = list(attribute(node, "output_padding", [0] * spatial))
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        # Pads crop the whole output; what torch calls output_padding must be below the stride there, and is not here.
        whole = function(x, weight, None, strides, 0, 0, groups, dilations)
        whole = _pad_spatial(whole, [0] * spatial, extra)
        for i in range(spatial):
            whole = whole.narrow(2 + i, before[i], whole.shape[2 + i] - before[i] - after[i])
        return whole if bias is None else whole + bias.reshape(1, -1, *[1] * spatial)

    return kernel


def _pool_window(
    node: onnx.NodeProto, x: Tensor
) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads, and the further pads behind that ``ceil_mode`` asks for."""
    kernel = list(attribute(node, "kernel_shape"))
    if len(kernel) not in (1, 2, 3):
        raise Unsupported(f"a pool with {len(kernel)} spatial dimensions")
    strides, dilations, before, after = _window(node, x, kernel)
    more = [0] * len(kernel)
    if attribute(node, "ceil_mode", 0):
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            extent, padded = (k - 1) * d + 1, n + before[i] + after[i]
            out = -(-(padded - extent) // s) + 1
            if (out - 1) * s >= n + before[i]:  # a window must begin inside the image or the padding before it
                out -= 1
            more[i] = max((out - 1) * s + extent - padded, 0)
    return kernel, strides, dilations, before, after, more


def _max_pool(node: onnx.NodeProto) -> Kernel:
    if any(node.output[1:]):
        raise Unsupported("MaxPool with indices")

    def kernel(x: Tensor) -> Tensor:
        size, strides, dilations, before, after, more = _pool_window(node, x)
        behind = [a + b for a, b in zip(after, more, strict=True)]
        function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(size) - 1]
        return function(_pad_spatial(x, before, behind, -math.inf), size, strides, 0, dilations)

    return kernel


def _average_pool(node: onnx.NodeProto) -> Kernel:
    counted = bool(attribute(node, "count_include_pad", 0))
    if any(step != 1 for step in attribute(node, "dilations", ())):
        raise Unsupported("AveragePool with dilations")

    def kernel(x: Tensor) -> Tensor:
        size, strides, _, before, after, more = _pool_window(node, x)
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        ones = _pad_spatial(ones, before, after, 1.0 if counted else 0.0)
        nothing = [0] * len(size)
        share = function(_pad_spatial(ones, nothing, more), size, strides)
        return function(_pad_spatial(_pad_spatial(x, before, after), nothing, more), size, strides) / share

    return kernel


def _global_pool(function: Callable[..., Tensor]) -> Callable[[onnx.NodeProto], Kernel]:
    return lambda node: lambda x: function(x, tuple(range(2, x.ndim)), keepdim=True)


def _pad(node: onnx.NodeProto) -> Kernel:
    mode = attribute(node, "mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise Unsupported(f"Pad of mode {mode!r}")

    def kernel(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes.tolist()]
        before, after = pads.reshape(2, -1).tolist()
        if mode == "constant" or min(*before, *after) < 0:
            if mode != "constant":
                raise Unsupported(f"Pad of mode {mode!r} that crops")
            flat = [0] * (2 * x.ndim)
            for axis, low, high in zip(chosen, before, after, strict=True):
                flat[2 * (x.ndim - 1 - axis)], flat[2 * (x.ndim - 1 - axis) + 1] = low, high
            return F.pad(x, flat, value=0 if value is None else value.item())
        for axis, low, high in zip(chosen, before, after, strict=True):
            n = x.shape[axis]
            index = torch.arange(-low, n + high, device=x.device)
            if mode == "edge":
                index = index.clamp(0, n - 1)
            elif mode == "wrap":
                index = index % n
            elif n > 1:
                index = index % (2 * (n - 1))
                index = torch.where(index >= n, 2 * (n - 1) - index, index)
            else:
                index = torch.zeros_like(index)
            x = x.index_select(axis, index)
        return x

    return kernel


def _resize(node: onnx.NodeProto) -> Kernel:
    mode = attribute(node, "mode", "nearest")
    how = attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    known = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    if mode not in ("nearest", "linear") or how not in known or attribute(node, "antialias", 0):
        raise Unsupported(f"Resize of mode {mode!r} with {how!r}")
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("Resize that keeps the aspect ratio")
    axes = attribute(node, "axes")

    def kernel(x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        chosen = [axis % x.ndim for axis in (axes if axes is not None else range(x.ndim))]
        if sizes is not None and sizes.numel():
            new = [int(size) for size in sizes.tolist()]
            factors = [size / x.shape[axis] for size, axis in zip(new, chosen, strict=True)]
        else:
            assert scales is not None
            factors = [float(scale) for scale in scales.tolist()]
            new = [math.floor(x.shape[axis] * scale) for axis, scale in zip(chosen, factors, strict=True)]
        for axis, size, factor in zip(chosen, new, factors, strict=True):
            if size != x.shape[axis] or factor != 1.0:
                x = _resize_axis(x, axis, size, factor, mode, how, rounding)
        return x

    return kernel


def _resize_axis(x: Tensor, axis: int, size: int, factor: float, mode: str, how: str, rounding: str) -> Tensor:
    n = x.shape[axis]
    out = torch.arange(size, dtype=torch.float32, device=x.device)
    if how == "asymmetric":
        at = out / factor
    elif how == "align_corners":
        at = out * (n - 1) / (size - 1) if size > 1 else torch.zeros_like(out)
    elif how == "pytorch_half_pixel" and size == 1:
        at = torch.zeros_like(out)
    else:
        at = (out + 0.5) / factor - 0.5
    if mode == "nearest":
        if rounding == "floor":
            index = at.floor()
        elif rounding == "ceil":
            index = at.ceil()
        else:
            index = (at - 0.5).ceil() if rounding == "round_prefer_floor" else (at + 0.5).floor()
        return x.index_select(axis, index.long().clamp(0, n - 1))
    at = at.clamp(0, n - 1)
    low = at.floor().long()
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=n - 1)), share)


def _depth_to_space(node: onnx.NodeProto) -> Kernel:
    block, columns_first = attribute(node, "blocksize"), attribute(node, "mode", "DCR") == "CRD"

    def kernel(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns_first:
            return F.pixel_shuffle(x, block)
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)

    return kernel


def _space_to_depth(node: onnx.NodeProto) -> Kernel:
    block = attribute(node, "blocksize")

    def kernel(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return kernel


SPATIAL: dict[str, Callable[[onnx.NodeProto], Kernel]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
"""Operator -> builder of its kernel."""
