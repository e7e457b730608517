"""Everything dear, done once: one pass over the calibration data, ranges, and the weight bank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoq.core.layer import Layer
from autoq.core.scheme import BY_BLOCK, ActivationSpec, WeightSpec
from autoq.errors import DataError
from autoq.model.analytic import analytic_means, input_moments
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate, calibrate_smoothed, smoothed_affines
from autoq.model.corrections import Corrections
from autoq.model.forms import formed
from autoq.model.lower import Affine, Lowering
from autoq.model.moments import sees_data
from autoq.model.placement import Placer
from autoq.model.smoothing import divisors, smoothing_problem, smoothing_table
from autoq.model.source import SourceModel
from autoq.runtime.base import InputSpec, fixed_batch
from autoq.runtime.data import Split
from autoq.search.candidates import (
    Candidates,
    activation_specs,
    corrected_specs,
    smoothing_strengths,
    weight_specs,
)

BATCH = 32
"""Rows run at once while calibrating; moving averages are over batches of this size."""

_WALKS = 2  # through the model at once, each with activations of its own


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What passes over the calibration data gave for activations; as :class:`autoq.model.lower.Lowering` has it."""

    affines: Mapping[tuple[str, ActivationSpec], Affine]
    smoothing: Mapping[tuple[str, float], np.ndarray]

    def covers(self, tensors: Iterable[str], specs: Iterable[ActivationSpec], strengths: Iterable[float]) -> bool:
        """Whether it has all of these: every tensor was taken with every scheme, and smoothed with every strength."""
        wanted = {(tensor, spec) for tensor in tensors for spec in specs}
        return wanted <= self.affines.keys() and set(strengths) <= {strength for _, strength in self.smoothing}


