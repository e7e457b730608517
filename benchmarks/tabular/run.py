"""Samplers on spaces whose every point is known: how much of the true front they have after so many trials.

    python benchmarks/tabular/run.py [--tables resnet20 digits made-up-0] [--seeds 20] [--batch 8]

``front`` begins with what is predicted to widen the front most, uniform policies among it, as a search with
``search.sampler: front`` does; ``tpe``, ``nsga2`` and ``random`` begin with the uniform policies and go on with
Optuna's. ``knapsack`` takes the uniform policies and the predicted front's points one after the other and nothing else:
an integer program on the proxies, which learns from no measurement. ``tpe+``, ``nsga2+`` and ``random+`` are Optuna's
after the same seeds as ours.
``--batch`` proposals are out at once (a search has 8).

What is printed is the hypervolume (the search's own reference: 10 % of the metric lost, float32's latency and size)
as a share of that of all points: the median over seeds and both quartiles, after so many trials. "Ahead" is the share
of seeds in which ours is ahead of the other at *every* budget from 10 trials to 5 % of the space; a tie counts only
where both have it all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from table import MADE_UP, MEASURED, Table, load

from autoq.core.policy import Policy
from autoq.numerics.pareto import non_dominated
from autoq.pipeline.guidance import PREDICTED_SEEDS
from autoq.search.proposer import Proposer
from autoq.search.seeds import opening, predicted_front

OTHERS = ("tpe", "nsga2", "random", "knapsack", "tpe+", "nsga2+", "random+")
SHARES = (0.01, 0.02, 0.05)
BUDGETS = (10, 20)


def proposer(table: Table, sampler: str, seed: int, seeds: int) -> Proposer:
    """As the pipeline makes it: with at most ``seeds`` points of the predicted front."""
    named = [(str(scheme), dict.fromkeys(table.groups, scheme)) for scheme in table.schemes]
    first, later = named, []
    if sampler == "front" or sampler.endswith("+"):
        uniform = [(i,) * len(table.groups) for i in range(len(table.schemes))]
        points, left = opening(list(table.proxies), uniform, seeds)
        first = [
            (f"seed {n}", dict(zip(table.groups, (table.schemes[i] for i in point), strict=True)))
            for n, point in enumerate(points)
        ]
        later = [named[index] for index in left]
    return Proposer(
        dict.fromkeys(table.groups, table.schemes),
        Policy.of,
        seeds=first,
        later=later,
        objectives=table.losses.shape[1],
        sampler=sampler.removesuffix("+"),  # type: ignore[arg-type]
        seed=seed,
        proxies=dict(zip(table.groups, table.proxies.tolist(), strict=True)) if sampler == "front" else None,
        reference=table.reference.tolist() if sampler == "front" else None,
    )


def proposals(table: Table, sampler: str, seed: int, count: int, batch: int, seeds: int) -> Iterator[int]:
    """The rows of the table that a sampler asks for, in order."""
    if sampler == "knapsack":
        uniform = [[i] * len(table.groups) for i in range(len(table.schemes))]
        points = [*uniform, *map(list, predicted_front(list(table.proxies), count))]
        sizes = [len(table.schemes)] * len(table.groups)
        yield from dict.fromkeys(int(np.ravel_multi_index(point, sizes)) for point in points[:count])
        return
    made = proposer(table, sampler, seed, seeds)
    while count > 0:
        asked = made.ask(min(batch, count))
        if not asked:
            return
        for proposal in asked:
            row = table.row(proposal.policy)
            yield row
            made.tell(proposal, table.losses[row].tolist())
        count -= len(asked)


def curve(table: Table, rows: Iterator[int], count: int) -> np.ndarray:
    """``[count]``: the hypervolume after each trial; where a sampler ends early, it stays what it was."""
    volumes, front = [], np.zeros(0, np.intp)
    for row in rows:
        grown = np.append(front, row)
        kept = non_dominated(table.losses[grown])
        if kept[-1]:
            front = grown[kept]
            volumes.append(table.volume(front))
        else:
            volumes.append(volumes[-1])
    return np.array(volumes + [volumes[-1]] * (count - len(volumes)))


def judge(table: Table, samplers: Sequence[str], seeds: int, batch: int, predicted: int) -> dict[str, Any]:
    """Curves of every sampler and seed, as shares of the true hypervolume."""
    total = len(table.losses)
    count = max(int(SHARES[-1] * total), *BUDGETS)
    true_front = np.flatnonzero(non_dominated(table.losses))
    true = table.volume(true_front)
    curves, seconds = {}, {}
    for sampler in samplers:
        start = time.perf_counter()
        runs = 1 if sampler == "knapsack" else seeds
        found = [curve(table, proposals(table, sampler, s, count, batch, predicted), count) for s in range(runs)]
        curves[sampler] = np.array(found)[[s % runs for s in range(seeds)]] / true
        seconds[sampler] = (time.perf_counter() - start) / runs
    budgets = sorted({*BUDGETS, *(max(1, int(share * total)) for share in SHARES)})
    result: dict[str, Any] = {
        "table": table.name, "points": total, "true_front": len(true_front), "seeds": seeds, "batch": batch,
        "seconds_per_study": seconds, "budgets": budgets,
    }  # fmt: skip
    result["share"] = {
        name: [np.quantile(each[:, k - 1], [0.25, 0.5, 0.75]).tolist() for k in budgets]
        for name, each in curves.items()
    }
    if "front" in curves:
        own = curves["front"][:, 9:]
        result["ahead"] = {}
        for name, each in curves.items():
            if name != "front":
                other = each[:, 9:]
                # Behind by rounding alone, or both with all there is, is not behind.
                ahead = (own > other) | ((own > 1 - 1e-9) & (other > 1 - 1e-9))
                result["ahead"][name] = {"every": float(ahead.all(axis=1).mean()), "mean": float(ahead.mean())}
        reached = [np.argmax(each >= 0.99) + 1 if (each >= 0.99).any() else count + 1 for each in curves["front"]]
        result["trials_to_99"] = [float(q) for q in np.quantile(reached, [0.25, 0.5, 0.75])]
    return result


def report(result: dict[str, Any]) -> None:
    """One table's table."""
    print(
        f"\n{result['table']}: {result['points']:,} points, {result['true_front']} on the true front; "
        f"{result['seeds']} seeds, {result['batch']} out at once"
    )
    heads = [f"{k} ({k / result['points']:.1%})" for k in result["budgets"]]
    print(f"{'% of the true hypervolume':26s}" + "".join(f"{head:>22s}" for head in heads) + "   ours ahead")
    for name, columns in result["share"].items():
        cells = "".join(f"{f'{100 * m:.2f} ({100 * low:.2f}-{100 * high:.2f})':>22s}" for low, m, high in columns)
        ahead = result.get("ahead", {}).get(name)
        print(f"{name:26s}{cells}   " + (f"{ahead['every']:.0%} ({ahead['mean']:.1%} of budgets)" if ahead else ""))
    if "trials_to_99" in result:
        low, middle, high = result["trials_to_99"]
        share = middle / result["points"]
        print(f"99 % after {middle:.0f} trials ({low:.0f}-{high:.0f}), {share:.2%}: {harness.verdict(share <= 0.02)}")


def main() -> None:
    """Judge, print, save."""
    made = harness.parser(__doc__)
    made.add_argument("--tables", nargs="+", default=[*MEASURED, *MADE_UP], choices=[*MEASURED, *MADE_UP])
    made.add_argument("--samplers", nargs="+", default=["front", *OTHERS], choices=["front", *OTHERS])
    made.add_argument("--seeds", type=int, default=20)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--predicted", type=int, default=PREDICTED_SEEDS, help="points of the predicted front, at most")
    given = made.parse_args()
    results = []
    for name in given.tables:
        results.append(judge(load(name), given.samplers, given.seeds, given.batch, given.predicted))
        report(results[-1])
    harness.save("tabular", {"machine": harness.machine(), "results": results})


if __name__ == "__main__":
    main()
