"""Fidelity steps: what they save, and whether the front is the same.

    python benchmarks/fidelity.py [--trials 40] [--seeds 1] [--only resnet20 digits] [--out DIR] [--bench DIR]

The same job with ``search.fidelity: full`` and ``steps``, evaluated here: the example jobs of ResNet-20 (2,000
search rows) and of the digits (450; ``python examples/digits/train.py`` first). Per search it prints

    dropped     candidates that were dropped on the way, and of these the ones of which not all rows were scored
    seconds     of evaluating: building, loading, scoring and measuring, summed over the trials; and the scoring alone
    hypervolume of the front after its final check (unseen rows, latency timed in turn, size), as a share of the
                box between float32 (a tenth of its metric lost) and the ideal

and then the share of the evaluation time saved. Proposals depend on what was told, so the two searches part company.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import ROOT, machine, parser, resnet20_job, save

PARTS = ("build", "load", "metric", "metric_function", "measure")


def digits_job() -> dict[str, Any]:
    """The job of ``examples/digits``, its files by their full names."""
    folder = ROOT / "examples" / "digits"
    job: dict[str, Any] = yaml.safe_load((folder / "job.yaml").read_text())
    for part in (job["model"], *(job["data"][name] for name in ("calibration", "search", "final"))):
        part["path"] = str(folder / part["path"])
        if not Path(part["path"]).is_file():
            raise SystemExit(f"there is no {part['path']}; run python examples/digits/train.py")
    return job


def searched(job: dict[str, Any], fidelity: str, trials: int, seed: int, out: Path) -> dict[str, Any]:
    """One search: its row of the table."""
    import autoq
    from autoq.numerics.pareto import hypervolume

    choice = {**job.get("search", {}), "fidelity": fidelity}
    job = {**job, "search": choice, "budget": {"trials": trials}, "tracking": {"uri": f"sqlite:///{out.parent}/ml.db"}}
    result = autoq.search(job, out=out, ray="off", seed=seed, resume=(out / "run.json").exists())
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    base = result.front.baseline
    assert base.metric.final is not None
    rows = [
        (base.metric.final - point.metric.final, point.latency.ratio, point.size_bytes / base.size_bytes)
        for point in result.front.points
        if point.metric.final is not None and point.latency is not None
    ]
    bound = (0.1 * base.metric.final, 1.0, 1.0)
    pruned = [line["pruned"] for line in lines if line.get("pruned")]
    seconds = {part: sum(line["seconds"].get(part, 0.0) for line in lines) for part in PARTS}
    volume = hypervolume(rows, bound) / bound[0] if rows else 0.0
    return {
        "fidelity": fidelity,
        "seed": seed,
        "trials": len(lines),
        "dropped": len(pruned),
        "dropped_early": sum(each["rows"] < each["of"] for each in pruned),
        "seconds": seconds,
        "seconds_all": sum(seconds.values()),
        "points": len(rows),
        "hypervolume": volume,
    }


def main() -> None:
    """Two searches for each job and seed, one table."""
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=40)
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--only", nargs="+", choices=["resnet20", "digits"], default=["resnet20", "digits"])
    arguments.add_argument("--out", type=Path, help="run folders; searches that are there go on, or are read again")
    given = arguments.parse_args()
    kept = (given.out or Path(tempfile.mkdtemp(prefix="autoq-bench-"))).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    jobs = {"resnet20": lambda: resnet20_job(given.bench), "digits": digits_job}
    print(f"{'':10s} {'fidelity':8s} trials  dropped (early)  seconds  scoring  measuring  points  hypervolume")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in given.only:
        for seed in range(given.seeds):
            for fidelity in ("full", "steps"):
                row = searched(jobs[name](), fidelity, given.trials, seed, kept / f"{name}-{fidelity}-{seed}")
                found.setdefault(name, []).append(row)
                print(
                    f"{name:10s} {fidelity:8s} {row['trials']:6d}  {row['dropped']:7d} ({row['dropped_early']:5d})"
                    f"  {row['seconds_all']:7.1f}  {row['seconds']['metric']:7.1f}  {row['seconds']['measure']:9.1f}"
                    f"  {row['points']:6d}  {row['hypervolume']:11.4f}",
                    flush=True,
                )
    for name, rows in found.items():
        full, steps = (
            {key: float(np.mean([row[key] for row in rows if row["fidelity"] == fidelity])) for key in
             ("seconds_all", "hypervolume")}
            for fidelity in ("full", "steps")
        )  # fmt: skip
        print(
            f"{name}: {1 - steps['seconds_all'] / full['seconds_all']:.0%} of the evaluation time saved, hypervolume "
            f"{steps['hypervolume'] / full['hypervolume'] - 1:+.1%}"
        )
    save("fidelity", {"machine": machine(), "trials": given.trials, "rows": found})


if __name__ == "__main__":
    main()
