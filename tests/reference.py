"""ONNX Runtime's own operators as its documentation has them, for ONNX's reference evaluator. In NumPy, nothing shared
with what writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


class DynamicQuantizeMatMul(OpRun):
    """``A`` quantized to uint8 with one range for the tensor, times integers ``B``; float32 out."""

    op_domain = "com.microsoft"

    def _run(self, a: Any, b: Any, scale: Any, zero_point: Any = None, bias: Any = None) -> tuple[np.ndarray]:
        low, high = min(float(a.min()), 0.0), max(float(a.max()), 0.0)
        step = np.float32((high - low) / 255) if high > low else np.float32(1)
        zero = np.clip(np.rint(-low / step), 0, 255)
        levels = np.clip(np.rint(a / step) + zero, 0, 255) - zero
        weights = b.astype(np.float64) - (0 if zero_point is None else zero_point.astype(np.float64))
        y = (levels.astype(np.float64) @ weights) * (float(step) * scale.astype(np.float64))
        return ((y if bias is None else y + bias).astype(np.float32),)


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """``count`` unsigned integers of each row of bytes, the lowest bits first."""
    fields = [(packed[..., None] >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.concatenate(fields, axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(np.float64)


def in_blocks(integers: np.ndarray, scales: Any, zero_points: Any, bits: int) -> np.ndarray:
    """Float64 ``[rows, blocks, size]`` of integers of that shape; no zero points stand for the middle."""
    rows, blocks, _ = integers.shape
    zeros = np.full((rows, blocks), 2.0 ** (bits - 1))
    if zero_points is not None:
        zeros = unpacked(zero_points.reshape(rows, -1), bits, blocks)
    return (integers - zeros[..., None]) * np.asarray(scales, np.float64).reshape(rows, blocks, 1)


class MatMulNBits(OpRun):
    """``A`` times the transpose of weights in blocks; at accuracy level 4 a row's part of a block has 8 bits, too."""

    op_domain = "com.microsoft"

    def _run(
        self, a: Any, b: Any, scales: Any, zero_points: Any = None, g_idx: Any = None, bias: Any = None, **given: Any
    ) -> tuple[np.ndarray]:
        k, n, bits, size = given["K"], given["N"], given["bits"], given["block_size"]
        blocks = -(-k // size)
        integers = unpacked(b.reshape(n, blocks, -1), bits, size)
        weight = in_blocks(integers, scales, zero_points, bits).reshape(n, -1)
        padded = np.zeros((*a.shape[:-1], blocks * size))
        padded[..., :k] = a
        if given.get("accuracy_level", 0) == 4:
            parts = padded.reshape(*a.shape[:-1], blocks, size).astype(np.float32)
            peak = np.abs(parts).max(axis=-1, keepdims=True)
            some = peak > 127 / np.finfo(np.float32).max  # below, the kernel takes them for zeros
            levels = np.rint(parts * np.where(some, np.float32(127) / np.where(some, peak, 1), 0))
            padded = (levels.astype(np.float64) * (peak / np.float32(127))).reshape(padded.shape)
        y = padded @ weight.T
        return ((y if bias is None else y + bias).astype(np.float32),)


class GatherBlockQuantized(OpRun):
    """Rows of a table in blocks, along its last axis."""

    op_domain = "com.microsoft"

    def _run(self, data: Any, indices: Any, scales: Any, zero_points: Any = None, **given: Any) -> tuple[np.ndarray]:
        bits, size = given["bits"], given["block_size"]
        blocks = scales.shape[1]
        columns = data.shape[1] * 8 // bits
        integers = np.zeros((len(data), blocks * size))
        integers[:, :columns] = unpacked(data, bits, columns)
        table = in_blocks(integers.reshape(len(data), blocks, size), scales, zero_points, bits).reshape(len(data), -1)
        return (table[:, :columns][indices].astype(np.float32),)


CONTRIB = [DynamicQuantizeMatMul, GatherBlockQuantized, MatMulNBits]
