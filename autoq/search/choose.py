"""Which point to measure next: a pool of promising ones, and of these the one that should widen the front most.

Each loss has a :class:`~autoq.numerics.surrogate.Surrogate`: a Gaussian process around a proxy (sensitivities, a
latency model, exact sizes), or around nothing where there is none. The pool holds

* for random prices of the losses, the choice of least total price for every parameter, under a *draw* of what each
  choice costs (a multiple-choice knapsack by its Lagrangian, Everett 1963; draws as in Thompson 1933);
* neighbours of the front: one or two parameters changed, or two of its points crossed;
* a few points at random.

The gain of a point in hypervolume is estimated over random directions (Zhang & Golovin, "Random Hypervolume
Scalarizations for Provable Multi-Objective Black Box Optimization", 2020, lemma 5): the hypervolume is, up to a factor,
the mean over directions of ``max over points of min_i(max(r_i - y_i, 0) / direction_i) ** d``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from autoq.numerics.pareto import non_dominated
from autoq.numerics.surrogate import Agreement, Codes, Scales, Surrogate, indicators

Array = npt.NDArray[np.float64]

MOST_POINTS = 256
"""Old measured points that a surrogate is fitted to: of more, the nearest to the front. New ones are all of use."""

_WEEDING = 32
_SMALL = 1 << 16  # points that are listed one by one to find one that is left

_DRAWS = 6
_PRICES = 16
_LOCAL = 96
_RANDOM = 8
_DIRECTIONS = 128
_SAMPLES = 32
_FINALISTS = 32

_UNLIKELY = 0.05  # a point that so likely keeps the constraints is not proposed while there are others

_FLOOR = (0.1, 0.02)  # of a parameter's largest proxy, and of the mean of all


class Space:
    """Parameters with ``sizes[l]`` choices each, and what each choice is believed to add to each of ``d`` losses.

    ``proxies`` is ``[L, max(sizes), d]`` or ``None``; only proportions matter, and what is beyond a size is not read.
    """

    def __init__(self, sizes: Sequence[int], proxies: Array | None = None) -> None:
        self.sizes = np.asarray(sizes, np.intp)
        self.beyond = np.arange(int(self.sizes.max(initial=1))) >= self.sizes[:, None]
        self.unit = None if proxies is None else self.scaled(np.asarray(proxies, np.float64))

    def scaled(self, costs: Array) -> Array:
        """Costs ``[..., L, S, d]`` with 0 for each parameter's cheapest choice and 1 for the dearest of all points."""
        hidden = self.beyond[:, :, None]
        above = costs - np.where(hidden, np.inf, costs).min(axis=-2, keepdims=True)
        above = np.where(hidden, 0.0, above)
        span = above.max(axis=-2).sum(axis=-2)[..., None, None, :]
        return np.asarray(above / np.where(span > 0, span, 1.0))

    def features(self, codes: Codes, loss: int) -> Array:
        """``[n, F]``: the proxy of a loss, and bent forms of it: a metric is no linear function of a sum of noises."""
        if self.unit is None:
            return np.zeros((len(codes), 1))
        total = self.unit[np.arange(len(self.sizes)), codes, loss].sum(axis=1)
        return np.stack([total, np.sqrt(total)], axis=1)

    def openness(self, loss: int) -> Array | None:
        """``[L, S]``: how uncertain is, beforehand, what each choice adds to a loss, as shares of all there is.

        A proxy errs in proportion: of a choice that is believed to add much, more is open. Shares are proportional to
        the proxy (not to its square, which trusts small ones more than they deserve), with a floor.
        """
        if self.unit is None:
            return None
        own = self.unit[:, :, loss]
        own = own + _FLOOR[0] * own.max(axis=1, keepdims=True) + _FLOOR[1] / len(own)
        counted = np.where(self.beyond, 0.0, own).sum(axis=1) / self.sizes
        return np.asarray(np.where(self.beyond, 0.0, own) / counted.sum())


@dataclass(frozen=True, slots=True)
class Learned:
    """What measured points tell of all others. ``losses`` ``[n, d]`` are cut off far beyond the reference."""

    space: Space
    reference: Array
    codes: Codes
    losses: Array
    models: tuple[Surrogate, ...]
    feasibility: Surrogate | None
    agreement: Sequence[Agreement]

    @property
    def scales(self) -> tuple[Scales, ...]:
        """Those of each surrogate."""
        return tuple(model.scales for model in (*self.models, *filter(None, [self.feasibility])))


