"""Which layers' inputs can be smoothed, and by what.

A smoothed layer reads ``x / s`` and has weights ``W s`` (:mod:`autoq.numerics.smoothing`). The division is one Mul in
front of the quantization, which costs next to nothing, or is absorbed by a LayerNormalization that nothing else reads.
Layers that read one tensor share its scales, whatever their schemes, and so do layers that share a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from autoq.core.layer import Layer
from autoq.model.graph import Graph, attribute
from autoq.numerics.smoothing import smoothing_scales

Scales = Mapping[tuple[str, float], np.ndarray]
"""(layer name, strength) -> s, float32 ``[K]``."""


def smoothing_problem(layer: Layer) -> str:
    """Why the layer's inputs cannot be smoothed, or nothing."""
    if layer.op_type not in ("Gemm", "MatMul"):
        return "smoothing is for MatMul and Gemm; between convolutions, `equalization: cross-layer` costs nothing"
    return layer.integer_problem


def smoothed_name(layer: Layer, strength: float) -> str:
    """The tensor that a smoothed layer has quantized in place of its input."""
    return f"{layer.input}::smooth{strength!r}"


def families(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Smoothable layers by the name of the first one they share scales with: through an input, or through a weight."""
    leader: dict[str, str] = {}
    members: dict[str, list[Layer]] = {}
    by_input: dict[str, str] = {}
    for layer in layers:
        if smoothing_problem(layer):
            continue
        found = {name for name in (leader.get(layer.tied_to or ""), by_input.get(layer.input)) if name is not None}
        first = min(found, key=list(members).index) if found else layer.name
        family = members.setdefault(first, [])
        for other in found - {first}:
            family += members.pop(other)
        family.append(layer)
        for member in family:
            leader[member.name] = first
            by_input[member.input] = first
    return members


def smoothing_table(
    graph: Graph, layers: Sequence[Layer], peaks: Mapping[str, np.ndarray], strengths: Iterable[float]
) -> dict[tuple[str, float], np.ndarray]:
    """The scales of every smoothable layer; ``peaks`` are the largest magnitudes of each tensor's channels, ``[K]``."""
    strengths = tuple(strengths)
    table: dict[tuple[str, float], np.ndarray] = {}
    for family in families(layers).values():
        inputs = np.max([peaks[layer.input] for layer in family], axis=0)
        weights = np.max([_peaks(graph, layer) for layer in family], axis=0)
        for strength in strengths:
            scales = smoothing_scales(inputs, weights, strength)
            table |= {(layer.name, strength): scales for layer in family}
    return table


def divisors(layers: Iterable[Layer], table: Scales) -> dict[tuple[str, float], tuple[str, np.ndarray]]:
    """(smoothed tensor, strength) -> the tensor that it comes from, and what that is divided by."""
    by_name = {layer.name: layer for layer in layers}
    found = ((by_name[name], strength, scales) for (name, strength), scales in table.items() if name in by_name)
    return {(smoothed_name(layer, strength), strength): (layer.input, scales) for layer, strength, scales in found}


def absorbing(graph: Graph, tensor: str, readers: set[str]) -> onnx.NodeProto | None:
    """The LayerNormalization that writes ``tensor`` for the nodes ``readers`` alone, so that it may divide instead."""
    node = graph.producer.get(tensor)
    if node is None or node.op_type != "LayerNormalization" or tensor in graph.outputs or tensor in graph.captured:
        return None
    if {reader.name for reader, _ in graph.consumers.get(tensor, ())} != readers:
        return None
    scale, bias = (graph.constant(name) if name else None for name in (*node.input[1:3], "")[:2])
    rank = len(graph.shapes.get(node.input[0], ()))
    last = attribute(node, "axis", -1) in (-1, rank - 1)
    constant = scale is not None and scale.ndim == 1 and (len(node.input) < 3 or not node.input[2] or bias is not None)
    return node if last and constant else None


def _peaks(graph: Graph, layer: Layer) -> np.ndarray:
    weight = graph.constant(layer.weight)
    assert weight is not None
    return np.asarray(np.abs(weight).max(axis=layer.channel_axis))
