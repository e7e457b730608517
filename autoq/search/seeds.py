"""Where to look first: the front that the proxies predict.

Sizes add exactly, modelled latencies and noise powers add by model; so the best policy at each trade-off is a
multiple-choice knapsack. Its Lagrangian splits into one choice a layer: for prices of a byte and of a unit of time,
each layer takes the scheme of least ``noise + price_of_size * size + price_of_time * time`` (Everett 1963). A sweep
over both prices gives every policy on the convex hull of the predicted front. What lies in its dents is found by
joining layer after layer and dropping what is dominated on the way (Nemhauser and Ullmann 1969), which is exact for a
few layers; of many it keeps a grid, and of very many the hull alone is dense.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autoq.core.layer import Layer
from autoq.core.scheme import FLOAT32, Scheme, WeightSpec
from autoq.numerics.pareto import non_dominated
from autoq.search.candidates import Candidates
from autoq.search.sensitivity import Sensitivity
from autoq.spec.hardware import Profile

# Prices relative to the dearest exchange that any layer could make; the ends are "free" and "at any cost".
_PRICES = np.concatenate([[0.0], np.logspace(-9, 3, 49)])

_WORTHLESS_NOISE = 0.3
"""Summed disturbance of the outputs at which about a tenth of a metric is lost (docs/benchmarks.md, polish)."""

LEAST_GAIN = 0.003
"""Each next seed is to widen the predicted front by this share: a search soon knows better than its predictions."""

_MOST_JOINED = 64  # layers
_GRID = 20  # cells for size, and for time: each keeps the join of least noise

_DIRECTIONS = 512

_BYTES_PER_SCALE = 2  # float16, nearly always

LayerTimes = Mapping[tuple[str, Scheme], float]
"""What each scheme of each layer adds to a whole latency (:meth:`autoq.search.latency.LatencyModel.layer_times`)."""

Seed = tuple[str, dict[str, Scheme]]
"""What a seed is called, and layer -> scheme."""


def opening_seeds(
    candidates: Sequence[Candidates],
    table: Sensitivity,
    profile: Profile,
    uniform: Sequence[Seed],
    count: int,
    times: LayerTimes | None = None,
) -> tuple[list[Seed], list[Seed]]:
    """What a search begins with, and which of the ``uniform`` seeds are to come later, one by one.

    It begins with what is predicted to widen the front by a share of :data:`LEAST_GAIN`, best first: uniform seeds, and
    at most ``count`` others. ``times`` as in :func:`knapsack_seeds`.
    """
    layers = [entry for entry in candidates if entry.layer.tied_to is None]
    given = [tuple(entry.schemes.index(seed.get(entry.layer.name, entry.schemes[0])) for entry in layers)
             for _, seed in uniform]  # fmt: skip
    costs = [_costs(entry, table, profile, times) for entry in layers]
    first, later = opening(costs, given, count, _float32(layers))
    names = {pick: name for pick, (name, _) in reversed(list(zip(given, uniform, strict=True)))}
    numbers = itertools.count(1)
    seeds = [
        (
            names.get(pick) or f"predicted front {next(numbers)}",
            {entry.layer.name: entry.schemes[i] for entry, i in zip(layers, pick, strict=True)},
        )
        for pick in first
    ]
    return seeds, [uniform[index] for index in later]


def opening(
    costs: Sequence[npt.NDArray[np.float64]],
    given: Sequence[tuple[int, ...]],
    count: int,
    baseline: tuple[int, ...] | None = None,
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Which points to begin with, of ``given`` ones and at most ``count`` of the predicted front; indices of those that
    are left of ``given``. ``costs`` as in :func:`predicted_front`; ``baseline`` is a point to leave out.
    """
    found, _ = _predicted(costs)
    picks = list(dict.fromkeys([*given, *(pick for pick in found if pick != baseline)]))
    totals = _totals(costs, picks)
    usable = np.flatnonzero(np.isfinite(totals).all(axis=1))
    order = usable[_order(totals[usable], _dearest(costs), len(given) + count, LEAST_GAIN)]
    ranked, own = [picks[index] for index in order], set(given)
    more = [pick for pick in ranked if pick not in own][:count]
    first = [pick for pick in ranked if pick in own or pick in more]
    return first, [index for index, pick in enumerate(given) if pick not in first]


