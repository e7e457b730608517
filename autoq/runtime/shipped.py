"""What a model takes where it is shipped: its files, and their size in a zip archive."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

_CHUNK = 1 << 20
_LEVEL = 9


def shipped_files(path: Path) -> tuple[Path, ...]:
    """The model's own file, then those of its external data, by name: what has to be there for it to load.

    Of a valid model; of any other, and of what is no ONNX, the file alone.
    """
    if path.suffix != ".onnx":
        return (path,)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whoever loads it says what is wrong with it
        return (path,)
    external = {ExternalDataInfo(tensor).location for tensor in tensors_of(model) if uses_external_data(tensor)}
    return (path, *(path.parent / name for name in sorted(external)))


def shipped_bytes(path: Path) -> int:
    """The size of :func:`shipped_files`. Raises ``OSError``."""
    return sum(file.stat().st_size for file in shipped_files(path))


def zipped_bytes(path: Path) -> int:
    """What :func:`shipped_files` take in a zip archive, less their entries there: deflated at level 9, the smallest.

    That is what an app store or an update over the air sends. Raises ``OSError``.
    """
    return sum(_deflated_bytes(file) for file in shipped_files(path))


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers and attributes, in subgraphs and functions too."""
    yield from model.graph.initializer
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graph.initializer
                nodes.extend(graph.node)


def _deflated_bytes(path: Path) -> int:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    total = 0
    with path.open("rb") as handle:
        while piece := handle.read(_CHUNK):
            total += len(packer.compress(piece))
    return total + len(packer.flush())
