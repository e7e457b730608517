"""Reads an ONNX file, treating it as untrusted input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from autoq.errors import ModelError
from autoq.runtime.shipped import tensors_of

OLDEST_OPSET = 13
"""Per-axis QuantizeLinear exists from opset 13 on (ONNX operator changelog)."""

LARGEST_BYTES = 2**31 - 1
"""A protobuf message, and so a candidate, which is one ONNX file, is at most 2 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A checked model with its external data read in; ``files`` are the model's own file, then its external data's."""

    model: onnx.ModelProto
    files: tuple[Path, ...]


def load_model(path: Path) -> Loaded:
    """The model of the file ``path``.

    Raises :class:`ModelError` when the file is missing, is no ONNX model, is truncated, names external data outside
    its own folder, breaks the ONNX specification, is older than opset 13, or larger than 2 GiB.
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
    files = (path, *_read_external_data(model, path))
    _check(model, path)
    return Loaded(model=model, files=files)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX domain, or 0 where the model imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _read_external_data(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Reads the external data into ``model``; gives back its files, by name."""
    folder = path.parent.resolve()
    files: dict[str, Path] = {}
    for tensor in tensors_of(model):
        if not uses_external_data(tensor):
            continue
        try:
            location = ExternalDataInfo(tensor).location
            target = (folder / location).resolve()
            if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
                raise ModelError(
                    f"{path}: tensor {tensor.name!r} names external data outside the model's folder ({location!r}); "
                    "refused, since such a file could read anything on this machine"
                )
            present = target.is_file()  # raises for a name longer than the file system allows
        except (ValueError, OSError) as error:
            cause = getattr(error, "strerror", None) or _first_line(error)
            raise ModelError(f"{path}: tensor {tensor.name!r} has broken external data: {cause}") from None
        if not present:
            raise ModelError(f"{path}: tensor {tensor.name!r} needs the external file {location!r}, which is missing")
        files[location] = path.parent / location
    total = sum(file.stat().st_size for file in (path, *files.values()))
    if total > LARGEST_BYTES:
        raise ModelError(f"{path} has {total:,} bytes with its external data; a candidate is one file of at most 2 GiB")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except Exception as error:  # the checker lets several C++ exception types through, here and below
        raise ModelError(f"{path}: external data cannot be read: {_first_line(error)}") from None
    return [file for _, file in sorted(files.items())]


def _check(model: onnx.ModelProto, path: Path) -> None:
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ModelError(f"{path} has opset {opset}; autoq needs {OLDEST_OPSET} or later. Export it again")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from None
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise ModelError(f"{path} stores {name!r} as a sparse tensor, which is not supported; store it densely")
    for tensor in tensors_of(model):  # the checker looks neither at a tensor's type nor at its number of bytes
        if tensor.data_type not in onnx.TensorProto.DataType.values() or min(tensor.dims, default=0) < 0:
            what = f"data type {tensor.data_type}, dimensions {list(tensor.dims)}"
            raise ModelError(f"{path}: tensor {tensor.name!r} is damaged: {what}")
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:
            raise ModelError(f"{path}: tensor {tensor.name!r} is damaged: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
