"""The form of an integer product and its bias."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from autoq.model.draft import Draft
from autoq.model.products import OWN_DOMAIN


def bias_in_product(draft: Draft) -> int:
    """Writes an integer MatMul and the Add of its bias as the runtime's own operator for both, MatMulIntegerToFloat.

    ONNX Runtime makes that operator of the MatMul by itself, but leaves the bias to an Add of its own, which reads and
    writes the result once more.
    """
    count = 0
    for matmul in list(draft.nodes):
        add = draft.sole_reader(matmul.output[0]) if matmul.op_type == "MatMul" else None
        if add is None or add.op_type != "Add":
            continue
        data, weight = (draft.made_by(name, "DequantizeLinear") for name in matmul.input)
        bias = add.input[1] if add.input[0] == matmul.output[0] else add.input[0]
        value = draft.constant(bias)
        if data is None or weight is None or value is None or not _fits(draft, data, weight, value):
            continue
        inputs = [data.input[0], weight.input[0], data.input[1], weight.input[1], data.input[2], weight.input[2], bias]
        node = helper.make_node("MatMulIntegerToFloat", inputs, [add.output[0]], matmul.name, domain=OWN_DOMAIN)
        draft.replace([matmul, add], [node])
        count += 1
    return count


def _fits(draft: Draft, data: onnx.NodeProto, weight: onnx.NodeProto, bias: np.ndarray) -> bool:
    """Unsigned activations, a weight with one scale a column or one for all, a bias with one value a column."""
    if len(data.input) < 3 or len(weight.input) < 3:
        return False
    zero_point, scale = draft.constant(data.input[2]), draft.constant(weight.input[1])
    if zero_point is None or zero_point.dtype != np.uint8 or zero_point.ndim or scale is None or scale.ndim > 1:
        return False
    return bias.ndim == 1 and bias.dtype == np.float32 and (not scale.ndim or scale.shape in ((1,), bias.shape))
