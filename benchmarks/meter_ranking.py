"""Can a measurement be trusted? One file measured many times, and two that differ by 3 %, quiet and beside other work.

    python benchmarks/meter_ranking.py [--repeats 200] [--pairs 100] [--loaded-pairs 0] [--minutes 7] [--bench DIR]

The search's own plan, on ResNet-20 at batch 1 and one thread. "loaded" is beside processes that keep every other core
busy (matrix products and sorting, in turn); they are started here.

- **A/A**: the file against itself. "outside": 1 lies outside the 95 % interval of the ratio. "different": it does, and
  the ratio is more than 1 % from 1, which is when autoq calls two files different (autoq/record/noise.py). Both are
  to happen in at most 5 %.
- **3 %**: two files, each measured against float32 by itself as the trials of a search are, and ranked by
  their ratios; and "final", timed in turn with each other as the points of a final front are. The second is the first
  with one more convolution, chosen to cost about 3 %; what it costs is found with a far longer measurement. Right in at
  least 95 %. A pair of float32 files, and one of W8A8 files.

Intervals behind counts are Wilson's, of 95 %. "marked" are measurements that said themselves that they were disturbed;
"quiet" is only as quiet as the machine: "foreign" is the share of the other cores that other work took. Where time is
up (--minutes), fewer repeats are made: the counts say of how many.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import machine, parser, resnet20_job, rows, save, verdict
from integer_forms import built
from onnx import TensorProto, helper, numpy_helper

from autoq.core.result import Latency
from autoq.runtime.meter import Meter
from autoq.runtime.timing import TimingPlan

LEAST = 0.01
WANTED = 0.03
TRUTH = TimingPlan(block_s=0.005, warm_s=0.01, min_sittings=40, max_sittings=40, limit_s=30.0)
LOAD = """
import numpy as np
a = np.random.default_rng(0).random((600, 600))
while True:
    for _ in range(20):
        a @ a
    np.sort(np.random.default_rng(0).random(1_000_000))
"""


def with_convolution(model: Path, path: Path, channels: int) -> Path:
    """``model`` and one more 3x3 convolution of its input, whose mean becomes another output."""
    proto = onnx.load(model)
    graph = proto.graph
    given = graph.input[0]
    depth = given.type.tensor_type.shape.dim[1].dim_value
    weights = np.random.default_rng(0).normal(size=(channels, depth, 3, 3)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weights, "extra_weights"))
    graph.node.append(helper.make_node("Conv", [given.name, "extra_weights"], ["extra_maps"], pads=[1, 1, 1, 1]))
    graph.node.append(helper.make_node("GlobalAveragePool", ["extra_maps"], ["extra"]))
    graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))
    onnx.save(proto, path)
    return path


def slower(model: Path, folder: Path, feeds: dict[str, np.ndarray]) -> tuple[Path, float]:
    """The file that costs nearest to 3 % more than ``model``, and what it costs."""
    paths = [with_convolution(model, folder / f"{model.stem}-{n}.onnx", n) for n in (4, 8, 16, 24, 32, 40)]
    with Meter(model, feeds, final_plan=TRUTH) as meter:
        measured = meter.measure_many(paths, at_once=6)
        found = {path: each.latency.ratio for path, each in zip(paths, measured, strict=True)}
    best = min(paths, key=lambda path: abs(found[path] - 1 - WANTED))
    return best, found[best]


@contextmanager
def other_cores_busy(loaded: bool) -> Iterator[None]:
    """A process on every core but the last, which the meter uses."""
    cores = max(1, machine()["cores"] - 1) if loaded else 0
    busy = []
    try:
        for core in range(cores):
            taskset = ["taskset", "-c", str(core)] if sys.platform == "linux" else []
            busy.append(subprocess.Popen([*taskset, sys.executable, "-c", LOAD]))
        if busy:
            time.sleep(1.0)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share, scale = count / of, 1 + z * z / of
    centre = (share + z * z / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def counted(count: int, of: int) -> dict[str, Any]:
    """A count with its share and interval."""
    return {"count": count, "of": of, "share": count / of, "interval": wilson(count, of)}


def different(latency: Latency) -> tuple[bool, bool]:
    """Whether 1 is outside the interval, and whether autoq would call the two different."""
    low, high = latency.ratio_ci95
    outside = not low <= 1 <= high
    return outside, outside and abs(math.log(latency.ratio)) > math.log1p(LEAST)


def conditions(latencies: list[Latency], seconds: float) -> dict[str, Any]:
    """What the measurements were like."""
    noted = [latency.conditions for latency in latencies if latency.conditions is not None]
    foreign = [each.foreign_load for each in noted if each.foreign_load is not None]
    ratios = [latency.ratio for latency in latencies]
    return {
        "spread": statistics.pstdev(ratios) / statistics.mean(ratios),
        "half_width": statistics.median((each.ratio_ci95[1] / each.ratio_ci95[0] - 1) / 2 for each in latencies),
        "sittings": statistics.mean(each.sittings for each in noted),
        "left_out": statistics.mean(each.left_out for each in noted),
        "marked": sum(each.disturbed for each in noted),
        "foreign": statistics.mean(foreign) if foreign else None,
        "seconds_each": seconds / len(latencies),
    }


def repeated(what: str, measure: Callable[[int], list[Latency]], repeats: int, seconds: float) -> list[list[Latency]]:
    """``measure`` of 0, 1, ...: as often as asked, or until time is up. Says how far it is."""
    start, found = time.perf_counter(), []
    while len(found) < repeats and (not found or time.perf_counter() - start < seconds):
        found.append(measure(len(found)))
        if len(found) % 20 == 0:
            print(f"  {what}: {len(found)} of {repeats}, {time.perf_counter() - start:.0f} s", flush=True)
    return found


def same_file(meter: Meter, where: str, repeats: int, seconds: float) -> dict[str, Any]:
    """A/A."""
    start = time.perf_counter()
    taken = repeated(f"{where}, A/A", lambda _: [taken_by(meter, meter.baseline)], repeats, seconds)
    latencies = [latency for (latency,) in taken]
    verdicts = [different(latency) for latency in latencies]
    return {
        "outside": counted(sum(outside for outside, _ in verdicts), len(latencies)),
        "different": counted(sum(called for _, called in verdicts), len(latencies)),
        **conditions(latencies, time.perf_counter() - start),
    }


def ranked(
    meter: Meter, name: str, files: tuple[Path, Path], where: str, repeats: int, seconds: float, together: bool = False
) -> dict[str, Any]:
    """How often the quicker of two files is found; which is measured first alternates.

    Each by itself, as trials are, or both together, as the points of a final front.
    """

    def both(repeat: int) -> list[Latency]:
        turn = 1 if repeat % 2 == 0 else -1
        if together:
            return [each.latency for each in meter.measure_many(files[::turn])][::turn]
        return [taken_by(meter, path) for path in files[::turn]][::turn]

    start = time.perf_counter()
    taken = repeated(f"{where}, {name} pair", both, repeats, seconds)
    return {
        "right": counted(sum(first.ratio < second.ratio for first, second in taken), len(taken)),
        "ratio_between": statistics.median(second.ratio / first.ratio for first, second in taken),
        **conditions([each for pair in taken for each in pair], time.perf_counter() - start),
    }


def taken_by(meter: Meter, path: Path) -> Latency:
    """A trial's latency."""
    latency = meter.measure(path).latency
    assert isinstance(latency, Latency)
    return latency