def knapsack_seeds(
    candidates: Sequence[Candidates],
    table: Sensitivity,
    profile: Profile,
    count: int,
    times: LayerTimes | None = None,
) -> list[dict[str, Scheme]]:
    """At most ``count`` choices of schemes (layer -> scheme) that trace the predicted front.

    Only layers with a weight of their own appear. Each next one is that which widens the predicted front most.
    ``times`` are measured on this machine; without them, the profile's costs serve.
    """
    layers = [entry for entry in candidates if entry.layer.tied_to is None]
    costs = [_costs(entry, table, profile, times) for entry in layers]
    picks, totals = _predicted(costs)
    baseline = _float32(layers)
    quantized = [pick != baseline for pick in picks]
    picks, totals = [pick for pick, keep in zip(picks, quantized, strict=True) if keep], totals[quantized]
    return [
        {entry.layer.name: entry.schemes[i] for entry, i in zip(layers, picks[index], strict=True)}
        for index in _order(totals, _dearest(costs), count)
    ]


def predicted_front(costs: Sequence[npt.NDArray[np.float64]], count: int) -> list[tuple[int, ...]]:
    """At most ``count`` points, a choice for each parameter, that trace the front of three losses that add.

    ``costs`` holds ``[choices, 3]`` for each parameter: what each choice adds to a relative noise power and to two
    other losses; a point with a cost that is not finite is left out. Each next point is the one that widens the front
    most.
    """
    picks, totals = _predicted(costs)
    return [picks[index] for index in _order(totals, _dearest(costs), count)]


def proxies(
    candidates: Sequence[Candidates],
    table: Sensitivity,
    profile: Profile,
    objectives: Sequence[str],
    times: LayerTimes | None = None,
) -> dict[str, list[list[float]]]:
    """Layer -> for each of its schemes what it is believed to add to each objective, in any unit.

    Noise power for the metric, modelled time for latency, bytes for size and memory. A scheme whose noise could not be
    taken counts as ten times the noisiest of its layer.
    """
    column = {"metric": 0, "size": 1, "latency": 2, "peak_memory": 1}
    found = {}
    for entry in candidates:
        if entry.layer.tied_to is None:
            costs = _costs(entry, table, profile, times)
            known = np.isfinite(costs)
            costs = np.where(known, costs, 10 * np.where(known, costs, 0.0).max(axis=0))
            found[entry.layer.name] = costs[:, [column[name] for name in objectives]].tolist()
    return found


def _costs(
    entry: Candidates, table: Sensitivity, profile: Profile, times: LayerTimes | None
) -> npt.NDArray[np.float64]:
    """[schemes, 3]: noise, bytes, modelled time of each of the layer's schemes."""
    layer = entry.layer
    rows = []
    for scheme in entry.schemes:
        time = layer.macs * profile.cost(layer.kind, scheme, layer.uses)
        if times is not None:
            time = times[layer.name, scheme]
        rows.append((table.noise(layer.name, scheme), weight_bytes(layer, scheme), time))
    return np.array(rows, np.float64)


def weight_bytes(layer: Layer, scheme: Scheme) -> float:
    """What a layer's weight takes of the file under a scheme, with its scales and zero points."""
    return layer.parameters * scheme.weight_bits / 8 + _bytes_of_scales(layer, scheme.weight)


