"""ONNX Runtime's own operators as its documentation has them, for ONNX's reference evaluator."""

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


CONTRIB = [DynamicQuantizeMatMul]
