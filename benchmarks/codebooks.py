"""What codebooks gain: k-means and product quantization beside integers of as many bits, on ResNet-20 and MiniLM.

    python benchmarks/codebooks.py [--part resnet20 products tables] [--model minilm.onnx] [--only 0 3] [--no-times]

Uniform policies: on ResNet-20 all layers but the first convolution and the classifier, which have 8 bits; on MiniLM its
36 products with float tables, then its tables with float products, then both. "plain" is weighted k-means that does not
make up for errors, which no scheme has: it shows what that is worth. Calibrated without labels; metrics of the final
splits, the distance to the float model's outputs of the same rows: Kullback-Leibler divergence (in thousandths) of
logits, 1 - cosine (in thousandths) of embeddings. Speed in warm blocks in turn with float32, batch 1, one thread.
Seconds are those of the bank's entries, on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import Scheme, WeightSpec
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.lower import Lowering
from autoq.model.moments import sees_data
from autoq.model.placement import Placer
from autoq.model.source import SourceModel, read_model
from autoq.numerics.weights import quantize_weight
from autoq.runtime.data import load_split
from autoq.runtime.metric import resolve_metric
from autoq.runtime.ort import input_specs, open_session, run_batches
from autoq.spec.job import load_job

PLAIN = " plain"
RESNET20 = tuple(
    f"w{bits}a8{rounding}@mse{how}"
    for bits in (4, 2)
    for rounding, how in (
        ("", ""),
        ("-gptq", ""),
        ("-kmeans", PLAIN),
        ("-kmeans", ""),
        ("-tensor-gptq", ""),
        ("-tensor-kmeans", ""),
    )
)
WEIGHT_ONLY = ("w4-kmeans", "w2-kmeans")
PRODUCTS = tuple(f"w{bits}{how}" for bits in (4, 2) for how in ("", "-gptq", f"-kmeans{PLAIN}", "-kmeans"))
TABLES = ("w8", "w4", "w2", "w4-b32", "w2-b32", "w4-kmeans", "w2-kmeans", "w4-pq", "w2-pq")
BOTH = (("w4-gptq", "w4"), ("w4-kmeans", "w4-pq"), ("w4-kmeans", "w2-pq"), ("w2-kmeans", "w2-pq"))

Schemes = Mapping[str, str]


class Prepared:
    """A model, its statistics and a bank that is filled as schemes are asked for."""

    def __init__(self, model: SourceModel, batches: Sequence[Mapping[str, np.ndarray]], *, activations: bool) -> None:
        self.graph, self.layers = model.graph, model.layers
        tensors = Placer(self.graph, self.layers).tensors_to_calibrate() if activations else ()
        rounded = [layer for layer in self.layers if sees_data(layer, WeightSpec(bits=4, rounding="kmeans"))]
        self.statistics = calibrate(self.graph, batches, tensors=tensors, moment_layers=rounded)
        specs = [spec for text in ("w8a8@mse",) if (spec := Scheme.parse(text).activation) is not None]
        self.affines = affine_table(self.statistics.statistics, specs) if activations else {}

    def build(self, schemes: Schemes) -> tuple[bytes, float]:
        """The file of a policy by layer name, and the seconds that its entries took."""
        parsed = {name: Scheme.parse(text.removesuffix(PLAIN)) for name, text in schemes.items()}
        bank = Bank(self.graph, calibration_id="benchmark")
        wanted = [
            (layer, spec)
            for layer in self.layers
            if (spec := parsed[layer.name].weight) is not None and layer.tied_to is None
        ]
        start = time.perf_counter()
        plain = {layer.name for layer, _ in wanted if schemes[layer.name].endswith(PLAIN)}
        bank.compute([pair for pair in wanted if pair[0].name not in plain], self.statistics.moments)
        for layer, spec in wanted:
            if layer.name in plain:
                bank.add(layer, spec, self._plain(layer, spec))
        seconds = time.perf_counter() - start
        lowering = Lowering(self.graph, self.layers, self.affines, bank.entries)
        return lowering.build(lowering.canonical(Policy.of(parsed))), seconds

    def _plain(self, layer: Layer, spec: WeightSpec) -> Any:
        """Weighted k-means alone: of inputs taken to be uncoupled, none can make up for another's error."""
        weight = self.graph.constant(layer.weight)
        assert weight is not None
        moments = self.statistics.moments[layer.name]
        alone = np.stack([np.diag(np.diag(moment)) for moment in moments])
        axis = layer.channel_axis if spec.granularity == "channel" else None
        return quantize_weight(
            weight,
            bits=spec.bits,
            axis=axis,
            rounding="kmeans",
            hessian=alone,
            groups=layer.groups,
            output_axis=layer.channel_axis,
        )


