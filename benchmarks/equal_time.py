"""Search strategies and rivals with the same wall-clock time each, on ResNet-20 and MiniLM, and one judge for all.

    python benchmarks/equal_time.py [--models resnet20 minilm] [--minutes 3] [--seeds 1] [--minilm minilm.onnx]
                                    [--contestants front tpe ... ort nncf olive] [--out DIR] [--bench DIR]

Contestants of autoq (benchmarks/equal_search.py says what each proposes) search by the example job of the model and are
interrupted, as by Ctrl-C, ``--minutes`` after their process began: what counts is the front that then lies in the run
folder, without the final check that would follow. Rivals, each in an environment of its own that is made at the first
run: ONNX Runtime's quantizers, NNCF's, Olive's search (benchmarks/peers/*_models.py say what each tries).

Set-up time: autoq's calibration, weight bank and probes stay in a cache. The first run of a model fills an empty one,
is timed until its first proposal ("cold"), and is then thrown away; every contestant starts from that cache, as a
user's second search does. A rival has nothing to keep: it has ``--minutes`` and autoq's cold set-up time on top.

The judge (benchmarks/equal_judge.py) then measures every model that anybody made, with stock ONNX Runtime. Finished
runs are kept in ``--out`` and not repeated; so the whole can be done in pieces. Delete a run's folder to repeat it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from equal_judge import chosen_points, feeds, judge
from equal_search import AS_IT_IS, OTHERS
from harness import OUT, ROOT, parser, resnet20_job, sts_job

HERE = Path(__file__).resolve().parent
PEERS = ("ort", "nncf", "olive")
CONTESTANTS = ("front", *OTHERS, *AS_IT_IS[1:], *PEERS)
GRACE_S = 90.0
"""After Ctrl-C a batch that is being scored is waited for; nothing of it counts."""


def job_of(given: Any, model: str, contestant: str) -> dict[str, Any]:
    """The example's job, without a limit but the clock."""
    job = resnet20_job(given.bench) if model == "resnet20" else sts_job(given.bench, given.minilm)
    job["budget"] = {"trials": 100_000, "patience": 0}
    job["search"] = {"sampler": contestant.rstrip("+") if contestant != "knapsack" else "front"}
    return job


def search(given: Any, model: str, contestant: str, seed: int, folder: Path, seconds: float | None) -> dict[str, Any]:
    """One search of autoq, interrupted after ``seconds``, or (``None``) before its first proposal."""
    job_file = folder / "job.yaml"
    job_file.write_text(yaml.safe_dump(job_of(given, model, contestant)))
    command = [sys.executable, HERE / "equal_search.py", contestant, job_file, "--out", folder / "run"]
    command += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--seed", str(seed), "--ray", given.ray]
    started, setup = time.time(), None
    settings = {"PYTHONPATH": str(ROOT), "AUTOQ_CACHE": str(folder.parent / "cache"), "COLUMNS": "200"}
    process = subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_WAIT_POLICY": "PASSIVE"} | settings, cwd=folder,
        # Whoever started this in the background may have Ctrl-C ignored; a search must hear it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    timer = threading.Timer(seconds or 3600.0, process.send_signal, [signal.SIGINT])
    killer = threading.Timer((seconds or 3600.0) + GRACE_S, process.kill)
    timer.start()
    killer.start()
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(f"{time.time() - started:7.1f} {line}")
        if setup is None and line.strip() == "autoq: searching":
            setup = time.time() - started
            if seconds is None:
                process.send_signal(signal.SIGINT)
    process.wait()
    timer.cancel()
    killer.cancel()
    (folder / "log.txt").write_text("".join(lines))
    result = {"wall_s": time.time() - started, "setup_s": setup, "exit": process.returncode}
    if seconds is None:
        return result
    written = folder / "run" / "front.json"
    if not written.exists():  # it had not come to its first proposal
        return result | {"trials": 0, "front": 0, "models": []}
    front = json.loads(written.read_text())
    log = folder / "run" / "trials.jsonl"
    trials = log.read_text().splitlines() if log.exists() else []
    points = [*front["points"], *(dropped["point"] for dropped in front["dropped"])]
    float32 = front["baseline"]
    measured = [
        (point["metric"]["search"], point["latency"]["ratio_to_float32"], point["size_bytes"] / float32["size_bytes"])
        for point in points
    ]
    kept = chosen_points(measured, float32["metric"]["search"], given.points)
    files = [
        {"name": points[i]["id"], "file": f"run/models/{points[i]['id']}.onnx", "origin": points[i]["origin"]}
        for i in kept
    ]
    return result | {"trials": len(trials), "front": len(points), "models": files}


