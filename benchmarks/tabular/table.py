"""A space whose every point is known: the measured tables beside this file, and made-up ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.numerics.pareto import hypervolume
from autoq.search.problem import WORTHLESS_DROP

HERE = Path(__file__).resolve().parent
MEASURED = ("digits", "resnet20")
MADE_UP = ("made-up-0", "made-up-1", "made-up-2", "made-up-noisy")
SCHEMES = tuple(map(Scheme.parse, ("w8a8@mse", "w4a8-gptq@mse", "w2-gptq", "float16", "w2a8-gptq@mse")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """``losses`` ``[n, 3]`` (metric, latency, size) of all points, in the order of ``itertools.product`` over groups.

    ``proxies`` is ``[groups, schemes, 3]``. ``reference`` is the one that a search gives its sampler: 10 % of
    float32's metric lost, float32's latency and size.
    """

    name: str
    groups: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    losses: np.ndarray
    proxies: np.ndarray
    reference: np.ndarray
    about: dict[str, Any] | None = None

    def row(self, policy: Policy) -> int:
        """Which row is the one of a policy over the groups."""
        chosen = dict(policy)
        codes = [self.schemes.index(chosen[group]) for group in self.groups]
        return int(np.ravel_multi_index(codes, [len(self.schemes)] * len(self.groups)))

    def volume(self, rows: Sequence[int] | np.ndarray) -> float:
        """The hypervolume of some rows, in units of the reference box above the ideal point."""
        return hypervolume(self._unit(rows), np.ones(self.losses.shape[1]))

    def _unit(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        ideal = self.losses.min(axis=0)
        return np.asarray((self.losses[rows] - ideal) / (self.reference - ideal))


def load(name: str) -> Table:
    """A measured table, or one that is made up from its name."""
    if name in MADE_UP:
        return made_up(MADE_UP.index(name), noisy=name.endswith("noisy"))
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as data:
        about = json.loads(str(data["about"]))
        metric, _, size = about["float32"]
        losses = np.stack([-data["metric_search"], data["latency_ratio"], data["size_bytes"]], axis=1)
        return Table(
            name=name,
            groups=tuple(data["groups"].tolist()),
            schemes=tuple(Scheme.parse(text) for text in data["schemes"].tolist()),
            losses=losses.astype(np.float64),
            proxies=data["proxies"],
            reference=np.array([-metric + WORTHLESS_DROP * abs(metric), 1.0, size]),
            about=about,
        )


def made_up(seed: int, *, noisy: bool = False) -> Table:
    """8 groups of 3 schemes (6,561 points): noise powers add, the metric falls with their sum in steps of one in
    1,000 rows; time and size add, with a price of changing precision between neighbours. Proxies are off by a fifth,
    noisy ones by a factor of e; nothing here was taken from the measured tables.
    """
    rng = np.random.default_rng([97, seed])
    groups, schemes = 8, 3
    macs, weights = rng.dirichlet(np.full(groups, 2.0)), rng.dirichlet(np.full(groups, 0.7))
    noise = np.array([2e-3, 0.04, 0.5]) * np.exp(
        rng.normal(0, 1.0, (groups, 1)) + rng.normal(0, 0.3, (groups, schemes))
    )
    time = np.array([0.45, 0.45, 1.0]) * macs[:, None] * np.exp(rng.normal(0, 0.1, (groups, schemes)))
    size = np.array([8.0, 4.0, 2.0]) / 32 * weights[:, None] + 0.02 / groups
    codes = np.array(list(itertools.product(range(schemes), repeat=groups)))
    sums = [each[np.arange(groups), codes].sum(axis=1) for each in (noise, time, size)]
    changes = ((codes == 2)[:, 1:] != (codes == 2)[:, :-1]).sum(axis=1)
    clean = 0.9 * np.exp(-0.15 * sums[0] * np.exp(rng.normal(0, 0.1, len(codes))))
    metric = np.round(1000 * (clean + rng.normal(0, 0.004 if noisy else 0.001, len(codes)))) / 1000
    latency = (sums[1] + 0.01 * changes) * np.exp(rng.normal(0, 0.01, len(codes)))
    proxies = np.stack([noise, time, size], axis=-1)
    proxies[..., :2] *= np.exp(rng.normal(0, 1.0 if noisy else 0.2, (groups, schemes, 2)) * [1.0, 0.2])
    return Table(
        name=MADE_UP[seed],
        groups=tuple(f"group{i}" for i in range(groups)),
        schemes=SCHEMES[:schemes],
        losses=np.stack([-metric, latency, sums[2]], axis=1),
        proxies=proxies,
        reference=np.array([-0.9 + 0.09, 1.0, 1.0]),
    )
