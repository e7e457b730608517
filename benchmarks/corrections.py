"""Where corrections help: biases, equalization, smoothing, clipping, and padding left out of calibration.

    python benchmarks/corrections.py [--only bias equalization smoothing clipping padding form] [--bench DIR]

Uniform policies on ResNet-20, on the MobileNetV3-style network of ``mobile_nets.py`` (trained at the first call) and on
all-MiniLM-L6-v2 (``--minilm``), each with and without the correction: the metric on the final split, which nothing was
calibrated or chosen on, and the noise power of the outputs relative to float32's, which tells more than a metric near
its ceiling. ``form`` times the ways in which a smoothed input can be written. ``--rows`` are those calibrated on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import OUT, ROOT, machine, parser, resnet20_job, save, sts_job, timed_in_turn
from onnx import TensorProto, helper, numpy_helper

# Section -> (model, what stands against what: (label, space's equalization, padding mask, schemes)).
BIAS = (
    "w4",
    "w4-bc",
    "w4-bca",
    "w4-tensor",
    "w4-tensor-bc",
    "w4-tensor-bca",
    "w2-gptq",
    "w2-gptq-bc",
    "w4a8@minmax",
    "w4a8-bc@minmax",
)
EQUALIZED = ("w8-tensor", "w4-tensor", "w8a8-tensor@minmax", "w4a8-tensor@mse", "w8a8@mse")
CLIPPING = tuple(
    f"w8a8@{method}" for method in ("minmax", "ema", "percentile99.9", "percentile99.99", "entropy", "mse")
)
SMOOTH = ("w8a8@minmax", *(f"w8a8-smooth{strength}@minmax" for strength in (0.3, 0.5, 0.7)),
          "w8a8@mse", *(f"w8a8-smooth{strength}@mse" for strength in (0.3, 0.5, 0.7)))  # fmt: skip
SECTIONS: dict[str, list[tuple[str, str, bool, bool, Sequence[str]]]] = {
    "bias": [
        ("ResNet-20", "", False, True, (*BIAS, "w2a8-gptq@minmax", "w2a8-gptq-bc@minmax")),
        ("ResNet-20, batch norms kept", "", False, True, ("w4", "w4-bc", "w4-bca", "w4-tensor", "w4-tensor-bca")),
        ("MobileNetV3-style", "", False, True, BIAS),
        ("MiniLM", "", False, True, ("w4", "w4-bc", "w8a8@mse", "w8a8-bc@mse")),
    ],
    "equalization": [
        (model, kind, kind != "", True, EQUALIZED)
        for model in ("ResNet-20", "MobileNetV3-style")
        for kind in ("", "cross-layer")
    ],
    "smoothing": [("MiniLM", "", False, True, SMOOTH)],
    "clipping": [(model, "", False, True, CLIPPING) for model in ("ResNet-20", "MobileNetV3-style", "MiniLM")],
    "padding": [
        ("MiniLM", label, False, masked, ("w4-bc", "w8a8@minmax", "w8a8@percentile99.99", "w8a8@mse"))
        for label, masked in (("counted", False), ("left out", True))
    ],
}


def jobs(bench: Path, minilm: Path) -> dict[str, Any]:
    """Model -> a function that makes its job."""

    def mobile() -> dict[str, Any]:
        from mobile_nets import trained

        job = resnet20_job(bench)
        job["model"]["path"] = str(trained(bench))
        return job

    def normed() -> dict[str, Any]:
        job = resnet20_job(bench)
        job["model"]["path"] = str(with_batch_norms(Path(job["model"]["path"])))
        return job

    return {
        "ResNet-20, batch norms kept": normed,
        "ResNet-20": lambda: resnet20_job(bench),
        "MobileNetV3-style": mobile,
        "MiniLM": lambda: sts_job(bench, minilm),
    }


def with_batch_norms(path: Path) -> Path:
    """The network as its exporter found it: batch norms as nodes of their own, from the ``.pt`` beside the file."""
    import torch

    model, state = onnx.load(path), torch.load(path.with_suffix(".pt"), weights_only=True)
    state = {name: value.numpy() for name, value in state.items()}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        name = node.input[1].removesuffix(".weight") if node.op_type == "Conv" else ""
        norm = name.replace("conv", "bn")
        nodes.append(node)
        if f"{norm}.running_mean" not in state or not name:
            continue
        constants[f"{name}.weight"].CopyFrom(numpy_helper.from_array(state[f"{name}.weight"], f"{name}.weight"))
        del node.input[2:]
        target, node.output[0] = node.output[0], f"{node.output[0]}_plain"
        parts = []
        for part in ("weight", "bias", "running_mean", "running_var"):
            parts.append(f"{norm}.{part}.kept")
            model.graph.initializer.append(numpy_helper.from_array(state[f"{norm}.{part}"], parts[-1]))
        nodes.append(helper.make_node("BatchNormalization", [node.output[0], *parts], [target], norm))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    OUT.mkdir(parents=True, exist_ok=True)
    found = OUT / "resnet20-bn.onnx"
    onnx.save(model, found)
    return found


def measured(values: Mapping[str, Any], texts: Sequence[str], *, equalized: bool, masked: bool, rows: int) -> list[Any]:
    """A row for float32 and for each uniform policy: metric and noise on the final split."""
    from autoq.core.policy import Policy
    from autoq.core.scheme import Scheme
    from autoq.model.bank import default_cache_dir
    from autoq.model.source import read_model
    from autoq.runtime.data import Split, load_split
    from autoq.runtime.metric import resolve_metric
    from autoq.runtime.ort import input_specs, open_session, run_batches
    from autoq.search.candidates import all_candidates
    from autoq.search.groundwork import lay_groundwork
    from autoq.spec.hardware import load_profile
    from autoq.spec.job import load_job
    from autoq.spec.space import Space

    job = load_job(dict(values), ROOT)
    model, metric = read_model(job.model_path, equalized=equalized), resolve_metric(job)
    specs = input_specs(open_session(job.model_path))
    schemes = tuple(map(Scheme.parse, ("float32", *texts)))
    space = Space(name="corrections", description="", schemes=schemes, rules=(), seeds=schemes)
    found = all_candidates(model.graph, model.layers, space, load_profile("cpu-x86-onnxruntime", ROOT), model.opset)
    loaded = load_split(job, "calibration", specs)
    calibration = Split(inputs={name: array[:rows] for name, array in loaded.inputs.items()}, targets=None)
    mask = "attention_mask" if masked and any(spec.name == "attention_mask" for spec in specs) else None
    lowering = lay_groundwork(model, found, calibration, specs, cache_dir=default_cache_dir(), padding_mask=mask)
    final = load_split(job, "final", specs)

    def score(file: bytes | Path) -> tuple[float, np.ndarray]:
        outputs = run_batches(open_session(file), final.inputs, job.data.batch)
        return metric(outputs, final.targets), np.concatenate([v.reshape(len(v), -1) for v in outputs.values()], 1)

    base, exact = score(job.model_path)
    table = [{"scheme": "float32", "metric": base, "noise": 0.0}]
    for scheme, text in zip(schemes[1:], texts, strict=True):
        policy = {entry.layer.name: stand_in(entry, scheme) for entry in found}
        value, outputs = score(lowering.build(lowering.canonical(Policy.of(policy))))
        noise = float(np.square(outputs - exact).mean() / np.square(exact).mean())
        table.append({"scheme": text, "metric": value, "noise": noise})
    return table


def stand_in(entry: Any, scheme: Any) -> Any:
    """The scheme, what the layer has in its place, or float32."""
    wanted = dict(entry.replaced).get(scheme, scheme)
    return wanted if wanted in entry.schemes else entry.schemes[0]


def product(form: str, inputs: int, outputs: int) -> bytes:
    """LayerNormalization and a quantized product whose input is smoothed in one of three forms; 64 rows."""
    rng, constants, nodes = np.random.default_rng(0), [], []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    scales = np.exp(rng.standard_normal(inputs)).astype(np.float32)
    norm = [constant("g", np.ones(inputs, np.float32)), constant("b", np.zeros(inputs, np.float32))]
    nodes.append(helper.make_node("LayerNormalization", ["x", *norm], ["n"], axis=-1))
    source, step, zero, attributes = "n", np.float32(0.02), np.uint8(128), {}
    if form == "Mul":
        nodes.append(helper.make_node("Mul", ["n", constant("f", 1 / scales)], ["m"]))
        source = "m"
    if form == "scales by channel":
        step, zero, attributes = step * scales, np.full(inputs, 128, np.uint8), {"axis": -1}
    pair = [constant("s", step), constant("z", zero)]
    nodes.append(helper.make_node("QuantizeLinear", [source, *pair], ["q"], **attributes))
    back = [constant("s1", np.float32(0.02)), constant("z1", np.uint8(128))]
    nodes.append(helper.make_node("DequantizeLinear", ["q", *back], ["d"]))
    stored = [
        constant("w", rng.integers(-127, 128, (inputs, outputs)).astype(np.int8)),
        constant("ws", np.full(outputs, 0.01, np.float32)),
        constant("wz", np.zeros(outputs, np.int8)),
    ]
    nodes.append(helper.make_node("DequantizeLinear", stored, ["wd"], axis=1))
    nodes.append(helper.make_node("MatMul", ["d", "wd"], ["y"]))
    graph = helper.make_graph(
        nodes, "smoothed", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, outputs])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def form_times() -> list[dict[str, Any]]:
    """Times of the forms relative to the unsmoothed product, in turn."""
    forms, table = ("none", "Mul", "scales by channel"), []
    with tempfile.TemporaryDirectory() as folder:
        for inputs, outputs in ((384, 384), (384, 1536), (1536, 384)):
            paths = [Path(folder) / f"{number}.onnx" for number in range(len(forms))]
            for path, form in zip(paths, forms, strict=True):
                path.write_bytes(product(form, inputs, outputs))
            feed = np.random.default_rng(1).standard_normal((1, 64, inputs)).astype(np.float32)
            seconds = timed_in_turn(paths, feed, blocks=20, runs=30)
            ratios = np.median(seconds / seconds[0], axis=1)
            table.append({"shape": f"{inputs} x {outputs}", **dict(zip(forms, map(float, ratios), strict=True))})
    return table


def main() -> None:
    """Prints the tables."""
    made = parser(__doc__)
    made.add_argument("--only", nargs="*", choices=[*SECTIONS, "form"], help="sections to do")
    made.add_argument("--minilm", type=Path, default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    made.add_argument("--models", nargs="*", help="models to do [default: all whose files are there]")
    made.add_argument("--rows", type=int, default=512)
    given = made.parse_args()
    result: dict[str, Any] = {"rows": given.rows}
    for section in given.only or [*SECTIONS, "form"]:
        if section == "form":
            result["form"] = form_times()
            print("\n## form, time relative to an input that is not smoothed")
            for row in result["form"]:
                print(
                    " ".join(
                        f"{key} {value if isinstance(value, str) else f'{value:.2f}'};" for key, value in row.items()
                    )
                )
            continue
        print(f"\n## {section}\n| model | | scheme | metric | noise |\n|---|---|---|---|---|")
        for model, label, equalized, masked, texts in SECTIONS[section]:
            if given.models and model not in given.models:
                continue
            if model == "MiniLM" and not given.minilm.is_file():
                print(f"| {model} | no {given.minilm} | | | |")
                continue
            table = measured(
                jobs(given.bench, given.minilm)[model](), texts, equalized=equalized, masked=masked, rows=given.rows
            )
            result.setdefault(section, []).append({"model": model, "label": label, "table": table})
            for row in table:
                print(
                    f"| {model} | {label} | `{row['scheme']}` | {row['metric']:.4f} | {row['noise']:.5f} |", flush=True
                )
    save("corrections", {**result, **machine()})


if __name__ == "__main__":
    main()
