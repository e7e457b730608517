"""A latency model of one network on one machine, measured before the first trial.

Files of designed policies (:mod:`autoq.search.latency_design`) are built whole and timed on the real runtime, a few at
a time, in warm blocks in turn with float32. What the parts of a file (:mod:`autoq.model.parts`) take is fitted to their
ratios (:mod:`autoq.numerics.additive`), and the sum of its parts is what is modelled of a policy. How good that is
shows when each file is predicted by a model of the others; a model that ranks them worse than the profile's costs
is not used. docs/latency-model.md has the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.identity import content_id
from autoq.core.latency_check import LatencyCheck
from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import RunError, TrialError
from autoq.model.cache import write_aside
from autoq.model.lower import Lowering
from autoq.model.parts import Part, Parts, latency_class
from autoq.model.target import ONNX, Target
from autoq.numerics.additive import Fit, Spreads, fit_additive
from autoq.numerics.bootstrap import spearman
from autoq.runtime.gauge import Gauge
from autoq.runtime.timing import TimingPlan
from autoq.search.candidates import Candidates
from autoq.search.latency_design import design
from autoq.search.store import disk_error
from autoq.spec.hardware import Profile

VERSION = 1
"""Part of every address in the cache: raise it when parts, design or fit change."""

PLAN = TimingPlan(
    block_s=0.005, min_runs=3, warm_s=0.01, max_warm_s=0.1, max_rounds=4, min_sittings=2, max_sittings=2, limit_s=0.1
)

TOGETHER = 8
"""Files that are timed in turn with each other and float32, at most: their sessions lie in memory together."""

TOGETHER_BYTES = 1 << 30
"""What they may take there, by the size of the float32 file."""

FEWEST, MOST = 24, 128
"""Files: fewer are no model, more gain nothing."""

FILES_A_LAYER = 5
"""And that many beyond the fewest."""

LIMIT_S = 75.0
"""Seconds for building and timing, at most; the last group may go over."""

SHARE = 0.1
"""Of the search's time budget, at most."""

