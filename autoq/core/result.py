"""What came of a trial. A missing measurement is ``None`` and never a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoq.core.policy import Policy

FailureReason = Literal["build", "load", "metric", "measure", "limit", "worker_lost", "timeout"]
FAILURE_REASONS: tuple[FailureReason, ...] = ("build", "load", "metric", "measure", "limit", "worker_lost", "timeout")
"""build: the candidate could not be lowered. load: the runtime rejected it. metric: it raised or was not finite.
measure: latency or memory could not be taken. limit: the hardware has no room for it. worker_lost: its worker died,
also on retry. timeout: it ran too long."""

# Failures of the machine, not of the candidate: tried again on ``--resume``, never remembered as the candidate's.
PASSING_FAILURES = frozenset({"worker_lost", "timeout"})


StopReason = Literal["trials", "time", "space exhausted", "target met", "no gain"]
"""Why a search ended. trials, time: the budget was spent. space exhausted: every policy was proposed. target met: a
trial keeps the bounds of ``budget.until``. no gain: the last ``budget.patience`` trials did not widen the front."""


FLOAT32_NAME = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the machine was like while a latency was taken; ``None`` is what the system does not tell.

    ``disturbed``: most sittings were under foreign load, even when made again, or the baseline was slower throughout
    than it lately was (on a virtual machine, who shares the core may be out of sight), or another measurement may have
    run beside this one. ``foreign_load`` is the share of the machine's other cores that other work took, ``slowdown``
    how much longer the baseline took than lately at its best (1: as long). ``load_average`` is of the minute before,
    ``mhz`` and ``governor`` the clock frequency and how the kernel chooses it. ``cpus`` are the cores that it was
    pinned to. ``sittings`` count, and ``left_out`` were disturbed.
    """

    disturbed: bool = False
    foreign_load: float | None = None
    slowdown: float = 1.0
    load_average: float | None = None
    mhz: float | None = None
    governor: str | None = None
    cpus: tuple[int, ...] = ()
    sittings: int = 0
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Measured alone on the target, in warm blocks in turn with the reference: the float32 model.

    Where the hardware cannot run that, ``reference`` names the scheme of the uniform candidate that stands for it.
    ``ratio`` is candidate time / reference time (0.5 = twice as fast), with its 95 % interval ``ratio_ci95``
    (:mod:`autoq.numerics.sittings`); ``median_ms`` is the median run of an undisturbed block. ``blocks_ms`` keeps the
    raw samples: the median time per inference in milliseconds of each block, and ``baseline_blocks_ms`` the reference's
    of the same block. ``conditions`` are those it was taken under, where they are known. ``by`` says
    who measured, where that was not autoq itself.
    """

    median_ms: float
    ratio: float
    ratio_ci95: tuple[float, float]
    batch: int
    threads: int
    blocks_ms: tuple[float, ...] = ()
    baseline_blocks_ms: tuple[float, ...] = ()
    reference: str = FLOAT32_NAME
    conditions: Conditions | None = None
    by: str = ""

    @property
    def disturbed(self) -> bool:
        """Whether other work disturbed it."""
        return self.conditions is not None and self.conditions.disturbed

    def __post_init__(self) -> None:
        for value in (self.median_ms, self.ratio, *self.ratio_ci95):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a latency must be positive and finite, not {value}")

    @property
    def ms(self) -> float:
        """Milliseconds for one inference."""
        return self.median_ms

    @property
    def interval(self) -> tuple[float, float] | None:
        """What ``ratio`` may be, as far as the measurement tells (95 %)."""
        return self.ratio_ci95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model of the hardware says of one inference. Nothing ran, and no interval says how wrong it may be.

    ``ratio`` is against the same model's time of ``reference``, ``"float32"`` or the scheme of a uniform candidate.
    ``by`` says who estimates (``"Vela 5.2.0, ethos-u55-256"``), ``figures`` what else it says, by name with the unit
    (``cycles``, ``sram_bytes``, ``flash_bytes``).
    """

    ms: float
    ratio: float
    reference: str
    by: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.ms, self.ratio):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"an estimated latency must be positive and finite, not {value}")

    @property
    def interval(self) -> None:
        """None: an estimate has no interval."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a trial has no result."""

    reason: FailureReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A candidate that was dropped on the way, since the rest of its evaluation could hardly bring it to the front.

    Of the search split's ``of`` rows it was scored on ``rows``. ``metric`` is the estimate that they give of its metric
    on all rows (float32's, less the paired difference), ``bound`` what that will not surpass, with confidence; both are
    estimates unless all rows were scored. ``why`` says in words what it falls short of.
    """

    rows: int
    of: int
    metric: float
    bound: float
    why: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.metric) and math.isfinite(self.bound)):
            raise ValueError(f"a pruned trial's estimates must be finite, not {self.metric} and {self.bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate and what was measured of it.

    ``origin`` says who proposed it (``"seed:w8a8@minmax"``, ``"sampler:nsga2"``, …). ``metric`` is the value on the
    search split, in the metric's own direction. ``latency_modelled`` is the search's estimate of
    the ratio to float32: it guides proposals and is never shown as a measurement. ``seconds`` has the wall time of
    each step: ``build``, ``load``, ``metric``, ``measure``, …. One that was ``pruned`` has neither latency nor memory,
    and a ``metric`` only where all rows were scored.
    """

    number: int
    policy: Policy
    origin: str
    metric: float | None = None
    latency: Latency | Estimate | None = None
    latency_modelled: float | None = None
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    weight_bits_mean: float | None = None
    sha256: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    pruned: Pruned | None = None

    def __post_init__(self) -> None:
        if self.pruned is not None and self.failure is not None:
            raise ValueError(f"trial {self.number} was pruned: it cannot have failed as well")
        if self.metric is not None and not math.isfinite(self.metric):
            raise ValueError(f"trial {self.number}: the metric is {self.metric}; it must be finite or missing")

    @property
    def id(self) -> str:
        """The policy's id."""
        return self.policy.id

    @property
    def complete(self) -> bool:
        """Whether all was measured: it has not failed, and was not pruned."""
        return self.failure is None and self.pruned is None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPair:
    """The metric on the search split and on the final split, which no choice has seen.

    ``final_ci95`` is the bootstrap interval over rows (groups of rows where the job says so);
    ``drop_ci95`` that of float32's metric minus this one's on the same rows, as a loss (positive is worse).
    ``gap_se`` has, for each point before this one on the front, its id and the standard error of the difference of
    the two final metrics, by the same bootstrap: paired, so far smaller than the intervals of the two suggest.
    """

    search: float
    final: float | None = None
    final_ci95: tuple[float, float] | None = None
    drop_ci95: tuple[float, float] | None = None
    gap_se: tuple[tuple[str, float], ...] = ()


PolishKind = Literal["sequential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Polish:
    """What polishing did to a point: the same policy in the same form with other numbers (weights, scales, biases).

    ``held_out`` is the distance ``measure`` to float32's outputs, before and after, on calibration rows that nothing
    was fitted to: what decided for the new numbers. ``layers`` counts the layers whose numbers changed, ``seconds`` is
    what it took. ``before`` is the point as it was, scored and timed beside it.
    """

    kind: PolishKind
    measure: str
    held_out: tuple[float, float]
    layers: int
    seconds: float
    before: FrontPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One model on the front, as ``front.json`` shows it. ``model_path`` is relative to the run folder.

    All figures are of that file; ``polish`` has those of the file before, where it was polished. ``load_ms`` is the
    median time that opening a session on it took where it was timed, ``zip_bytes`` what it takes in a zip archive
    (:func:`autoq.runtime.shipped.zipped_bytes`). Both are taken in the final check; ``None`` is what was not.
    """

    id: str
    policy: Policy
    metric: MetricPair
    latency: Latency | Estimate | None
    size_bytes: int
    peak_memory_bytes: int | None
    weight_bits_mean: float
    model_path: str
    sha256: str
    origin: str = ""
    polish: Polish | None = None
    load_ms: float | None = None
    zip_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedPoint:
    """A point of the search front that the final check took off, and why, in a sentence."""

    point: FrontPoint
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FormGain:
    """What the forms of the graph ``names`` (:mod:`autoq.model.forms`) give by themselves.

    ``latency`` is of the float32 model written in them, against the model as its file gave it.
    """

    names: tuple[str, ...]
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A search's outcome. ``final`` is false for the running front, which has no final check yet.

    ``objectives`` are the job's (``"metric"``, ``"latency"``, ``"size"``, ``"peak_memory"``);
    ``metric_direction`` is ``"maximize"`` or ``"minimize"``; ``stop_reason`` (:data:`StopReason`) is why the search
    ended, empty where it has not. ``form`` is
    what of the gain comes from the form of the graph, ``None`` where the points have the form of the model.
    ``why_empty`` says, where there are no points, which constraint binds and what comes nearest to keeping it.
    """

    name: str
    objectives: tuple[str, ...]
    metric_name: str
    metric_direction: Literal["maximize", "minimize"]
    baseline: FrontPoint
    points: tuple[FrontPoint, ...]
    dropped: tuple[DroppedPoint, ...] = ()
    trials_complete: int = 0
    trials_failed: int = 0
    trials_pruned: int = 0
    wall_s: float = 0.0
    final: bool = False
    stop_reason: str = ""
    notes: tuple[str, ...] = ()
    form: FormGain | None = None
    why_empty: str = ""
