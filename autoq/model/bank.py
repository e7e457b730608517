"""The weight bank: for each layer and weight scheme the quantized weights, computed once.

Entries are addressed by content (the weight, the scheme, and for GPTQ the calibration data), kept in memory for this
search and on disk for the next, so that a second search on the same model starts at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from autoq.core.identity import content_id, sha256_hex
from autoq.core.layer import Layer
from autoq.core.scheme import BY_BLOCK, WeightSpec
from autoq.errors import ModelError
from autoq.model.cache import write_aside
from autoq.model.entries import Entry, arrays_of, axis_of, entry_of
from autoq.model.graph import Graph
from autoq.model.moments import sees_data
from autoq.numerics.affine import half
from autoq.numerics.correction import centered
from autoq.numerics.product import product_codes
from autoq.numerics.weights import factors_of, quantize_weight

BANK_VERSION = 4
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
    smoothing: Mapping[tuple[str, float], np.ndarray] = field(default_factory=dict)
    entries: dict[tuple[str, WeightSpec], Entry] = field(default_factory=dict)
    _addresses: dict[tuple[str, WeightSpec], str] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _shared: dict[tuple[str, WeightSpec], tuple[str, WeightSpec]] = field(default_factory=dict)

    def read_cache(self, wanted: Wanted) -> list[tuple[Layer, WeightSpec]]:
        """Reads what the cache holds of ``wanted``; gives back what is missing."""
        missing = []
        for layer, spec in self._own(wanted):
            if (layer.name, spec) in self.entries:
                continue
            entry = self._read(layer, spec)
            if entry is None:
                missing.append((layer, spec))
            else:
                self.entries[layer.name, spec] = entry
        self._share()
        return missing

    def compute(
        self,
        missing: Wanted,
        moments: Mapping[str, np.ndarray],
        means: Mapping[str, np.ndarray] = MappingProxyType({}),
        *,
        threads: int = 1,
        on_entry: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Quantizes what is ``missing``; ``moments`` has the second moments of every layer that GPTQ rounds, and
        ``means`` the mean of the same inputs for those whose bias is corrected.

        Raises :class:`ModelError` naming the layer whose weights cannot be quantized.
        """
        done = 0
        with ThreadPoolExecutor(threads) as pool:
            # NumPy releases the interpreter lock in the linear algebra, where the time goes.
            tasks = _by_hessian(self._own(missing), moments)
            results = pool.map(lambda task: self._quantize(task, moments, means), tasks)
            for task, entries in zip(tasks, results, strict=True):
                for (layer, spec), exact in zip(task, entries, strict=True):
                    entry = dataclasses.replace(exact, scale=half(exact.scale))  # two bytes a scale on disk
                    self.entries[layer.name, spec] = entry
                    self._write(layer, spec, entry)
                done += len(task)
                on_entry(done)
        self._share()

    def add(self, layer: Layer, spec: WeightSpec, entry: Entry) -> None:
        """Takes an entry that was computed with others (:mod:`autoq.model.reconstruct`)."""
        self.entries[layer.name, spec] = entry
        self._write(layer, spec, entry)

    def _own(self, wanted: Wanted) -> list[tuple[Layer, WeightSpec]]:
        """``wanted`` less what has the integers of another; notes which those are."""
        self._shared |= {(layer.name, spec): (layer.name, _plain(layer, spec)) for layer, spec in wanted}
        return list(
            {(layer.name, plain): (layer, plain) for layer, spec in wanted for plain in [_plain(layer, spec)]}.values()
        )

    def _share(self) -> None:
        self.entries |= {key: self.entries[plain] for key, plain in self._shared.items() if plain in self.entries}

    def _quantize(
        self, task: Wanted, moments: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray]
    ) -> list[Entry]:
        """The entries of a task of :func:`_by_hessian`."""
        hessian, factors = None, None
        entries: list[Entry] = []
        for layer, spec in task:
            try:
                if spec.rounding == "pq":
                    entries.append(product_codes(self.weight(layer, spec), bits=spec.bits))
                    continue
                if hessian is None and sees_data(layer, spec):
                    hessian = moments[layer.name]
                    hessian = centered(hessian, means[layer.name]) if spec.bias_correction else hessian  # see _plain
                    if spec.smoothing is not None:
                        scales = self.smoothing[layer.name, spec.smoothing].astype(np.float64)
                        hessian = hessian / (scales[:, None] * scales)  # of x / s
                    factors = factors_of(hessian)
                entries.append(
                    quantize_weight(
                        self.weight(layer, spec),
                        bits=spec.bits,
                        axis=axis_of(layer, spec),
                        block=spec.block,
                        symmetric=spec.symmetric,
                        rounding=spec.rounding,
                        hessian=hessian,
                        factors=factors,
                        groups=layer.groups,
                        output_axis=layer.channel_axis,
                    )
                )
            except ValueError as error:
                raise ModelError(f"layer {layer.name!r}: {error}") from None
        return entries

    def weight(self, layer: Layer, spec: WeightSpec) -> np.ndarray:
        """The weight that is rounded, float32: the layer's own, or ``W s`` where its inputs are smoothed."""
        weight = self.graph.constant(layer.weight)
        assert weight is not None
        if spec.smoothing is None:
            return weight
        scales = self.smoothing[layer.tied_to or layer.name, spec.smoothing]
        return weight * np.expand_dims(scales, axis=layer.channel_axis)

    def address(self, layer: Layer, spec: WeightSpec) -> str:
        """What the entry is found by on disk: the SHA-256 of all that it depends on."""
        key = (layer.name, spec)
        if key not in self._addresses:
            if layer.weight not in self._hashes:
                weight = self.graph.constant(layer.weight)
                assert weight is not None
                self._hashes[layer.weight] = sha256_hex(np.ascontiguousarray(weight).tobytes())
            self._addresses[key] = content_id(
                {
                    "version": BANK_VERSION,
                    "weight": self._hashes[layer.weight],
                    "shape": list(layer.weight_shape),
                    "axis": axis_of(layer, spec),
                    "block": spec.block,
                    "symmetric": spec.symmetric,
                    "groups": layer.groups,
                    "bits": spec.bits,
                    "rounding": spec.rounding,
                    # The same weight may see other activations elsewhere in the model.
                    "data": [self.calibration_id, layer.name] if _knows_data(layer, spec) else None,
                    "centered": spec.bias_correction == "empirical" and _knows_data(layer, spec),
                    # Scales follow from the data, the layer's readers and their weights: the model.
                    "smoothing": None if spec.smoothing is None else [spec.smoothing, self.calibration_id, layer.name],
                }
            )
        return self._addresses[key]

    def _path(self, layer: Layer, spec: WeightSpec) -> Path | None:
        if self.cache_dir is None:
            return None
        address = self.address(layer, spec)
        return self.cache_dir / "bank" / address[:2] / f"{address}.npz"

    def _read(self, layer: Layer, spec: WeightSpec) -> Entry | None:
        path = self._path(layer, spec)
        if path is None:
            return None
        try:
            # Opened here: NumPy would leave a damaged file open.
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                return entry_of(layer, spec, stored)
        except Exception:  # whatever a damaged file makes NumPy and zipfile raise: it is computed again
            return None

    def _write(self, layer: Layer, spec: WeightSpec, entry: Entry) -> None:
        path = self._path(layer, spec)
        if path is not None:
            write_aside(path, lambda handle: np.savez(handle, allow_pickle=False, **arrays_of(entry)))


def _knows_data(layer: Layer, spec: WeightSpec) -> bool:
    return spec.rounding in BY_BLOCK or sees_data(layer, spec)


def _plain(layer: Layer, spec: WeightSpec) -> WeightSpec:
    """The scheme that has the same integers: which ones are best depends on the bias only where data is looked at, and
    only if the correction takes out what that data shows."""
    keeps = spec.bias_correction == "empirical" and _knows_data(layer, spec)
    return spec if keeps else dataclasses.replace(spec, bias_correction=None)


def _by_hessian(wanted: Wanted, moments: Mapping[str, np.ndarray]) -> list[list[tuple[Layer, WeightSpec]]]:
    """``wanted`` in tasks: those that see the same second moments, of which the factors cost most, in one."""
    tasks: dict[object, list[tuple[Layer, WeightSpec]]] = {}
    for layer, spec in wanted:
        # Of several layers' equal matrices one object is kept, so that its identity is theirs.
        corrections = (spec.bias_correction, spec.smoothing)
        seen = (id(moments[layer.name]), *corrections) if sees_data(layer, spec) else (layer.name, spec)
        tasks.setdefault(seen, []).append((layer, spec))
    return list(tasks.values())