def lay_groundwork(
    model: SourceModel,
    found: Sequence[Candidates],
    calibration: Split,
    inputs: Sequence[InputSpec],
    *,
    cache_dir: Path | None,
    padding_mask: str | None = None,
    accuracy_level: int = 4,
    integer_products: bool = False,
    forms: tuple[str, ...] = (),
    calibrated: Calibrated | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Lowering:
    """A :class:`Lowering` that can build every policy over the candidates ``found``, in the given forms.

    ``accuracy_level`` and ``integer_products`` are the profile's (:class:`autoq.spec.profile_fields.LoweringChoice`).
    ``calibrated`` is of the same model, data and padding mask, taken for other candidates or forms: where it has all
    that these need, and their weights are in the bank, there is no pass over the data.

    Raises :class:`autoq.errors.DataError` and :class:`autoq.errors.ModelError` for data and weights that cannot be
    calibrated or quantized.
    """
    specs = activation_specs(found)
    tensors = Placer(formed(model.graph, forms), model.layers, integer_products).tensors_to_calibrate()
    masked = f":without padding of {padding_mask}" if padding_mask else ""
    calibration_id = f"{model.identity}:{calibration.fingerprint}{masked}"
    bank = Bank(model.graph, calibration_id=calibration_id, cache_dir=cache_dir)
    missing = bank.read_cache(weight_specs(found))
    corrections = Corrections(bank)
    uncorrected = corrections.read_cache(corrected_specs(found))
    averaged = {layer.name: layer for layer, spec in uncorrected if spec.bias_correction == "empirical"}
    rounded = {layer.name: layer for layer, spec in missing if sees_data(layer, spec)}
    threads = os.cpu_count() or 1
    moments: Mapping[str, np.ndarray] = {}
    sample_means: Mapping[str, np.ndarray] = {}
    means: Mapping[str, np.ndarray] = {}
    smoothable = [layer for layer in model.layers if not smoothing_problem(layer)]
    strengths = smoothing_strengths(found)
    smoothing: dict[tuple[str, float], np.ndarray] = {}
    affines: dict[tuple[str, ActivationSpec], tuple[np.float32, int]] = {}
    if calibrated is not None and not rounded and not averaged and calibrated.covers(tensors, specs, strengths):
        affines, smoothing = dict(calibrated.affines), dict(calibrated.smoothing)
        bank.smoothing = smoothing
    elif specs or rounded or averaged:
        step(f"calibrating on {calibration.rows} rows")
        statistics = calibrate(
            model.graph,
            _batches(calibration, inputs),
            tensors=tensors if specs else (),
            moment_layers=list(rounded.values()),
            mean_layers=list(averaged.values()),
            peak_tensors=list(dict.fromkeys(layer.input for layer in smoothable)) if strengths else (),
            padding_mask=padding_mask,
            threads=threads,
        )
        moments, sample_means, means = statistics.moments, statistics.sample_means, statistics.means
        affines = affine_table(statistics.statistics, specs)
        if strengths:
            step("calibrating smoothed inputs")
            smoothing = smoothing_table(model.graph, model.layers, statistics.peaks, strengths)
            divided = calibrate_smoothed(
                model.graph,
                _batches(calibration, inputs),
                divisors(smoothable, smoothing),
                padding_mask=padding_mask,
                threads=threads,
            )
            affines |= smoothed_affines(divided, specs)
            bank.smoothing = smoothing
    by_block = [(layer, spec) for layer, spec in missing if spec.rounding in BY_BLOCK]
    alone = [(layer, spec) for layer, spec in missing if spec.rounding not in BY_BLOCK]
    if alone:
        step(f"quantizing weights: {len(alone)} entries for the bank")
        bank.compute(alone, moments, sample_means, threads=threads)
    if by_block:
        step(f"rounding block by block: {len(by_block)} entries for the bank")
        _reconstruct(model, bank, by_block, lambda: _batches(calibration, inputs), padding_mask, threads)
    analytic: Mapping[str, np.ndarray] = {}
    if any(spec.bias_correction == "analytic" for _, spec in uncorrected):
        moments_in = {name: input_moments(values) for name, values in calibration.inputs.items()}
        usable = {name: each for name, each in moments_in.items() if each is not None}
        analytic = analytic_means(model.graph, model.layers, usable)
    corrections.compute(uncorrected, means, analytic)
    return Lowering(
        model.graph,
        model.layers,
        affines,
        bank.entries,
        corrections=corrections.entries,
        smoothing=smoothing,
        accuracy_level=accuracy_level,
        forms=forms,
        integer_products=integer_products,
    )


def _reconstruct(
    model: SourceModel,
    bank: Bank,
    missing: Sequence[tuple[Layer, WeightSpec]],
    batches: Callable[[], Iterator[dict[str, np.ndarray]]],
    padding_mask: str | None,
    threads: int,
) -> None:
    """Fills ``bank`` with entries rounded by block: one walk through the model for each scheme, side by side."""
    from autoq.model.reconstruct import reconstruct  # PyTorch takes seconds to import
    from autoq.model.torch_graph import one_thread

    chains: dict[WeightSpec, list[Layer]] = {}
    for layer, spec in missing:
        chains.setdefault(spec, []).append(layer)

    def walk(chain: tuple[WeightSpec, list[Layer]]) -> None:
        spec, layers = chain
        names = [layer.name for layer in layers]
        entries = reconstruct(model.graph, model.layers, names, spec, batches(), padding_mask=padding_mask)
        for layer in layers:
            bank.add(layer, spec, entries[layer.name])

    with one_thread(), ThreadPoolExecutor(min(threads, _WALKS)) as pool:
        list(pool.map(walk, chains.items()))


def _batches(split: Split, inputs: Sequence[InputSpec]) -> Iterator[dict[str, np.ndarray]]:
    """Batches of :data:`BATCH` rows, or of the model's own size where that is fixed, less a last one too short."""
    fixed = fixed_batch(inputs)
    size = fixed or BATCH
    if fixed and split.rows < size:
        raise DataError(f"data.calibration has {split.rows} rows, fewer than the model's fixed batch of {size}")
    for batch in split.batches(size):
        if not fixed or len(next(iter(batch.values()))) == size:
            yield batch
