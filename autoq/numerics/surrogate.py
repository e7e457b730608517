"""A Gaussian process over categorical choices: what a trial will measure, from a proxy and the trials before it.

A point is a row of codes, one a parameter: the index of the choice it takes. The value is modelled as

    y(x) = b . h(x) + sum_l w_l[x_l] + sum_l u_l[x_l, x_(l+1)] + g(x) + noise

with ``h`` a few features of the point (a proxy of the value, bent forms of it, and 1), ``w`` what each choice adds,
``u`` what two choices next to each other add (the cost of a precision boundary), and ``g`` a smooth rest that hangs on
which parameters two points agree in. All coefficients are Gaussian beforehand, so that y is a Gaussian process
(Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections 2.1 and 2.7) with covariance

    k(x, x') = h(x).B h(x') + s_w^2 * sum_l m_l v_l[x_l] + s_u^2 / (L - 1) * sum_l m_l m_(l+1) + s_g^2 exp(-4 d / L)

where ``m_l`` is 1 where x and x' agree in parameter l, d is the number of parameters in which they do not, and ``v``
says how much is open beforehand about what a choice adds: 1 / L for each, or more for one that is believed to add more.
The scales are those of greatest marginal likelihood (equation 5.8) over a fixed grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.sparse import csr_array

Codes = npt.NDArray[np.int16]
Array = npt.NDArray[np.float64]

_FEATURES = 10.0  # prior variance of b: the values are standardised, so this is vague
_BENDS = 0.05  # that of a bent form of the proxy, as a share: most values hardly bend within what matters
_ADDITIVE = (0.03, 0.3, 1.5)
_BOUNDARY = (0.0, 0.3)
_SMOOTH = (0.0, 0.2)
_DECAY = 4.0  # the smooth part falls by e when a quarter of the parameters differ
_NOISE = (1e-3, 0.03, 0.15, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Standard deviations of the parts, for standardised values; ``noise`` is that of one measurement."""

    additive: float
    boundary: float
    smooth: float
    noise: float


GRID = tuple(
    Scales(additive=a, boundary=b, smooth=s, noise=n) for a, b, s, n in product(_ADDITIVE, _BOUNDARY, _SMOOTH, _NOISE)
)


