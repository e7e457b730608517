"""A MobileNetV3-style network: uniform schemes, the smallest file of a search, and ONNX Runtime's own quantizer.

    python benchmarks/mobilenet.py [--trials 160] [--skip-search] [--bench DIR]

The network is that of benchmarks/mobile_nets.py, which trains it on the first call. (1) Top-1 on both halves of
``val.npz``, and size, of uniform policies: depthwise layers at 8 and 4 bits, per channel and per tensor. (2) A search
by a job as a user would write it: default space, 512 unlabelled images for calibration, objectives metric and size, at
most 0.01 of the metric lost and at most 1.03 of float32's latency. Among the points of its front that lose at most 1
point on the final half, which the search never saw, at 0.97 of float32's speed or better, the smallest counts. (3)
``quantize_static`` as ONNX Runtime's documentation has it, per channel, unsigned and signed.

Size counts the whole file. Speed is batch 1, 1 thread, warm blocks in turn, with nothing of autoq's meter: the median
over blocks of float32's time / the model's.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from front_vs_ort import interval, quantize_with_ort
from harness import OUT, accuracy, machine, parser, resnet20_job, rows, save, timed_in_turn, verdict
from mobile_nets import trained

UNIFORM = (
    "w8a8@minmax",
    "w8a8-tensor@minmax",
    "w8a8-tensor@mse",
    "w4a8-gptq@mse",
    "w4a8-tensor-gptq@mse",
    "w8",
    "w4",
    "w4-tensor",
    "w4-gptq",
    "w4-tensor-gptq",
    "w2-gptq",
)
GOAL_SIZE, GOAL_SPEED, GOAL_DROP = 0.17, 0.97, 0.01


def job_of(bench: Path) -> dict[str, Any]:
    """The job: that of ResNet-20 with another model, objectives and constraints."""
    job = resnet20_job(bench)
    job["name"], job["model"] = "mobilenetv3-cifar10", {"path": str(trained(bench))}
    job["objectives"] = ["metric", "size"]
    job["constraints"] = {"max_metric_drop": GOAL_DROP, "max_latency_ratio": 1.03}
    return job


def uniform(job: dict[str, Any], folder: Path) -> dict[str, Path]:
    """The file of each uniform policy."""
    from autoq.core.policy import Policy
    from autoq.core.scheme import FLOAT32, Scheme
    from autoq.model.bank import default_cache_dir
    from autoq.search.groundwork import lay_groundwork
    from autoq.setting import read_setting
    from autoq.spec.job import load_job

    space = folder / "uniform.yaml"
    space.write_text(json.dumps({"version": 1, "name": "uniform", "schemes": ["float32", *UNIFORM]}))
    setting = read_setting(load_job({**job, "space": str(space)}))
    lowering = lay_groundwork(
        setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=default_cache_dir()
    )
    files = {}
    for text in UNIFORM:
        wanted = Scheme.parse(text)
        chosen = {found.layer.name: wanted if wanted in found.schemes else FLOAT32 for found in setting.candidates}
        files[text] = folder / f"{text.replace('@', '-')}.onnx"
        files[text].write_bytes(lowering.build(lowering.canonical(Policy.of(chosen))))
    return files


def searched(job: dict[str, Any], trials: int, folder: Path) -> dict[str, Path]:
    """The files of the front of a search, by the points' ids."""
    import autoq

    run = folder / "run"
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    job = {**job, "budget": {"trials": trials}}
    result = autoq.search(job, out=run, trials=trials, tracking_uri=uri, on_step=lambda text: print(text, flush=True))
    return {f"front {point.id}, {point.origin}": run / point.model_path for point in result.front.points}


def main() -> None:
    """Build, search, score, time, judge."""
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=160)
    arguments.add_argument("--skip-search", action="store_true")
    arguments.add_argument("--blocks", type=int, default=24)
    arguments.add_argument("--runs", type=int, default=60)
    given = arguments.parse_args()
    job = job_of(given.bench)
    float32 = Path(job["model"]["path"])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        calibration, _ = rows(job, "calibration")
        models = {"float32": float32, "ONNX Runtime static": quantize_with_ort(float32, calibration, folder)}
        models |= uniform(job, folder)
        if not given.skip_search:
            models |= searched(job, given.trials, folder)
        x, y = rows(job, "final")
        xs, ys = rows(job, "search")
        seconds = timed_in_turn(list(models.values()), x[:1], given.blocks, given.runs)
        table = []
        for name, path in models.items():
            ratios = seconds[0] / seconds[list(models).index(name)]
            table.append(
                {
                    "name": name,
                    "search": accuracy(path, xs, ys),
                    "final": accuracy(path, x, y),
                    "size_ratio": path.stat().st_size / float32.stat().st_size,
                    "speed": float(np.median(ratios)),
                    "speed_ci95": interval(ratios),
                }
            )
    report(table, given.skip_search)


def report(table: list[dict[str, Any]], skipped: bool) -> None:
    """The table, the goal, the file."""
    where = machine()
    print(f"\n{where['processor']}, {where['cores']} cores, load {where['load_average']}\n")
    print(f"{'model':44s} {'search':>7s} {'final':>7s} {'lost':>7s} {'size':>6s} {'speed':>6s}  95 %")
    base = table[0]
    for row in table:
        row["lost"] = base["final"] - row["final"]
        low, high = row["speed_ci95"]
        print(
            f"{row['name'][:44]:44s} {row['search']:7.4f} {row['final']:7.4f} {100 * row['lost']:+7.2f} "
            f"{row['size_ratio']:6.3f} {row['speed']:5.2f}x  {low:.3f} to {high:.3f}"
        )
    front = [row for row in table if row["name"].startswith("front")]
    good = [row for row in front if row["lost"] <= GOAL_DROP and row["speed"] >= GOAL_SPEED]
    best = min(good, key=lambda row: row["size_ratio"], default=None)
    if not skipped:
        found = "none" if best is None else f"{best['size_ratio']:.3f} ({best['name']})"
        met = best is not None and best["size_ratio"] <= GOAL_SIZE
        print(f"\nsmallest at most 1 point lost at {GOAL_SPEED} or better: {found}, goal {GOAL_SIZE}, {verdict(met)}")
    save("mobilenet", {"machine": where, "table": table, "best": best})


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    main()
