"""The front on OpenVINO: ResNet-20 searched, scored, timed and exported on it, then judged with OpenVINO alone.

    python benchmarks/openvino_front.py [--run RUN] [--trials 60] [--rounds 5] [--seconds 2] [--bench DIR]

The job is that of examples/resnet20-cifar10 with `hardware: cpu-x86-openvino`; ``--run`` judges a search that is there.
Metric: top-1 on the final split, which the search never saw, in OpenVINO's Python. Latency: OpenVINO's own
``benchmark_app``, each model in turn for SECONDS, ROUNDS times over: batch 1, 1 thread, one synchronous request, fixed
shapes, precision hint f32, on one core. Speed is float32's median latency over the model's in the same round: the
median over rounds, the least and the most.

Goal: a point at 2.4 times float32's speed in OpenVINO, or more, at no more than 0.5 points lost.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import machine, parser, resnet20_job, rows, save, verdict

from autoq.record.front import read_front
from autoq.runtime.openvino import import_openvino

openvino = import_openvino()
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    "ENABLE_CPU_PINNING": False,
}


def searched(bench: Path, trials: int, folder: Path) -> Path:
    """A search by the command line; its run folder."""
    job = resnet20_job(bench) | {"hardware": "cpu-x86-openvino", "budget": {"trials": trials}}
    job["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "autoq", "search", str(folder / "job.yaml"), "--out", str(folder / "run")]
    subprocess.run(command, check=True)
    return folder / "run"


def compiled(model: Path) -> Any:
    """A request on the file."""
    core = openvino.Core()
    return core.compile_model(core.read_model(str(model)), "CPU", SETTINGS).create_infer_request()


def accuracy(request: Any, x: np.ndarray, y: np.ndarray, batch: int = 100) -> float:
    logits = np.concatenate([request.infer([x[i : i + batch]])[0] for i in range(0, len(x), batch)])
    return float((logits.argmax(-1) == y).mean())


def timed(model: Path, seconds: int) -> float:
    """Milliseconds an inference: the median that ``benchmark_app`` prints."""
    app = Path(sys.executable).with_name("benchmark_app")
    done = subprocess.run(
        [app, "-m", model, "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nireq", "1", "-api", "sync", "-nthreads",
         "1", "-shape", "[1,3,32,32]", "-infer_precision", "f32", "-t", str(seconds)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1]) / (1000 if found[2] == "us" else 1)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--run", type=Path)
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=2)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoq-bench-") as folder:
        run = options.run or searched(options.bench, options.trials, Path(folder))
        if hasattr(os, "sched_setaffinity"):  # one core, as the meter has it
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        front = read_front(run / "front.json")
        job = resnet20_job(options.bench)
        x, y = rows(job, "final")
        float32 = Path(job["model"]["path"])
        models = {"float32": float32} | {point.id: run / point.model_path for point in front.points}
        top1 = [accuracy(compiled(path), x, y) for path in models.values()]
        ms = np.array([[timed(path, options.seconds) for path in models.values()] for _ in range(options.rounds)])
        sizes = [path.stat().st_size for path in models.values()]
    table = []
    for index, name in enumerate(models):
        speeds = ms[:, 0] / ms[:, index]
        table.append(
            {
                "point": name,
                "top1": top1[index],
                "points_lost": 100 * (top1[0] - top1[index]),
                "speed": float(np.median(speeds)),
                "speed_range": [float(speeds.min()), float(speeds.max())],
                "ms": float(np.median(ms[:, index])),
                "size": sizes[index] / sizes[0],
            }
        )
    print("\n| point | top-1 | points lost | ms | speed (all rounds) | size |\n|---|---|---|---|---|---|")
    for row in table:
        low, high = row["speed_range"]
        print(
            f"| {row['point']} | {row['top1']:.4f} | {row['points_lost']:.2f} | {row['ms']:.3f} "
            f"| {row['speed']:.2f} ({low:.2f} to {high:.2f}) | {row['size']:.3f} |"
        )
    good = [row for row in table if row["points_lost"] <= 0.5 + 1e-9]
    best = max(row["speed"] for row in good)
    print(f"\nfastest at no more than 0.5 points lost: {best:.2f}x float32 in OpenVINO (2.4): {verdict(best >= 2.4)}")
    save("openvino_front", {"machine": machine(), "front": table, "met": bool(best >= 2.4)})


if __name__ == "__main__":
    main()