def rival(given: Any, model: str, name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One rival's models."""
    from environments import environment

    python = environment(name)
    job = job_of(given, model, "front")
    task: dict[str, Any] = {"model": job["model"]["path"], "kind": "images" if model == "resnet20" else "pairs"}
    for split in ("calibration", "search"):
        arrays, target = feeds(job, split)
        np.savez(folder / f"{split}.npz", **arrays, **({"target": target} if split == "search" else {}))
        task[split] = str(folder / f"{split}.npz")
    started = time.time()
    (folder / "task.json").write_text(json.dumps(task | {"started": started, "seconds": seconds}))
    settings = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), str(HERE / "peers" / f"{name}_models.py"), str(folder)]
    with (folder / "log.txt").open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, cwd=folder, env=clean | settings, timeout=seconds + 5
            ).returncode
        except subprocess.TimeoutExpired:
            code = None  # what it has handed in counts
    made = folder / "made.jsonl"
    lines = [json.loads(line) for line in made.read_text().splitlines()] if made.exists() else []
    for split in ("calibration", "search"):
        (folder / f"{split}.npz").unlink()
    return {
        "wall_s": time.time() - started, "exit": code, "budget_s": seconds,
        "models": [line for line in lines if "error" not in line and line["at_s"] <= seconds],
        "failed": [line for line in lines if "error" in line or line["at_s"] > seconds],
    }  # fmt: skip


def cold_setup(given: Any, model: str, folder: Path) -> float:
    """Seconds from nothing to the first proposal; leaves the cache filled. Done once."""
    done = folder / "cold.json"
    if not done.exists():
        shutil.rmtree(folder / "cache", ignore_errors=True)
        place = fresh(folder / "cold")
        done.write_text(json.dumps(search(given, model, "front", 0, place, None)))
    return float(json.loads(done.read_text())["setup_s"])


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Run what is missing, judge, print."""
    sys.path.insert(0, str(HERE / "peers"))
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", default=["resnet20", "minilm"], choices=["resnet20", "minilm"])
    made.add_argument("--minilm", type=Path, default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    made.add_argument("--minutes", type=float, default=3.0)
    made.add_argument("--seeds", type=int, default=1, help="0 .. SEEDS-1; those that learn nothing and rivals run once")
    made.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    made.add_argument("--points", type=int, default=12, help="of a front, judged at most: those of most hypervolume")
    made.add_argument("--ray", default="local", help="as in autoq search")
    made.add_argument("--blocks", type=int, default=24, help="timed blocks a model")
    made.add_argument("--out", type=Path, default=OUT / "equal_time")
    given = made.parse_args()
    for model in given.models:
        folder = given.out.resolve() / f"{model}-{given.minutes:g}m"
        folder.mkdir(parents=True, exist_ok=True)
        seconds, cold = 60 * given.minutes, cold_setup(given, model, folder)
        runs: dict[str, Any] = {}
        for contestant in given.contestants:
            alone = contestant in (*PEERS, "knapsack")
            for seed in range(1 if alone else given.seeds):
                place = folder / f"{contestant}-{seed}"
                if not (place / "done.json").exists():
                    print(f"{model}: {contestant}, seed {seed}", file=sys.stderr, flush=True)
                    fresh(place)
                    if contestant in PEERS:
                        found = rival(given, model, contestant, place, seconds + cold)
                    else:
                        found = search(given, model, contestant, seed, place, seconds)
                    (place / "done.json").write_text(json.dumps(found, indent=1))
                runs[place.name] = json.loads((place / "done.json").read_text())
        judge(given, model, job_of(given, model, "front"), folder, runs, cold)


if __name__ == "__main__":
    main()
