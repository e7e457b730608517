"""How long the sampler takes to propose.

    python benchmarks/sampler_speed.py [--repeats 15]

200 layers of 10 schemes, three objectives, proxies. A study of as many made-up trials as each row says; then trials are
asked and told, one at a time, and the medians printed: "propose" is ``study.ask`` as far as the sampler is in it,
"learning" its part that a new result causes, "CPU" its time on the processor, which other work on the machine changes
less. The whole ``ask`` has Optuna's own work beside: 200 parameters are stored. One thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import optuna

from autoq.search.sampler import FrontSampler

GOAL_MS = 50.0


def problem(layers: int, schemes: int) -> tuple[np.ndarray, Callable[[np.ndarray, int], list[float]]]:
    """Proxies ``[layers, schemes, 3]`` and what a trial measures: sums of them, bent and with noise."""
    rng = np.random.default_rng(0)
    costs = np.sort(rng.gamma(1.0, size=(layers, schemes, 3)), axis=1)
    costs[..., 1:] = costs[:, ::-1, 1:]
    costs /= costs.max(axis=1).sum(axis=0)

    def measured(codes: np.ndarray, number: int) -> list[float]:
        sums = costs[np.arange(layers), codes].sum(axis=0)
        noise = np.random.default_rng([1, number]).normal(0, [0.002, 0.005, 0])
        return (np.array([1 - np.exp(-2 * sums[0]), sums[1], sums[2]]) + noise).tolist()

    return costs, measured


def proposing(trials: int, repeats: int, layers: int = 200, schemes: int = 10) -> dict[str, float]:
    """Medians, in milliseconds, at ``trials`` finished ones."""
    costs, measured = problem(layers, schemes)
    names = [f"layer{i:03d}" for i in range(layers)]
    table = dict(zip(names, costs.tolist(), strict=True))
    sampler = FrontSampler(proxies=table, reference=[1.0, 1.0, 1.0], seed=0)
    texts = [f"scheme{i}" for i in range(schemes)]
    space = dict.fromkeys(names, optuna.distributions.CategoricalDistribution(texts))
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    rng = np.random.default_rng(2)
    spread = rng.dirichlet(np.ones(schemes), trials)  # from nearly uniform policies to well mixed ones
    for number in range(trials):
        codes = rng.choice(schemes, layers, p=spread[number])
        params = {name: texts[code] for name, code in zip(names, codes, strict=True)}
        study.add_trial(optuna.create_trial(params=params, distributions=space, values=measured(codes, number)))
    own: list[float] = []
    whole: list[float] = []
    again: list[float] = []
    busy: list[float] = []
    inner = sampler.sample_relative

    def timed(*given: Any) -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.thread_time()
        found = inner(*given)
        own.append(time.perf_counter() - start)
        busy.append(time.thread_time() - cpu)
        return found

    sampler.sample_relative = timed  # type: ignore[method-assign]
    for number in range(repeats + 2):
        start = time.perf_counter()
        trial = study.ask(space)
        whole.append(time.perf_counter() - start)
        other = study.ask(space)  # nothing new to learn
        again.append(own.pop())
        busy.pop()
        for one in (trial, other):
            codes = np.array([texts.index(one.params[name]) for name in names])
            study.tell(one, measured(codes, trials + number))
    ms = [1e3 * statistics.median(each[2:]) for each in (own, again, whole, busy)]
    return {
        "trials": trials, "propose_ms": ms[0], "of_it_learn_ms": ms[0] - ms[1], "ask_ms": ms[2], "cpu_ms": ms[3],
        "first_ms": 1e3 * own[0],
    }  # fmt: skip


def main() -> None:
    """Measure, print, save."""
    made = harness.parser(__doc__)
    made.add_argument("--repeats", type=int, default=15)
    given = made.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    result: dict[str, Any] = {"machine": harness.machine(), "proposing": []}
    print("200 layers x 10 schemes, 3 objectives; medians in ms\ntrials   propose   of it, learning   CPU   whole ask")
    for trials in (100, 400, 1000):
        row = proposing(trials, given.repeats)
        result["proposing"].append(row)
        columns = (row["propose_ms"], row["of_it_learn_ms"], row["cpu_ms"], row["ask_ms"])
        print("{:6d} {:9.1f} {:17.1f} {:5.1f} {:11.1f}".format(trials, *columns), flush=True)
    met = result["proposing"][-1]["propose_ms"] < GOAL_MS
    print(f"under {GOAL_MS:.0f} ms at 1,000 trials: {harness.verdict(met)}")
    harness.save("sampler_speed", result)


if __name__ == "__main__":
    main()
