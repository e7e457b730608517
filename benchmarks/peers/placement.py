"""Where Q/DQ pairs are left, beside ONNX Runtime's own quantizer and NNCF: the same models, the same calibration rows.

    python benchmarks/peers/placement.py [--minilm MODEL.onnx] [--bench DIR]

Each tool makes a static 8-bit file as its documentation has it: autoq a uniform ``w8a8@minmax``; ``quantize_static``
QDQ, uint8 activations, int8 weights per channel; ``nncf.quantize`` with its defaults, in an environment of its
own, made here on the first run. From the graph that ONNX Runtime makes of a file: how
many QuantizeLinear and DequantizeLinear nodes run, and how many of the layers run in an integer kernel. autoq's pairs
are also audited (autoq/runtime/pairs.py). Speed is float32's time / the file's, batch 1, 1 thread, warm blocks in turn.

Models: ResNet-20, the MobileNetV3-style network, and those of benchmarks/mobile_nets.py with random weights; MiniLM
where its file is given, and there autoq alone: the rivals' calibrators keep every tensor of all rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROWS = 128


# Run by NNCF's own Python --------------------------------------------------------------------------------------------


def quantize_with_nncf(folder: Path) -> None:
    """Quantizes each task of ``folder``; needs nothing of autoq."""
    import nncf
    import numpy as np
    import onnx

    for task in json.loads((folder / "tasks.json").read_text()):
        with np.load(task["data"]) as data:
            feeds = dict(data)
        rows = len(next(iter(feeds.values())))
        samples = [{name: values[i : i + 1] for name, values in feeds.items()} for i in range(rows)]
        made = nncf.quantize(onnx.load(task["model"]), nncf.Dataset(samples), subset_size=rows)
        onnx.save(made, task["target"])


# Run by autoq's Python -----------------------------------------------------------------------------------------------


def quantize_with_ort(model: Path, feeds: dict[str, Any], target: Path) -> None:
    """ONNX Runtime's own static quantizer, as its documentation has it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = len(next(iter(feeds.values())))

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Any]] = iter(
                {name: values[i : i + 32] for name, values in feeds.items()} for i in range(0, rows, 32)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(target), Rows(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip


def quantize_with_autoq(model: Path, feeds: dict[str, Any], target: Path, mixtures: int) -> tuple[list[Any], list[Any]]:
    """A uniform ``w8a8@minmax``; gives back the pairs left of it, and of random mixtures with float32."""
    import numpy as np

    from autoq.core.policy import Policy
    from autoq.core.scheme import FLOAT32, Scheme
    from autoq.model.bank import Bank
    from autoq.model.calibrate import affine_table, calibrate
    from autoq.model.graph import Graph
    from autoq.model.layers import read_layers
    from autoq.model.load import load_model
    from autoq.model.lower import Lowering
    from autoq.model.placement import Placer
    from autoq.model.prepare import prepare
    from autoq.runtime.executed import LayerNames
    from autoq.runtime.pairs import left_pairs
    from autoq.search.candidates import Candidates, activation_specs, weight_specs

    graph = Graph(prepare(load_model(model).model).model)
    layers, wanted = read_layers(graph), Scheme.parse("w8a8@minmax")
    uniform = {layer.name: FLOAT32 if layer.integer_problem else wanted for layer in layers}
    found = [Candidates(layer=layer, schemes=(uniform[layer.name],)) for layer in layers]
    placer = Placer(graph, layers)
    rows = len(next(iter(feeds.values())))
    batches = [{name: values[i : i + 32] for name, values in feeds.items()} for i in range(0, rows, 32)]
    statistics = calibrate(graph, batches, tensors=placer.tensors_to_calibrate())
    bank = Bank(graph, calibration_id="")
    bank.compute(weight_specs(found), {})
    lowering = Lowering(graph, layers, affine_table(statistics.statistics, activation_specs(found)), bank.entries)

    def audited(chosen: dict[str, Scheme]) -> tuple[bytes, list[Any]]:
        policy = lowering.canonical(Policy.of(chosen))
        names = [
            LayerNames(
                layer=layer.name,
                node=layer.node,
                weight=layer.weight,
                outputs=(layer.output, placer.stored(graph.nodes[layer.node])),
            )
            for layer in layers
            if policy[layer.name].activation is not None
        ]
        built = lowering.build(policy)
        return built, left_pairs(built, names)

    built, left = audited(uniform)
    target.write_bytes(built)
    rng, mixed = np.random.default_rng(1), []
    for _ in range(mixtures):
        share = rng.choice([0.2, 0.5, 0.8, 0.95])
        mixed += audited({name: scheme if rng.random() < share else FLOAT32 for name, scheme in uniform.items()})[1]
    return left, mixed


LAYERS_FLOAT = ("Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul")


def counted(model: Path) -> dict[str, int]:
    """Q and DQ nodes that run; integer kernels; layers that run in float (products of two activations left out)."""
    import onnx

    from autoq.runtime.executed import INTEGER_KERNELS
    from autoq.runtime.ort import open_session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        graph = onnx.load(path).graph
    counts = Counter(node.op_type for node in graph.node)
    stored = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def is_stored(name: str) -> bool:
        return name in stored or (name in makers and all(is_stored(source) for source in makers[name].input if source))

    floats = sum(node.op_type in LAYERS_FLOAT and is_stored(node.input[1]) for node in graph.node)
    integers = sum(counts[kind] for kind in INTEGER_KERNELS)
    return {
        "quantize": counts["QuantizeLinear"],
        "dequantize": counts["DequantizeLinear"],
        "integer": integers,
        "layers": integers + floats,
    }


def models(bench: Path, minilm: Path | None) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name -> float file and calibration rows."""
    import numpy as np
    from harness import resnet20_job, rows
    from mobile_nets import UNTRAINED, trained, untrained

    images = rows(resnet20_job(bench), "calibration")[0][:ROWS]
    found = {
        "ResNet-20": (bench / "cifar10" / "resnet20.onnx", {"input": images}),
        "MobileNetV3-style": (trained(bench), {"input": images}),
    }
    rng = np.random.default_rng(0)
    for name, (_, inputs) in UNTRAINED.items():
        feeds = {key: rng.standard_normal((ROWS, c, 32, 32)).astype(np.float32) for key, c in inputs.items()}
        found[name] = (untrained(name), feeds)
    if minilm is not None:
        with np.load(bench / "sts" / "calibration.npz") as data:
            feeds = {name: data[name][:16].astype(np.int64) for name in ("input_ids", "attention_mask")}
        found["MiniLM"] = (minilm, feeds)
    return found


def main() -> None:
    """Quantize with all three, count, time, print."""
    sys.path.insert(0, str(HERE.parents[1]))
    import numpy as np
    from environments import environment
    from harness import machine, parser, save, session

    arguments = parser(__doc__)
    arguments.add_argument("--minilm", type=Path)
    arguments.add_argument("--mixtures", type=int, default=25, help="random mixtures with float32 to audit, per model")
    arguments.add_argument("--blocks", type=int, default=12)
    given = arguments.parse_args()
    chosen = models(given.bench, given.minilm)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        files: dict[str, dict[str, Path]] = {}
        left: dict[str, tuple[list[Any], list[Any]]] = {}
        tasks = []
        for name, (model, feeds) in chosen.items():
            stem = name.lower().replace(" ", "-")
            tools = ("autoq",) if name == "MiniLM" else ("autoq", "ort", "nncf")
            files[name] = {tool: folder / f"{stem}-{tool}.onnx" for tool in tools}
            mixtures = 0 if name == "MiniLM" else given.mixtures
            left[name] = quantize_with_autoq(model, feeds, files[name]["autoq"], mixtures)
            if name == "MiniLM":
                continue
            quantize_with_ort(model, feeds, files[name]["ort"])
            np.savez(folder / f"{stem}.npz", **feeds)
            data, target = str(folder / f"{stem}.npz"), str(files[name]["nncf"])
            tasks.append({"model": str(model), "data": data, "target": target})
        (folder / "tasks.json").write_text(json.dumps(tasks))
        with (folder / "nncf.log").open("w") as log:
            # -P: this script's folder must not come before the installed packages.
            subprocess.run(
                [environment("nncf"), "-P", HERE, "--inside", folder], check=True, stdout=log, stderr=log, cwd=folder,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )  # fmt: skip
        result: dict[str, Any] = {}
        where = machine()
        print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}\n")
        print(f"{'model':20s} {'tool':6s} {'Q':>4s} {'DQ':>4s} {'layers on integers':>19s} {'speed':>7s}")
        for name, (model, feeds) in chosen.items():
            first_row = {key: values[:1] for key, values in feeds.items()}
            opened = {tool: opens(path) for tool, path in files[name].items()}
            sessions = [session(model), *(one for one in opened.values() if one is not None)]
            seconds = iter(timed(sessions, first_row, given.blocks))
            base = next(seconds)
            for tool, path in files[name].items():
                if opened[tool] is None:
                    print(f"{name:20s} {tool:6s} ONNX Runtime rejects the file")
                    result.setdefault(name, {})[tool] = None
                    continue
                row: dict[str, Any] = dict(counted(path))
                row["speed"] = float(np.median(base / next(seconds)))
                share = f"{row['integer']} of {row['layers']}"
                print(
                    f"{name:20s} {tool:6s} {row['quantize']:4d} {row['dequantize']:4d} {share:>19s} "
                    f"{row['speed']:6.2f}x"
                )
                result.setdefault(name, {})[tool] = row
            for kind, found in zip(("uniform", "mixtures"), left[name], strict=True):
                reasons = Counter((one.beside, one.reason or "DEFECT") for one in found)
                shown = ", ".join(f"{count} {beside} ({reason})" for (beside, reason), count in reasons.items())
                print(f"{'':20s} autoq's, {kind}: {shown or 'none'}")
                result[name][kind] = [[*key, count] for key, count in reasons.items()]
            print()
    save("placement", {"machine": where, "models": result})


def opens(path: Path) -> Any:
    """A session, or ``None`` where the runtime rejects the file."""
    from harness import session

    try:
        return session(path)
    except Exception:  # ONNX Runtime's errors have no common base below Exception
        return None


def timed(sessions: list[Any], feeds: dict[str, Any], blocks: int) -> Any:
    """Seconds of each block, [sessions, blocks], of about 20 ms, in turn, reversed every other time."""
    import time

    import numpy as np

    runs = []
    for session in sessions:
        for _ in range(10):
            session.run(None, feeds)
        start = time.perf_counter()
        session.run(None, feeds)
        runs.append(max(1, int(0.02 / (time.perf_counter() - start))))
    seconds = np.zeros((len(sessions), blocks))
    for block in range(blocks):
        order = range(len(sessions)) if block % 2 == 0 else reversed(range(len(sessions)))
        for index in order:
            start = time.perf_counter()
            for _ in range(runs[index]):
                sessions[index].run(None, feeds)
            seconds[index, block] = (time.perf_counter() - start) / runs[index]
    return seconds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        quantize_with_nncf(Path(sys.argv[2]))
    else:
        main()
