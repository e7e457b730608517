"""What the benchmarks share: the bench data, the ResNet-20 job on it, the machine, results, and plain timing.

``timed_in_turn`` is deliberately not autoq's meter: a front's speed is checked here with nothing but ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--bench``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench = ROOT.parent / "shared" / "bench"
    made.add_argument("--bench", type=Path, default=bench, help="folder with cifar10/ [default: %(default)s]")
    return made


def resnet20_job(bench: Path) -> dict[str, Any]:
    """The job of ``examples/resnet20-cifar10`` with its files taken from ``bench``."""
    folder = bench.resolve() / "cifar10"
    if not (folder / "resnet20.onnx").is_file():
        raise SystemExit(f"{folder} has no resnet20.onnx; say with --bench where the bench data is")
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "resnet20-cifar10" / "job.yaml").read_text())
    for part in (job["model"], *(job["data"][name] for name in ("calibration", "search", "final"))):
        part["path"] = str(folder / Path(part["path"]).name)
    return job


def sts_job(bench: Path, model: Path) -> dict[str, Any]:
    """The job of ``examples/minilm-sts`` with its files taken from ``bench``, and ``model``."""
    folder = bench.resolve() / "sts"
    for path, what in ((folder / "val.npz", "--bench"), (model, "--model")):
        if not path.is_file():
            raise SystemExit(f"there is no {path}; say with {what} where it is")
    example = ROOT / "examples" / "minilm-sts"
    job: dict[str, Any] = yaml.safe_load((example / "job.yaml").read_text())
    job["model"]["path"] = str(model.resolve())
    job["metric"]["function"] = str(example / job["metric"]["function"])
    for name in ("calibration", "search", "final"):
        job["data"][name]["path"] = str(folder / job["data"][name]["path"])
    return job


def rows(job: Mapping[str, Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float32 [n, 3, 32, 32] and labels [n] of one split of the ResNet-20 job, read without autoq."""
    spec, how = job["data"][split], job["data"]["inputs"]["input"]
    start, stop = spec.get("slice") or (0, spec.get("limit"))
    with np.load(spec["path"]) as data:
        x, y = data[how["from"]][start:stop], data[job["data"]["target"]][start:stop]
    x = (x.astype(np.float32) / how["scale"] - np.array(how["mean"], np.float32)) / np.array(how["std"], np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y


def session(model: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A stock ONNX Runtime session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def accuracy(model: Path, x: np.ndarray, y: np.ndarray, batch: int = 100) -> float:
    """Top-1 on stock ONNX Runtime."""
    opened = session(model)
    name = opened.get_inputs()[0].name
    logits = np.concatenate([opened.run(None, {name: x[i : i + batch]})[0] for i in range(0, len(x), batch)])
    return float((logits.argmax(-1) == y).mean())


def block(step: Callable[[], object], seconds: float = 0.008) -> float:
    """Median seconds of a step in a warm block."""
    step(), step()
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def timed_in_turn(models: Sequence[Path], feed: np.ndarray, blocks: int, runs: int, warm: int = 15) -> np.ndarray:
    """Seconds of each block, [models, blocks]: ``runs`` runs of one warm session, then of the next, one thread.

    The order is reversed in every other block, so that a drift of the machine's speed cancels.
    """
    name = session(models[0]).get_inputs()[0].name
    return timed_feeds_in_turn(models, {name: feed}, blocks, runs, warm)


def timed_feeds_in_turn(
    models: Sequence[Path], feeds: Mapping[str, np.ndarray], blocks: int, runs: int, warm: int = 15
) -> np.ndarray:
    """As :func:`timed_in_turn`, for models with several inputs."""
    opened = [session(model) for model in models]
    for one in opened:
        for _ in range(warm):
            one.run(None, feeds)
    seconds = np.zeros((len(opened), blocks))
    for block in range(blocks):
        order = range(len(opened)) if block % 2 == 0 else reversed(range(len(opened)))
        for index in order:
            run = opened[index].run
            start = time.perf_counter()
            for _ in range(runs):
                run(None, feeds)
            seconds[index, block] = time.perf_counter() - start
    return seconds


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it is now."""
    from autoq.runtime.machine import describe, software_versions

    found = describe()
    return {
        "processor": found.cpu_model,
        "cores": found.usable_cores,
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: version for name, version in software_versions().items() if version},
    }


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Writes ``benchmarks/out/NAME.json``."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {os.path.relpath(path)}")
    return path


def verdict(met: bool) -> str:
    """One word for a table."""
    return "met" if met else "MISSED"
