"""Folds a model: constants, batch norms, and a few patterns that would keep a layer from running on integers.

The work is done by the optimizer and the rewriter of onnxscript. A step that fails is left out, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common as rules

from autoq.core.layer import LAYER_OPS
from autoq.model import fold_activations

FOLD_LIMIT = 2**26
"""Constants of up to this many elements are folded: large enough for the transposed weights exporters leave behind."""

GROWTH_LIMIT = 2**16
"""Folding may make a constant of up to this many elements larger than what it is made of."""

# Operators that can make much of little. Where their output's shape is not known they are not tried.
_GROWING = frozenset(("Expand", "OneHot", "Pad", "Range", "Resize", "Tile"))


def fold(model: ir.Model, notes: list[str]) -> ir.Model:
    """``model`` with all constants as initializers, folded as far as possible; failures are told in ``notes``."""
    model = passes.RemoveInitializersFromInputsPass()(model).model  # a default that nobody overrides is a constant
    # Twice: a folded batch norm leaves constants, and only folded weights let a batch norm in.
    for what, steps in (
        ("inference of shapes", (_infer_shapes,)),
        ("folding of constants", (_simplify, _fold_constants)),
        ("folding of batch norms", (_rewrite,)),
        ("folding of constants", (_simplify, _fold_constants)),
    ):
        model = _first_that_works(model, what, steps, notes)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
    ):
        model = step(model).model
    _name_all_axes(model.graph)
    return model


def _first_that_works(
    model: ir.Model, what: str, steps: tuple[Callable[[ir.Model], None], ...], notes: list[str]
) -> ir.Model:
    reason = ""
    for step in steps:
        attempt = model.clone()  # a step that fails leaves half of its work behind
        try:
            makers = _makers(attempt.graph)
            step(attempt)
            _keep_names(attempt.graph, makers)
        except Exception as error:
            reason = reason or cause_of(error)
        else:
            return attempt
    notes.append(f"{what} failed ({reason}); the model is searched without it")
    return model


def _infer_shapes(model: ir.Model) -> None:
    passes.ShapeInferencePass(data_prop=True)(model)


def _simplify(model: ir.Model) -> None:
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT, should_fold=_should_fold)


def _fold_constants(model: ir.Model) -> None:
    passes.InlinePass()(model)
    optimizer.fold_constants_ir(model, input_size_limit=FOLD_LIMIT, should_fold=_should_fold)


def _should_fold(node: ir.Node) -> bool | None:
    """No for constants that would bloat the file, or the memory; else the optimizer's own rules (``None``)."""
    known = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    for output in node.outputs:
        if output.shape is None or not all(isinstance(size, int) for size in output.shape):
            if node.op_type in _GROWING:
                return False
        elif math.prod(output.shape.numpy()) > sum(known) + GROWTH_LIMIT:
            return False
    return None


def _rewrite(model: ir.Model) -> None:
    rewriter.rewrite(model, pattern_rewrite_rules=_RULES)


def _keep_names(graph: ir.Graph, known: Mapping[str | None, tuple[str | None, dict[str, str]]]) -> None:
    """A layer that took up what stood behind it is a new node; people know it by the old one's name and notes."""
    for node in graph:
        name, notes = known.get(node.outputs[0].name, (node.name, {}))
        if node.op_type in LAYER_OPS and node.name != name:
            node.name = name
            node.metadata_props.update(notes)


def _makers(graph: ir.Graph) -> dict[str | None, tuple[str | None, dict[str, str]]]:
    """Tensor -> name and notes of the layer that writes it, or that writes what its operator reads."""
    found: dict[str | None, tuple[str | None, dict[str, str]]] = {}
    for node in graph:
        above = (value.producer() for value in node.inputs if value is not None)
        for maker in (node, *above):
            if maker is not None and maker.op_type in LAYER_OPS:
                found[node.outputs[0].name] = (maker.name, dict(maker.metadata_props))
                break
    return found


def _matmul_and_bias(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> ir.Value:
    return op.Add(op.MatMul(x, weight), bias)


def _gemm(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value) -> ir.Value:
    return op.Gemm(x, weight, bias)


def _is_gemm(context: object, x: ir.Value, weight: ir.Value, bias: ir.Value, **_: object) -> bool:
    if x.shape is None or len(x.shape) != 2 or weight.const_value is None or bias.const_value is None:
        return False
    shape, bias_shape = weight.const_value.shape.numpy(), bias.const_value.shape.numpy()
    return len(shape) == 2 and bias_shape in (shape[1:], (1, *shape[1:]))


def _relu_of_pool(op: Any, x: ir.Value) -> ir.Value:
    return op.Relu(op.MaxPool(x, _allow_other_attributes=True, _outputs=["pooled"]))


def _pool_of_relu(op: Any, x: ir.Value, pooled: ir.Value) -> ir.Value:
    producer = pooled.producer()
    assert producer is not None
    return op.MaxPool(op.Relu(x), **producer.attributes)


def _is_layers_own(context: object, x: ir.Value, **_: object) -> bool:
    producer = x.producer()
    return producer is not None and producer.op_type == "Conv" and len(x.uses()) == 1 and not x.is_graph_output()


_RULES = pattern.RewriteRuleSet(
    [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        # ONNX Runtime does the same when it loads a model, but then the bias stays float and so does the Gemm.
        pattern.RewriteRule(_matmul_and_bias, _gemm, _is_gemm),
        # The same values; but a Relu right after a Conv costs nothing, in float as on integers.
        pattern.RewriteRule(_relu_of_pool, _pool_of_relu, _is_layers_own),
        *fold_activations.RULES,
    ],
    commute=True,
)


def _name_all_axes(graph: ir.Graph) -> None:
    """Writes the pads of a Pad with ``axes`` for all axes: ONNX Runtime 1.31 moves a Transpose through one and forgets
    its axes, so that it fails when it runs."""
    for node in graph:
        if node.op_type != "Pad" or node.domain or len(node.inputs) < 4 or node.inputs[3] is None:
            continue
        data, pads, axes = node.inputs[0], node.inputs[1], node.inputs[3]
        if data is None or data.shape is None or pads is None or pads.const_value is None or axes.const_value is None:
            continue
        rank = len(data.shape)
        given = pads.const_value.numpy().reshape(2, -1)
        full = np.zeros((2, rank), np.int64)
        full[:, axes.const_value.numpy() % rank] = given
        name = f"{node.outputs[0].name}.pads"
        constant = ir.Value(name=name, const_value=ir.tensor(full.reshape(-1), name=name))
        graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        node.replace_input_with(3, None)


def cause_of(error: BaseException) -> str:
    """The first line of the innermost cause: passes wrap what their rules raise in messages about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__
