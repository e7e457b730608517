"""Rewrites that name what exporters spell out: HardSigmoid, HardSwish, GlobalAveragePool.

Each keeps the values, up to the last bits of float32. Named, they have integer forms, and ONNX Runtime's float
convolutions take them in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern


def _add_and_clip(op: Any, x: ir.Value, three: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    return op.Clip(op.Add(x, three), low, high)


def _clip_divided(op: Any, x: ir.Value, three: ir.Value, low: ir.Value, high: ir.Value, six: ir.Value) -> ir.Value:
    return op.Div(_add_and_clip(op, x, three, low, high), six)


def _clip_times(op: Any, x: ir.Value, three: ir.Value, low: ir.Value, high: ir.Value, sixth: ir.Value) -> ir.Value:
    return op.Mul(_add_and_clip(op, x, three, low, high), sixth)


def _gated_clip_divided(
    op: Any, x: ir.Value, three: ir.Value, low: ir.Value, high: ir.Value, six: ir.Value
) -> ir.Value:
    return op.Div(op.Mul(x, _add_and_clip(op, x, three, low, high)), six)


def _gated(op: Any, x: ir.Value) -> ir.Value:
    return op.Mul(x, op.HardSigmoid(x, _allow_other_attributes=True, _outputs=["gate"]))


def _hard_sigmoid(op: Any, x: ir.Value, **_: object) -> ir.Value:
    return op.HardSigmoid(x, alpha=1 / 6, beta=0.5)


def _hard_swish(op: Any, x: ir.Value, **_: object) -> ir.Value:
    return op.HardSwish(x)


def _is_hard_sigmoid(context: object, **values: ir.Value) -> bool:
    factor = {"six": 6.0, "sixth": 1 / 6}
    wanted = {"three": 3.0, "low": 0.0, "high": 6.0} | {name: factor[name] for name in factor.keys() & values.keys()}
    return all(_holds(values[name], number) for name, number in wanted.items())


def _is_hard_swish(context: object, gate: ir.Value, **_: object) -> bool:
    producer = gate.producer()
    assert producer is not None
    alpha, beta = (producer.attributes.get(name) for name in ("alpha", "beta"))
    return abs((alpha.as_float() if alpha else 0.2) - 1 / 6) < 1e-6 and (beta.as_float() if beta else 0.5) == 0.5


def _holds(value: ir.Value, number: float) -> bool:
    constant = value.const_value
    return constant is not None and constant.size == 1 and bool(np.isclose(constant.numpy(), number, rtol=1e-6).all())


def _mean(op: Any, x: ir.Value, axes: ir.Value) -> ir.Value:
    return op.ReduceMean(x, axes, _allow_other_attributes=True, _outputs=["mean"])


def _pool(op: Any, x: ir.Value, axes: ir.Value, mean: ir.Value) -> ir.Value:
    pooled = op.GlobalAveragePool(x)
    return pooled if _keeps_dimensions(mean) else op.Squeeze(pooled, axes)


def _is_over_the_image(context: object, x: ir.Value, axes: ir.Value, **_: object) -> bool:
    if x.shape is None or len(x.shape) < 3 or axes.const_value is None or x.dtype != ir.DataType.FLOAT:
        return False
    rank = len(x.shape)
    return sorted(int(axis) % rank for axis in axes.const_value.numpy().reshape(-1)) == list(range(2, rank))


def _keeps_dimensions(mean: ir.Value) -> bool:
    producer = mean.producer()
    assert producer is not None
    keeps = producer.attributes.get("keepdims")
    return keeps is None or keeps.as_int() == 1


RULES: list[pattern.RewriteRule] = [
    pattern.RewriteRule(_clip_divided, _hard_sigmoid, _is_hard_sigmoid),
    pattern.RewriteRule(_clip_times, _hard_sigmoid, _is_hard_sigmoid),
    pattern.RewriteRule(_gated_clip_divided, _hard_swish, _is_hard_sigmoid),
    pattern.RewriteRule(_gated, _hard_swish, _is_hard_swish),
    # The mean over the whole image: ONNX Runtime's blocked layout, and its integer kernels, know it as a pool.
    pattern.RewriteRule(_mean, _pool, _is_over_the_image),
]
"""Applied in order, commuted operands too: a HardSigmoid is found before the HardSwish that it is part of."""