_FOLDS = 8
_MOST_TOLD = 600
_LEAST_RATIO = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What parts take, as ratios to float32's latency: ``base`` plus ``times`` of the parts that a file has.

    A part that no timed file had takes what parts like it took (``alike``), or nothing. ``check`` says how good it is.
    """

    base: float
    times: Mapping[Part, float]
    check: LatencyCheck
    alike: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[str, list[float]] = {}
        for part, time in self.times.items():
            groups.setdefault(part.like, []).append(time)
        object.__setattr__(self, "alike", {like: sum(times) / len(times) for like, times in groups.items()})

    def ratio(self, parts: Sequence[Part]) -> float:
        """The modelled ratio to float32 of a file with these parts."""
        times = (self.times[part] if part in self.times else self.alike.get(part.like, 0.0) for part in parts)
        return max(self.base + sum(times), _LEAST_RATIO)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        parts = [{**part._asdict(), "ratio": time} for part, time in self.times.items()]
        return {"version": VERSION, "check": dataclasses.asdict(self.check), "base": self.base, "parts": parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        """What :meth:`to_dict` wrote; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}")
        times = {Part(*(str(each[name]) for name in Part._fields)): float(each["ratio"]) for each in values["parts"]}
        return cls(base=float(values["base"]), times=times, check=LatencyCheck(**values["check"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """A table for the policies of one search: ``parts`` tells their parts."""

    table: LatencyTable
    parts: Parts

    def ratio(self, policy: Policy) -> float:
        """The modelled ratio to float32 of a canonical policy."""
        return self.table.ratio(self.parts.of(policy))

    def layer_times(
        self, found: Sequence[Candidates], complete: Callable[[Mapping[str, Scheme]], Policy]
    ) -> dict[tuple[str, Scheme], float]:
        """What each scheme of each layer with a weight of its own adds to a whole ratio, for those who must have sums.

        Boundaries depend on two layers, so what is given is the sum of single layers that comes nearest to the model on
        designed policies. Each is at least 0.
        """
        entries = [entry for entry in found if entry.layer.tied_to is None]
        packed = self.parts.packed
        columns = list(dict.fromkeys((e.layer.name, each) for e in entries for _, each in _classes(e, packed)))
        index = {column: number for number, column in enumerate(columns)}
        chosen = list(islice(design(found, seed=1, packed=packed), min(100 + 2 * len(columns), _MOST_TOLD)))
        present = np.zeros((len(chosen), len(columns)))
        for row, choice in zip(present, chosen, strict=True):
            for entry in entries:
                scheme = choice[entry.layer.name]
                row[index[entry.layer.name, latency_class(entry.layer, scheme, packed=packed)]] = 1
        ratios = np.array([self.ratio(complete(choice)) for choice in chosen])
        # Each layer has exactly one class, so that a constant is of no use but to be split up: ridge does that.
        gram = present @ present.T + 1e-3 * np.eye(len(chosen))
        added = present.T @ np.linalg.solve(gram, ratios)
        lowest = {
            entry.layer.name: min(0.0, *(added[index[entry.layer.name, c]] for _, c in _classes(entry, packed)))
            for entry in entries
        }
        return {
            (entry.layer.name, scheme): float(added[index[entry.layer.name, each]] - lowest[entry.layer.name])
            for entry in entries
            for scheme, each in _classes(entry, packed)
        }


def _classes(entry: Candidates, packed: bool) -> list[tuple[Scheme, str]]:
    return [(scheme, latency_class(entry.layer, scheme, packed=packed)) for scheme in entry.schemes]


def time_for_it(trials: int, time_s: float | None) -> float:
    """Seconds that measuring may take in a search of so many trials and seconds; 0 where it would not pay."""
    if trials < FEWEST:
        return 0.0
    return LIMIT_S if time_s is None else min(LIMIT_S, SHARE * time_s)


def cached_table(
    cache_dir: Path | None, identity: object, take: Callable[[], LatencyTable | None]
) -> LatencyTable | None:
    """The table of this ``identity`` from the cache, or what ``take`` measures, which is kept there."""
    file = None if cache_dir is None else cache_dir / "latency" / f"{content_id([VERSION, identity])}.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return LatencyTable.from_dict(json.loads(file.read_bytes()))
    table = take()
    if table is not None and file is not None:
        write_aside(file, lambda handle: handle.write(json.dumps(table.to_dict()).encode()))
    return table


def keep(path: Path, what: LatencyTable | str) -> None:
    """Writes a table, or why there is none, where :func:`read_kept` finds it. Raises :class:`autoq.errors.RunError`."""
    values = {"version": VERSION, "skipped": what} if isinstance(what, str) else what.to_dict()
    try:
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(values, indent=1) + "\n")
        whole.replace(path)
    except OSError as error:
        raise disk_error(path, error) from None


def read_kept(path: Path) -> LatencyTable | str | None:
    """What :func:`keep` wrote; ``None`` where there is no such file. Raises :class:`autoq.errors.RunError`."""
    try:
        values = json.loads(path.read_bytes())
        return str(values["skipped"]) if "skipped" in values else LatencyTable.from_dict(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        raise RunError(
            f"{path} is damaged, or of another version of autoq; without it --resume guides proposals by the profile's "
            "costs: remove it, or search anew with another --out"
        ) from None


def measure_table(
    found: Sequence[Candidates],
    lowering: Lowering,
    complete: Callable[[Mapping[str, Scheme]], Policy],
    profile: Profile,
    gauge: Gauge,
    *,
    limit_s: float,
    clock: Callable[[], float],
    target: Target | None = None,
    files: int | None = None,
    seed: int = 0,
) -> LatencyTable | None:
    """Builds and times up to ``files`` designed policies for about ``limit_s`` seconds, and fits a table to them.

    By default there are as many as the layers ask for. ``None`` where fewer than :data:`FEWEST` could be timed.
    ``clock`` gives seconds. The files are ``target``'s; without one, those of ONNX.
    """
    start = clock()
    packed = profile.lowering.packed_weights
    parts = Parts(lowering.formed, lowering.layers, lowering.placer, packed)
    layers = sum(entry.layer.tied_to is None and len(entry.schemes) > 1 for entry in found)
    wanted = min(MOST, FEWEST + FILES_A_LAYER * layers) if files is None else files
    policies = _distinct(map(complete, design(found, seed, packed=packed)), wanted)
    timed: list[Timed] = []
    together = min(TOGETHER, max(1, TOGETHER_BYTES // gauge.baseline.stat().st_size))
    with tempfile.TemporaryDirectory(prefix="autoq-latency-") as folder:
        while group := list(islice(policies, together)):
            begun = clock()
            timed += time_files(group, lowering.build, gauge, Path(folder), target=target)
            now = clock()
            spent, each = now - start, (now - begun) / len(group)
            if len(timed) < FEWEST and spent + (FEWEST - len(timed)) * each > 2 * limit_s:
                return None
            if len(timed) >= FEWEST and spent + each * together > limit_s:
                break
    if len(timed) < FEWEST:
        return None
    return fit_table(timed, [parts.of(each.policy) for each in timed], found, profile, seconds=clock() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A policy's measured ratio to float32; ``disturbed`` while other work held the core."""

    policy: Policy
    ratio: float
    disturbed: bool


def time_files(
    policies: Sequence[Policy],
    build: Callable[[Policy], bytes],
    gauge: Gauge,
    folder: Path,
    plan: TimingPlan = PLAN,
    target: Target | None = None,
) -> list[Timed]:
    """The policies' files, built in ``folder`` and timed together; those that do not build or run are left out."""
    built: list[tuple[Policy, Path]] = []
    for number, policy in enumerate(policies):
        path = folder / f"{number}{target.suffix if target else ONNX}"
        with contextlib.suppress(TrialError):
            path.write_bytes(target.write(build(policy)) if target else build(policy))
            built.append((policy, path))
    try:
        return _timed(built, gauge, plan)
    except TrialError:  # one of them does not run: each by itself
        timed = []
        for each in built:
            with contextlib.suppress(TrialError):
                timed += _timed([each], gauge, plan)
        return timed


def _timed(built: Sequence[tuple[Policy, Path]], gauge: Gauge, plan: TimingPlan) -> list[Timed]:
    if not built:
        return []
    paths = [path for _, path in built]
    ratios, disturbed = gauge.glance(paths, plan)
    if disturbed:  # once more: most of what disturbs is over soon
        again, disturbed = gauge.glance(paths, plan)
        ratios = again if not disturbed else np.minimum(ratios, again).tolist()
    return [
        Timed(policy=policy, ratio=ratio, disturbed=disturbed) for (policy, _), ratio in zip(built, ratios, strict=True)
    ]


def fit_table(
    timed: Sequence[Timed],
    parts: Sequence[Sequence[Part]],
    found: Sequence[Candidates],
    profile: Profile,
    *,
    seconds: float,
) -> LatencyTable:
    """The table that fits measured files, whose ``parts`` are given, and its check."""
    listed = sorted({part for each in parts for part in each})
    index = {part: number for number, part in enumerate(listed)}
    present = np.zeros((len(timed), len(listed)))
    for row, each in zip(present, parts, strict=True):
        row[[index[part] for part in each]] = 1
    ratios = np.array([each.ratio for each in timed])
    likes = {like: number for number, like in enumerate(dict.fromkeys(part.like for part in listed))}
    groups = np.array([likes[part.like] for part in listed], np.intp)
    scale, guess = _beliefs(listed, found, profile)

    def fitted(rows: npt.NDArray[np.intp], spreads: Spreads | None = None) -> Fit:
        return fit_additive(present[rows], ratios[rows], groups=groups, scale=scale, guess=guess, spreads=spreads)

    whole = fitted(np.arange(len(timed)))
    unseen = np.zeros(len(timed))
    for fold in range(_FOLDS):
        out = np.arange(len(timed)) % _FOLDS == fold
        unseen[out] = fitted(np.flatnonzero(~out), whole.spreads).predict(present[out])
    believed = [1.0 + sum(guess[index[part]] for part in each) for each in parts]
    check = LatencyCheck(
        files=len(timed),
        spearman=spearman(unseen, ratios),
        median_error=float(np.median(np.abs(unseen / ratios - 1))),
        profile_spearman=spearman(believed, ratios),
        disturbed=sum(each.disturbed for each in timed),
        seconds=seconds,
    )
    return LatencyTable(base=whole.base, times=dict(zip(listed, whole.coefficients.tolist(), strict=True)), check=check)


def _beliefs(
    listed: Sequence[Part], found: Sequence[Candidates], profile: Profile
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How large the coefficient of each part may be, and the profile's guess at it, both in ratios."""
    layers = {entry.layer.name: entry for entry in found}
    total = sum(entry.layer.macs for entry in found) or 1
    scale, guess = [], []
    for part in listed:
        scale.append(1 / len(layers))
        guess.append(0.0)
        if part.kind == "layer":
            entry = layers[part.name]
            share = entry.layer.macs / total
            scheme = next(
                (s for s, each in _classes(entry, profile.lowering.packed_weights) if each == part.form), None
            )
            scale[-1] = share + 0.2 / len(layers)
            if scheme is not None:
                guess[-1] = share * (profile.cost(entry.layer.kind, scheme, entry.layer.uses) - 1)
    return np.array(scale), np.array(guess)


def _distinct(policies: Iterator[Policy], count: int) -> Iterator[Policy]:
    """The first ``count`` policies that differ; fewer where the space is small."""
    seen: set[str] = set()
    for policy in islice(policies, 4 * count):
        if policy.id not in seen:
            seen.add(policy.id)
            yield policy
        if len(seen) == count:
            return
