"""The weight bank: for each layer and weight scheme the quantized weights, computed once.

Entries are addressed by content (the weight, the scheme, and for GPTQ the calibration data), kept in memory for this
search and on disk for the next, so that a second search on the same model starts at once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autoq.core.identity import content_id, sha256_hex
from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.errors import ModelError
from autoq.model.graph import Graph
from autoq.numerics.weights import QuantizedWeight, quantize_weight

BANK_VERSION = 2
"""Part of every address: raise it when an algorithm changes what it computes."""

Wanted = Sequence[tuple[Layer, WeightSpec]]


def default_cache_dir() -> Path:
    """``$AUTOQ_CACHE``, or ``autoq`` in the user's cache folder."""
    if configured := os.environ.get("AUTOQ_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autoq"


@dataclass(slots=True)
class Bank:
    """Quantized weights by (layer name, scheme). ``calibration_id`` identifies the data that GPTQ sees.

    A cache that cannot be read or written costs time and nothing else.
    """

    graph: Graph
    calibration_id: str
    cache_dir: Path | None = None
    entries: dict[tuple[str, WeightSpec], QuantizedWeight] = field(default_factory=dict)
    _addresses: dict[tuple[str, WeightSpec], str] = field(default_factory=dict)

    def read_cache(self, wanted: Wanted) -> list[tuple[Layer, WeightSpec]]:
        """Reads what the cache holds of ``wanted``; gives back what is missing."""
        missing = []
        for layer, spec in wanted:
            if (layer.name, spec) in self.entries:
                continue
            entry = self._read(layer, spec)
            if entry is None:
                missing.append((layer, spec))
            else:
                self.entries[layer.name, spec] = entry
        return missing

    def compute(
        self,
        missing: Wanted,
        moments: Mapping[str, np.ndarray],
        *,
        threads: int = 1,
        on_entry: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Quantizes what is ``missing``; ``moments`` has the second moments of every layer that GPTQ rounds.

        Raises :class:`ModelError` naming the layer whose weights cannot be quantized.
        """
        with ThreadPoolExecutor(threads) as pool:
            # NumPy releases the interpreter lock in the linear algebra, where the time goes.
            results = pool.map(lambda pair: self._quantize(pair[0], pair[1], moments), missing)
            for done, ((layer, spec), entry) in enumerate(zip(missing, results, strict=True), start=1):
                self.entries[layer.name, spec] = entry
                self._write(layer, spec, entry)
                on_entry(done)

    def _quantize(self, layer: Layer, spec: WeightSpec, moments: Mapping[str, np.ndarray]) -> QuantizedWeight:
        weight = self.graph.constant(layer.weight)
        assert weight is not None
        try:
            return quantize_weight(
                weight,
                bits=spec.bits,
                axis=layer.channel_axis if spec.granularity == "channel" else None,
                rounding=spec.rounding,
                hessian=moments[layer.name] if spec.rounding == "gptq" else None,
                groups=layer.groups,
                output_axis=layer.channel_axis,
            )
        except ValueError as error:
            raise ModelError(f"layer {layer.name!r}: {error}") from None

    def _address(self, layer: Layer, spec: WeightSpec) -> str:
        key = (layer.name, spec)
        if key not in self._addresses:
            weight = self.graph.constant(layer.weight)
            assert weight is not None
            self._addresses[key] = content_id(
                {
                    "version": BANK_VERSION,
                    "weight": sha256_hex(np.ascontiguousarray(weight).tobytes()),
                    "shape": list(weight.shape),
                    "axis": layer.channel_axis if spec.granularity == "channel" else None,
                    "groups": layer.groups,
                    "bits": spec.bits,
                    "rounding": spec.rounding,
                    # The same weight may see other activations elsewhere in the model.
                    "data": [self.calibration_id, layer.name] if spec.rounding == "gptq" else None,
                }
            )
        return self._addresses[key]

    def _path(self, layer: Layer, spec: WeightSpec) -> Path | None:
        if self.cache_dir is None:
            return None
        address = self._address(layer, spec)
        return self.cache_dir / "bank" / address[:2] / f"{address}.npz"

    def _read(self, layer: Layer, spec: WeightSpec) -> QuantizedWeight | None:
        path = self._path(layer, spec)
        if path is None:
            return None
        try:
            # Opened here: NumPy would leave a damaged file open.
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                values, scale = stored["values"], stored["scale"]
        except Exception:  # whatever a damaged file makes NumPy and zipfile raise: it is computed again
            return None
        axis = layer.channel_axis if spec.granularity == "channel" else None
        expected = (layer.channels,) if axis is not None else (1,)
        if values.shape != layer.weight_shape or values.dtype != np.int8 or scale.shape != expected:
            return None
        if scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale > 0).all()):
            return None
        return QuantizedWeight(values=values, scale=scale, axis=axis, bits=spec.bits)

    def _write(self, layer: Layer, spec: WeightSpec, entry: QuantizedWeight) -> None:
        path = self._path(layer, spec)
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed: a reader in another search never sees half a file.
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as handle:
                try:
                    np.savez(handle, values=entry.values, scale=entry.scale)
                    handle.close()
                    os.replace(handle.name, path)
                except BaseException:
                    Path(handle.name).unlink(missing_ok=True)
                    raise
