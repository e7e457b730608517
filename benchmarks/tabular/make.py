"""Measures every candidate of a small space, and writes the truth as ``benchmarks/tabular/NAME.npz``.

    python benchmarks/tabular/make.py resnet20 [--rows 400] [--final 250] [--bench DIR]
    python benchmarks/tabular/make.py digits [--digits FOLDER]      # FOLDER as examples/digits/train.py writes it

``resnet20``: the layers in 7 groups, 3 schemes each, 2,187 candidates; the first ROWS images of either half of
``val.npz``. ``digits``: the layers in 5 groups, 4 schemes each, 1,024 candidates; all 1,797 images. Every
candidate is built whole, as a search builds it (no forms of the graph), and timed and scored as that file. All are
timed first, which wants a quiet machine: blocks of a few milliseconds at batch 1, one thread, in turn with float32; the
least block of the one over the least of the other (a busy machine only ever adds). The even and the odd blocks give two
such ratios; where they differ by more than 2 %, other work spoilt them. Candidates are taken in a random order, so that
no drift follows the space. Those that differ in nothing but the numbers in their weights run alike: they share the
median. Then all are scored.

Finished candidates are kept in ``benchmarks/out/tabular_NAME.*.jsonl``; the same command goes on from there. The table
also holds what a search knows beforehand: each group's proxies (disturbance, modelled time, bytes), from probes on 64
calibration rows, each layer alone, and from a latency model, measured as a search does it. With ``--final N`` the final
half is for N candidates taken at random and those of the true front; elsewhere its metric is NaN.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.bank import default_cache_dir
from autoq.model.lower import Lowering
from autoq.model.parts import Parts
from autoq.model.suffix import Suffixes
from autoq.numerics.pareto import non_dominated
from autoq.runtime.meter import Meter
from autoq.runtime.ort import open_session, run_batches
from autoq.search.groundwork import lay_groundwork
from autoq.search.latency import LIMIT_S, LatencyModel, LatencyTable, measure_table
from autoq.search.seeds import LayerTimes, proxies
from autoq.search.sensitivity import disturbance, measure_by, probes, sensitivity
from autoq.setting import Setting, read_setting
from autoq.spec.job import load_job

HERE = Path(__file__).resolve().parent
OBJECTIVES = ("metric", "latency", "size")
PROBE_ROWS = 64
BLOCKS, BLOCK_S, ROUNDS, HALVES_DIFFER = 6, 0.002, 6, 0.02
SPACES = {
    "resnet20": ("w8a8@mse", "w4a8-gptq@mse", "w2-gptq"),
    "digits": ("float16", "w8a8@mse", "w4a8-gptq@mse", "w2-gptq"),
}
# How many layers, in the model's order, take one scheme together. ResNet-20: the stem with the first block, then
# blocks, and the classifier with the last. Digits: the depthwise layer and the pointwise one behind it.
GROUPS = {"resnet20": (3, 4, 2, 4, 2, 2, 3), "digits": (1, 1, 1, 2, 1)}


def job_of(name: str, given: Any) -> dict[str, Any]:
    """The job of an example, on the rows that are asked for."""
    if name == "resnet20":
        job = harness.resnet20_job(given.bench)
        job["data"]["search"]["slice"] = [0, given.rows]
        job["data"]["final"]["slice"] = [2000, 2000 + given.rows]
        return job
    job = yaml.safe_load((harness.ROOT / "examples" / "digits" / "job.yaml").read_text())
    if not (given.digits / "digits.onnx").is_file():
        raise SystemExit(f"there is no {given.digits / 'digits.onnx'}: run examples/digits/train.py first")
    for part in (job["model"], *(job["data"][split] for split in ("calibration", "search", "final"))):
        part["path"] = str(given.digits.resolve() / part["path"])
    # All images that there are, those of training as well: the fewer, the more of a front is luck.
    whole = given.scratch / "digits-all.npz"
    files = [np.load(given.digits / f"digits-{split}.npz", allow_pickle=False) for split in ("train", "val", "final")]
    np.savez(whole, **{name: np.concatenate([file[name] for file in files]) for name in files[0].files})
    job["data"]["search"]["path"] = str(whole)
    return job


def groups_of(name: str, layers: Sequence[str]) -> list[tuple[str, ...]]:
    """The layers that take one scheme together."""
    assert sum(GROUPS[name]) == len(layers)
    ends = np.cumsum(GROUPS[name])
    return [tuple(layers[end - size : end]) for end, size in zip(ends, GROUPS[name], strict=True)]


def layer_times(setting: Setting, lowering: Lowering, kept: Path) -> LayerTimes:
    """What each scheme of each layer adds to the latency, by a model measured as a search does it, or as ``kept``."""

    def complete(chosen: Mapping[str, Scheme]) -> Policy:
        return lowering.canonical(Policy.of(dict(chosen)))

    if kept.exists():
        table = LatencyTable.from_dict(json.loads(kept.read_text()))
    else:
        feeds = {name: array[:1] for name, array in setting.search.inputs.items()}
        with Meter(setting.model.path, feeds, batch=1, threads=1) as meter:
            made = measure_table(
                setting.candidates, lowering, complete, setting.profile, meter, limit_s=LIMIT_S, clock=time.monotonic
            )
        assert made is not None
        table = made
        kept.write_text(json.dumps(table.to_dict()))
    model = LatencyModel(table=table, parts=Parts(lowering.formed, lowering.layers, lowering.placer))
    return model.layer_times(setting.candidates, complete)


def proxies_of(
    setting: Setting, lowering: Lowering, groups: Sequence[Sequence[str]], schemes: Sequence[Scheme], kept: Path
) -> np.ndarray:
    """``[groups, schemes, 3]``: sums over each group's layers of what a search would know of them."""
    found = probes(setting.candidates, lowering.canonical)
    noises: dict[str, float | None] = {}
    inputs = {name: array[:PROBE_ROWS] for name, array in setting.calibration.inputs.items()}
    runs = Suffixes(lowering, inputs, PROBE_ROWS)
    judge = disturbance(setting.metric.classes(runs.reference, setting.search.targets))
    measure_by(found, runs, workers=1, judge=judge, keep=lambda probe, value: noises.update({probe.policy.id: value}))
    table = sensitivity(setting.candidates, found, [noises[probe.policy.id] for probe in found])
    by_layer = proxies(setting.candidates, table, setting.profile, OBJECTIVES, layer_times(setting, lowering, kept))
    order = {entry.layer.name: [entry.schemes.index(scheme) for scheme in schemes] for entry in setting.candidates}
    return np.array(
        [[np.sum([by_layer[layer][order[layer][k]] for layer in group], axis=0) for k in range(len(schemes))]
         for group in groups]
    )  # fmt: skip