def shown(name: str, question: str, answer: dict[str, Any], wanted: str, met: bool) -> str:
    """One line of the table."""
    low, high = answer["interval"]
    return (
        f"{name:8s} {question:40s} {answer['count']:4d} of {answer['of']:<4d} {answer['share']:7.1%} "
        f"[{low:5.1%}, {high:6.1%}]  {wanted:14s} {verdict(met)}"
    )


def main() -> None:
    """Ask, print, save."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=200)
    arguments.add_argument("--pairs", type=int, default=100, help="repeats of each pair, quiet")
    arguments.add_argument("--loaded-pairs", type=int, default=0, help="repeats of each pair, loaded")
    arguments.add_argument("--minutes", type=float, default=7.0, help="for all of it")
    given = arguments.parse_args()
    start = time.perf_counter()
    job = resnet20_job(given.bench)
    images, _ = rows(job, "calibration")
    model = Path(job["model"]["path"])
    feeds = {next(iter(job["data"]["inputs"])): images[:1]}
    result: dict[str, Any] = {"machine": machine(), "truth": {}, "answers": {}}

    def left_s(share: float) -> float:
        return share * (60 * given.minutes - (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as made, Meter(model, feeds) as meter:
        folder = Path(made)
        w8a8 = folder / "w8a8.onnx"
        w8a8.write_bytes(built(model, images[:256]))
        pairs: dict[str, tuple[Path, Path]] = {}
        for name, path in (("float32", model), ("w8a8", w8a8)):
            second, truth = slower(path, folder, feeds)
            pairs[name], result["truth"][name] = (path, second), truth
            print(f"{name}: the second file takes {truth:.4f} times as long (40 sittings)", flush=True)
        meter.measure(model)
        answers = result["answers"]
        answers["quiet"] = {"A/A": same_file(meter, "quiet", given.repeats, left_s(0.35))}
        with other_cores_busy(True):
            answers["loaded"] = {"A/A": same_file(meter, "loaded", given.repeats, left_s(0.5))}
            for name in pairs if given.loaded_pairs else ():
                answers["loaded"][name] = ranked(meter, name, pairs[name], "loaded", given.loaded_pairs, left_s(0.3))
        for number, name in enumerate(pairs):
            share = 1 / (len(pairs) - number)
            answers["quiet"][name] = ranked(meter, name, pairs[name], "quiet", given.pairs, left_s(share / 2))
            found = ranked(meter, f"{name} final", pairs[name], "quiet", given.pairs, left_s(share), together=True)
            answers["quiet"][f"{name} final"] = found
    print(f"\n{'':49s} {'count':>11s} {'share':>7s} {'95 %':>16s}")
    for where, found in answers.items():
        for what, text in (("outside", "A/A: 1 outside the interval"), ("different", "A/A: called different")):
            print(shown(where, text, found["A/A"][what], "at most 5 %", found["A/A"][what]["share"] <= 0.05))
        for name in [name for name in found if name != "A/A"]:
            right = found[name]["right"]
            text = f"{name}, {result['truth'][name.split()[0]] - 1:.1%} apart: ranked right"
            print(shown(where, text, right, "at least 95 %", right["share"] >= 0.95))
    heads = f"{'spread':>7s} {'half':>7s} {'sittings':>8s} {'left out':>8s} {'marked':>7s}"
    print(f"\n{'':22s} {heads} {'foreign':>8s} {'s each':>7s}")
    for where, found in answers.items():
        for name, each in found.items():
            foreign = "-" if each["foreign"] is None else f"{each['foreign']:.0%}"
            print(
                f"{where:8s} {name:13s} {each['spread']:7.2%} {each['half_width']:7.2%} {each['sittings']:8.1f} "
                f"{each['left_out']:8.1f} {each['marked']:7d} {foreign:>8s} {each['seconds_each']:7.2f}"
            )
    save("meter_ranking", result)


if __name__ == "__main__":
    main()
