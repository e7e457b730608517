"""How fast products and a whole encoder run in each scheme on an NVIDIA GPU, with PyTorch: figures of docs/gpu.md.

    python benchmarks/gpu_torch.py [--device cpu] [--mode graph|compile|eager] [--layers 6] [--quick]

Single products, a bias behind each, and an encoder of MiniLM's shape (6 layers of 384, 12 heads, 64 tokens) with random
weights, by rows. Times are medians by CUDA's events, in blocks in turn with float32 (no TF32), which the ratios are to
(less is better). Memory is the peak of what tensors take. Without a GPU it says so; ``--device cpu`` runs it all the
same, to show that it runs: its times are of no use, since a CPU has none of these kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from harness import machine, save
from lowered_forms import one_layer
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import AutoqError
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.model.torch_runtime import MODES, TorchRuntime, device_problem
from autoq.runtime.timing import TimingPlan, time_sitting
from autoq.search.candidates import Candidates, activation_specs, weight_specs

SCHEMES = ("float32", "bf16", "fp16", "fp8", "w8a8@minmax", "w8a8@dynamic", "w4-b128", "w8-b128")
SHAPES = ((384, 384), (384, 1536), (1536, 384), (4096, 4096))
ROWS = (1, 64, 4096)
BATCHES = (1, 64)


def candidates(model: onnx.ModelProto, x: np.ndarray) -> dict[str, bytes]:
    """Scheme -> the candidate that has it everywhere; ranges from ``x``, weights rounded to nearest."""
    prepared = prepare(model)
    graph = Graph(prepared.model, norms=prepared.norms)
    layers = read_layers(graph)
    schemes = tuple(map(Scheme.parse, SCHEMES))
    found = [Candidates(layer=layer, schemes=schemes) for layer in layers]
    statistics = calibrate(graph, [{"x": x}], tensors=Placer(graph, layers).tensors_to_calibrate())
    bank = Bank(graph, calibration_id="")
    bank.compute(weight_specs(found), {})
    table = affine_table(statistics.statistics, activation_specs(found))
    lowering = Lowering(graph, layers, table, bank.entries, accuracy_level=3)
    names = [layer.name for layer in layers]
    return {str(each): lowering.build(lowering.canonical(Policy.uniform(names, each))) for each in schemes}


def encoder(layers: int, width: int = 384, heads: int = 12, tokens: int = 64) -> onnx.ModelProto:
    """Post-norm Transformer layers on ``x`` [n, tokens, width], weights at random."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def constant(value: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(value, f"c{len(tensors)}"))
        return tensors[-1].name

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], f"{op}{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def linear(x: str, rows: int, columns: int) -> str:
        weight = constant((rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32))
        return add("Add", add("MatMul", x, weight), constant(np.zeros(columns, np.float32)))

    def norm(x: str) -> str:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return add("LayerNormalization", x, constant(ones), constant(zeros))

    x = "x"
    split = constant(np.array([0, tokens, heads, width // heads], np.int64))
    join = constant(np.array([0, tokens, width], np.int64))
    for _ in range(layers):
        orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (add("Transpose", add("Reshape", linear(x, width, width), split), perm=order) for order in orders)
        scaled = add("Mul", add("MatMul", q, k), constant(np.float32((width // heads) ** -0.5)))
        mixed = add("MatMul", add("Softmax", scaled, axis=-1), v)
        mixed = add("Reshape", add("Transpose", mixed, perm=[0, 2, 1, 3]), join)
        x = norm(add("Add", linear(mixed, width, width), x))
        x = norm(add("Add", linear(add("Gelu", linear(x, width, 4 * width)), 4 * width, width), x))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", tokens, width]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "encoder", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measured(runtime: TorchRuntime, models: Mapping[str, bytes], x: np.ndarray, plan: TimingPlan) -> dict[str, Any]:
    """Scheme -> milliseconds, the ratio to float32, the peak of memory, or why there is none."""
    base = runtime.open(models["float32"])
    found: dict[str, Any] = {}
    for name, model in models.items():
        try:
            session = runtime.open(model)
            memory = runtime.peak_growth_bytes(lambda session=session: runtime.step(session, {"x": x})())
            steps = [runtime.step(base, {"x": x}), runtime.step(session, {"x": x})]
            blocks = time_sitting(steps, plan, setup_s=2.0).blocks_ms  # long enough for all of the plan's rounds
        except AutoqError as error:
            found[name] = {"problem": str(error)}
            continue
        ratio = float(np.median(np.divide(blocks[1], blocks[0])))
        found[name] = {"ms": float(np.median(blocks[1])), "ratio": ratio, "memory_mb": memory / 1e6}
    return found


def cell(figure: Mapping[str, Any]) -> str:
    """Milliseconds and the ratio, for a table."""
    return figure["problem"][:40] if "problem" in figure else f"{figure['ms']:.4f} ({figure['ratio']:.2f})"


def table(title: str, columns: Sequence[str], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a row for each scheme; ``found`` is column -> scheme -> figure."""
    print(f"\n{title}\n| scheme | {' | '.join(columns)} |\n|---|" + "---|" * len(columns), flush=True)
    for name in SCHEMES:
        print(f"| `{name}` | {' | '.join(cell(found[column][name]) for column in columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--mode", default="graph", choices=MODES)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="one shape, few rows, short blocks: does it run?")
    given = parser.parse_args()
    if problem := device_problem(given.device):
        sys.exit(f"nothing measured: {problem}")
    runtime = TorchRuntime(device=given.device, mode=given.mode)
    plan = TimingPlan(block_s=0.002, max_rounds=2) if given.quick else TimingPlan(max_rounds=12)
    shapes, rows, batches = (SHAPES[:1], (64,), (1,)) if given.quick else (SHAPES, ROWS, BATCHES)
    rng, result = np.random.default_rng(1), {"machine": machine(), "device": given.device, "mode": given.mode}
    result["torch"] = torch.__version__
    if given.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
        print(f"{result['gpu']}, PyTorch {torch.__version__}, mode {given.mode}; milliseconds (of float32's)")
    else:
        print("on a CPU, to show that it runs; these are no figures of a GPU")
    result["products"] = {}
    for shape in shapes:
        sample = rng.standard_normal((1, max(rows), shape[0])).astype(np.float32)
        models = candidates(one_layer("MatMul", ("n", "rows", shape[0]), shape), sample)
        found = {f"{count} rows": measured(runtime, models, sample[:, :count], plan) for count in rows}
        table(f"MatMul {shape[0]} x {shape[1]}", list(found), found)
        result["products"]["x".join(map(str, shape))] = found
    sample = rng.standard_normal((max(batches), 64, 384)).astype(np.float32)
    models = candidates(encoder(given.layers), sample)
    found = {f"batch {count}": measured(runtime, models, sample[:count], plan) for count in batches}
    table(f"encoder, {given.layers} layers, 64 tokens", list(found), found)
    result["encoder"] = found
    save(f"gpu_torch_{given.device}_{given.mode}", result)


if __name__ == "__main__":
    main()
