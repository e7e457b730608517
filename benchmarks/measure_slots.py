"""Scoring beside measuring on one machine: in turns, by an exclusive slot of Ray's, or each on cores of its own?

    python benchmarks/measure_slots.py [--minutes 7] [--files 6] [--bench DIR]

Candidates of ResNet-20 are scored on the search split and measured, in four arrangements:

- **alone**: measured, nothing is scored;
- **turns**: all are scored on all cores, then each is measured (what autoq does);
- **slot**: each is scored by a Ray task of one core, and measured while a task that asks for all cores holds them;
- **pinned**: while a candidate is measured on the last core, the next one is scored on the others.

A round takes every arrangement once, over the same files, beginning with another each time; rounds follow until time is
up. So whatever else goes on strikes all of them alike, and a quiet hour is not asked for.

"marked" is the share of measurements that say they were disturbed. A measurement's error is its ratio's distance, in
logarithms, from the median that all the rounds measured alone give of its file: "off 2 %" is the share of errors beyond
2 %, "bias" their median, "spread" their median distance from that times 1.48 (a standard deviation, if they were
normal). "covers" is the share of intervals that hold the file's median. "s each" is wall time over the number of
candidates. All with 95 % intervals, bootstrapped over whole rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, parser, resnet20_job, save

from autoq.core.policy import Policy
from autoq.core.result import Latency
from autoq.runtime.meter import Meter
from autoq.search.evaluate import Evaluator, Scored, Workload
from autoq.setting import groundwork_of, inference_feeds, read_setting, workload_of
from autoq.spec.job import load_job

OFF = 0.02
DRAWS = 2000
ENOUGH = 6
ALONE, TURNS = "alone", "turns"

_evaluator: Evaluator | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is scored and measured, and by what."""

    workload: Workload
    policies: Sequence[Policy]
    paths: Sequence[Path]
    meter: Meter

    def latency(self, index: int) -> Latency:
        """As a search's trial is measured."""
        found = self.meter.measure(self.paths[index]).latency
        assert isinstance(found, Latency)
        return found


Take = Callable[[], list[Latency]]
"""Scores and measures all candidates once."""


def prepare(workload: Workload, cores: Sequence[int]) -> None:
    """Makes this process one that scores, on ``cores``."""
    global _evaluator
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    _evaluator = Evaluator(workload)


def score(policy: Policy) -> float:
    """Builds and scores a candidate."""
    assert _evaluator is not None
    found = _evaluator.evaluate(policy)
    assert isinstance(found, Scored), found
    return found.metric


def policies_of(setting: Any, lowering: Any, count: int) -> list[Policy]:
    """Random policies of the schemes that each layer may have."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        schemes = {
            entry.layer.name: entry.schemes[int(rng.integers(len(entry.schemes)))] for entry in setting.candidates
        }
        found.append(lowering.canonical(Policy.of(schemes)))
    return found


@contextmanager
def alone(work: Work) -> Iterator[Take]:
    """Measures, and scores nothing."""
    yield lambda: [work.latency(index) for index in range(len(work.paths))]


@contextmanager
def in_turns(work: Work) -> Iterator[Take]:
    """Scores all, then measures each."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=prepare, initargs=(work.workload, ())) as pool:
        list(pool.map(score, work.policies[:2]))  # processes start once a search

        def take() -> list[Latency]:
            list(pool.map(score, work.policies))
            return [work.latency(index) for index in range(len(work.paths))]

        yield take


@contextmanager
def pinned(work: Work) -> Iterator[Take]:
    """Scores on all cores but the last while that one measures what was scored before."""
    cores = sorted(os.sched_getaffinity(0))[:-1]
    with ProcessPoolExecutor(len(cores), initializer=prepare, initargs=(work.workload, cores)) as pool:
        ahead: list[Future[float]] = [pool.submit(score, policy) for policy in work.policies[: len(cores)]]
        list(map(Future.result, ahead))

        def take() -> list[Latency]:
            found = []
            for index in range(len(work.paths)):
                ahead.pop(0).result()
                ahead.append(pool.submit(score, work.policies[(index + len(cores)) % len(work.policies)]))
                found.append(work.latency(index))
            return found

        yield take


@contextmanager
def by_slot(work: Work) -> Iterator[Take]:
    """Scores in Ray tasks of a core each; measures while another task holds all cores."""
    os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as name:
        mark, shared = Path(name) / "held", ray.put(work.workload)

        @ray.remote(num_cpus=1)
        def scored(policy: Policy, given: Workload) -> float:
            if _evaluator is None:
                prepare(given, ())
            return score(policy)

        @ray.remote(num_cpus=cores)
        def hold() -> None:
            mark.touch()
            while mark.exists():
                time.sleep(0.002)

        def take() -> list[Latency]:
            done, found = [scored.remote(policy, shared) for policy in work.policies], []
            for index in range(len(work.paths)):
                ray.get(done[index])
                held = hold.remote()
                while not mark.exists():
                    time.sleep(0.002)
                try:
                    found.append(work.latency(index))
                finally:
                    mark.unlink()
                ray.get(held)
            return found

        try:
            ray.get([scored.remote(policy, shared) for policy in work.policies[: 2 * cores]])
            yield take
        finally:
            ray.shutdown()


ARRANGEMENTS: dict[str, Callable[[Work], AbstractContextManager[Take]]] = {
    ALONE: alone,
    TURNS: in_turns,
    "slot": by_slot,
    "pinned": pinned,
}


