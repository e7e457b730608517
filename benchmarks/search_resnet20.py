"""A whole search of ResNet-20, start to report, on Ray: how long it takes, and what the time goes to.

    python benchmarks/search_resnet20.py [--trials 100] [--workers 0] [--ray local] [--cold] [--out RUN] [--bench DIR]

The wall time counts from the start of this process (imports included) to the return of ``autoq.search``.

Overhead is taken over the search loop alone, from its first proposal to its last trial's bookkeeping. With W workers
and n trials:

    useful   = sum(seconds.metric) / W  +  sum(seconds.measure)
    overhead = wall time of the loop - useful

``seconds.metric`` is metric inference on one core, and W of them run at once; ``seconds.measure`` is latency and memory
measured alone on the machine. All else counts as overhead: building, loading, the metric function, transfers, a worker
that waits for the other, proposals, files, the study, MLflow. The parts printed are sum(part) / W for what the workers
do. "Bookkeeping" is what passes between the ends of two trials of one batch beyond the later one's measurement: files,
front, progress. "Rest" is what remains: proposals, transfers, a worker waiting for the other at the end of a batch, and
as much of the writing of study and tracking as does not fit beside the workers.

``seconds.measure`` includes waiting for another process of this user that measures, which would make the overhead's
share of the loop look smaller than it is. The share held against the goal is therefore that of a typical trial:

    overhead / n  over  (overhead / n  +  median(seconds.metric) / W  +  median(seconds.measure))

The ceiling is the rate if the workers did nothing but metric inference: W / mean(seconds.metric).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from harness import machine, parser, resnet20_job, save, verdict

WORKER_PARTS = ("build", "load", "metric_function")


def run(job: dict[str, Any], out: Path, trials: int, ray: str, workers: int) -> dict[str, Any]:
    """Runs the search; returns its steps and trial ends as readings of ``time.time``, and its trials and front."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import autoq

    steps: list[tuple[str, float]] = []
    ends: list[float] = []

    def on_step(text: str) -> None:
        steps.append((text, time.time()))
        print(f"{time.time() - psutil.Process().create_time():7.1f} s  {text}", flush=True)

    result = autoq.search(
        job,
        out=out,
        trials=trials,
        ray=ray,
        workers=workers,
        tracking_uri=f"sqlite:///{out.parent / 'mlflow.db'}",
        on_step=on_step,
        on_trial=lambda trial: ends.append(time.time()),
    )
    return {"steps": steps, "ends": ends, "front": result.front, "finished": time.time()}


def median_of(trials: list[dict[str, Any]], part: str) -> float:
    """Median seconds of one part, over the trials that came to it."""
    return statistics.median(trial["seconds"][part] for trial in trials if part in trial["seconds"])


def breakdown(
    trials: list[dict[str, Any]], loop_start: float, ends: list[float], workers: int, batch: int
) -> dict[str, Any]:
    """Shares of the loop's wall time, as the module's docstring defines them."""
    loop = ends[-1] - loop_start
    total = {
        part: sum(trial["seconds"].get(part, 0.0) for trial in trials) for part in ("metric", "measure", *WORKER_PARTS)
    }
    seconds = {"metric": total["metric"] / workers, "measure": total["measure"]}
    seconds |= {part: total[part] / workers for part in WORKER_PARTS}
    within = [i for i in range(1, len(trials)) if i % batch]
    gaps = [ends[i] - ends[i - 1] - trials[i]["seconds"].get("measure", 0.0) for i in within]
    seconds["bookkeeping"] = sum(gaps)
    seconds["rest"] = loop - sum(seconds.values())
    overhead = loop - seconds["metric"] - seconds["measure"]
    typical = median_of(trials, "metric") / workers + median_of(trials, "measure")
    return {
        "loop_s": loop,
        "seconds": seconds,
        "shares": {part: value / loop for part, value in seconds.items()},
        "overhead_share_of_loop": overhead / loop,
        "overhead_share": overhead / (overhead + len(trials) * typical),
        "bookkeeping_ms_median": 1e3 * statistics.median(gaps) if gaps else None,
    }


