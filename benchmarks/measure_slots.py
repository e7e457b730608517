"""Scoring beside measuring on one machine: in turns, by an exclusive slot of Ray's, or each on cores of its own?

    python benchmarks/measure_slots.py [--files 16] [--bench DIR]

Candidates of ResNet-20 are scored on the search split and measured, in three arrangements:

- **turns**: a batch of 8 is scored on all cores, then each of it is measured (what autoq does);
- **slot**: each is scored by a Ray task of one core, and measured while a task that asks for all cores holds them;
- **pinned**: one process scores on every core but the last, all the while; the meter has the last core.

The truth of each file's ratio to float32 is the mean of two longer measurements with nothing beside, one before and one
after. "bias" and "spread" are the mean and the standard deviation of the ratios' distances from it, in logarithms;
"alone" is the same plan with nothing beside. "s a candidate" is wall time over the number of candidates.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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

BATCH = 8

_evaluator: Evaluator | None = None


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
    """Random policies of two schemes a layer: integers, and integers of fewer bits or float."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        schemes = {
            entry.layer.name: entry.schemes[int(rng.integers(len(entry.schemes)))] for entry in setting.candidates
        }
        found.append(lowering.canonical(Policy.of(schemes)))
    return found


def in_turns(workload: Workload, policies: list[Policy], paths: list[Path], meter: Meter) -> Iterator[Latency]:
    """Scores a batch, then measures it."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=prepare, initargs=(workload, ())) as pool:
        list(pool.map(score, policies[:2]))  # processes start once a search
        start = time.perf_counter()
        for first in range(0, len(policies), BATCH):
            list(pool.map(score, policies[first : first + BATCH]))
            for path in paths[first : first + BATCH]:
                yield latency_of(meter, path)
        TIMES["turns"] = time.perf_counter() - start


def pinned(workload: Workload, policies: list[Policy], paths: list[Path], meter: Meter) -> Iterator[Latency]:
    """Scores on all cores but the last, and measures what is scored meanwhile."""
    cores = sorted(os.sched_getaffinity(0))[:-1]
    with ProcessPoolExecutor(len(cores), initializer=prepare, initargs=(workload, cores)) as pool:
        list(pool.map(score, policies[: len(cores)]))
        start = time.perf_counter()
        done = [pool.submit(score, policy) for policy in policies]
        for each, path in zip(done, paths, strict=True):
            each.result()
            yield latency_of(meter, path)
        TIMES["pinned"] = time.perf_counter() - start


def by_slot(workload: Workload, policies: list[Policy], paths: list[Path], meter: Meter) -> Iterator[Latency]:
    """Scores in Ray tasks of a core each; measures while another task holds all cores."""
    import ray

    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, quiet():
        ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        folder, shared = Path(name), ray.put(workload)

        @ray.remote(num_cpus=1)
        def scored(policy: Policy, given: Workload) -> float:
            if _evaluator is None:
                prepare(given, ())
            return score(policy)

        @ray.remote(num_cpus=cores)
        def hold(mark: str) -> None:
            Path(mark).touch()
            while Path(mark).exists():
                time.sleep(0.002)

        try:
            ray.get([scored.remote(policy, shared) for policy in policies[: 2 * cores]])
            start = time.perf_counter()
            done = [scored.remote(policy, shared) for policy in policies]
            for number, path in enumerate(paths):
                ray.get(done[number])
                mark = folder / str(number)
                held = hold.remote(str(mark))
                while not mark.exists():
                    time.sleep(0.002)
                try:
                    yield latency_of(meter, path)
                finally:
                    mark.unlink()
                ray.get(held)
            TIMES["slot"] = time.perf_counter() - start
        finally:
            ray.shutdown()


TIMES: dict[str, float] = {}


@contextmanager
def quiet() -> Iterator[None]:
    """Ray says little."""
    os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    yield


def latency_of(meter: Meter, path: Path) -> Latency:
    """As a search's trial is measured."""
    found = meter.measure(path).latency
    assert isinstance(found, Latency)
    return found


def judged(found: list[Latency], truth: np.ndarray) -> dict[str, Any]:
    """How far from the truth, and how sure of itself."""
    ratios = np.array([each.ratio for each in found])
    off = np.log(ratios / truth)
    covers = [low <= true <= high for (low, high), true in zip((each.ratio_ci95 for each in found), truth, strict=True)]
    noted = [each.conditions for each in found if each.conditions is not None]
    return {
        "bias": float(off.mean()),
        "spread": float(off.std()),
        "covers": int(sum(covers)),
        "of": len(found),
        "marked": sum(each.disturbed for each in noted),
        "left_out": statistics.mean(each.left_out for each in noted),
    }


def main() -> None:
    """Measure, print, save."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=16)
    arguments = made.parse_args()
    job = load_job({**resnet20_job(arguments.bench), "objectives": ["metric", "latency", "size"]}, ".")
    setting = read_setting(job)
    lowering = groundwork_of(setting)
    workload = workload_of(setting, lowering)
    policies = policies_of(setting, lowering, arguments.files)
    result: dict[str, Any] = {"machine": machine(), "arrangements": {}}
    with tempfile.TemporaryDirectory() as name, Meter(setting.model.path, inference_feeds(setting)) as meter:
        paths = []
        for number, policy in enumerate(policies):
            paths.append(Path(name) / f"{number}.onnx")
            paths[-1].write_bytes(lowering.build(policy))
        before = [each.latency.ratio for each in meter.measure_many(paths)]
        start = time.perf_counter()
        found = {"alone": [latency_of(meter, path) for path in paths]}
        TIMES["alone"] = time.perf_counter() - start
        arrangements: dict[str, Callable[..., Iterator[Latency]]] = {
            "turns": in_turns,
            "slot": by_slot,
            "pinned": pinned,
        }
        for kind, arrange in arrangements.items():
            print(f"  {kind}", file=sys.stderr, flush=True)
            found[kind] = list(arrange(workload, policies, paths, meter))
        after = [each.latency.ratio for each in meter.measure_many(paths)]
    truth = np.sqrt(np.array(before) * np.array(after))
    again = float(np.std(np.log(np.divide(after, before))))
    print(f"truth: ratios {truth.min():.3f} to {truth.max():.3f}; measured twice, they differ by {again:.2%}")
    heads = ("bias", "spread", "cover", "marked", "left out", "s a candidate")
    print(" ".join(["        ", *(f"{head:>13s}" for head in heads)]))
    for kind, latencies in found.items():
        row = judged(latencies, truth) | {"seconds": TIMES[kind] / len(paths)}
        result["arrangements"][kind] = row
        cells = [f"{row['bias']:.2%}", f"{row['spread']:.2%}", f"{row['covers']} of {row['of']}", str(row["marked"])]
        cells += [f"{row['left_out']:.1f}", f"{row['seconds']:.2f}"]
        print(" ".join([f"{kind:8s}", *(f"{cell:>13s}" for cell in cells)]))
    print(f"saved to {save('measure_slots', result)}")


if __name__ == "__main__":
    main()
