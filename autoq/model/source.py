"""A model file, loaded, prepared and read into layers: where every command begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from autoq.core.layer import Layer
from autoq.model.equalize import EQUALIZATION_VERSION, equalize
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.load import load_model
from autoq.model.prepare import prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A trained model as its file gave it.

    ``sha256`` and ``size_bytes`` cover the file and its external data. ``graph`` is the prepared model, ``opset`` its
    opset, ``notes`` what preparing it could not do. ``identity`` names what ``graph`` computes with: the file, and what
    was done to its weights.
    """

    path: Path
    sha256: str
    size_bytes: int
    graph: Graph
    layers: tuple[Layer, ...]
    opset: int
    notes: tuple[str, ...]
    identity: str


def read_model(path: Path, *, equalized: bool = False) -> SourceModel:
    """The model of an ONNX file, perhaps equalized across its layers. Raises :class:`autoq.errors.ModelError`."""
    loaded = load_model(path)
    prepared = prepare(loaded.model)
    graph = Graph(prepared.model, norms=prepared.norms)
    digest = hashlib.sha256()
    for file in loaded.files:
        digest.update(file.read_bytes())
    layers, notes, identity = read_layers(graph), prepared.notes, digest.hexdigest()
    if equalized:
        found = equalize(graph, layers)
        graph, notes = Graph(found.model, norms=found.norms), (*notes, str(found))
        identity = f"{identity}:cross-layer {EQUALIZATION_VERSION}"
    return SourceModel(
        path=path,
        sha256=digest.hexdigest(),
        size_bytes=sum(file.stat().st_size for file in loaded.files),
        graph=graph,
        layers=layers,
        opset=prepared.opset,
        notes=notes,
        identity=identity,
    )
