"""Brings a loaded model into the one shape that the rest reads: current opset, folded, uniquely named."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import version_converter

from autoq.errors import ModelError
from autoq.model.fold import cause_of, fold
from autoq.model.load import opset_of
from autoq.model.opset import IR_VERSION, TARGET_OPSET

# Suffixes of the names that lowering gives; a model that has such names itself came out of autoq.
_OWN_NAMES = re.compile(
    r"::([0-9a-f]+|q|dq|raw|h|bc|f|smooth[0-9.]+|in|rows|gate|dyn|sum|scale|s|z|ws|wz|w|t|i8|i32|c|b|book|f16|f32|"
    r"[A-Z]\w+)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A float32 model ready to be read into layers.

    Every node and tensor has a unique name, batch norms and constants are folded, and constants are initializers.
    ``notes`` says in sentences what could not be done; ``norms`` what folded batch norms knew (:class:`Graph`).
    """

    model: onnx.ModelProto
    opset: int
    notes: tuple[str, ...] = ()
    norms: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def prepare(model: onnx.ModelProto) -> Prepared:
    """The prepared form of a checked model (see :func:`autoq.model.load.load_model`).

    Upgrading uses ONNX's own converters; where they cannot convert an operator, the model keeps its opset and a note
    says so, as for every other step that fails. Raises :class:`ModelError` when the graph cannot be read at all.
    """
    notes = _quantized_already(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # what is read from a proto shares its tensors, names included, which change below
    with _quiet():
        try:
            graph = ir.serde.deserialize_model(_upgrade(_inline(copy), notes))
            norms = _norms(graph)
            prepared = ir.serde.serialize_model(_named(fold(graph, notes)))
        except ModelError:
            raise
        except Exception as error:  # the libraries' passes raise whatever their code runs into
            raise ModelError(f"the model cannot be prepared: {cause_of(error)}") from error
    with contextlib.suppress(Exception):  # shapes only inform; without them everything still works
        prepared = onnx.shape_inference.infer_shapes(prepared, data_prop=True)
    prepared.ir_version = max(prepared.ir_version, IR_VERSION)
    return Prepared(model=prepared, opset=opset_of(prepared), notes=tuple(notes), norms=norms)


def _norms(model: ir.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mean (beta) and variance (gamma squared) of what each batch norm writes, by the tensor's name."""
    found = {}
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain or not node.outputs[0].name:
            continue
        scale, bias = (
            ir.convenience.get_const_tensor(value) if value is not None else None for value in node.inputs[1:3]
        )
        if scale is not None and bias is not None:
            gamma, beta = scale.numpy().astype(np.float64), bias.numpy().astype(np.float64)
            if np.isfinite(gamma).all() and np.isfinite(beta).all():
                found[node.outputs[0].name] = (beta, np.square(gamma))
    return found


def _quantized_already(model: onnx.ModelProto) -> list[str]:
    count = sum(node.op_type.startswith(("DequantizeLinear", "QLinear", "MatMulInteger")) for node in model.graph.node)
    if not count:
        return []
    return [f"the model is quantized in part already ({count} nodes); those stay as they are, for better or worse"]


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without functions. One may be written for another opset than its model, and is converted on the way."""
    if not model.functions:
        return model
    # The converter wants the type of every tensor.
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    )
    try:
        return onnx.inliner.inline_local_functions(onnx.shape_inference.infer_shapes(model), convert_version=True)
    except Exception as error:
        opsets = {entry.version for function in model.functions for entry in function.opset_import if not entry.domain}
        if opsets <= {opset_of(model)}:
            return onnx.inliner.inline_local_functions(model)
        raise ModelError(f"the model's functions cannot be converted to its opset: {cause_of(error)}") from error


def _upgrade(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= TARGET_OPSET:
        return model
    reasons = []
    for convert in (_convert_in_onnx, _convert_in_onnxscript):
        try:
            converted = convert(model)
            onnx.checker.check_model(converted)
        except Exception as error:
            reasons.append(cause_of(error))
            continue
        if opset_of(converted) >= TARGET_OPSET:
            return converted
    notes.append(
        f"opset {opset} could not be upgraded to {TARGET_OPSET} ({'; '.join(reasons)}); 4- and 2-bit weights need it "
        "and are left out"
    )
    return model


def _convert_in_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    converted = onnx.version_converter.convert_version(model, TARGET_OPSET)
    notes = {node.output[0]: node.metadata_props for node in model.graph.node if node.output}
    for node in converted.graph.node:  # the converter drops them, and modules' names with them
        if node.output and not node.metadata_props:
            node.metadata_props.extend(notes.get(node.output[0], ()))
    return converted


def _convert_in_onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    version_converter.convert_version(graph, TARGET_OPSET)
    return ir.serde.serialize_model(graph)


def _named(model: ir.Model) -> ir.Model:
    """Unique names, and none that lowering would give as well."""
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for graph in model.graphs():
        values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for item in (*values, *graph):
            if item.name and item.name not in kept and _OWN_NAMES.search(item.name):
                item.name = item.name.replace("::", "..")
    return passes.NameFixPass()(model).model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converters print and log their progress; none of it is for the user."""
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "onnx_ir")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
