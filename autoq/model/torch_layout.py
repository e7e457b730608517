"""ONNX operators that arrange values, as PyTorch functions; see :mod:`autoq.model.torch_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
import torch

from autoq.model.graph import attribute
from autoq.model.torch_spatial import Kernel, Tensor


def plain(kernel: Kernel) -> Callable[[onnx.NodeProto], Kernel]:
    """The builder of an operator without attributes."""
    return lambda node: kernel


def ints(tensor: Tensor) -> list[int]:
    """The values of a tensor of integers."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def _transpose(node: onnx.NodeProto) -> Kernel:
    order = attribute(node, "perm")
    return lambda x: x.permute(*(order or range(x.ndim)[::-1]))


def _reshape(node: onnx.NodeProto) -> Kernel:
    keep_zero = attribute(node, "allowzero", 0)

    def kernel(x: Tensor, shape: Tensor) -> Tensor:
        sizes = ints(shape)
        return x.reshape(sizes if keep_zero else [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])

    return kernel


def _flatten(node: onnx.NodeProto) -> Kernel:
    axis = attribute(node, "axis", 1)

    def kernel(x: Tensor) -> Tensor:
        rows = math.prod(x.shape[: axis if axis >= 0 else x.ndim + axis])
        return x.reshape(rows, -1 if rows else 0)

    return kernel


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    count = starts.numel()
    for axis, start, end, step in zip(
        range(count) if axes is None else ints(axes),
        ints(starts),
        ints(ends),
        [1] * count if steps is None else ints(steps),
        strict=True,
    ):
        picked = range(x.shape[axis])[start:end:step] if step > 0 else _backwards(x.shape[axis], start, end, step)
        if step == 1:
            x = x.narrow(axis, picked.start, len(picked))
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _backwards(size: int, start: int, end: int, step: int) -> range:
    start = min(start + size if start < 0 else start, size - 1)
    end = max(end + size if end < 0 else end, -1)  # the specification clamps an end below -size to -1
    return range(start, end, step)


def _split(node: onnx.NodeProto) -> Kernel:
    axis, parts = attribute(node, "axis", 0), len(node.output)

    def kernel(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        if sizes is not None:
            return torch.split(x, ints(sizes), axis)
        return torch.split(x, -(-x.shape[axis] // parts), axis)

    return kernel


def _gather(node: onnx.NodeProto) -> Kernel:
    axis = attribute(node, "axis", 0)

    def kernel(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.ndim
        flat = indices.reshape(-1).long()
        picked = x.index_select(at, torch.where(flat < 0, flat + x.shape[at], flat))
        return picked.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])

    return kernel


def _gather_nd(node: onnx.NodeProto) -> Kernel:
    batch = attribute(node, "batch_dims", 0)

    def kernel(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        # Without batch dimensions, one look-up in x with all that the indices name made one dimension.
        lead = math.prod(x.shape[:batch])
        sizes = x.shape[batch : batch + depth]
        rows = x.reshape(lead * math.prod(sizes), *x.shape[batch + depth :])
        picked = indices.reshape(lead, -1, depth)
        flat = torch.arange(lead, device=x.device)[:, None].expand(picked.shape[:2])
        for i, size in enumerate(sizes):
            flat = flat * size + picked[..., i] % size  # negative ones count from the end
        return rows.index_select(0, flat.reshape(-1)).reshape(*indices.shape[:-1], *x.shape[batch + depth :])

    return kernel


def _gather_elements(node: onnx.NodeProto) -> Kernel:
    axis = attribute(node, "axis", 0)
    return lambda x, indices: torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def _concat(node: onnx.NodeProto) -> Kernel:
    axis = attribute(node, "axis")
    return lambda *parts: torch.cat(parts, axis)


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def _shape(node: onnx.NodeProto) -> Kernel:
    start, end = attribute(node, "start", 0), attribute(node, "end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


def _constant_of_shape(node: onnx.NodeProto) -> Kernel:
    value = attribute(node, "value")
    fill = torch.zeros(1) if value is None else torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
    return lambda shape: fill.to(shape.device).expand(ints(shape)).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _trilu(node: onnx.NodeProto) -> Kernel:
    function = torch.triu if attribute(node, "upper", 1) else torch.tril
    return lambda x, k=None: function(x, 0 if k is None else int(k.item()))


LAYOUT: dict[str, Callable[[onnx.NodeProto], Kernel]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": plain(_expand),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Range": plain(_range),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": plain(_slice),
    "Split": _split,
    "Squeeze": plain(_squeeze),
    "Tile": plain(lambda x, repeats: x.repeat(ints(repeats))),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": plain(_unsqueeze),
}
"""Operator -> builder of its kernel."""