def measured(
    prepared: Prepared,
    policies: Mapping[str, Schemes],
    float32: Path,
    score: Callable[[bytes], tuple[float, np.ndarray]],
    distance: Callable[[np.ndarray, np.ndarray], float],
    feeds: Mapping[str, np.ndarray] | None,
    only: Sequence[int] | None,
) -> list[dict[str, Any]]:
    """A row for each policy (or those numbered ``only``), printed once done; ``feeds`` to time with or ``None``."""
    policies = {name: one for number, (name, one) in enumerate(policies.items()) if only is None or number in only}
    base, exact = score(float32.read_bytes())
    print(f"float32: {base:.4f}\n| policy | points lost | distance | size | x float32 | s |\n|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [float32]
        for name, schemes in policies.items():
            model, seconds = prepared.build(schemes)
            metric, outputs = score(model)
            paths.append(Path(folder) / f"{len(paths)}.onnx")
            paths[-1].write_bytes(model)
            row = {"policy": name, "metric": metric, "points_lost": 100 * (base - metric), "seconds": seconds}
            row |= {"distance": distance(exact, outputs), "size": len(model) / float32.stat().st_size}
            if feeds is not None:
                blocks = harness.timed_feeds_in_turn([float32, paths[-1]], feeds, blocks=12, runs=12)
                row["speed"] = float(np.median(blocks[0] / blocks[1]))
            rows.append(row)
            print(
                f"| {name} | {row['points_lost']:+.2f} | {row['distance']:.1f} | {row['size']:.4f} "
                f"| {row.get('speed', 0):.2f} | {seconds:.0f} |",
                flush=True,
            )
    return rows


def divergence(exact: np.ndarray, found: np.ndarray) -> float:
    """Of the softmax of ``found`` from that of ``exact``, in thousandths."""
    p, q = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) for logits in (exact, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean()) * 1000


def cosine(exact: np.ndarray, found: np.ndarray) -> float:
    """1 - cosine of rows of length 1, in thousandths."""
    return float(1 - (exact * found).sum(axis=1).mean()) * 1000


def resnet20(bench: Path, times: bool, only: Sequence[int] | None) -> list[dict[str, Any]]:
    """4 and 2 bits under each rounding."""
    job = harness.resnet20_job(bench)
    path = Path(job["model"]["path"])
    model = read_model(path)
    images = harness.rows(job, "calibration")[0]
    name = model.graph.inputs[0]
    batches = [{name: images[i : i + 32]} for i in range(0, len(images), 32)]
    prepared = Prepared(model, batches, activations=True)
    x, labels = harness.rows(job, "final")
    ends = {model.layers[0].name, model.layers[-1].name}

    def score(candidate: bytes) -> tuple[float, np.ndarray]:
        opened = open_session(candidate)
        logits = np.concatenate([opened.run(None, {name: x[i : i + 200]})[0] for i in range(0, len(x), 200)])
        return float((logits.argmax(axis=1) == labels).mean()), logits

    policies = {"w8a8@mse": {layer.name: "w8a8@mse" for layer in model.layers}}
    for text in (*RESNET20, *WEIGHT_ONLY):
        end = "w8a8@mse" if "a8" in text else "w8"
        policies[text] = {layer.name: end if layer.name in ends else text for layer in model.layers}
    return measured(prepared, policies, path, score, divergence, {name: x[:1]} if times else None, only)


def minilm(
    bench: Path, path: Path, parts: Sequence[str], times: bool, only: Sequence[int] | None
) -> list[dict[str, Any]]:
    """The products, the tables, or both."""
    job = load_job(harness.sts_job(bench, path), bench)
    model, specs, metric = read_model(job.model_path), input_specs(open_session(job.model_path)), resolve_metric(job)
    calibration, final = (load_split(job, which, specs) for which in ("calibration", "final"))
    prepared = Prepared(model, list(calibration.batches(32)), activations=False)

    def score(candidate: bytes) -> tuple[float, np.ndarray]:
        outputs = run_batches(open_session(candidate), final.inputs, job.data.batch)
        return metric(outputs, final.targets), next(iter(outputs.values()))

    def uniform(products: str, tables: str) -> Schemes:
        # A table of a few rows has no codes.
        return {
            layer.name: products if layer.op_type != "Gather" else "w8" if layer.weight_shape[0] < 1024 else tables
            for layer in model.layers
        }

    pairs = [(text, "float32") for text in PRODUCTS] if "products" in parts else []
    pairs += [("float32", text) for text in TABLES] + list(BOTH) if "tables" in parts else []
    policies = {f"products {products}, table {tables}": uniform(products, tables) for products, tables in pairs}
    feeds = {name: values[:1] for name, values in final.inputs.items()}
    return measured(prepared, policies, job.model_path, score, cosine, feeds if times else None, only)


def main() -> None:
    """Prints the tables."""
    parser = harness.parser(__doc__)
    parts = ("resnet20", "products", "tables")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--model", type=Path, default=harness.ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the policies to do, from 0")
    parser.add_argument("--no-times", action="store_true", help="leave out speed")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": harness.machine()}
    if "resnet20" in given.part:
        found["resnet20"] = resnet20(given.bench, not given.no_times, given.only)
    if set(given.part) & {"products", "tables"}:
        found["minilm"] = minilm(given.bench, given.model, given.part, not given.no_times, given.only)
    harness.save("_".join(["codebooks", *(given.part if len(given.part) < len(parts) else ())]), found)


if __name__ == "__main__":
    main()