def rounds_of(work: Work, seconds: float) -> tuple[dict[str, list[list[Latency]]], dict[str, list[float]]]:
    """Kind -> its measurements, round by round, and its wall time of each; at least two rounds."""
    found: dict[str, list[list[Latency]]] = {kind: [] for kind in ARRANGEMENTS}
    times: dict[str, list[float]] = {kind: [] for kind in ARRANGEMENTS}
    start = time.perf_counter()
    with ExitStack() as stack:
        takes = {kind: stack.enter_context(arrange(work)) for kind, arrange in ARRANGEMENTS.items()}
        kinds, longest = list(takes), 0.0
        while len(times[ALONE]) < 2 or time.perf_counter() - start + longest < seconds:
            begun = time.perf_counter()
            for kind in kinds:
                before = time.perf_counter()
                found[kind].append(takes[kind]())
                times[kind].append(time.perf_counter() - before)
            kinds = kinds[1:] + kinds[:1]
            longest = max(longest, time.perf_counter() - begun)
            print(f"  {len(times[ALONE])} rounds, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found, times


def figures(
    found: dict[str, list[list[Latency]]], times: dict[str, list[float]], rounds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Every arrangement's figures over those ``rounds``."""
    truth = np.median([[np.log(each.ratio) for each in found[ALONE][r]] for r in rounds], axis=0)
    told = {}
    for kind, taken in found.items():
        chosen = [taken[r] for r in rounds]
        errors = np.array([[np.log(each.ratio) for each in row] for row in chosen]) - truth
        covers = [
            low <= np.exp(own) <= high
            for row in chosen
            for (low, high), own in zip((each.ratio_ci95 for each in row), truth, strict=True)
        ]
        told[kind] = {
            "marked": float(np.mean([[each.disturbed for each in row] for row in chosen])),
            "off": float(np.mean(np.abs(errors) > OFF)),
            "bias": float(np.median(errors)),
            "spread": 1.4826 * float(np.median(np.abs(errors - np.median(errors)))),
            "covers": float(np.mean(covers)),
            "seconds": float(np.mean([times[kind][r] for r in rounds])) / errors.shape[1],
        }
    return told


def judged(found: dict[str, list[list[Latency]]], times: dict[str, list[float]]) -> dict[str, Any]:
    """Figures with their intervals, and how far each arrangement's are from those of turns."""
    count, rng = len(times[ALONE]), np.random.default_rng(0)
    whole = figures(found, times, range(count))
    drawn = [figures(found, times, rng.integers(count, size=count)) for _ in range(DRAWS)]
    result: dict[str, Any] = {}
    for kind, own in whole.items():
        result[kind] = {
            name: {
                "value": value,
                "interval": np.percentile([each[kind][name] for each in drawn], [2.5, 97.5]).tolist(),
                "less_turns": np.percentile(
                    [each[kind][name] - each[TURNS][name] for each in drawn], [2.5, 97.5]
                ).tolist(),
            }
            for name, value in own.items()
        }
    return result


def verdict_of(kind: str, figure: dict[str, Any], rounds: int) -> str:
    """What is sure of an arrangement beside turns, in a sentence."""
    if rounds < ENOUGH:
        return f"{kind} against turns: {rounds} rounds are too few to tell; give more --minutes"
    said = []
    for name, words in (("marked", "marked"), ("off", "off by more than 2 %")):
        low, high = figure[name]["less_turns"]
        if low > 0 or high < 0:
            said.append(f"{'more' if low > 0 else 'fewer'} are {words}")
    low, high = figure["seconds"]["less_turns"]
    if low > 0 or high < 0:
        said.append(f"a candidate takes {'longer' if low > 0 else 'less time'}")
    return f"{kind} against turns: {', '.join(said) or 'nothing is sure'}"


def main() -> None:
    """Measure, print, save."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=6)
    made.add_argument("--minutes", type=float, default=7.0, help="for the rounds; what comes before takes half a one")
    arguments = made.parse_args()
    job = load_job({**resnet20_job(arguments.bench), "objectives": ["metric", "latency", "size"]}, ".")
    setting = read_setting(job)
    lowering = groundwork_of(setting)
    workload = workload_of(setting, lowering)
    policies = policies_of(setting, lowering, arguments.files)
    with tempfile.TemporaryDirectory() as name, Meter(setting.model.path, inference_feeds(setting)) as meter:
        paths = []
        for number, policy in enumerate(policies):
            paths.append(Path(name) / f"{number}.onnx")
            paths[-1].write_bytes(lowering.build(policy))
        found, times = rounds_of(Work(workload, policies, paths, meter), 60 * arguments.minutes)
    result = judged(found, times)
    print(f"{len(times[ALONE])} rounds of {len(paths)} files")
    heads = {"marked": 100, "off": 100, "bias": 100, "spread": 100, "covers": 100, "seconds": 1}
    titles = ("marked, %", "off 2 %, %", "bias, %", "spread, %", "covers, %", "s each")
    print(" ".join(["        ", *(f"{title:>22s}" for title in titles)]))
    for kind, row in result.items():
        cells = []
        for head, factor in heads.items():
            value, (low, high) = row[head]["value"], row[head]["interval"]
            cells.append(f"{factor * value:.2f} [{factor * low:.2f}, {factor * high:.2f}]")
        print(" ".join([f"{kind:8s}", *(f"{cell:>22s}" for cell in cells)]))
    for kind in result:
        if kind not in (ALONE, TURNS):
            print(verdict_of(kind, result[kind], len(times[ALONE])))
    save("measure_slots", {"machine": machine(), "rounds": len(times[ALONE]), "arrangements": result})


if __name__ == "__main__":
    main()
