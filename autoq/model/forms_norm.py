"""Forms around normalization."""

from __future__ import annotations

from autoq.model.draft import Draft, is_onnx


def sum_before_norm(draft: Draft) -> int:
    """Writes an Add that a LayerNormalization reads as Sum.

    ONNX Runtime fuses the two to SkipLayerNormalization, whose CPU kernel takes several times as long as both. A Sum of
    two tensors adds the same floats.
    """
    count = 0
    for node in draft.nodes:
        if node.op_type != "LayerNormalization" or not is_onnx(node):
            continue
        add = draft.made_by(node.input[0], "Add")
        if add is None or any(name in draft.constants for name in add.input):
            continue
        if not all(draft.made_by(name, "DequantizeLinear") for name in add.input):  # that one has an integer kernel
            add.op_type = "Sum"
            count += 1
    return count
