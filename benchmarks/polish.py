"""What polishing gives: candidates before and after, on images and sentences that nothing was fitted to.

    python benchmarks/polish.py [--rows 512] [--minilm MINILM.onnx] [--bench DIR]

ResNet-20: uniform 4- and 2-bit weights with the ends at 8 bits, and 2, 4 and 8 bits mixed to a mean of 3.0 by the
sensitivities that a search probes; all activations have 8 bits, so that all run on the same kernels. Calibration is on
the first rows of train.npz, without labels, of which polishing holds out every fourth; top-1 is on the second half of
val.npz, which nothing else looks at. ``--minilm`` adds MiniLM with ranges found at run time (Spearman, test.npz).

"error" is the relative squared error of the outputs against float32's on that split. Files before and after are timed
in turn, in warm blocks.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, parser, resnet20_job, rows, save, timed_in_turn

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.lower import Lowering
from autoq.model.polish import polish
from autoq.model.source import SourceModel, read_model
from autoq.runtime.data import Split
from autoq.runtime.ort import input_specs, open_session, run_batches
from autoq.search.candidates import Candidates
from autoq.search.groundwork import lay_groundwork
from autoq.search.polish_point import PolishWork, halves
from autoq.search.sensitivity import Sensitivity, measure, noise_power, probes, sensitivity

PROBE_ROWS = 64


def prepare(path: Path, inputs: Mapping[str, np.ndarray], schemes: list[str]) -> tuple[SourceModel, Lowering, Any]:
    """The model, all that candidates under ``schemes`` need, and the candidates."""
    model = read_model(path)
    parsed = [Scheme.parse(text) for text in schemes]
    found = tuple(
        Candidates(layer=layer, schemes=tuple(s for s in parsed if not (s.activation and layer.integer_problem)))
        for layer in model.layers
    )
    calibration = Split(inputs=dict(inputs), targets=None)
    lowering = lay_groundwork(model, found, calibration, input_specs(open_session(path)), cache_dir=None)
    return model, lowering, found


def uniform(lowering: Lowering, body: str, ends: str) -> Policy:
    """``body`` for every layer, ``ends`` for the first and the last."""
    names = [layer.name for layer in lowering.layers]
    schemes = dict.fromkeys(names, Scheme.parse(body)) | dict.fromkeys((names[0], names[-1]), Scheme.parse(ends))
    return lowering.canonical(Policy.of(schemes))


def mixed(lowering: Lowering, table: Sensitivity, schemes: list[str], bits: float) -> Policy:
    """From the fewest bits up, whichever layer's next scheme takes away most noise for a weight bit, while it fits."""
    ladder = [Scheme.parse(text) for text in schemes]
    level = {layer.name: 0 for layer in lowering.layers}
    spare = sum((bits - ladder[0].weight_bits) * layer.parameters for layer in lowering.layers)
    while True:
        steps = []
        for layer in lowering.layers:
            at = level[layer.name]
            if at + 1 == len(ladder):
                continue
            cost = (ladder[at + 1].weight_bits - ladder[at].weight_bits) * layer.parameters
            gain = table.noise(layer.name, ladder[at]) - table.noise(layer.name, ladder[at + 1])
            if cost <= spare and gain > 0:
                steps.append((gain / cost, layer.name, cost))
        if not steps:
            return lowering.canonical(Policy.of({name: ladder[at] for name, at in level.items()}))
        _, name, cost = max(steps)
        level[name] += 1
        spare -= cost


def before_and_after(
    name: str,
    lowering: Lowering,
    policy: Policy,
    work: PolishWork,
    unseen: Mapping[str, np.ndarray],
    metric: Callable[[np.ndarray], float],
    folder: Path,
) -> dict[str, Any]:
    """One candidate polished: metric, error and speed of both files."""
    fit, held_out = halves(work)
    began = time.perf_counter()
    polished, layers = polish(lowering, policy, fit, held_out, padding_mask=work.padding_mask)
    seconds = time.perf_counter() - began
    exact = outputs(lowering.graph.model.SerializeToString(), unseen)
    result: dict[str, Any] = {"name": name, "seconds": seconds, "layers": sum(layer.kept for layer in layers)}
    own = [layer for layer in lowering.layers if layer.tied_to is None]
    result["bits"] = sum(layer.parameters * policy[layer.name].weight_bits for layer in own) / sum(
        layer.parameters for layer in own
    )
    paths = []
    for kind, made in (("before", lowering), ("after", polished)):
        path = folder / f"{len(list(folder.iterdir()))}-{kind}.onnx"
        path.write_bytes(made.build(policy))
        found = outputs(path, unseen)
        error = float(np.square(found - exact).sum() / np.square(exact).sum())
        result[kind] = {"metric": metric(found), "error": error, "bytes": path.stat().st_size}
        paths.append(path)
    result["lost"] = [metric(exact) - result[kind]["metric"] for kind in ("before", "after")]
    result["paths"] = paths
    return result


