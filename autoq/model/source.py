"""A model file, loaded, prepared and read into layers: where every command begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from autoq.core.layer import Layer
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.load import load_model
from autoq.model.prepare import prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A trained model as its file gave it.

    ``sha256`` and ``size_bytes`` cover the file and its external data. ``graph`` is the prepared model, ``opset`` its
    opset, ``notes`` what preparing it could not do.
    """

    path: Path
    sha256: str
    size_bytes: int
    graph: Graph
    layers: tuple[Layer, ...]
    opset: int
    notes: tuple[str, ...]


def read_model(path: Path) -> SourceModel:
    """The model of an ONNX file. Raises :class:`autoq.errors.ModelError`."""
    prepared = prepare(load_model(path))
    graph = Graph(prepared.model)
    files = [path, *_external_files(path)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return SourceModel(
        path=path,
        sha256=digest.hexdigest(),
        size_bytes=sum(file.stat().st_size for file in files),
        graph=graph,
        layers=read_layers(graph),
        opset=prepared.opset,
        notes=prepared.notes,
    )


def _external_files(path: Path) -> list[Path]:
    """The files of external data, which :func:`load_model` has checked to lie in the model's folder, by name."""
    model = onnx.load(path, load_external_data=False)
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return [path.parent / name for name in sorted({ExternalDataInfo(tensor).location for tensor in tensors})]