def learn(
    space: Space,
    codes: Codes,
    losses: Array,
    reference: Array,
    violations: Array,
    scales: Sequence[Scales] | None = None,
    before: Learned | None = None,
) -> Learned:
    """Fits a surrogate to each column of ``losses`` ``[n, d]``, measured at ``codes`` ``[n, L]``.

    ``reference`` ``[d]`` bounds the hypervolume. ``violations`` ``[n]`` is above 0 where a point breaks a constraint.
    ``scales`` saves finding them where they are known (:attr:`Learned.scales`); ``before``, what was learned from the
    first of these points, saves comparing them again.
    """
    clipped = _clipped(losses, reference)
    count = losses.shape[1]
    # The last is for whether constraints are kept.
    openness = [*map(space.openness, range(count)), None]
    agreement = Agreement.among(codes, openness, None if before is None else (before.codes, before.agreement))

    def fitted(features: Array, values: Array, index: int) -> Surrogate:
        given = scales[index] if scales is not None and index < len(scales) else None
        return Surrogate(codes, features, values, openness=openness[index], agreement=agreement[index], scales=given)

    models = tuple(fitted(space.features(codes, j), clipped[:, j], j) for j in range(count))
    feasibility = None
    if (violations > 0).any() and (violations <= 0).any():
        feasibility = fitted(np.zeros((len(codes), 1)), (violations > 0).astype(np.float64), count)
    broken = violations > 0
    # What breaks a constraint is on no front.
    counted = np.where(broken[:, None], np.maximum(clipped, reference), clipped)
    return Learned(space, reference, codes, counted, models, feasibility, agreement)


def propose(learned: Learned, pending: Codes, taken: set[bytes], rng: np.random.Generator) -> Codes | None:
    """The next point ``[L]``, or ``None`` when the pool held nothing new.

    ``pending`` ``[p, L]`` are being measured; they are believed to come out as predicted. ``taken`` holds the bytes of
    the points that are not to be proposed.
    """
    pool = _pool(learned, taken, rng)
    if not len(pool):
        return None
    points = np.concatenate([pool, pending.reshape(-1, pool.shape[1])]).astype(np.int16)
    agreement = Agreement.several(points, learned.codes, [*(model.openness for model in learned.models), None])
    predicted = [
        model.predict(points, learned.space.features(points, j), agreement=agreement[j], believed=len(pending))
        for j, model in enumerate(learned.models)
    ]
    mean, spread = (np.stack(columns, axis=1) for columns in zip(*predicted, strict=True))
    known = np.concatenate([learned.losses, mean[len(pool) :]])
    mean, spread = mean[: len(pool)], spread[: len(pool)]
    if (known < learned.reference).all(axis=1).any():
        gain = _gain(known, mean, spread, learned.reference, rng)
    else:  # nothing is worth anything yet: what comes nearest to it, hopefully
        span = np.where(np.ptp(known, axis=0) > 0, np.ptp(known, axis=0), 1.0)
        gain = -np.maximum((mean - spread - learned.reference) / span, 0.0).sum(axis=1)
    if learned.feasibility is not None:
        broken, doubt = learned.feasibility.predict(points, np.zeros((len(points), 1)), agreement=agreement[-1])
        likely = np.maximum(ndtr((0.5 - broken) / doubt), 1e-6)[: len(pool)]
        gain = np.where(gain > 0, gain * likely, gain / likely)
        if (likely >= _UNLIKELY).any():
            gain[likely < _UNLIKELY] = -np.inf
    return np.asarray(pool[int(gain.argmax())])


def random_point(space: Space, taken: set[bytes], rng: np.random.Generator) -> Codes | None:
    """A point ``[L]`` that is not ``taken``, or ``None`` where none is left (a large space: where tries find none)."""
    for _ in range(1000):
        row = rng.integers(space.sizes).astype(np.int16)
        if row.tobytes() not in taken:
            return np.asarray(row)
    if math.prod(space.sizes.tolist()) > _SMALL:
        return None
    every = np.indices(space.sizes.tolist()).reshape(len(space.sizes), -1).T.astype(np.int16)
    left = [row for row in every if row.tobytes() not in taken]
    return np.asarray(left[int(rng.integers(len(left)))]) if left else None


def settled(count: int) -> int:
    """Of so many measured points, how many are old enough to be weeded by :func:`nearest_to_front`."""
    early = count - count % _WEEDING
    return early if early > MOST_POINTS else 0


