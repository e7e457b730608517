"""Which files tell most of a network's latency: policies in which every layer, class and boundary occurs often enough.

The first are uniform, one for each class. Then three kinds take turns, so that any number of them, from the first on,
is a design: *balanced* ones, where each layer goes through its classes equally often, in an order of its own (a Latin
design: McKay, Beckman and Conover 1979), in which nearly every edge of the graph is a boundary; *runs*, in which
neighbours have the same class but for a few; and *random* ones, where each layer takes any of its schemes. The members
of a class take turns at random: that they run alike is part of what the check then shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.model.parts import FLOAT, latency_class
from autoq.search.candidates import Candidates

Choice = dict[str, Scheme]

_ODD = 0.1  # share of the layers that leave a run
_MOST_RUNS = 6


def design(found: Sequence[Candidates], seed: int = 0, *, packed: bool = False) -> Iterator[Choice]:
    """Schemes for the layers with a weight of their own, without end; the same for the same ``seed``.

    ``packed`` is as in :func:`autoq.model.parts.latency_class`.
    """
    rng = np.random.default_rng(seed)
    entries = [entry for entry in found if entry.layer.tied_to is None]
    classes = [_by_class(entry.layer, entry.schemes, packed) for entry in entries]
    names = [entry.layer.name for entry in entries]
    common = list(dict.fromkeys(name for of_layer in classes for name in of_layer))

    def any_of(schemes: Sequence[Scheme]) -> Scheme:
        return schemes[int(rng.integers(len(schemes)))]

    def wanting(wanted: Sequence[str]) -> Choice:
        return {
            name: any_of(of_layer.get(want) or of_layer[_stand_in(want, of_layer)])
            for name, of_layer, want in zip(names, classes, wanted, strict=True)
        }

    for each in common:
        yield wanting([each] * len(names))
    turns: list[list[str]] = [[] for _ in names]
    while True:
        for name, of_layer in zip(turns, classes, strict=True):
            if not name:
                name += list(rng.permutation(list(of_layer)))
        yield wanting([turn.pop() for turn in turns])
        runs = np.sort(rng.integers(len(names) + 1, size=int(rng.integers(1, _MOST_RUNS))))
        kinds = rng.choice(common, size=len(runs) + 1)
        wanted = [str(kinds[np.searchsorted(runs, index, side="right")]) for index in range(len(names))]
        odd = rng.random(len(names)) < _ODD
        yield wanting([str(rng.choice(list(c))) if o else w for c, o, w in zip(classes, odd, wanted, strict=True)])
        yield {entry.layer.name: any_of(entry.schemes) for entry in entries}


def _by_class(layer: Layer, schemes: Sequence[Scheme], packed: bool) -> dict[str, list[Scheme]]:
    found: dict[str, list[Scheme]] = {}
    for scheme in schemes:
        found.setdefault(latency_class(layer, scheme, packed=packed), []).append(scheme)
    return found


def _stand_in(wanted: str, classes: dict[str, list[Scheme]]) -> str:
    """The class of a layer that cannot have the ``wanted`` one: integers for integers, else as float32."""
    if wanted.startswith("int"):
        alike = [name for name in classes if name.startswith("int")]
        return next((name for name in alike if name.startswith(wanted.partition("-")[0])), (alike or [*classes])[0])
    return FLOAT if FLOAT in classes else next(iter(classes))