def _bytes_of_scales(layer: Layer, spec: WeightSpec | None) -> float:
    if spec is None or spec.bits == 16:
        return 0.0
    count = 1 if spec.granularity == "tensor" else layer.channels
    if spec.block is not None:
        count *= -(-layer.parameters // layer.channels // spec.block)
    return count * (_BYTES_PER_SCALE + (0 if spec.symmetric else spec.bits / 8))


def _predicted(costs: Sequence[npt.NDArray[np.float64]]) -> tuple[list[tuple[int, ...]], npt.NDArray[np.float64]]:
    """The points that a sweep over prices finds, those of them that are not dominated, with their totals ``[n, 3]``."""
    picks = list(dict.fromkeys([*_sweep(costs), *(_joins(costs) if len(costs) <= _MOST_JOINED else [])]))
    totals = _totals(costs, picks)
    usable = np.flatnonzero(np.isfinite(totals).all(axis=1))
    front = usable[non_dominated(totals[usable])] if len(usable) else usable
    return [picks[index] for index in front], totals[front]


def _sweep(costs: Sequence[npt.NDArray[np.float64]]) -> list[tuple[int, ...]]:
    """Every distinct choice of one row a layer that some pair of prices makes best."""
    finite = [np.where(np.isfinite(c), c, 0.0) for c in costs]
    span = np.sum([np.ptp(c, axis=0) for c in finite], axis=0)
    unit_of_size = span[0] / span[1] if span[1] > 0 else 0.0
    unit_of_time = span[0] / span[2] if span[2] > 0 else 0.0
    found: dict[tuple[int, ...], None] = {}
    for price_of_time in _PRICES * unit_of_time:
        for price_of_size in _PRICES * unit_of_size:
            weights = np.array([1.0, price_of_size, price_of_time])
            found.setdefault(tuple(int(np.argmin(c @ weights)) for c in costs))
    return list(found)


def _float32(layers: Sequence[Candidates]) -> tuple[int, ...] | None:
    """float32 itself, the baseline of every search, and no candidate; ``None`` where a layer cannot have it."""
    if not all(FLOAT32 in entry.schemes for entry in layers):
        return None
    return tuple(entry.schemes.index(FLOAT32) for entry in layers)


def _totals(costs: Sequence[npt.NDArray[np.float64]], picks: Sequence[tuple[int, ...]]) -> npt.NDArray[np.float64]:
    """``[n, 3]``: the sums of each pick's costs."""
    return np.array([np.sum([c[i] for c, i in zip(costs, pick, strict=True)], axis=0) for pick in picks])


def _joins(costs: Sequence[npt.NDArray[np.float64]]) -> list[tuple[int, ...]]:
    """What is left of all choices when layer is joined to layer, and only what is not dominated is kept, or a grid."""
    picks, totals = np.zeros((1, 0), np.intp), np.zeros((1, 3))
    for cost in costs:
        usable = np.flatnonzero(np.isfinite(cost).all(axis=1))
        joined = (totals[:, None] + cost[usable]).reshape(-1, 3)
        chosen = np.concatenate([np.repeat(picks, len(usable), axis=0), np.tile(usable, len(picks))[:, None]], axis=1)
        kept = np.flatnonzero(non_dominated(joined))
        if len(kept) > _GRID**2:
            logs = np.log10(joined[kept, 1:] + joined[kept, 1:].max(axis=0) * 1e-3 + 1e-30)
            span = np.maximum(np.ptp(logs, axis=0), 1e-12)
            cells = np.minimum((logs - logs.min(axis=0)) / span * _GRID, _GRID - 1).astype(int) @ [_GRID, 1]
            by_noise = np.argsort(joined[kept, 0], kind="stable")
            kept = kept[by_noise[np.unique(cells[by_noise], return_index=True)[1]]]
        picks, totals = chosen[kept], joined[kept]
    return [tuple(pick) for pick in picks.tolist()]


def _dearest(costs: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """``[3]``: the noise that leaves nothing of a metric, and the other two losses of the dearest point of all."""
    worst = np.sum([np.where(np.isfinite(c), c, 0.0).max(axis=0) for c in costs], axis=0)
    return np.array([_WORTHLESS_NOISE, *worst[1:]])


def _order(
    totals: npt.NDArray[np.float64], dearest: npt.NDArray[np.float64], count: int, least_gain: float = 0.0
) -> npt.NDArray[np.intp]:
    """Which rows of ``totals`` ``[n, 3]`` to take, the next always the one that widens the predicted front most.

    The hypervolume within ``dearest`` is the mean over random directions of the farthest that any point reaches (Zhang
    and Golovin 2020, lemma 5). Where no gain is too small and nothing more is gained, or where nothing is worth
    anything, the farthest from those before follows.
    """
    directions = np.abs(np.random.default_rng(0).normal(size=(_DIRECTIONS, 3)))
    inverse = np.linalg.norm(directions, axis=1, keepdims=True) / directions
    below = np.maximum(1 - totals / np.where(dearest > 0, dearest, 1.0), 0.0)
    reached = np.min([np.multiply.outer(below[:, j], inverse[:, j]) for j in range(3)], axis=0) ** 3
    order: list[int] = []
    now = np.zeros(_DIRECTIONS)
    while len(order) < min(count, len(totals)):
        gains = np.maximum(reached - now, 0.0).mean(axis=1)
        best = int(np.argmax(gains))
        if gains[best] <= max(1e-6, least_gain * now.mean()):
            break
        order.append(best)
        now = np.maximum(now, reached[best])
    return np.array(order) if order and least_gain else _spread(totals, order, count)


def _spread(totals: npt.NDArray[np.float64], order: list[int], count: int) -> npt.NDArray[np.intp]:
    """Goes on from ``order`` in farthest-point order over the logarithms of the three totals."""
    if not len(totals):
        return np.zeros(0, np.intp)
    # Noise a thousandth of the largest changes no metric that can be told from float32's: there, all is one place.
    logs = np.log10(totals + totals.max(axis=0) * [1e-3, 1e-6, 1e-6] + 1e-30)
    span = np.ptp(logs, axis=0)
    scaled = (logs - logs.min(axis=0)) / np.where(span > 0, span, 1.0)
    if not order:  # the middle of the front is worth most: a balanced policy is what most users take
        order = [int(np.argmin(np.linalg.norm(scaled - np.median(scaled, axis=0), axis=1)))]
    distance = np.min([np.linalg.norm(scaled - scaled[index], axis=1) for index in order], axis=0)
    while len(order) < min(count, len(totals)):
        following = int(np.argmax(distance))
        if distance[following] <= 0:
            break
        order.append(following)
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[following], axis=1))
    return np.array(order)
