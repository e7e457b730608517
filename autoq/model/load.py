"""Reads an ONNX file, treating it as untrusted input."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from autoq.errors import ModelError

OLDEST_OPSET = 13
"""Per-axis QuantizeLinear exists from opset 13 on (ONNX operator changelog)."""

PROTOBUF_LIMIT = 2**31 - 1
"""A protobuf message, and so a single ONNX file, is at most 2 GiB."""


def load_model(path: Path) -> onnx.ModelProto:
    """The model of the file ``path``, checked, with its external data read in.

    Raises :class:`ModelError` when the file is missing, is no ONNX model, is truncated, names external data outside
    its own folder, breaks the ONNX specification, or is older than opset 13.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"model file {path} does not exist; check model.path") from None
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror}") from None
    if not data:
        raise ModelError(f"model file {path} is empty")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{path} is no ONNX model, or is truncated ({len(data):,} bytes do not parse)") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} holds no ONNX graph; is it really an .onnx file?")
    _read_external_data(model, path)
    _check(model, path)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX domain, or 0 where the model imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _read_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        location = ExternalDataInfo(tensor).location
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
            raise ModelError(
                f"{path}: tensor {tensor.name!r} names external data outside the model's folder ({location!r}); "
                "refused, since such a file could read anything on this machine"
            )
        if not target.is_file():
            raise ModelError(f"{path}: tensor {tensor.name!r} needs the external file {location!r}, which is missing")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: external data cannot be read: {_first_line(error)}") from None


def _check(model: onnx.ModelProto, path: Path) -> None:
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ModelError(f"{path} has opset {opset}; autoq needs {OLDEST_OPSET} or later. Export it again")
    try:
        if model.ByteSize() < PROTOBUF_LIMIT:
            onnx.checker.check_model(model)
        else:
            onnx.checker.check_model(str(path))
    except Exception as error:  # the checker lets several C++ exception types through
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from None


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found: list[onnx.TensorProto] = []
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        found.extend(graph.initializer)
        nodes = list(graph.node) + ([node for function in model.functions for node in function.node])
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.append(attribute.t)
                found.extend(attribute.tensors)
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
