"""What is searched: the free choices, the seeds, and how a trial is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoq.core.near_miss import near_misses
from autoq.core.objectives import (
    Constraints,
    Direction,
    Objective,
    Values,
    constraint_excesses,
    constraint_violations,
    losses,
    metric_loss,
    trial_values,
)
from autoq.core.policy import Policy
from autoq.core.result import Trial
from autoq.core.scheme import FLOAT32, Scheme
from autoq.numerics.archive import Archive
from autoq.numerics.cost import modelled_ratio
from autoq.search.candidates import Candidates
from autoq.spec.hardware import Profile

WORTHLESS_DROP = 0.1
"""A candidate that loses this share of float32's metric interests nobody, unless a constraint says otherwise."""


SLOWER_THAN_USUAL = 2.0
"""And one that takes so many times as long as the uniform candidate that stands for float32 where that does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One search: candidates per layer, the seeds, objectives and constraints, and float32's own values.

    ``canonical`` makes equal what the graph forces to be equal (:meth:`autoq.model.placement.Placer.canonical`).
    ``latency`` models a canonical policy's ratio to float32 from measurements on this machine
    (:mod:`autoq.search.latency`); without it, the profile's costs do.
    """

    candidates: tuple[Candidates, ...]
    canonical: Callable[[Policy], Policy]
    seed_schemes: tuple[Scheme, ...]
    objectives: tuple[Objective, ...]
    direction: Direction
    constraints: Constraints
    baseline: Values
    profile: Profile
    latency: Callable[[Policy], float] | None = None

    @property
    def choices(self) -> dict[str, tuple[Scheme, ...]]:
        """Layer -> its schemes, for the layers that have a choice of their own."""
        free = (entry for entry in self.candidates if entry.layer.tied_to is None)
        return {entry.layer.name: entry.schemes for entry in free if len(entry.schemes) > 1}

    def schemes(self) -> list[Scheme]:
        """Every scheme that a canonical policy can hold: a layer may take over another's calibration."""
        listed = list(dict.fromkeys(scheme for entry in self.candidates for scheme in entry.schemes))
        activations = dict.fromkeys(scheme.calibrated for scheme in listed if scheme.calibrated is not None)
        mixed = [
            dataclasses.replace(
                scheme, activation=dataclasses.replace(activation, smoothing=scheme.calibrated.smoothing)
            )
            for scheme in listed
            if scheme.calibrated is not None
            for activation in activations
            if activation.bits == 8 or scheme.calibrated.smoothing is None
        ]
        return list(dict.fromkeys([FLOAT32, *listed, *mixed]))

    def complete(self, chosen: Mapping[str, Scheme]) -> Policy:
        """The canonical policy of all layers that a choice for the free ones gives."""
        schemes: dict[str, Scheme] = {}
        for entry in self.candidates:
            owner = entry.layer.tied_to or entry.layer.name
            schemes[entry.layer.name] = chosen.get(owner) or schemes.get(owner) or entry.schemes[0]
        return self.canonical(Policy.of(schemes))

    def uniform_seeds(self) -> list[tuple[str, dict[str, Scheme]]]:
        """The uniform policies, as far as each layer allows, by the name of their scheme; float32 is the baseline.

        A scheme that most layers cannot have gives none: it would be another one's under a false name, or nearly so.
        """
        choices = self.choices
        common = [
            wanted
            for wanted in self.seed_schemes
            if wanted != FLOAT32 and 2 * sum(wanted in schemes for schemes in choices.values()) >= len(choices)
        ]
        return [
            (str(wanted), {name: nearest_of(wanted, schemes) for name, schemes in choices.items()}) for wanted in common
        ]

    def modelled_latency(self, policy: Policy) -> float:
        """The estimate of the ratio to the reference: by ``latency``, or by the profile's costs, weighted by MACs."""
        if self.latency is not None:
            return self.latency(policy)
        schemes = dict(policy)
        layers = [entry.layer for entry in self.candidates]
        costs = [self.profile.cost(layer.kind, schemes[layer.name], layer.uses) for layer in layers]
        known = any(layer.macs for layer in layers)
        return modelled_ratio([float(layer.macs if known else layer.parameters) for layer in layers], costs)

    def proposer_losses(self, trial: Trial) -> tuple[tuple[float, ...], float]:
        """The losses and the constraint excess that guide proposals: the same in every run of a job.

        Latency is the modelled one, and size stands for peak memory, since measurements differ from run to run. The
        metric of a pruned trial is what the rows that it was scored on let expect.
        """
        values = _guiding(trial)
        baseline = dataclasses.replace(self.baseline, peak_memory_bytes=self.baseline.size_bytes)
        excesses = constraint_excesses(values, self.constraints, baseline, self.direction)
        return losses(values, self.objectives, self.direction), sum(max(0.0, e) for e in excesses.values() if e)

    def reference(self) -> tuple[float, ...]:
        """The losses beyond which a candidate is worth nothing to the sampler: the constraints.

        Where there is none: float32's own size and latency, and a metric :data:`WORTHLESS_DROP` worse than float32's.
        """
        bounds, own = self.constraints, self.baseline
        assert own.metric is not None and own.size_bytes is not None
        drop = bounds.max_metric_drop
        drop = WORTHLESS_DROP * abs(own.metric) if drop is None else drop
        worst = {
            "metric": metric_loss(own.metric, self.direction) + max(drop, 1e-9),
            # Where float32 does not run, 1 is the usual candidate, and a better one may take longer.
            "latency": bounds.max_latency_ratio or (SLOWER_THAN_USUAL if own.latency_ratio is None else 1.0),
            "size": (bounds.max_size_ratio or 1.0) * own.size_bytes,
            # Size stands for it, as in what the sampler is told.
            "peak_memory": (bounds.max_peak_memory_ratio or 1.0) * own.size_bytes,
        }
        return tuple(worst[name] for name in self.objectives)

    def violations(self, trial: Trial, bounds: Constraints | None = None) -> list[str]:
        """A sentence for each constraint (or each of ``bounds``) that the trial's measurements break."""
        bounds = self.constraints if bounds is None else bounds
        return constraint_violations(trial_values(trial), bounds, self.baseline, self.direction)

    def feasible(self, trial: Trial, bounds: Constraints | None = None) -> bool:
        """Whether a trial is complete and its measurements keep the constraints, and ``bounds`` as well."""
        every = [self.constraints] if bounds is None else [self.constraints, bounds]
        return trial.complete and not any(self.violations(trial, each) for each in every)

    def empty_front(self) -> Archive[Trial]:
        """For feasible complete trials that neither another trial nor float32 itself dominates, best metric first."""
        return Archive(self.baseline_losses(self.baseline))

    def baseline_losses(self, baseline: Values) -> tuple[float, ...] | None:
        """Float32's own losses, for it is on no front that beats it; ``None`` where the hardware cannot run it."""
        runs = "latency" not in self.objectives or baseline.latency_ratio is not None
        runs = runs and ("peak_memory" not in self.objectives or baseline.peak_memory_bytes is not None)
        return losses(baseline, self.objectives, self.direction) if runs else None

    def add_to_front(self, front: Archive[Trial], trial: Trial) -> list[Trial]:
        """Takes up a trial, where it belongs there; returns those that do not belong there, or not any more."""
        if not self.feasible(trial):
            return [trial]
        return front.add(losses(trial_values(trial), self.objectives, self.direction), trial)

    def nearest_miss(self, trials: Sequence[Trial]) -> str:
        """Why no trial is feasible: which constraint binds, the trial that comes nearest, and by how much it misses."""
        # Of one that was dropped on the way, what it was expected to come to says what it misses.
        known = [trial for trial in trials if trial.failure is None]
        if not known:
            return "no trial was completed"
        values = [_guiding(trial) if trial.pruned is not None else trial_values(trial) for trial in known]
        excesses = [constraint_excesses(each, self.constraints, self.baseline, self.direction) for each in values]
        misses = near_misses(excesses)
        if not misses:
            return "every feasible trial is dominated by float32 itself: nothing was gained"
        texts = []
        for miss in misses:
            nearest = None if miss.nearest is None else known[miss.nearest]
            who = f"the nearest, {nearest.id} ({nearest.origin})," if nearest else ""
            texts.append(miss.text(miss.bound, getattr(self.constraints, miss.bound), who))
        names = [miss.bound for miss in misses]
        return f"{' and '.join(names)} bind{'s' if len(names) == 1 else ''}: no trial keeps {' and '.join(texts)}"


def _guiding(trial: Trial) -> Values:
    """What is the same in every run of a job: latency as modelled, size for memory, and of a pruned trial the metric
    that the rows seen let expect."""
    return Values(
        metric=trial.pruned.metric if trial.metric is None and trial.pruned is not None else trial.metric,
        latency_ratio=trial.latency_modelled,
        size_bytes=trial.size_bytes,
        peak_memory_bytes=trial.size_bytes,
    )


def nearest_of(wanted: Scheme, schemes: Sequence[Scheme]) -> Scheme:
    """``wanted``, or what comes nearest to it of ``schemes``: same activations first, then the number of bits."""
    if wanted in schemes:
        return wanted

    def distance(scheme: Scheme) -> tuple[int, int, bool]:
        activations = abs(scheme.activation_bits - wanted.activation_bits)
        return activations, abs(scheme.weight_bits - wanted.weight_bits), scheme.activation != wanted.activation

    return min(schemes, key=distance)
