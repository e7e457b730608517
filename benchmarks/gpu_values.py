"""What files for GPUs compute, found out without one: ResNet-20 for TensorRT, MiniLM in PyTorch's kernels.

    python benchmarks/gpu_values.py [--model minilm.onnx] [--rows 300] [--only resnet20|minilm] [--bench DIR]

ResNet-20: top-1 of uniform policies, of the candidate in stock ONNX Runtime and of its file in TensorRT's
explicit-quantization form, with every node as it is written; in how many images that gives the same answer as the
candidate does so, and as it does in stock ONNX Runtime, whose integer kernels round in places of their own; and how
many of TensorRT's rules the file breaks. MiniLM: Spearman's rank correlation on sentence pairs of which nothing was
calibrated or chosen, and the least cosine between a sentence's embedding and float32's, in PyTorch on the CPU: the
functions that a GPU would run. No speed: a CPU has none of the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from harness import ROOT, machine, parser, resnet20_job, save, sts_job

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.bank import default_cache_dir
from autoq.model.lower import Lowering
from autoq.model.source import read_model
from autoq.model.target import Target
from autoq.model.tensorrt_check import tensorrt_problems
from autoq.runtime.data import load_split
from autoq.runtime.metric import resolve_metric
from autoq.runtime.ort import input_specs, open_session
from autoq.search.candidates import Candidates
from autoq.search.groundwork import lay_groundwork
from autoq.spec.job import Job, load_job

RESNET20 = ("float32", "w8a8-s8@minmax", "w8a8-s8@percentile99.99", "w8a8-s8@mse")
MINILM = ("float32", "bf16", "fp8", "w8a8@mse", "w8a8@dynamic", "w4-b128-gptq", "w4-b32-gptq")


def prepared(job: Job, texts: Sequence[str]) -> tuple[Lowering, Any]:
    """Everything laid out for each of ``texts`` on all layers but tables of embeddings; and what the model is fed."""
    model, specs = read_model(job.model_path), input_specs(open_session(job.model_path))
    schemes = tuple(map(Scheme.parse, texts))
    found = [
        Candidates(layer=layer, schemes=schemes if layer.op_type != "Gather" else schemes[:1]) for layer in model.layers
    ]
    calibration = load_split(job, "calibration", specs)
    lowering = lay_groundwork(model, found, calibration, specs, cache_dir=default_cache_dir(), forms=(), step=print)
    return lowering, specs


def uniform(lowering: Lowering, text: str) -> bytes:
    """The candidate with one scheme on all layers but tables of embeddings."""
    schemes = {each.name: Scheme.parse("float32" if each.op_type == "Gather" else text) for each in lowering.layers}
    return lowering.build(lowering.canonical(Policy.of(schemes)))


def resnet20(job: Job) -> list[dict[str, Any]]:
    """Prints the table of TensorRT's form."""
    lowering, specs = prepared(job, RESNET20)
    final, tensorrt = load_split(job, "final", specs), Target.load("tensorrt", {"scored_on": "cpu"})
    stock, written = (Target.load("onnxruntime", {"optimized": each}) for each in (True, False))
    rows = []
    print(
        f"\nResNet-20, {final.rows} images\n| policy | candidate | for TensorRT | same as written | as stock | broken |"
    )
    print("|---|---|---|---|---|---|")
    for text in RESNET20:
        candidate = uniform(lowering, text)
        file = tensorrt.write(candidate)
        runs = ((stock, candidate), (written, candidate), (tensorrt, file))
        logits = [next(iter(each.outputs(model, final.inputs, 100).values())) for each, model in runs]
        first, plain, second = (each.argmax(-1) for each in logits)
        row = {
            "policy": text,
            "top1": float((first == final.targets).mean()),
            "top1_tensorrt": float((second == final.targets).mean()),
            "same_as_written": float((plain == second).mean()),
            "same_as_stock": float((first == second).mean()),
            "largest_difference": float(abs(logits[1] - logits[2]).max()),
            "broken": len(tensorrt_problems(onnx.load_from_string(file))),
        }
        rows.append(row)
        shares = " | ".join(f"{100 * row[name]:.2f} %" for name in ("same_as_written", "same_as_stock"))
        print(f"| `{text}` | {row['top1']:.4f} | {row['top1_tensorrt']:.4f} | {shares} | {row['broken']} |", flush=True)
    return rows


def minilm(job: Job, count: int) -> list[dict[str, Any]]:
    """Prints the table of PyTorch's kernels."""
    lowering, specs = prepared(job, MINILM)
    lowering.accuracy_level = 3
    metric, final, target = (
        resolve_metric(job),
        load_split(job, "final", specs),
        Target.load("torch", {"device": "cpu"}),
    )
    inputs = {name: values[:count] for name, values in final.inputs.items()}
    assert final.targets is not None
    rows = []
    base = None
    print(f"\nMiniLM, the first {count} rows\n| policy | Spearman | farthest embedding | MB |\n|---|---|---|---|")
    for text in MINILM:
        file = target.write(uniform(lowering, text))
        outputs = target.outputs(file, inputs, 50)
        value, (embeddings,) = metric(outputs, final.targets[:count]), outputs.values()
        base = embeddings if base is None else base
        cosine = float((base * embeddings).sum(-1).min())  # both have length 1
        rows.append({"policy": text, "spearman": value, "least_cosine": cosine, "bytes": len(file)})
        print(f"| `{text}` | {value:.4f} | {cosine:.4f} | {len(file) / 1e6:.1f} |", flush=True)
    return rows


def main() -> None:
    """Both tables."""
    made = parser(__doc__)
    made.add_argument("--model", type=type(ROOT), default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    made.add_argument("--rows", type=int, default=300)
    made.add_argument("--only", choices=("resnet20", "minilm"))
    given = made.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    if given.only != "minilm":
        result["resnet20"] = resnet20(load_job(resnet20_job(given.bench), given.bench))
    if given.only != "resnet20":
        result["minilm"] = minilm(load_job(sts_job(given.bench, given.model), given.bench), given.rows)
    save("gpu_values", result)


if __name__ == "__main__":
    main()
