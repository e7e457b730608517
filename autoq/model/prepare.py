"""Brings a loaded model into the one shape that the rest reads: current opset, folded, uniquely named."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter, version_converter
from onnxscript.rewriter.rules import common as rules

from autoq.errors import ModelError
from autoq.model.load import opset_of

TARGET_OPSET = 21
"""The first opset with 4-bit integers (ONNX 1.16), hence the oldest that every lowered form needs."""

IR_VERSION = 10
"""The IR version that belongs to opset 21."""

FOLD_LIMIT_BYTES = 256 * 2**20
"""Constants up to this size are folded: large enough for the transposed weights exporters leave behind."""

_BATCH_NORM_RULES = (
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A float32 model ready to be read into layers.

    Every node and tensor has a unique name, batch norms and constants are folded, and constants are initializers.
    ``notes`` says in sentences what could not be done.
    """

    model: onnx.ModelProto
    opset: int
    notes: tuple[str, ...] = ()


def prepare(model: onnx.ModelProto) -> Prepared:
    """The prepared form of a checked model (see :func:`autoq.model.load.load_model`).

    Upgrading uses ONNX's own converters; where they cannot convert an operator, the model keeps its opset and a note
    says so. Raises :class:`ModelError` when the graph cannot be read at all.
    """
    notes: list[str] = []
    with _quiet():
        try:
            graph = _fold(ir.serde.deserialize_model(_upgrade(model, notes)))
            prepared = ir.serde.serialize_model(graph)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model cannot be prepared: {type(error).__name__}: {error}") from error
    with contextlib.suppress(Exception):  # shapes only inform; without them everything still works
        prepared = onnx.shape_inference.infer_shapes(prepared, data_prop=True)
    if prepared.ir_version < IR_VERSION:
        prepared.ir_version = IR_VERSION
    return Prepared(model=prepared, opset=opset_of(prepared), notes=tuple(notes))


def _upgrade(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= TARGET_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, TARGET_OPSET)
        onnx.checker.check_model(converted)
        return converted
    except Exception as first:
        try:
            graph = ir.serde.deserialize_model(model)
            version_converter.convert_version(graph, TARGET_OPSET)
            converted = ir.serde.serialize_model(graph)
            if opset_of(converted) >= TARGET_OPSET:
                onnx.checker.check_model(converted)
                return converted
        except Exception as second:
            logging.getLogger(__name__).debug("second converter: %s", second)
        reason = next((line for line in str(first).splitlines() if line.strip()), type(first).__name__)
        notes.append(
            f"opset {opset} could not be upgraded to {TARGET_OPSET} ({reason}); 4- and 2-bit weights need it and are "
            "left out"
        )
        return model


def _fold(model: ir.Model) -> ir.Model:
    optimizer.optimize(model, input_size_limit=FOLD_LIMIT_BYTES, output_size_limit=FOLD_LIMIT_BYTES)
    model = rewriter.rewrite(model, pattern_rewrite_rules=_BATCH_NORM_RULES)
    optimizer.optimize(model, input_size_limit=FOLD_LIMIT_BYTES, output_size_limit=FOLD_LIMIT_BYTES)
    for step in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveInitializersFromInputsPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
        passes.NameFixPass(),
    ):
        result = step(model)
        if result is not None:
            model = result.model
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters print and log their progress; none of it is for the user."""
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "onnx_ir")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
