"""The versions of ONNX that lowered models have."""

from __future__ import annotations

import onnx

TARGET_OPSET = 21
"""The first opset with 4-bit integers (ONNX 1.16), hence the oldest that every lowered form needs."""

IR_VERSION = 10
"""The IR version that belongs to opset 21."""

INT2_OPSET, INT2_IR_VERSION = 25, 13
"""2-bit integers came with opset 25 (ONNX 1.20). Between 21 and 25 operators gained types and attributes whose defaults
keep their meaning, so a graph means the same under the later number."""


def raise_opset(model: onnx.ModelProto, opset: int, ir_version: int) -> None:
    """Writes later versions into ``model``; its nodes stay as they are."""
    model.ir_version = max(model.ir_version, ir_version)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, opset)