def main() -> None:
    """Search, then print."""
    started = psutil.Process().create_time()
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=100)
    arguments.add_argument("--workers", type=int, default=0, help="Ray workers; 0 is one a core")
    arguments.add_argument("--ray", default="local", help="local, off or an address")
    arguments.add_argument("--out", type=Path, help="run folder, new; by default a temporary one that stays")
    arguments.add_argument("--cold", action="store_true", help="with an empty weight bank: a machine's first search")
    given = arguments.parse_args()
    before = machine()
    out = (given.out or Path(tempfile.mkdtemp(prefix="autoq-bench-")) / "resnet20").resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if given.cold:
        os.environ["AUTOQ_CACHE"] = tempfile.mkdtemp(prefix="autoq-bench-cache-")
    found = run(resnet20_job(given.bench), out, given.trials, given.ray, given.workers)
    wall = found["finished"] - started

    from autoq.search.loop import BATCH

    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    workers = 1 if given.ray == "off" else given.workers or os.cpu_count() or 1
    loop_start = [at for text, at in found["steps"] if text == "searching"][-1]
    parts = breakdown(trials, loop_start, found["ends"], workers, BATCH)
    build_ms = 1e3 * median_of(trials, "build")
    front = found["front"]
    phases = [(text, at - started) for text, at in found["steps"]] + [("done", wall)]
    result = {
        "machine": {**before, "load_average_after": round(os.getloadavg()[0], 2)},
        "trials": len(trials),
        "failed": sum(trial["failure"] is not None for trial in trials),
        "workers": workers,
        "ray": given.ray,
        "wall_s": wall,
        "steps_at_s": phases,
        "build_ms_median": build_ms,
        "measure_s_median": median_of(trials, "measure"),
        "metric_s_median": median_of(trials, "metric"),
        "candidates_per_minute_loop": 60 * len(trials) / parts["loop_s"],
        "candidates_per_minute_whole": 60 * len(trials) / wall,
        "candidates_per_minute_ceiling": 60 * len(trials) / parts["seconds"]["metric"],
        **parts,
        "front": [
            {
                "id": point.id,
                "origin": point.origin,
                "metric": point.metric.final,
                "drop": front.baseline.metric.final - point.metric.final,
                "speedup": 1 / point.latency.ratio,
                "size_ratio": point.size_bytes / front.baseline.size_bytes,
            }
            for point in front.points
        ],
        "run": str(out),
    }
    report(result)
    save(f"search_resnet20{'' if given.ray == 'local' else '_' + given.ray}", result)


def report(result: dict[str, Any]) -> None:
    """The tables."""
    where = result["machine"]
    print(
        f"\n{where['processor']}, {where['cores']} cores, load {where['load_average']} before and "
        f"{where['load_average_after']} after; {result['trials']} trials ({result['failed']} failed), "
        f"{result['workers']} workers\n"
    )
    rows = [
        ("whole search, s", f"{result['wall_s']:.1f}", "< 360", result["wall_s"] < 360),
        ("median build, ms", f"{result['build_ms_median']:.1f}", "< 20", result["build_ms_median"] < 20),
        ("overhead of a typical trial", f"{result['overhead_share']:.1%}", "< 10 %", result["overhead_share"] < 0.1),
    ]
    for name, value, goal, met in rows:
        print(f"{name:30s} {value:>8s}  goal {goal:7s} {verdict(met)}")
    print(f"{'overhead, of the whole loop':30s} {result['overhead_share_of_loop']:8.1%}")
    print(f"{'candidates a minute, loop':30s} {result['candidates_per_minute_loop']:8.1f}")
    print(f"{'candidates a minute, whole':30s} {result['candidates_per_minute_whole']:8.1f}")
    print(f"{'candidates a minute, ceiling':30s} {result['candidates_per_minute_ceiling']:8.1f}")
    print(f"\nthe loop's {result['loop_s']:.1f} s")
    for part, seconds in result["seconds"].items():
        print(f"  {part:18s} {seconds:7.1f} s {result['shares'][part]:7.1%}")
    print(f"\n{'front':14s} {'metric':>7s} {'drop':>8s} {'speed':>6s} {'size':>6s}  origin")
    for point in result["front"]:
        print(
            f"{point['id'][:12]:14s} {point['metric']:7.4f} {point['drop']:+8.4f} {point['speedup']:5.2f}x "
            f"{point['size_ratio']:6.3f}  {point['origin']}"
        )


if __name__ == "__main__":
    main()