def nearest_to_front(losses: Array, reference: Array) -> npt.NDArray[np.intp]:
    """Rows of ``losses`` ``[n, d]``, in order: the :data:`MOST_POINTS` that need least to be on the front."""
    losses = _clipped(losses, reference)
    span = np.ptp(losses, axis=0)
    unit = (losses - losses.min(axis=0)) / np.where(span > 0, span, 1.0)
    front = unit[non_dominated(losses)]
    behind = np.max([np.subtract.outer(unit[:, j], front[:, j]) for j in range(unit.shape[1])], axis=0).min(axis=1)
    return np.sort(np.argsort(behind, kind="stable")[:MOST_POINTS])


def _clipped(losses: Array, reference: Array) -> Array:
    """Losses cut off far beyond the reference, or models would bend to points that matter to nobody."""
    inside = (losses < reference).all(axis=1).any()
    return np.minimum(losses, reference + (reference - losses.min(axis=0))) if inside else losses


def _pool(learned: Learned, taken: set[bytes], rng: np.random.Generator) -> Codes:
    space = learned.space
    front = learned.codes[non_dominated(learned.losses)]
    rows = [*_knapsacks(learned, rng), *_neighbours(front, space.sizes, rng)]
    rows.extend(rng.integers(space.sizes).astype(np.int16) for _ in range(_RANDOM))
    fresh = {key: row for row in rows if (key := row.tobytes()) not in taken}
    return np.array(list(fresh.values()), np.int16).reshape(-1, len(space.sizes))


def _knapsacks(learned: Learned, rng: np.random.Generator) -> Codes:
    """The cheapest choices under random prices of the losses: by draws of their costs, and by the proxies alone."""
    space, models = learned.space, learned.models
    chosen = indicators(learned.codes, space.sizes)
    draws = np.stack([model.draw_additive(chosen, _DRAWS, rng) for model in models], axis=-1)
    if space.unit is not None:
        draws = draws + space.unit * [max(model.feature_slope()[0], 0.0) for model in models]
    tables = [*space.scaled(draws)]
    # A proxy is bent: a unit of noise costs more metric where there is little. So all slopes are tried.
    tables += [] if space.unit is None else [space.unit] * _DRAWS
    found = []
    for table in tables:
        prices = 10.0 ** rng.uniform(-3.0, 0.5, (len(models), _PRICES))
        costs = np.where(space.beyond[:, :, None], np.inf, table @ prices)
        found.append(costs.argmin(axis=1).T)
    return np.concatenate(found).astype(np.int16)


def _neighbours(front: Codes, sizes: npt.NDArray[np.intp], rng: np.random.Generator) -> Codes:
    """Points of the front with one or two parameters changed, a quarter of them after two were crossed."""
    parents = front[rng.integers(len(front), size=(2, _LOCAL))]
    crossed = (rng.random((_LOCAL, 1)) < 0.25) & (rng.random((_LOCAL, len(sizes))) < 0.5)
    found = np.where(crossed, parents[1], parents[0])
    for changed in (np.ones(_LOCAL, bool), rng.random(_LOCAL) < 0.5):
        at = rng.integers(len(sizes), size=_LOCAL)
        step = 1 + rng.integers(np.maximum(sizes[at] - 1, 1))
        moved = (found[np.arange(_LOCAL), at] + step) % sizes[at]
        found[np.arange(_LOCAL), at] = np.where(changed, moved, found[np.arange(_LOCAL), at])
    return found.astype(np.int16)


def _gain(known: Array, mean: Array, spread: Array, reference: Array, rng: np.random.Generator) -> Array:
    """Expected growth of the hypervolume of ``known`` ``[n, d]`` by each point, up to a factor: ``[m]``."""
    count = known.shape[1]
    best = known.min(axis=0)
    span = np.where(reference > best, reference - best, 1.0)
    directions = np.abs(rng.normal(size=(_DIRECTIONS, count)))
    inverse = np.linalg.norm(directions, axis=1, keepdims=True) / directions

    def reached(losses: Array) -> Array:  # [..., d] -> [..., directions]
        below = np.maximum((reference - losses) / span, 0.0)
        least = below[..., :1] * inverse[:, 0]
        for j in range(1, count):  # far faster than a minimum over a short last axis
            np.minimum(least, below[..., j : j + 1] * inverse[:, j], out=least)
        return np.asarray(least**count)

    now = reached(known).max(axis=0)
    # First two standard deviations below the mean, where all that is promising shows; then by samples.
    hopeful = np.maximum(reached(mean - 2 * spread) - now, 0.0).mean(axis=1)
    kept = np.argsort(-hopeful, kind="stable")[:_FINALISTS]
    drawn = mean[kept] + spread[kept] * rng.normal(size=(_SAMPLES, 1, count))
    gain = np.full(len(mean), -np.inf)
    gain[kept] = np.maximum(reached(drawn) - now, 0.0).mean(axis=(0, 2))
    return gain
