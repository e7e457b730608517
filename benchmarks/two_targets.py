"""One job on two targets that compute alike: what the second search takes over from the first, and what that saves.

    python benchmarks/two_targets.py [--trials 20] [--bench DIR]

Two profiles extend cpu-x86-onnxruntime, for 1 and for 8 rows at a time, so that a file gives the same outputs on both.
First ``hardware: [one, eight]`` is searched, then ``hardware: eight`` alone; each begins with an empty cache and runs
in this process (``ray="off"``). ResNet-20, as in examples/resnet20-cifar10, in the model's own form. Seconds by step,
as autoq tells them, and of the trials those whose metric was taken over: only latency and memory were measured. Timings
are short (4 samples), and so few trials have no latency model: both are each target's own and would be the same.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from harness import machine, parser, resnet20_job, save

# The words that a step begins with, and the row that it counts as.
STEPS = (
    ("reading", "reading"),
    ("measuring float32", "float32"),
    ("calibrating", "groundwork"),
    ("quantizing", "groundwork"),
    ("rounding", "groundwork"),
    ("probing", "sensitivity"),
    ("searching", "trials"),
    ("scoring", "final check"),
    ("timing", "final check"),
    ("writing", "report"),
    ("measuring", "every file on every target"),
)


def row_of(step: str) -> str:
    """Which row of the table a step is."""
    return next((row for words, row in STEPS if step.startswith(words)), "other")


def searched(job: dict[str, Any], hardware: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """Target -> seconds by row and its trials, of one run with an empty cache."""
    os.environ["AUTOQ_CACHE"] = str(out / "cache")
    import autoq
    from autoq.search.store import TrialLog

    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    last, row = time.perf_counter(), "reading"

    def on_step(text: str) -> None:
        nonlocal last, row, seconds
        now = time.perf_counter()
        seconds[row] = seconds.get(row, 0.0) + now - last
        if text.startswith("target "):
            # What was read for all of them before the first is the first one's.
            before, seconds = (seconds if not found else {}), {}
            seconds |= before
            found[text.split()[1]] = {"seconds": seconds}
        last, row = now, row_of(text)
        print(f"  {text}", flush=True)

    uri = f"sqlite:///{out}/mlflow.db"
    if len(hardware) > 1:
        autoq.search_targets(
            {**job, "hardware": hardware}, base_dir=out, out=out / "run", ray="off", tracking_uri=uri, on_step=on_step
        )
        runs = {name: out / "run" / name for name in found}
    else:
        found["alone"] = {"seconds": seconds}
        autoq.search(
            {**job, "hardware": hardware[0]}, base_dir=out, out=out / "run", ray="off", tracking_uri=uri,
            on_step=on_step,
        )  # fmt: skip
        runs = {"alone": out / "run"}
    on_step("done")
    for name, run in runs.items():
        trials = TrialLog(run / "trials.jsonl").read()
        found[name] |= {
            "trials": len(trials),
            "taken over": sum("metric" not in trial.seconds and trial.metric is not None for trial in trials),
            "scored anew": sum("metric" in trial.seconds for trial in trials),
            "metric_s": sum(trial.seconds.get("metric", 0.0) for trial in trials),
            "measure_s": sum(trial.seconds.get("measure", 0.0) for trial in trials),
        }
    return found


def main() -> None:
    """Search, print, save."""
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=20)
    options = made.parse_args()
    job = resnet20_job(options.bench)
    job["budget"], job["latency"] = {"trials": options.trials}, {"samples": 4}
    with tempfile.TemporaryDirectory() as folder:
        profiles = []
        for rows, name in ((1, "one"), (8, "eight")):
            profile = {"version": 1, "extends": "cpu-x86-onnxruntime", "name": name, "forms": "none"}
            path = Path(folder) / f"{name}.yaml"
            path.write_text(yaml.safe_dump({**profile, "latency": {"batch": rows, "threads": 1}}))
            profiles.append(str(path))
        for part in ("both", "single"):
            (Path(folder) / part).mkdir()
        found = searched(job, profiles, Path(folder) / "both")
        found |= searched(job, profiles[1:], Path(folder) / "single")
    rows = list(dict.fromkeys(row for _, row in STEPS))
    rows += [row for row in ("other",) if any(row in each["seconds"] for each in found.values())]
    names = {"one": "first", "eight": "second", "alone": "second, alone"}
    print(f"{'seconds':28s}" + "".join(f"{names[name]:>15s}" for name in found))
    for row in rows:
        print(f"{row:28s}" + "".join(f"{each['seconds'].get(row, 0.0):15.1f}" for each in found.values()))
    totals = [sum(s for row, s in each["seconds"].items() if not row.startswith("every")) for each in found.values()]
    print(f"{'the search':28s}" + "".join(f"{total:15.1f}" for total in totals))
    for row in ("trials", "taken over", "scored anew"):
        print(f"{row:28s}" + "".join(f"{each[row]:15d}" for each in found.values()))
    for row in ("metric_s", "measure_s"):
        print(f"{row:28s}" + "".join(f"{each[row]:15.1f}" for each in found.values()))
    save("two_targets", {"machine": machine(), "trials": options.trials, "targets": found})


if __name__ == "__main__":
    main()
