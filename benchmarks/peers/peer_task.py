"""What a rival is given, and how it hands in models: read by its own Python, which has NumPy, ONNX, and no autoq.

``task.json`` in the folder that the script is called with::

    {"model": PATH, "kind": "images" | "pairs", "calibration": NPZ, "search": NPZ, "started": s, "seconds": s}

Each ``.npz`` has the model's inputs by name, and ``search`` also ``target``. ``started`` is a reading of ``time.time``;
what is not handed in ``seconds`` later does not count. Every model becomes a file in ``models/`` and a line of
``made.jsonl``; so does every attempt that fails, with its reason.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks ``[n]``; equals share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def score(kind: str, outputs: np.ndarray, target: np.ndarray) -> float:
    """Top-1 of logits ``[n, classes]``; of ``[2n, d]`` embeddings of pairs Spearman's correlation of their cosines."""
    if kind == "images":
        return float((outputs.argmax(-1) == target).mean())
    return float(np.corrcoef(ranks(cosines(outputs)), ranks(target[::2]))[0, 1])


def cosines(outputs: np.ndarray) -> np.ndarray:
    """``[n]``: of the pairs of unit vectors ``[2n, d]``."""
    first, second = outputs.reshape(len(outputs) // 2, 2, -1).swapaxes(0, 1)
    return np.einsum("nd,nd->n", first, second)


class Task:
    """One rival's, on one model."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "task.json").read_text())
        self.folder, self.model, self.kind = folder, Path(told["model"]), str(told["kind"])
        self.ends = told["started"] + told["seconds"]
        self._started = told["started"]
        with np.load(told["calibration"]) as data:
            self.calibration: Feeds = dict(data)
        with np.load(told["search"]) as data:
            self.search: Feeds = {name: data[name] for name in data if name != "target"}
            self.target = data["target"]
        (folder / "models").mkdir(exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return float(self.ends - time.time())

    def batches(self, feeds: Feeds, size: int, rows: int | None = None) -> list[Feeds]:
        """``feeds`` in batches, its first ``rows``."""
        count = min(rows or 1 << 60, len(next(iter(feeds.values()))))
        return [{name: values[i : i + size] for name, values in feeds.items()} for i in range(0, count, size)]

    def scored(self, run: Callable[[Feeds], np.ndarray], batch: int = 32) -> float:
        """The metric on the search rows; ``run`` gives the first output for a batch."""
        outputs = np.concatenate([np.asarray(run(feeds)) for feeds in self.batches(self.search, batch)])
        return score(self.kind, outputs, self.target)

    def attempt(self, name: str, make: Callable[[Path], None]) -> None:
        """``make`` writes the file that it is given; nothing begins when the time is over."""
        if self.left <= 0:
            return
        path = self.folder / "models" / f"{name}.onnx"
        try:
            make(path)
        except Exception as error:  # a rival's failure is its result
            self.note(name, error=" ".join(str(error).split())[:300] or type(error).__name__)
        else:
            self.note(name)

    def hand_in(self, name: str, source: Path) -> None:
        """A model that lies elsewhere, in one file."""
        shutil.copyfile(source, self.folder / "models" / f"{name}.onnx")
        self.note(name)

    def note(self, name: str, **more: Any) -> None:
        """A line about a model, or an attempt."""
        with (self.folder / "made.jsonl").open("a") as file:
            line = {"name": name, "file": f"models/{name}.onnx", "at_s": time.time() - self._started, **more}
            file.write(json.dumps(line) + "\n")


def given_task() -> Task:
    """That of the folder which the script is called with."""
    return Task(Path(sys.argv[1]))
