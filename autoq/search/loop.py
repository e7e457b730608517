"""The search loop: ask for a batch, score it, measure each alone, write each down, tell."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from autoq.core.objectives import Constraints, Values, losses, metric_drop, trial_values
from autoq.core.policy import Policy
from autoq.core.result import PASSING_FAILURES, Estimate, Failure, Pruned, StopReason, Trial
from autoq.numerics.archive import Archive
from autoq.search.evaluate import Dropped, Scored
from autoq.search.executor import Executor
from autoq.search.problem import Problem
from autoq.search.proposer import Proposal, Proposer
from autoq.search.stopping import Guide, Patience
from autoq.search.store import TrialLog, disk_error
from autoq.spec.limits import limit_problem

BATCH = 8
"""Candidates asked for at once. Fixed, and not the number of workers: what is proposed next depends on what was told
before, and a search must propose the same with one worker as with many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop, at what comes first.

    ``deadline`` is a reading of the loop's clock, in seconds. ``until``: with the first trial that keeps these bounds
    and the problem's constraints. ``patience``: when so many trials in a row did not widen the front; 0 is never.
    """

    trials: int
    deadline: float | None = None
    until: Constraints | None = None
    patience: int = 0


@dataclass(slots=True)
class Search:
    """One search in progress. ``trials`` are the finished ones, those of an earlier session first; ``failed`` and
    ``pruned`` count theirs.

    ``models`` is the folder for candidates' files, which end in ``suffix``: each stays there while it is on the front.
    ``on_trial`` is called with every new trial, after it is safe in ``log`` and before the files that it took off the
    front are removed: what it writes down never names a file that is not there. ``clock`` gives seconds.
    ``step_rows`` are the rows of the search split where candidates are scored in steps, and dropped on the way.
    ``meanwhile`` is called, in a thread, while a batch is scored: what it does would disturb a measurement. Its
    argument tells whether the scoring is over: what it has not done by then had better wait.
    """

    problem: Problem
    proposer: Proposer
    executor: Executor
    log: TrialLog
    models: Path
    clock: Callable[[], float]
    on_trial: Callable[[Trial, Search], None] = lambda trial, search: None
    meanwhile: Callable[[Callable[[], bool]], None] = lambda over: None
    step_rows: int | None = None
    suffix: str = ".onnx"
    trials: list[Trial] = field(default_factory=list)
    failed: int = 0
    pruned: int = 0
    _unreported: list[Trial] = field(default_factory=list)
    _off_front: set[str] = field(default_factory=set)
    _numbers: dict[Policy, int] = field(default_factory=dict)
    _next_number: int = 0
    _front: Archive[Trial] = field(init=False)
    _guide: Guide = field(init=False)

    def __post_init__(self) -> None:
        self._front = self.problem.empty_front()
        self._guide = Guide(self.problem)

    @property
    def front(self) -> list[Trial]:
        """The trials on the front so far, best metric first."""
        return self._front.items

    def run(self, limits: Limits, finished: Sequence[Trial] = ()) -> StopReason:
        """Searches until a limit; returns why it stopped.

        ``finished`` are the trials to continue from. They are proposed anew, told, and not evaluated again; those of
        them that this search does not come to propose (with a smaller limit, for one) are kept behind the others.
        """
        recorded = {trial.policy: trial for trial in finished if not _passing(trial)}
        self._numbers = {trial.policy: trial.number for trial in finished}
        self._next_number = 1 + max(self._numbers.values(), default=-1)
        reason = self._run(limits, recorded)
        for trial in recorded.values():
            self._take_up(trial)
        recorded.clear()
        self._report()
        return reason

    def _run(self, limits: Limits, recorded: dict[Policy, Trial]) -> StopReason:
        patience = Patience(limits.patience)
        while len(self.trials) < limits.trials:
            if self._late(limits) and not recorded:
                return "time"
            proposals = self.proposer.ask(min(BATCH, limits.trials - len(self.trials)))
            if not proposals:
                return "space exhausted"
            stop = self._evaluate(proposals, recorded, limits)
            if stop is not None:
                return stop
            if patience.spent(len(self.trials), self._guide):
                return "no gain"
        return "trials"

    def _evaluate(self, proposals: list[Proposal], recorded: dict[Policy, Trial], limits: Limits) -> StopReason | None:
        ends = [number for number, each in enumerate(proposals, 1) if self._meets(recorded.get(each.policy), limits)]
        proposals = proposals[: min(ends, default=None)]  # what would come behind is not scored anew
        new = [proposal for proposal in proposals if proposal.policy not in recorded]
        if self._late(limits):
            new = []
        # The slowest first: the workers then end their share of the batch at about the same time.
        new.sort(key=lambda proposal: -self.problem.modelled_latency(proposal.policy))
        # One front for all of a batch, that of the trials before it: what a candidate must reach hangs on no worker.
        hurdles = None if self.step_rows is None else [self._guide.hurdle(proposal.policy) for proposal in new]
        results = iter(self.executor.score([proposal.policy for proposal in new], hurdles)) if new else iter(())
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            copied = pool.submit(self.meanwhile, over.is_set)
            try:
                # All of a batch is scored before any of it is measured: a measurement wants the machine to itself.
                scored = dict(zip((proposal.policy for proposal in new), results, strict=True))
            finally:
                over.set()
            copied.result()
        for proposal in proposals:
            trial = recorded.pop(proposal.policy, None)
            if trial is None:
                if self._late(limits) or proposal.policy not in scored:
                    return "time"
                trial = self._finish(proposal, scored[proposal.policy])
                self.log.append(trial)
                self._unreported.append(trial)
            self._take_up(trial)
            if trial.failure is None:
                self.proposer.tell(proposal, *self.problem.proposer_losses(trial))
            else:
                self.proposer.tell(proposal, None)
            self._guide.add(trial)
            if not recorded:
                self._report()
            if self._meets(trial, limits):
                return "target met"
        return None

    def _finish(self, proposal: Proposal, result: Scored | Dropped | Failure) -> Trial:
        # One that is tried again keeps its number.
        number = self._numbers.setdefault(proposal.policy, self._next_number)
        self._next_number = max(self._next_number, number + 1)
        trial = Trial(
            number=number,
            policy=proposal.policy,
            origin=proposal.origin,
            latency_modelled=self.problem.modelled_latency(proposal.policy),
        )
        if isinstance(result, Failure):
            return dataclasses.replace(trial, failure=result)
        trial = dataclasses.replace(
            trial,
            size_bytes=result.size_bytes,
            weight_bits_mean=result.weight_bits_mean,
            sha256=result.sha256,
            seconds=result.seconds,
        )
        if isinstance(result, Dropped):
            return dataclasses.replace(trial, pruned=result.pruned)
        trial = dataclasses.replace(trial, metric=result.metric)
        if (pruned := self._not_worth_timing(proposal.policy, result)) is not None:
            return dataclasses.replace(trial, pruned=pruned)
        path = self.model_path(proposal.policy.id)
        try:
            path.write_bytes(result.model)
        except OSError as error:
            raise disk_error(path, error) from None
        start = self.clock()
        measurement = self.executor.measure(path, self._idle_above(result))
        trial = dataclasses.replace(trial, seconds={**result.seconds, "measure": self.clock() - start})
        if isinstance(measurement, Failure):
            return dataclasses.replace(trial, failure=measurement)
        over = limit_problem(
            self.problem.profile.limits,
            file_bytes=result.size_bytes,
            stored_bytes=measurement.size_bytes,
            memory_bytes=measurement.peak_memory_bytes,
            figures=measurement.latency.figures if isinstance(measurement.latency, Estimate) else {},
        )
        if over:
            return dataclasses.replace(trial, failure=Failure(reason="limit", message=over))
        return dataclasses.replace(
            trial,
            latency=measurement.latency,
            peak_memory_bytes=measurement.peak_memory_bytes,
            size_bytes=result.size_bytes if measurement.size_bytes is None else measurement.size_bytes,
        )

    def _not_worth_timing(self, policy: Policy, result: Scored) -> Pruned | None:
        """Why a candidate of which all rows were scored is not timed, where candidates are scored in steps.

        By the trials before it, also those of its batch: trials are finished in their order, wherever they are scored.
        """
        own = self.problem.baseline.metric
        if self.step_rows is None or own is None:
            return None
        drop = metric_drop(result.metric, own, self.problem.direction)
        why = self._guide.hurdle(policy).not_taken(result.size_bytes, drop)
        rows = self.step_rows
        return Pruned(rows=rows, of=rows, metric=result.metric, bound=result.metric, why=why) if why else None

    def _idle_above(self, result: Scored) -> float:
        """The ratio to float32 above which a candidate has no place on the front, however exactly it is timed.

        What others measured to be that fast lose no more in any other objective. Infinite in full fidelity.
        """
        problem = self.problem
        names = tuple(name for name in problem.objectives if name != "latency")
        if self.step_rows is None or len(names) == len(problem.objectives) or "peak_memory" in names:
            return math.inf
        own = losses(Values(metric=result.metric, size_bytes=result.size_bytes), names, problem.direction)
        known = [problem.baseline, *map(trial_values, self.front)]
        faster = [
            values.latency_ratio
            for values in known
            if values.latency_ratio is not None
            and all(a <= b for a, b in zip(losses(values, names, problem.direction), own, strict=True))
        ]
        return min([*faster, problem.constraints.max_latency_ratio or math.inf])

    def model_path(self, policy_id: str) -> Path:
        """Where the candidate's file lies while it is on the front."""
        return self.models / f"{policy_id}{self.suffix}"

    def _meets(self, trial: Trial | None, limits: Limits) -> bool:
        return trial is not None and limits.until is not None and self.problem.feasible(trial, limits.until)

    def _take_up(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.failed += trial.failure is not None
        self.pruned += trial.pruned is not None
        self._off_front.update(lost.id for lost in self.problem.add_to_front(self._front, trial))

    def _report(self) -> None:
        """Reports new trials, then removes the files that the front has lost.

        Waits until every finished trial is taken up: before that the front is not whole.
        """
        while self._unreported:
            self.on_trial(self._unreported.pop(0), self)
        while self._off_front:
            self.model_path(self._off_front.pop()).unlink(missing_ok=True)

    def _late(self, limits: Limits) -> bool:
        return limits.deadline is not None and self.clock() >= limits.deadline


def _passing(trial: Trial) -> bool:
    return trial.failure is not None and trial.failure.reason in PASSING_FAILURES