class Clock:
    """Times candidates against float32 at batch 1."""

    def __init__(self, float32: Any, feeds: Mapping[str, np.ndarray]) -> None:
        self._float32, self._feeds = float32, feeds
        self._runs(float32, 10)
        self._count = max(1, round(BLOCK_S / (self._runs(float32, 50) / 50)))

    def ratios(self, session: Any) -> list[float]:
        """Of all blocks, of the even ones, of the odd ones; more blocks while these differ by some percent."""
        self._runs(session, 3)
        seconds = np.zeros((0, 2))
        for _ in range(ROUNDS):
            pair = self._float32, session
            more = [[self._runs(each, self._count) for each in pair] for _ in range(BLOCKS)]
            seconds = np.concatenate([seconds, more])
            found = [float(np.divide(*part.min(axis=0)[::-1])) for part in (seconds, seconds[::2], seconds[1::2])]
            if _agree(found):
                break
        return found

    def _runs(self, session: Any, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            session.run(None, self._feeds)
        return time.perf_counter() - start


def _agree(ratios: Sequence[float]) -> bool:
    return abs(ratios[-2] / ratios[-1] - 1) < HALVES_DIFFER


def latencies(kernels: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """The latency ``[n]`` of each candidate, and how far one timing strays from it (a share).

    Candidates of equal ``kernels`` ``[n, groups]`` run the same graph once they are loaded, with other numbers in its
    weights: theirs is the median of those of their ``ratios`` ``[n, 3]`` whose halves agree, of all where none does.
    """
    kind = np.unique(kernels, axis=0, return_inverse=True)[1].ravel()
    good = np.array([_agree(row) for row in ratios])
    found, stray = np.zeros(len(ratios)), []
    for each in range(kind.max() + 1):
        mine = kind == each
        counted = ratios[mine & good, 0] if (mine & good).any() else ratios[mine, 0]
        found[mine] = np.median(counted)
        if len(counted) > 1:
            stray.extend((counted / np.median(counted) - 1) * np.sqrt(len(counted) / (len(counted) - 1)))
    return found, float(np.std(stray))


def main() -> None:
    """Measure what is missing; write the table when nothing is."""
    made = harness.parser(__doc__)
    made.add_argument("name", choices=sorted(SPACES))
    made.add_argument("--rows", type=int, default=400, help="images of each half, ResNet-20 [default: %(default)s]")
    made.add_argument("--digits", type=Path, default=harness.ROOT / "examples" / "digits")
    made.add_argument("--only-time", action="store_true", help="leave the scores to the next call")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="that score [default: %(default)s]")
    made.add_argument("--final", type=int, default=9999, help="candidates, at random, scored on the final half as well")
    made.add_argument("--again", action="store_true", help="measure anew what a busy machine left unsettled")
    given = made.parse_args()
    started, before = time.monotonic(), harness.machine()
    schemes = tuple(Scheme.parse(text) for text in SPACES[given.name])
    with tempfile.TemporaryDirectory() as folder:
        given.scratch = Path(folder)
        space = given.scratch / "space.yaml"
        space.write_text(yaml.safe_dump({"version": 1, "name": given.name, "schemes": [*SPACES[given.name]]}))
        job = job_of(given.name, given) | {"space": str(space)}
        setting = read_setting(load_job(job, harness.ROOT), force=True)
    lowering = lay_groundwork(
        setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=default_cache_dir()
    )
    groups = groups_of(given.name, [entry.layer.name for entry in setting.candidates])
    believed = proxies_of(setting, lowering, groups, schemes, harness.OUT / f"tabular_{given.name}.latency.json")

    def metric(session: Any, split: Any) -> float:
        return float(setting.metric(run_batches(session, split.inputs, setting.job.data.batch), split.targets))

    def build(at: int) -> bytes:
        chosen = {layer: schemes[code] for group, code in zip(groups, codes[at], strict=True) for layer in group}
        return lowering.build(lowering.canonical(Policy.of(chosen)))

    codes = list(itertools.product(range(len(schemes)), repeat=len(groups)))
    source = setting.model.path.read_bytes()
    float32 = open_session(source)
    clock = Clock(float32, {name: array[:1] for name, array in setting.search.inputs.items()})
    order = np.random.default_rng(0).permutation(len(codes)).tolist()
    with_final = set(order[: given.final])

    def timed(at: int) -> list[float]:
        return clock.ratios(open_session(build(at)))

    def scored(at: int) -> list[float]:
        model = build(at)
        session = open_session(model)
        final = metric(session, setting.final) if at in with_final else float("nan")
        return [metric(session, setting.search), final, len(model)]

    def finished(name: str, take: Callable[[int], list[float]], keep: Callable[[list[float]], bool]) -> np.ndarray:
        """What ``take`` gives for each candidate, ``[n, ...]``, less what the log has and ``keep`` keeps."""
        log = harness.OUT / f"tabular_{given.name}.{name}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        done = {row[0]: row[1:] for row in rows if keep(row[1:])}
        with ThreadPoolExecutor(given.workers if take is scored else 1) as pool, log.open("a") as lines:
            missing = [at for at in order if at not in done]
            for at, row in zip(missing, pool.map(take, missing), strict=True):
                done[at] = row
                lines.write(json.dumps([at, *row]) + "\n")
                lines.flush()
                if len(done) % 200 == 0:
                    print(f"{name}: {len(done)} of {len(codes)}, {time.monotonic() - started:.0f} s: {row}", flush=True)
        return np.array([done[at] for at in range(len(codes))])

    ratios = finished("timed", timed, _agree if given.again else lambda row: True)
    if given.only_time:
        print(f"{sum(map(_agree, ratios)) / len(ratios):.1%} settled")
        return
    rows = finished("scored", scored, lambda row: True)
    kernels = np.array([scheme.activation is not None for scheme in schemes])[np.array(codes)]
    latency, noise = latencies(kernels, ratios)
    rows = np.concatenate([rows, latency[:, None]], axis=1)
    for at in np.flatnonzero(non_dominated(rows[:, [0, 3, 2]] * [-1, 1, 1]) & np.isnan(rows[:, 1])):
        rows[at, 1] = metric(open_session(build(int(at))), setting.final)
    about = {
        "command": f"python benchmarks/tabular/make.py {given.name} --rows {given.rows} --final {given.final}",
        "rows": [setting.search.rows, setting.final.rows],
        "metric": setting.metric.name,
        "float32": [metric(float32, setting.search), metric(float32, setting.final), len(source)],
        "latency_noise": noise,
        "latency_kinds": len(np.unique(kernels, axis=0)),
        "machine": before,
        "seconds": round(time.monotonic() - started, 1),
    }
    target = HERE / f"{given.name}.npz"
    np.savez_compressed(
        target,
        metric_search=rows[:, 0].astype(np.float32),
        metric_final=rows[:, 1].astype(np.float32),
        size_bytes=rows[:, 2].astype(np.uint32),
        latency_ratio=rows[:, 3].astype(np.float32),
        proxies=believed,
        schemes=np.array([str(scheme) for scheme in schemes]),
        groups=np.array([" ".join(group) for group in groups]),
        about=np.array(json.dumps(about)),
    )
    print(f"{target.name}: {len(rows)} candidates, {target.stat().st_size} bytes, latency noise {noise:.4f}")


if __name__ == "__main__":
    main()
