"""Polishes the points of a search's front, side by side, the most promising first, within a time limit.

The rows held out of the calibration data decide whether a point gets its polished file; the search and the final split
have no say, so the figures on the final split stay those of files that were chosen without it. What is done is kept
in ``polish.jsonl``: a search that is killed here goes on with the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoq.core.objectives import losses, metric_drop, trial_values
from autoq.core.result import Failure, PolishKind, Trial
from autoq.numerics.compromise import knee
from autoq.search.executor import Executor
from autoq.search.polish_log import PolishLog, PolishRecord, polish_key
from autoq.search.polish_point import PolishItem, PolishResult, PolishWork, polish_point
from autoq.search.problem import Problem


@dataclass(frozen=True, slots=True)
class Polished:
    """A point's polished file, what polishing came to, the file's size on the target and its peak memory, if known."""

    path: Path
    record: PolishRecord
    size_bytes: int
    peak_memory_bytes: int | None


def polish_front(
    front: Sequence[Trial],
    work: PolishWork,
    *,
    problem: Problem,
    executor: Executor,
    log: PolishLog,
    limit_s: float,
    step: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.time,
) -> tuple[dict[str, Polished], tuple[str, ...]]:
    """Polishes the trials ``front``; which of them have a polished file now, by id, and notes on the others.

    Points that are not done after ``limit_s`` seconds keep their files. Raises :class:`autoq.errors.RunError` where
    what is done cannot be kept.
    """
    known = log.read()
    records: dict[str, PolishRecord] = {}
    for trial in front:
        record = known.get(polish_key(work.kind, trial.id, trial.sha256 or ""))
        if record is not None:
            records[trial.id] = record
    todo = [trial for trial in most_promising_first(front, problem) if trial.id not in records]
    failures: dict[str, Failure] = {}
    if todo:
        step(f"polishing {len(todo)} models ({work.kind}), {limit_s:.0f} s at the most")
        deadline = clock() + limit_s
        items = [PolishItem(policy=trial.policy, deadline=deadline) for trial in todo]
        for done, (position, result) in enumerate(executor.run(polish_point, work, items), start=1):
            trial = todo[position]
            if isinstance(result, Failure):
                failures[trial.id] = result
            else:
                records[trial.id] = _record(trial, work.kind, result)
                log.add(records[trial.id], result.scored.model if result.scored else None)
            step(f"polished {done} of {len(todo)}: {trial.id} {_outcome(result)}")
    better = {key: record for key, record in records.items() if record.sha256 is not None}
    log.clear_files(set(better))
    polished: dict[str, Polished] = {}
    for trial in front:
        if trial.id not in better:
            continue
        path = log.model_path(trial.id)
        measured = executor.measure(path)
        if isinstance(measured, Failure):
            failures[trial.id] = measured
        else:
            size = path.stat().st_size if measured.size_bytes is None else measured.size_bytes
            polished[trial.id] = Polished(path, better[trial.id], size, measured.peak_memory_bytes)
    return polished, _notes(front, polished, records, failures, limit_s)


def most_promising_first(front: Sequence[Trial], problem: Problem) -> list[Trial]:
    """The knee, since that is what most users take; then what loses most against float32, since it has most to gain."""
    if not front:
        return []
    rows = [losses(trial_values(trial), problem.objectives, problem.direction) for trial in front]
    first = front[knee(rows)]
    base = problem.baseline.metric

    def drop(trial: Trial) -> float:
        return 0.0 if trial.metric is None or base is None else metric_drop(trial.metric, base, problem.direction)

    return [first, *sorted((trial for trial in front if trial is not first), key=lambda each: (-drop(each), each.id))]


def _record(trial: Trial, kind: PolishKind, result: PolishResult) -> PolishRecord:
    scored = result.scored
    return PolishRecord(
        key=polish_key(kind, trial.id, trial.sha256 or ""),
        id=trial.id,
        kind=kind,
        measure=result.measure,
        held_out=result.held_out,
        layers=sum(layer.kept for layer in result.layers),
        seconds=result.seconds,
        why=result.why,
        sha256=scored.sha256 if scored else None,
        size_bytes=scored.size_bytes if scored else None,
        metric=scored.metric if scored else None,
    )


def _outcome(result: PolishResult | Failure) -> str:
    if isinstance(result, Failure):
        return f"failed: {result.message}"
    before, after = result.held_out
    return f"{result.measure} {before:.4g} -> {after:.4g}" + (f"; kept as it was: {result.why}" if result.why else "")


def _notes(
    front: Sequence[Trial],
    polished: dict[str, Polished],
    records: dict[str, PolishRecord],
    failures: dict[str, Failure],
    limit_s: float,
) -> tuple[str, ...]:
    """How many were polished, and for each reason which were not."""
    reasons: dict[str, list[str]] = {}
    for trial in front:
        if trial.id in polished:
            continue
        failure = failures.get(trial.id)
        if failure is not None and failure.reason == "timeout":
            why = f"{limit_s:.0f} s (search.polish_time) were over; --resume goes on with them"
        else:
            why = failure.message if failure is not None else records[trial.id].why
        reasons.setdefault(why, []).append(trial.id)
    first = f"{len(polished)} of {len(front)} points were polished: nearer to float32 on calibration rows held out"
    return (first, *(f"not polished, {why}: {', '.join(ids)}" for why, ids in reasons.items())) if front else ()