class Surrogate:
    """The process given ``n`` measured points. Fitting costs O(n^3), a prediction O(n^2) a point."""

    def __init__(
        self,
        codes: Codes,
        features: Array,
        values: Array,
        *,
        openness: Array | None = None,
        agreement: Agreement | None = None,
        scales: Scales | None = None,
    ) -> None:
        """``codes`` [n, L], ``features`` [n, F], ``values`` [n]; ``scales`` are found where they are not given.

        The first feature is the proxy itself, the others its bent forms. ``openness`` [L, most choices] is ``v``;
        without it, 1 / L for all. ``agreement`` is that of the points among themselves, under the same ``openness``,
        for callers who have it. Raises ``ValueError`` where shapes do not fit or a number is not finite.
        """
        if len(codes) != len(values) or len(features) != len(values) or not len(values):
            raise ValueError(f"{len(codes)} points, {len(features)} rows of features, {len(values)} values")
        if not (np.isfinite(features).all() and np.isfinite(values).all()):
            raise ValueError("features and values must be finite")
        self.codes = np.asarray(codes, np.int16)
        self.openness = openness
        self._centre, self._unit = float(values.mean()), float(values.std()) or 1.0
        self._feature_centre = features.mean(axis=0)
        spread = features.std(axis=0)
        self._feature_unit = np.where(spread > 1e-12, spread, 1.0)
        self._feature_unit[1:] /= np.sqrt(_BENDS)
        self._features = self._standard(features)
        self._targets = (np.asarray(values, np.float64) - self._centre) / self._unit
        self.agreement = agreement or Agreement.between(self.codes, self.codes, openness)
        self._linear = 1 + self._features @ self._features.T
        self.scales = scales or self._fitted()
        self._factor = _factor(_covariance(self._linear, self.agreement, self.scales), self.scales.noise)
        self._weights = cho_solve((self._factor, True), self._targets, check_finite=False)

    def predict(
        self, codes: Codes, features: Array, *, agreement: Agreement | None = None, believed: int = 0
    ) -> tuple[Array, Array]:
        """Mean and standard deviation (of the value, without a measurement's noise) of each point: ``[m]`` each.

        ``agreement`` is that of ``codes`` with the measured points, for callers who have it. The last ``believed``
        points are being measured: what they will teach is taken off the deviations, as if they came out as predicted
        (it leaves the means as they are; Ginsbourger et al. 2010, "Kriging is well-suited to parallelize optimization",
        section 4.2).
        """
        agreement = agreement or Agreement.between(codes, self.codes, self.openness)
        standard = self._standard(features)
        cross = _covariance(1 + standard @ self._features.T, agreement, self.scales)
        mean = cross @ self._weights
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = self._own_variance(codes, standard) - np.einsum("nm,nm->m", explained, explained)
        if believed:
            last = Agreement.between(codes, codes[-believed:], self.openness)
            shared = _covariance(1 + standard @ standard[-believed:].T, last, self.scales)
            shared -= explained.T @ explained[:, -believed:]
            factor = _factor(shared[-believed:], max(self.scales.noise, 1e-3))
            taught = solve_triangular(factor, shared.T, lower=True, check_finite=False)
            variance -= np.einsum("pm,pm->m", taught, taught)
        return self._centre + self._unit * mean, self._unit * np.sqrt(np.maximum(variance, 1e-12))

    def draw_additive(self, chosen: csr_array, draws: int, rng: np.random.Generator) -> Array:
        """Draws of ``w`` given what was measured, in the value's unit: ``[draws, L, most choices]``.

        ``chosen`` is :func:`indicators` of the measured points. Matheron's rule (Wilson et al. 2020, equation 9): a
        draw from before, corrected by how far it and a draw of everything else miss the measurements. Entries beyond a
        parameter's size mean nothing.
        """
        count = self.codes.shape[1]
        shares = np.full(chosen.shape[1], 1 / count) if self.openness is None else self.openness.ravel()
        variance = self.scales.additive**2 * shares
        prior = rng.normal(size=(draws, chosen.shape[1])) * np.sqrt(variance)
        others = Scales(additive=0.0, boundary=self.scales.boundary, smooth=self.scales.smooth, noise=0.0)
        factor = _factor(_covariance(self._linear, self.agreement, others), self.scales.noise)
        missed = self._targets[:, None] - chosen @ prior.T - factor @ rng.normal(size=(chosen.shape[0], draws))
        weights = cho_solve((self._factor, True), missed, check_finite=False)  # [n, draws]
        drawn = self._unit * (prior + variance * (chosen.T @ weights).T)
        return np.asarray(drawn.reshape(draws, count, -1))

    def feature_slope(self) -> Array:
        """Posterior mean of ``b`` for the features as they were given: ``[F]``."""
        return self._unit * _FEATURES * (self._features.T @ self._weights) / self._feature_unit

    def _standard(self, features: Array) -> Array:
        return (np.asarray(features, np.float64) - self._feature_centre) / self._feature_unit

    def _own_variance(self, codes: Codes, features: Array) -> Array:
        s, count = self.scales, self.codes.shape[1]
        shares = 1.0 if self.openness is None else self.openness[np.arange(count), codes].sum(axis=1)
        rest = (s.boundary**2 if count > 1 else 0.0) + s.smooth**2
        return np.asarray(_FEATURES * (1 + np.einsum("mf,mf->m", features, features)) + s.additive**2 * shares + rest)

    def _fitted(self) -> Scales:
        best, scales = -np.inf, GRID[0]
        for each in GRID:
            try:
                factor = _factor(_covariance(self._linear, self.agreement, each), each.noise)
            except LinAlgError:
                continue
            half = solve_triangular(factor, self._targets, lower=True, check_finite=False)
            likelihood = -0.5 * half @ half - np.log(np.diagonal(factor)).sum()
            if likelihood > best:
                best, scales = likelihood, each
        return scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two sets of points agree, ``[m, n]`` each: in single parameters, and in which share of neighbouring two.

    ``single`` is the sum over the parameters in which they agree of how open their choices are. ``smooth`` is what the
    smooth part makes of the share of parameters, ``exp(-4 d / L)``.
    """

    single: Array
    pairs: Array
    smooth: Array

    @classmethod
    def between(cls, a: Codes, b: Codes, openness: Array | None = None) -> Agreement:
        """Of ``a`` ``[m, L]`` and ``b`` ``[n, L]``; ``openness`` as for :class:`Surrogate`."""
        return cls.several(a, b, [openness])[0]

    @classmethod
    def several(cls, a: Codes, b: Codes, openness: Sequence[Array | None]) -> list[Agreement]:
        """One for each of ``openness``; what does not hang on it is counted once."""
        share, pairs = _shares(a, b)
        smooth = np.exp((share - 1) * _DECAY)
        single = [share if each is None else np.asarray(_marks(a, each) @ _marks(b, each).T) for each in openness]
        return [cls(single=each, pairs=pairs, smooth=smooth) for each in single]

    @classmethod
    def among(
        cls, codes: Codes, openness: Sequence[Array | None], before: tuple[Codes, Sequence[Agreement]] | None = None
    ) -> list[Agreement]:
        """Of ``codes`` ``[n, L]`` with themselves, one for each of ``openness``. ``before`` are earlier points and
        theirs: where the first of ``codes`` are these, only the others are compared."""
        if before is None or not np.array_equal(codes[: len(before[0])], before[0]):
            return cls.several(codes, codes, openness)
        old = len(before[0])
        new = cls.several(codes[old:], codes, openness)

        def joined(known: Array, added: Array) -> Array:
            whole = np.empty((len(codes), len(codes)))
            whole[:old, :old], whole[old:], whole[:old, old:] = known, added, added[:, :old].T
            return whole

        first = before[1][0]
        pairs, smooth = joined(first.pairs, new[0].pairs), joined(first.smooth, new[0].smooth)
        single = [joined(known.single, added.single) for known, added in zip(before[1], new, strict=True)]
        return [cls(single=each, pairs=pairs, smooth=smooth) for each in single]


def _shares(a: Codes, b: Codes) -> tuple[Array, Array]:
    """``[m, n]``: the share of parameters, and of neighbouring two, in which ``a`` [m, L] and ``b`` [n, L] agree."""
    shape, count = (len(a), len(b)), a.shape[1]
    single, pairs = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    few, few_pairs = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    same, before = np.zeros(shape, bool), np.zeros(shape, bool)
    # Bytes are compared and counted many at a time; before they could overflow, they go into the sums.
    narrow = np.uint8 if max(a.max(initial=0), b.max(initial=0)) < 256 else np.uint16
    mine, others = np.ascontiguousarray(a.T.astype(narrow)), np.ascontiguousarray(b.T.astype(narrow))
    for index in range(count):
        np.equal(mine[index][:, None], others[index][None], out=same)
        few += same.view(np.uint8)
        before &= same
        few_pairs += before.view(np.uint8)
        same, before = before, same
        if index % 255 == 254 or index == count - 1:
            single += few
            pairs += few_pairs
            few[:], few_pairs[:] = 0, 0
    return single / np.float64(count), pairs / np.float64(max(count - 1, 1))


def _marks(codes: Codes, openness: Array) -> npt.NDArray[np.float32]:
    """``[n, L * most choices]``: at each choice that a point of ``codes`` ``[n, L]`` takes the root of its openness."""
    count, width = openness.shape
    found = np.zeros((len(codes), count * width), np.float32)
    columns = np.arange(count) * width + codes
    np.put_along_axis(found, columns, np.sqrt(openness.ravel())[columns].astype(np.float32), axis=1)
    return found


def indicators(codes: Codes, sizes: npt.NDArray[np.intp]) -> csr_array:
    """``[n, L * max(sizes)]``: 1 at each choice that a point of ``codes`` ``[n, L]`` takes."""
    width, (n, count) = int(sizes.max()), codes.shape
    columns = (np.arange(count) * width + codes).ravel()
    return csr_array((np.ones(n * count), columns, np.arange(n + 1) * count), shape=(n, count * width))


def _covariance(linear: Array, agreement: Agreement, scales: Scales) -> Array:
    total = _FEATURES * linear + scales.additive**2 * agreement.single
    if scales.boundary:
        total += scales.boundary**2 * agreement.pairs
    if scales.smooth:
        total += scales.smooth**2 * agreement.smooth
    return total


def _factor(covariance: Array, noise: float) -> Array:
    covariance = covariance.copy()
    covariance[np.diag_indices_from(covariance)] += noise**2 + 1e-9
    return np.asarray(cholesky(covariance, lower=True, check_finite=False))
