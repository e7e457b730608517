"""Bias correction: where a layer's bias lives, and what to add to it so that rounding leaves the mean output alone.

A correction depends on the layer, its weight scheme and the data; not on what other layers become. It is computed once
and kept beside the bank's entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx

from autoq.core.identity import content_id
from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.model.analytic import ANALYTIC_VERSION
from autoq.model.bank import Bank
from autoq.model.cache import write_aside
from autoq.model.graph import Graph, attribute
from autoq.numerics.correction import mean_shift

CORRECTION_VERSION = 1
"""Part of every address: raise it when what is computed changes."""

Wanted = Sequence[tuple[Layer, WeightSpec]]


def bias_problem(graph: Graph, layer: Layer) -> str:
    """Why the layer's bias cannot take a correction, or nothing."""
    node = graph.nodes[layer.node]
    if layer.op_type == "Gather":
        return "a look-up has no bias"
    if layer.op_type == "ConvTranspose":
        return "how often a weight of a ConvTranspose is used differs from pixel to pixel, and so does its mean error"
    if layer.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0):
        return "the Gemm scales its product or its bias (alpha, beta)"
    if layer.bias is not None and graph.constant(layer.bias) is None:
        return "the bias is not constant"
    if layer.op_type == "MatMul":
        if layer.weight_index == 0 or len(layer.weight_shape) != 2:
            return "only a MatMul by a matrix on the right has output channels that a bias could be added to"
        if added_bias(graph, layer) is None:
            return "no constant is added to the product, and another Add would cost time at every inference"
    return ""


def added_bias(graph: Graph, layer: Layer) -> tuple[onnx.NodeProto, int] | None:
    """The Add that alone reads a MatMul's product, and which of its inputs is a constant bias."""
    add = graph.sole_consumer(layer.output)
    if add is None or add.op_type != "Add":
        return None
    index = 1 if add.input[0] == layer.output else 0
    value = graph.constant(add.input[index])
    return (add, index) if value is not None and (value.ndim == 0 or value.shape[-1] in (1, layer.channels)) else None


@dataclass(slots=True)
class Corrections:
    """Corrections ``[channels]``, float32, by (layer name, weight scheme); tied layers have one each.

    A cache that cannot be read or written costs time and nothing else.
    """

    bank: Bank
    entries: dict[tuple[str, WeightSpec], np.ndarray] = field(default_factory=dict)

    def read_cache(self, wanted: Wanted) -> list[tuple[Layer, WeightSpec]]:
        """Reads what the cache holds of ``wanted``; gives back what is missing."""
        missing = []
        for layer, spec in wanted:
            found = self._read(layer, spec)
            if found is None:
                missing.append((layer, spec))
            else:
                self.entries[layer.name, spec] = found
        return missing

    def compute(
        self,
        missing: Wanted,
        means: Mapping[str, np.ndarray],
        analytic: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """Computes what is ``missing``; the bank has the weights, ``means`` and ``analytic`` the mean inputs of every
        layer, as data show them and as they follow from the model."""
        for layer, spec in missing:
            weight = self.bank.weight(layer, spec)
            mean = (analytic if spec.bias_correction == "analytic" else means)[layer.name]
            if spec.smoothing is not None:
                mean = mean / self.bank.smoothing[layer.name, spec.smoothing]
            rounded = self.bank.entries[layer.tied_to or layer.name, spec].dequantize()
            shift = mean_shift(weight, rounded, mean, axis=layer.channel_axis)
            self.entries[layer.name, spec] = shift
            self._write(layer, spec, shift)

    def _path(self, layer: Layer, spec: WeightSpec) -> Path | None:
        if self.bank.cache_dir is None:
            return None
        address = content_id(
            {
                "version": CORRECTION_VERSION,
                "weight": self.bank.address(layer, spec),
                "owner": layer.tied_to or layer.name,
                "data": [self.bank.calibration_id, layer.name],
                "means": ["analytic", ANALYTIC_VERSION] if spec.bias_correction == "analytic" else "empirical",
            }
        )
        return self.bank.cache_dir / "corrections" / address[:2] / f"{address}.npy"

    def _read(self, layer: Layer, spec: WeightSpec) -> np.ndarray | None:
        path = self._path(layer, spec)
        if path is None:
            return None
        try:
            with path.open("rb") as handle:
                found = np.load(handle, allow_pickle=False)
        except Exception:  # whatever a damaged file makes NumPy raise: it is computed again
            return None
        sound = found.shape == (layer.channels,) and found.dtype == np.float32 and np.isfinite(found).all()
        return found if sound else None

    def _write(self, layer: Layer, spec: WeightSpec, shift: np.ndarray) -> None:
        path = self._path(layer, spec)
        if path is not None:
            write_aside(path, lambda handle: np.save(handle, shift))
