"""The judge of equal_time.py: what it says of every model holds for stock ONNX Runtime, whoever made it.

Metric on the final split, of which nobody had a row; file size; latency ratio to float32 (batch 1, one thread, warm
blocks in turn with float32, five models a sitting): its quickest block over float32's quickest, of four sittings with
fresh sessions. A file that several made is judged once.

Hypervolume: (points of metric lost, latency ratio, size ratio) up to (a tenth of float32's metric, 1, 1), as a share of
that box; a metric above float32's counts as float32's, since what looks like a gain is noise.

A rival's model is *dominated* by a point of ours that is nowhere worse in these figures and somewhere better. It is
*matched* by one that is nowhere shown to be worse: its metric by no more than 1.96 standard errors of the paired
difference over rows (bootstrap), its latency by no more than its range over the sittings and 1 %, its size by no
more than 1 %. Otherwise it beats us.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, rows, save, session, timed_feeds_in_turn

from autoq.numerics.pareto import hypervolume

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from peer_task import cosines, ranks

OPENINGS = 4  # of each file, blocks shared out

SITTING = 5
Figures = dict[str, Any]


def feeds(job: Mapping[str, Any], split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a split of either job, and its targets; read without autoq."""
    if "input" in job["data"]["inputs"]:
        x, y = rows(job, split)
        return {"input": x}, y
    spec = job["data"][split]
    start, stop = spec.get("slice") or (0, spec.get("limit"))
    with np.load(spec["path"]) as data:
        found = {
            name: data[how["from"]][start:stop].astype(how["dtype"]) for name, how in job["data"]["inputs"].items()
        }
        return found, data[job["data"]["target"]][start:stop]


def box(metric: float, ratio: float, size: float, float32: float) -> tuple[float, float, float]:
    """Losses of which 1 is worth nothing."""
    return max(0.0, float32 - metric) / (0.1 * abs(float32)), ratio, size


def chosen_points(measured: Sequence[tuple[float, float, float]], float32: float, count: int) -> list[int]:
    """Which ``count`` of (metric, latency ratio, size ratio) to judge: always the one that adds most hypervolume."""
    losses = [box(*each, float32) for each in measured]
    taken: list[int] = []
    while len(taken) < min(count, len(losses)):
        left = [i for i in range(len(losses)) if i not in taken]
        volumes = [hypervolume([losses[i] for i in (*taken, other)], [1.0] * 3) for other in left]
        taken.append(left[int(np.argmax(volumes))])
    return taken


def outcome(job: Mapping[str, Any], model: Path) -> np.ndarray:
    """What a row adds to the metric: whether it was right ``[n]``, or the cosine of a pair ``[n]``."""
    inputs, target = feeds(job, "final")
    opened, count = session(model), len(target)
    parts = []
    for i in range(0, count, 50):
        parts.append(opened.run(None, {name: values[i : i + 50] for name, values in inputs.items()})[0])
    outputs = np.concatenate(parts)
    return cosines(outputs) if "input_ids" in inputs else (outputs.argmax(-1) == target).astype(np.float64)


