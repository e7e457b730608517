"""The front on OpenVINO: ResNet-20 searched, scored, timed and exported on it, then judged with OpenVINO alone.

    python benchmarks/openvino_front.py [--run RUN] [--trials 60] [--blocks 60] [--runs 30] [--bench DIR]

The job is that of examples/resnet20-cifar10 with `hardware: cpu-x86-openvino`; ``--run`` judges a search that is there.
Metric: top-1 on the final split, which the search never saw. Latency: batch 1, 1 thread, fixed shapes, precision hint
f32, on one core, a warm block of one compiled model after one of the other, with nothing of autoq's meter; speed is the
median over blocks of float32's time in OpenVINO / the model's, beside its bootstrap interval over blocks.

Goal: a point at 2.4 times float32's speed in OpenVINO, or more, at no more than 0.5 points lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import machine, parser, resnet20_job, rows, save, verdict

from autoq.numerics.bootstrap import median_ratio
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


def compiled(model: Path, batch: int | None = None) -> Any:
    """A request on the file; with ``batch``, compiled for that many rows, as OpenVINO's documentation has it."""
    core = openvino.Core()
    read = core.read_model(str(model))
    if batch is not None:
        read.reshape([batch, 3, 32, 32])
    return core.compile_model(read, "CPU", SETTINGS).create_infer_request()


def accuracy(request: Any, x: np.ndarray, y: np.ndarray, batch: int = 100) -> float:
    logits = np.concatenate([request.infer([x[i : i + batch]])[0] for i in range(0, len(x), batch)])
    return float((logits.argmax(-1) == y).mean())


def timed(requests: list[Any], feed: np.ndarray, blocks: int, runs: int) -> np.ndarray:
    """Seconds of each block, [models, blocks]; the order is reversed in every other block."""
    seconds = np.zeros((len(requests), blocks))
    for request in requests:
        for _ in range(20):
            request.infer([feed], share_inputs=True, share_outputs=True)
    for block in range(blocks):
        for index in range(len(requests))[:: 1 if block % 2 else -1]:
            infer = requests[index].infer
            for _ in range(10):  # blocks are warm: the model before has filled the caches
                infer([feed], share_inputs=True, share_outputs=True)
            start = time.perf_counter()
            for _ in range(runs):
                infer([feed], share_inputs=True, share_outputs=True)
            seconds[index, block] = time.perf_counter() - start
    return seconds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--run", type=Path)
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--blocks", type=int, default=60)
    arguments.add_argument("--runs", type=int, default=30)
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
        seconds = timed([compiled(path, 1) for path in models.values()], x[:1], options.blocks, options.runs)
        sizes = [path.stat().st_size for path in models.values()]
    table = []
    for index, name in enumerate(models):
        ratio, (low, high) = median_ratio(tuple(seconds[index]), tuple(seconds[0]), seed=0)
        table.append(
            {
                "point": name,
                "top1": top1[index],
                "points_lost": 100 * (top1[0] - top1[index]),
                "speed": 1 / ratio,
                "speed_ci95": [1 / high, 1 / low],
                "ms": 1e3 * float(np.median(seconds[index])) / options.runs,
                "size": sizes[index] / sizes[0],
            }
        )
    print("\n| point | top-1 | points lost | ms | speed (95 %) | size |\n|---|---|---|---|---|---|")
    for row in table:
        low, high = row["speed_ci95"]
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
