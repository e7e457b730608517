"""What a long study spends on proposing and storing, and whether that grows with its trials.

    python benchmarks/long_study.py [--trials 10000] [--evaluation-s 0.5] [--bench DIR]

The real search, by the example job of ResNet-20, whose candidates are evaluated in no time by made-up figures. So all
of its loop is what a search adds to its evaluations. Milliseconds a trial, over the whole run and its last tenth, of

    proposing      asking and telling the sampler
    trials.jsonl   every trial, safe on disk
    front          keeping the fronts, of what was measured and of what guides proposals
    front.json     and removing the models that the front has lost
    rest           of the loop: files of candidates, the reason to stop, threads
    study          the run folder's copy for optuna-dashboard
    MLflow         the tracking server's copy, of :data:`TRACKED` trials, logged when the loop has ended

The last two are written while workers score, and no longer: the search does not wait for them. So the share beside
evaluations of ``--evaluation-s`` seconds each is given without and with them. One thread, ``ray`` off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np

from autoq.core.policy import Policy
from autoq.core.result import Latency, Trial
from autoq.pipeline import Events, run_search
from autoq.pipeline import run as flow
from autoq.record.tracking import Tracker
from autoq.runtime.gauge import Measurement
from autoq.search.evaluate import Scored
from autoq.search.loop import Search
from autoq.search.problem import Problem
from autoq.search.proposer import Proposer
from autoq.search.seeds import weight_bytes
from autoq.search.stopping import Guide
from autoq.search.store import TrialLog
from autoq.search.study_record import StudyRecord
from autoq.spec.job import load_job

GOAL_SHARE = 0.05
TRACKED = 200


class Instant:
    """Evaluates candidates in no time: bent sums of what each layer's scheme costs, with noise."""

    description = "made up"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        rng = np.random.default_rng(0)
        noise = {scheme: 2.0 ** (8 - min(scheme.weight_bits, 16)) for scheme in problem.schemes()}
        names = [entry.layer.name for entry in problem.candidates]
        shares = dict(zip(names, rng.dirichlet(np.ones(len(names))), strict=True))
        self._noise = {name: {scheme: share * each * rng.uniform(0.3, 3) for scheme, each in noise.items()}
                       for name, share in shares.items()}  # fmt: skip
        self._speed: dict[Path, float] = {}

    def score(self, policies: Sequence[Policy], hurdles: object = None) -> Iterator[Scored]:
        """A file that holds its name."""
        layers = {entry.layer.name: entry.layer for entry in self._problem.candidates}
        for policy in policies:
            rng = np.random.default_rng([1, int(policy.id, 16)])
            noise = sum(self._noise[name][scheme] for name, scheme in policy.items())
            size = int(sum(weight_bytes(layers[name], scheme) for name, scheme in policy.items()))
            self._speed[Path(f"{policy.id}.onnx")] = self._problem.modelled_latency(policy) * rng.normal(1, 0.005)
            metric = self._problem.baseline.metric * math.exp(-noise / 20) + rng.normal(0, 0.002)
            yield Sized(
                model=policy.id.encode(), metric=metric, sha256="0" * 64, weight_bits_mean=8.0, size=size,
                seconds={"build": 0.01, "metric": 0.5},
            )  # fmt: skip

    def measure(self, model: Path, idle_above: float = math.inf) -> Measurement:
        """The modelled latency, with noise."""
        ratio = self._speed.pop(Path(model.name))
        latency = Latency(median_ms=ratio, ratio=ratio, ratio_ci95=(0.99 * ratio, 1.01 * ratio), batch=1, threads=1)
        return Measurement(latency=latency, peak_memory_bytes=1_000_000, load_ms=1.0)

    def close(self) -> None:
        """Nothing was started."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sized(Scored):
    """A result whose file is only said to have its size."""

    size: int

    @property
    def size_bytes(self) -> int:
        """As said."""
        return self.size


class LoopEndedError(Exception):
    """What comes behind the loop, once a search, is not measured."""


EVALUATION = "made-up evaluation"
PARTS: dict[str, list[tuple[type, str]]] = {
    "proposing": [(Proposer, "ask"), (Proposer, "tell")],
    "trials.jsonl": [(TrialLog, "append")],
    "front": [(Search, "_take_up"), (Guide, "add"), (Guide, "hurdle")],
    "front.json": [(Search, "_report")],
    "study": [(StudyRecord, "add")],
    EVALUATION: [(Instant, "score"), (Instant, "measure")],
}
COPIES = ("study", "MLflow")


class Clocks:
    """Seconds spent in the methods of :data:`PARTS`, which it wraps."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        for part, methods in PARTS.items():
            for owner, name in methods:
                self._wrap(owner, name, part)

    def _wrap(self, owner: type, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = inner(*args, **kwargs)
            found = iter(list(found)) if isinstance(found, Iterator) else found
            self.spent[part] += time.perf_counter() - start
            return found

        setattr(owner, name, outer)


def long_search(job: dict[str, Any], trials: int, folder: Path) -> dict[str, Any]:
    """Milliseconds a trial of the parts of a whole search's loop."""
    clocks, marks, whole = Clocks(), [], {}
    run, log_trial = Search.run, Tracker.log_trial
    logged: list[Trial] = []

    def mark(done: int) -> dict[str, float]:
        found = {"trials": done, **clocks.spent}
        total = time.perf_counter() - whole["start"]
        return found | {"rest": total - sum(clocks.spent.values())}

    def timed_run(self: Search, *args: Any, **kwargs: Any) -> Any:
        self.executor = Instant(self.problem)  # type: ignore[assignment]
        whole["start"] = time.perf_counter()
        found = run(self, *args, **kwargs)
        marks.append(mark(trials))
        return found

    def tracked(self: Tracker, trial: Trial) -> None:
        logged.append(trial)
        if len(logged) == trials:
            start = time.perf_counter()
            for each in logged[-TRACKED:]:
                log_trial(self, each)
            whole["MLflow"] = (time.perf_counter() - start) / min(TRACKED, trials)

    def ended(search: Search, *rest: object) -> None:
        whole["front"] = len(search.front)
        raise LoopEndedError

    def on_trial(trial: Trial, search: Search) -> None:
        done = len(search.trials)
        if done % max(1, trials // 10) == 0 and done < trials:
            marks.append(mark(done))
            each = {part: f"{1e3 * marks[-1][part] / done:.1f}" for part in (*PARTS, "rest")}
            print(f"  {done} trials, front {len(search.front)}, ms each so far: {each}", file=sys.stderr, flush=True)

    Search.run, Tracker.log_trial = timed_run, tracked  # type: ignore[method-assign]
    flow.front_files = ended  # type: ignore[assignment]
    with contextlib.suppress(LoopEndedError):
        run_search(
            load_job({
                **job, "budget": {"trials": trials, "patience": trials},
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            }),
            out=folder / "run", ray="off",
            events=Events(trial=on_trial, step=lambda text: print(f"  {text}", file=sys.stderr)),
        )  # fmt: skip
    late, last = marks[-2:]
    rows = {
        part: [1e3 * last[part] / trials, 1e3 * (last[part] - late[part]) / (trials - late["trials"])]
        for part in (*PARTS, "rest")
        if part != EVALUATION
    }
    rows["MLflow"] = [1e3 * whole["MLflow"]] * 2
    return {"trials": trials, "front": int(whole["front"]), "marks": marks, "ms_per_trial": rows}


def main() -> None:
    """Measure, print, save."""
    made = harness.parser(__doc__)
    made.add_argument("--trials", type=int, default=10_000)
    made.add_argument("--evaluation-s", type=float, default=0.5)
    given = made.parse_args()
    where = harness.machine()
    with tempfile.TemporaryDirectory() as folder:
        row = long_search(harness.resnet20_job(given.bench), given.trials, Path(folder))
    print(f"\n{row['trials']:,} trials of ResNet-20, at the end {row['front']} on the front; ms a trial")
    print(f"{'':14s} whole run   last tenth")
    for part, (mean, late) in row["ms_per_trial"].items():
        print(f"{part:14s} {mean:9.2f} {late:12.2f}")
    for name, left_out in (("in the way of the search", COPIES), ("with both copies", ())):
        ms = sum(mean for part, (mean, _) in row["ms_per_trial"].items() if part not in left_out)
        row[name] = share = ms / (ms + 1e3 * given.evaluation_s)
        print(
            f"{name}: {ms:.1f} ms a trial; beside evaluations of {given.evaluation_s:g} s {share:.1%}, goal under "
            f"{GOAL_SHARE:.0%}: {harness.verdict(share < GOAL_SHARE)}"
        )
    harness.save("long_study", {"machine": where, "evaluation_s": given.evaluation_s} | row)


if __name__ == "__main__":
    main()