class Metric:
    """The metric from outcomes of rows, and the standard error of a difference."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        inputs, target = feeds(job, "final")
        self._scores = ranks(target[::2]) if "input_ids" in inputs else None
        self._scored = target[::2] if "input_ids" in inputs else target

    def __call__(self, rows: np.ndarray, taken: np.ndarray | slice = slice(None)) -> float:
        """Of the rows ``taken``."""
        if self._scores is None:
            return float(rows[taken].mean())
        return float(np.corrcoef(ranks(rows[taken]), ranks(self._scored[taken]))[0, 1])

    def error(self, one: np.ndarray, other: np.ndarray) -> float:
        """Of their difference, rows paired."""
        if self._scores is None:
            return float((one - other).std(ddof=1) / np.sqrt(len(one)))
        rng = np.random.default_rng(0)
        taken = rng.integers(len(one), size=(200, len(one)))
        return float(np.std([self(one, each) - self(other, each) for each in taken], ddof=1))


def figures(job: Mapping[str, Any], files: Mapping[str, Path], folder: Path, blocks: int) -> dict[str, Figures]:
    """By SHA-256: metric rows, size, latency ratio. What was judged before is kept in ``folder``."""
    float32 = Path(job["model"]["path"])
    inputs, _ = feeds(job, "final")
    one = {name: values[:1] for name, values in inputs.items()}
    folder.mkdir(exist_ok=True)
    missing = [sha for sha in files if not (folder / f"{sha}.json").exists()]
    start = timed_feeds_in_turn([float32], one, 3, 3).min() / 3
    runs = max(2, round(0.03 / start))
    for at in range(0, len(missing), SITTING):
        batch = missing[at : at + SITTING]
        loads = {}
        for sha in batch:
            try:
                session(files[sha])
                loads[sha] = outcome(job, files[sha])
            except Exception as error:  # ONNX Runtime's errors have no common base below Exception
                (folder / f"{sha}.json").write_text(json.dumps({"error": str(error)[:300]}))
        opened = [float32, *(files[sha] for sha in loads)]
        # Where a session's buffers happen to lie makes it 3 to 4 % faster or slower for good: each is opened anew.
        sittings = [timed_feeds_in_turn(opened, one, blocks // OPENINGS, runs) for _ in range(OPENINGS)]
        # The quickest block of each: what else runs on the machine only ever adds.
        quickest = np.array([each.min(axis=1) for each in sittings]).T
        for sha, times in zip(loads, quickest[1:], strict=True):
            ratios = times / quickest[0]
            np.save(folder / f"{sha}.npy", loads[sha])
            record = {"ratio": float(times.min() / quickest[0].min())}
            record["ratio_range"] = [float(ratios.min()), float(ratios.max())]
            record["size"] = files[sha].stat().st_size / float32.stat().st_size
            (folder / f"{sha}.json").write_text(json.dumps(record))
    found = {}
    for sha in files:
        record = json.loads((folder / f"{sha}.json").read_text())
        if "error" not in record:
            record["rows"] = np.load(folder / f"{sha}.npy")
        found[sha] = record
    return found


def compared(ours: Figures, theirs: Figures, metric: Metric) -> tuple[str, list[str]]:
    """``"dominated"``, ``"matched"`` or ``"beaten"``, and where ours is shown to be worse."""
    pairs = [(-ours["metric"], -theirs["metric"]), (ours["ratio"], theirs["ratio"]), (ours["size"], theirs["size"])]
    if all(a <= b for a, b in pairs) and any(a < b for a, b in pairs):
        return "dominated", []
    worse = []
    lost = theirs["metric"] - ours["metric"]
    if lost > 0 and lost > 1.96 * metric.error(ours["rows"], theirs["rows"]):
        worse.append(f"metric by {lost:.4f}")
    widths = [np.log(high / low) / 2 for low, high in (ours["ratio_range"], theirs["ratio_range"])]
    slower = np.log(ours["ratio"] / theirs["ratio"])
    if slower > max(0.01, float(np.hypot(*widths))):
        worse.append(f"latency by {np.expm1(slower):.1%}")
    if ours["size"] > 1.01 * theirs["size"]:
        worse.append(f"size by {ours['size'] / theirs['size'] - 1:.1%}")
    return ("beaten" if worse else "matched"), worse


def judge(given: Any, model: str, job: Any, folder: Path, runs: Mapping[str, Any], cold: float) -> None:
    """Everything, printed and saved."""
    files: dict[str, Path] = {}
    made: dict[str, list[tuple[str, str]]] = {}
    for run, done in runs.items():
        made[run] = []
        for each in done["models"]:
            path = folder / run / each["file"]
            if path.is_file():
                sha = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                files.setdefault(sha, path)
                made[run].append((each["name"], sha))
    known = figures(job, files, folder / "judged", given.blocks)
    metric = Metric(job)
    float32 = metric(outcome(job, Path(job["model"]["path"])))
    for record in known.values():
        if "rows" in record:
            record["metric"] = metric(record["rows"])
    good = {run: [(name, known[sha]) for name, sha in names if "rows" in known[sha]] for run, names in made.items()}
    table = {}
    print(f"\n{model}, {given.minutes:g} minutes each; float32 {float32:.4f}; autoq's cold set-up {cold:.0f} s")
    print(f"{'contestant':14s} {'set-up s':>8s} {'trials':>6s} {'models':>6s} {'hypervolume':>11s}")
    for run, points in good.items():
        losses = [box(record["metric"], record["ratio"], record["size"], float32) for _, record in points]
        volume = hypervolume(losses, [1.0] * 3) if losses else 0.0
        table[run] = {"hypervolume": volume} | {
            key: runs[run].get(key) for key in ("setup_s", "trials", "wall_s", "failed")
        }
        setup = runs[run].get("setup_s") or float("nan")
        shown = f"{setup:8.1f} {runs[run]['trials']:6d}" if "trials" in runs[run] else " " * 15
        print(f"{run:14s} {shown} {len(points):6d} {volume:11.4f}")
    peers = {run: points for run, points in good.items() if run.split("-")[0] in ("ort", "nncf", "olive")}
    verdicts = []
    for front in (run for run in good if run.startswith("front-")):
        print(f"\nrivals' models against {front}\n{'':34s} {'metric':>7s} {'lost':>7s} {'ratio':>6s} {'size':>6s}")
        for run, points in peers.items():
            for name, theirs in points:
                against = [(*compared(ours, theirs, metric), point) for point, ours in good[front]]
                order = ["dominated", "matched", "beaten"]
                verdict, worse, point = min(against, key=lambda one: (order.index(one[0]), len(one[1])))
                verdicts.append(
                    {"front": front, "rival": f"{run}/{name}", "verdict": verdict, "by": point, "worse": worse}
                )
                shown = {key: theirs[key] for key in ("metric", "ratio", "size")}
                verdicts[-1] |= shown
                why = f": ours {', '.join(worse)}" if worse else ""
                print(
                    f"{run + '/' + name:34s} {shown['metric']:7.4f} {float32 - shown['metric']:+7.4f} "
                    f"{shown['ratio']:6.3f} {shown['size']:6.3f} {verdict}{why}"
                )
    clean = {
        run: [{"name": name} | {k: v for k, v in record.items() if k != "rows"} for name, record in points]
        for run, points in good.items()
    }
    result = {"machine": machine(), "minutes": given.minutes, "cold_setup_s": cold, "float32": float32, "runs": table}
    save(f"equal_time_{model}", result | {"models": clean, "verdicts": verdicts})
