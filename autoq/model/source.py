"""A model file, loaded, prepared and read into layers: where every command begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

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
    loaded = load_model(path)
    prepared = prepare(loaded.model)
    graph = Graph(prepared.model)
    digest = hashlib.sha256()
    for file in loaded.files:
        digest.update(file.read_bytes())
    return SourceModel(
        path=path,
        sha256=digest.hexdigest(),
        size_bytes=sum(file.stat().st_size for file in loaded.files),
        graph=graph,
        layers=read_layers(graph),
        opset=prepared.opset,
        notes=prepared.notes,
    )
