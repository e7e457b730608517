"""What each form of the graph gives, in float32 and quantized: the tables of docs/forms.md and docs/benchmarks.md.

    python benchmarks/graph_forms.py [--bench DIR] [--minilm FILE] [--model FILE ...] [--seconds 20]

For each model a table: the model as it came is 1.00x; then its prepared float32 graph and the one quantized throughout
(W8A8 with min-max ranges wherever a layer can be, tables at 8 bits), as it stands, in each form by itself that changes
it, and in all that pay. Speed is the time of the model as it came over the file's, batch 1, one thread, in turn with
all others; "gain" is the time without over the time with the form, in float32 or quantized. For ResNet-20 the file of
ONNX Runtime's own static quantizer is timed along.

A machine that others use too slows a run at random, which moves medians. So the figure of a file is the tenth
percentile of its runs: blocks of one warm session, then of the next, over and over. "Kernels" is the sum over the nodes
of the tenth percentile of each one's time by ONNX Runtime's profiler: steadier still for a large model, where hardly a
whole run is left alone, but with the profiler's own microsecond a node.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from front_vs_ort import quantize_with_ort
from harness import machine, parser, resnet20_job, rows, save, session

from autoq.core.form import FORM_NAMES
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.source import read_model
from autoq.runtime.ort import input_specs
from autoq.search.candidates import Candidates
from autoq.search.form_probe import write_files

BLOCK_S = 0.02
PAYS = 0.99


def timed(files: Mapping[str, Path], feeds: Mapping[str, np.ndarray], seconds: float) -> dict[str, float]:
    """Milliseconds of each file: the tenth percentile of its runs."""
    opened = {name: session(path) for name, path in files.items()}
    runs: dict[str, list[float]] = {name: [] for name in files}
    counts = {}
    for name, one in opened.items():
        for _ in range(5):
            one.run(None, dict(feeds))
        start = time.perf_counter()
        one.run(None, dict(feeds))
        counts[name] = max(3, round(BLOCK_S / (time.perf_counter() - start)))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, one in opened.items():
            one.run(None, dict(feeds))  # the caches are full of another model
            for _ in range(counts[name]):
                start = time.perf_counter()
                one.run(None, dict(feeds))
                runs[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.percentile(times, 10)) for name, times in runs.items()}


def kernels(path: Path, feeds: Mapping[str, np.ndarray], folder: Path, runs: int = 60) -> float:
    """Milliseconds that the nodes of a file take together, by the profiler: each one's tenth percentile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        opened.run(None, dict(feeds))
    times: dict[str, list[float]] = {}
    for event in json.loads(Path(opened.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"])
    return float(sum(np.percentile(each, 10) for each in times.values())) / 1e3


def candidates(path: Path) -> tuple[Any, list[Candidates]]:
    """The model, and for each layer the scheme that it has when quantized throughout."""
    model = read_model(path)
    quantized, table = Scheme.parse("w8a8@minmax"), Scheme.parse("w8")
    return model, [
        Candidates(
            layer=layer,
            schemes=(table,) if layer.op_type == "Gather" else (FLOAT32,) if layer.integer_problem else (quantized,),
        )
        for layer in model.layers
    ]


def figures(
    path: Path, feeds: Mapping[str, np.ndarray], seconds: float, rival: Path | None = None
) -> list[dict[str, Any]]:
    """A row a file: model, form, milliseconds, speed against the model as it came, gain against no form."""
    with tempfile.TemporaryDirectory() as folder:
        model, found = candidates(path)
        choices = {"none": (), **{name: (name,) for name in FORM_NAMES}}
        written = write_files(model, found, feeds, Path(folder), choices)
        files = {"as it came": path}
        files |= {f"{kind}, {name}": file for kind, each in written.items() for name, file in each.items()}
        first = timed(files, feeds, seconds)
        paying = tuple(
            name
            for name in FORM_NAMES
            if (
                ratios := [
                    first[f"{kind}, {name}"] / first[f"{kind}, none"] for kind in written if name in written[kind]
                ]
            )
            and np.exp(np.mean(np.log(ratios))) <= PAYS
        )
        again = Path(folder) / "all"
        again.mkdir()
        chosen = write_files(model, found, feeds, again, {"none": (), f"all that pay ({', '.join(paying)})": paying})
        files |= {f"{kind}, {name}": file for kind, each in chosen.items() for name, file in each.items()}
        if rival is not None:
            files["ONNX Runtime's static quantizer"] = rival
        ms = timed(files, feeds, seconds)
        sums = {name: kernels(file, feeds, Path(folder)) for name, file in files.items()}
        table = []
        for name, file in files.items():
            kind = name.split(", ")[0]
            table.append(
                {
                    "file": name,
                    "ms": ms[name],
                    "speed": ms["as it came"] / ms[name],
                    "gain": ms[f"{kind}, none"] / ms[name] if f"{kind}, none" in ms else None,
                    "kernels_ms": sums[name],
                    "kernels_speed": sums["as it came"] / sums[name],
                    "size_bytes": file.stat().st_size,
                }
            )
        return table


def show(title: str, table: list[dict[str, Any]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n{title}\n| file | ms | speed | gain of form | kernels, ms | speed | KB |\n|---|---|---|---|---|---|---|")
    for row in table:
        gain = "" if row["gain"] is None or row["file"].endswith(", none") else f"{row['gain']:.3f}"
        print(
            f"| {row['file']} | {row['ms']:.3f} | {row['speed']:.2f}x | {gain} | {row['kernels_ms']:.3f} | "
            f"{row['kernels_speed']:.2f}x | {row['size_bytes'] / 1e3:,.0f} |",
            flush=True,
        )


def main() -> None:
    """Prints and saves the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--minilm", type=Path, help="the file that sts/make_minilm.py writes")
    arguments.add_argument("--model", type=Path, action="append", default=[], help="another model, on random inputs")
    arguments.add_argument("--seconds", type=float, default=20.0, help="of timing, twice a model")
    given = arguments.parse_args()
    where = machine()
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = resnet20_job(given.bench)
        path = Path(job["model"]["path"])
        images, _ = rows(job, "calibration")
        rival = quantize_with_ort(path, images, Path(folder))
        result["ResNet-20"] = figures(path, {"input": images[:1]}, given.seconds, rival)
        show("ResNet-20", result["ResNet-20"])
    if given.minilm:
        with np.load(given.bench / "sts" / "calibration.npz") as data:
            feeds = {name: data[name][:1].astype(np.int64) for name in ("input_ids", "attention_mask")}
        result["MiniLM"] = figures(given.minilm, feeds, given.seconds)
        show("MiniLM, one sentence of 64 tokens", result["MiniLM"])
    for path in given.model:
        rng = np.random.default_rng(0)
        specs = input_specs(path)
        feeds = {
            spec.name: rng.standard_normal([size or 1 for size in spec.shape]).astype(spec.dtype) for spec in specs
        }
        result[path.stem] = figures(path, feeds, given.seconds)
        show(path.stem, result[path.stem])
    save("graph_forms", {"machine": where, "tables": result})


if __name__ == "__main__":
    main()
