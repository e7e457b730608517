"""What each rounding of weights loses on ResNet-20: nearest, GPTQ, AdaRound, GPTAQ, BRECQ at 4 and 2 bits, ends at 8.

    python benchmarks/rounding.py [--bench DIR] [--bits 4 2]

Uniform policies but for the first convolution and the classifier, which have 8 bits. Calibrated on the first 512 images
of train.npz, without labels; top-1 on the second half of val.npz, and Kullback-Leibler divergence (in thousandths) to
the float model's outputs on all of it, on stock ONNX Runtime, with float activations and with 8-bit ones. Seconds are
those of the bank's entries at these bits, on one thread.

Then mixed policies, weights alone, on the search split: the divergence under GPTQ and under GPTAQ, whose entries are
fitted to inputs that layers of as few bits have disturbed, of random policies and of single layers among 8-bit ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import BY_BLOCK, Scheme, WeightSpec
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.lower import Lowering
from autoq.model.placement import Placer
from autoq.model.reconstruct import reconstruct
from autoq.model.source import read_model
from autoq.runtime.ort import open_session

ROUNDINGS = ("nearest", "gptq", "adaround", "gptaq", "brecq")


def outputs(model: bytes, x: np.ndarray) -> np.ndarray:
    opened = open_session(model)
    name = opened.get_inputs()[0].name
    return np.concatenate([opened.run(None, {name: x[i : i + 200]})[0] for i in range(0, len(x), 200)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def divergence(exact: np.ndarray, found: np.ndarray) -> float:
    p, q = log_softmax(exact), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(1).mean()) * 1000


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    arguments = parser.parse_args()
    job = harness.resnet20_job(arguments.bench)
    model = read_model(Path(job["model"]["path"]))
    graph, layers = model.graph, model.layers
    ends = {layers[0].name, layers[-1].name}
    calibration = harness.rows(job, "calibration")[0]
    splits = [harness.rows(job, name) for name in ("search", "final")]
    x, labels = np.concatenate([split[0] for split in splits]), splits[1][1]
    name = graph.inputs[0]
    batches = [{name: calibration[i : i + 32]} for i in range(0, len(calibration), 32)]
    statistics = calibrate(graph, batches, tensors=Placer(graph, layers).tensors_to_calibrate(), moment_layers=layers)
    activation = Scheme.parse("w8a8@mse").activation
    assert activation is not None
    affines = affine_table(statistics.statistics, [activation])
    exact = outputs(graph.model.SerializeToString(), x)
    half = len(splits[0][0])
    own = float((exact[half:].argmax(1) == labels).mean())
    print(f"float32: {own:.4f}\n{'':18}  s   top-1   lost    KL |  a8: top-1   lost    KL")
    table = []
    for bits in arguments.bits:
        for rounding in ROUNDINGS:
            specs = {layer.name: _spec(layer, 8 if layer.name in ends else bits, rounding) for layer in layers}
            bank = Bank(graph, calibration_id="benchmark")
            started = time.perf_counter()
            if rounding in BY_BLOCK:
                middle = [layer for layer in layers if layer.name not in ends]
                entries = reconstruct(graph, layers, [one.name for one in middle], specs[middle[0].name], batches)
                for layer in middle:
                    bank.add(layer, specs[layer.name], entries[layer.name])
            missing = bank.read_cache([(layer, specs[layer.name]) for layer in layers])
            bank.compute(missing, statistics.moments)
            row = {"bits": bits, "rounding": rounding, "seconds": time.perf_counter() - started}
            for kind, choice in (("float", None), ("a8", activation)):
                policy = Policy.of({one.name: Scheme(weight=specs[one.name], activation=choice) for one in layers})
                lowering = Lowering(graph, layers, affines, bank.entries)
                found = outputs(lowering.build(lowering.canonical(policy)), x)
                row[f"{kind} top-1"] = float((found[half:].argmax(1) == labels).mean())
                row[f"{kind} KL"] = divergence(exact, found)
            table.append(row)
            figures = [
                f"{row[f'{kind} top-1']:.4f} {100 * (own - row[f'{kind} top-1']):6.2f} {row[f'{kind} KL']:6.1f}"
                for kind in ("float", "a8")
            ]
            print(f"w{bits} {rounding:10} {row['seconds']:7.1f}  {figures[0]} |      {figures[1]}", flush=True)
    found = mixed(graph, layers, batches, statistics.moments, splits[0][0])
    harness.save("rounding", {"float32": own, "rows": table, "mixed": found, "machine": harness.machine()})


def mixed(
    graph: Graph, layers: Sequence[Layer], batches: Sequence[Mapping[str, np.ndarray]], moments: Any, x: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each policy: mean bits, and the divergence under both roundings."""
    bank, finest = Bank(graph, calibration_id="benchmark"), WeightSpec(bits=8)
    bank.compute([(layer, finest) for layer in layers], moments)
    for bits in (2, 4):
        bank.compute([(layer, _spec(layer, bits, "gptq")) for layer in layers], moments)
        spec = _spec(layers[0], bits, "gptaq")
        entries = reconstruct(graph, layers, [layer.name for layer in layers], spec, batches)
        for layer in layers:
            bank.add(layer, spec, entries[layer.name])
    lowering = Lowering(graph, layers, {}, bank.entries)
    exact, rng, inner = outputs(graph.model.SerializeToString(), x), np.random.default_rng(0), len(layers) - 2
    choices = [
        ("random", [8, *rng.choice([2, 4, 8], size=inner, p=p), 8])
        for p in ([0.1, 0.3, 0.6], [1 / 3] * 3, [0.6, 0.3, 0.1])
        for _ in range(6)
    ]
    choices += [
        ("one layer", [8] * at + [bits] + [8] * (inner + 1 - at)) for bits in (4, 2) for at in range(1, inner + 1, 4)
    ]
    rows = []
    print("\n| policy | mean bits | GPTQ | GPTAQ | ratio |\n|---|---|---|---|---|")
    for kind, bits in choices:
        row: dict[str, Any] = {"kind": kind, "bits": float(np.mean(bits))}
        for rounding in ("gptq", "gptaq"):
            specs = [finest if b == 8 else _spec(layers[0], int(b), rounding) for b in bits]
            policy = Policy.of({each.name: Scheme(weight=spec) for each, spec in zip(layers, specs, strict=True)})
            row[rounding] = divergence(exact, outputs(lowering.build(lowering.canonical(policy)), x))
        rows.append(row)
        ratio = row["gptaq"] / row["gptq"]
        print(f"| {kind} | {row['bits']:.2f} | {row['gptq']:.1f} | {row['gptaq']:.1f} | {ratio:.2f} |", flush=True)
    return rows


def _spec(layer: Layer, bits: int, rounding: str) -> WeightSpec:
    # The ends are the same in every row.
    return WeightSpec(bits=bits, rounding="gptq" if bits == 8 else rounding)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