def outputs(model: bytes | Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output for all rows."""
    return next(iter(run_batches(open_session(model), inputs, 100).values()))


def resnet20(bench: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """The ResNet-20 rows, with the time of each file against the one before."""
    job = resnet20_job(bench)
    job["data"]["calibration"] = {"path": job["data"]["calibration"]["path"], "limit": count}
    calibration, _ = rows(job, "calibration")
    unseen, labels = rows(job, "final")
    ladder = ["w2a8-gptq@mse", "w4a8-gptq@mse", "w8a8@mse"]
    _, lowering, found = prepare(Path(job["model"]["path"]), {"input": calibration}, ladder)
    listed = probes(found, lowering.canonical)
    noises: list[float | None] = []
    measure(
        listed,
        lowering.build,
        {"input": calibration[:PROBE_ROWS]},
        batch=PROBE_ROWS,
        workers=1,
        judge=noise_power,
        keep=lambda probe, noise: noises.append(noise),
    )
    policies = {
        "ResNet-20, uniform w8a8": uniform(lowering, ladder[2], ladder[2]),
        "ResNet-20, uniform w4a8, ends 8": uniform(lowering, ladder[1], ladder[2]),
        "ResNet-20, mixed 2/4/8, 3.0 bits": mixed(lowering, sensitivity(found, listed, noises), ladder, 3.0),
        "ResNet-20, uniform w2a8, ends 8": uniform(lowering, ladder[0], ladder[2]),
    }
    work = PolishWork(kind="sequential", inputs={"input": calibration}, unit=1)
    results = [
        before_and_after(
            name, lowering, policy, work, {"input": unseen}, lambda y: float((y.argmax(-1) == labels).mean()), folder
        )
        for name, policy in policies.items()
    ]
    base = results[0]["paths"][0]
    for result in results:
        seconds = timed_in_turn([base, *result["paths"]], unseen[:1], blocks=12, runs=40)
        result["speed"] = [float(np.median(seconds[0] / seconds[i])) for i in (1, 2)]
    return results


def minilm(path: Path, bench: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """MiniLM with ranges found at run time: calibration.npz to fit, test.npz to look at."""
    sys.path.insert(0, str(bench / "sts"))
    from sts_metric import paired_cosine_spearman  # type: ignore[import-not-found]

    def read(name: str, limit: int | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with np.load(bench / "sts" / f"{name}.npz") as data:
            ids, mask = (data[key][:limit].astype(np.int64) for key in ("input_ids", "attention_mask"))
            return {"input_ids": ids, "attention_mask": mask}, data["score"]

    calibration, _ = read("calibration", count)
    unseen, scores = read("test", None)
    _, lowering, _ = prepare(path, calibration, ["w4a8-gptq@dynamic", "w2a8-gptq@dynamic", "w8"])
    output = lowering.graph.model.graph.output[0].name
    work = PolishWork(kind="sequential", inputs=calibration, unit=2, padding_mask="attention_mask")
    results = []
    for scheme in ("w4a8-gptq@dynamic", "w2a8-gptq@dynamic"):
        tables = {layer.name: Scheme.parse("w8" if layer.op_type == "Gather" else scheme) for layer in lowering.layers}
        policy = lowering.canonical(Policy.of(tables))
        name = f"MiniLM, {scheme}, tables w8"
        score = lambda y: float(paired_cosine_spearman({output: y}, scores))  # noqa: E731
        results.append(before_and_after(name, lowering, policy, work, unseen, score, folder))
    return results


def main() -> None:
    """Polish, then print."""
    import tempfile

    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=512, help="calibration rows [default: %(default)s]")
    arguments.add_argument("--minilm", type=Path, help="minilm.onnx, as sts/make_minilm.py writes it")
    arguments.add_argument("--skip-resnet20", action="store_true")
    given = arguments.parse_args()
    where = machine()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if not given.skip_resnet20:
            results += resnet20(given.bench.resolve(), given.rows, Path(folder))
        if given.minilm is not None:
            results += minilm(given.minilm, given.bench.resolve(), min(given.rows, 256), Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{where['processor']}, load {where['load_average']}; {given.rows} calibration rows; peak {peak:,.0f} MB\n")
    print(f"{'':36s} {'bits':>5s} {'metric':>17s} {'points lost':>13s} {'error':>17s} {'x w8a8':>13s} {'s':>6s}")
    for row in results:
        row.pop("paths")
        old, new = row["before"], row["after"]
        speed = " -> ".join(f"{value:.3f}" for value in row.get("speed", ()))
        lost = " -> ".join(f"{100 * value:.2f}" for value in row["lost"])
        print(
            f"{row['name']:36s} {row['bits']:5.2f} {old['metric']:.4f} -> {new['metric']:.4f} {lost:>13s} "
            f"{old['error']:.4f} -> {new['error']:.4f} {speed:>15s} {row['seconds']:6.1f}"
        )
    save("polish", {"machine": where, "rows": given.rows, "peak_mb": peak, "results": results})


if __name__ == "__main__":
    main()
