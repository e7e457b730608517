"""Is the TFLite file of a candidate the candidate; and what does Vela say that precision is worth on an Ethos-U.

    python benchmarks/tflite_equal.py [--rows 2000] [--bench DIR]     # needs the extra [npu]

Candidates of ResNet-20 and of the MobileNetV3-style network (benchmarks/mobile_nets.py) with 8-bit activations and
weights of 8 to 2 bits (GPTQ), and with 16-bit ones, as ONNX on ONNX Runtime and as TFLite on LiteRT, on the first rows
of ``val.npz`` (with 16 bits, 40, which take LiteRT as long as the others all):
the largest difference of a logit in steps of the output's grid, the share of logits that are equal, the share of rows
with the same class, and top-1 of both. "mixed" gives the layers 8, 4 and 2 bits by their number of weights: 2 bits to
the largest third, 4 to the next, 8 to the rest and to the first and last layer. Vela's figures are estimates; the
last table has the cycles of all on each accelerator relative to 8 bits, as ``cost`` of its profile has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import machine, parser, resnet20_job, rows, save, verdict
from mobile_nets import trained

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import TrialError
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.forms import formed
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.moments import sees_data
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.model.tflite import to_tflite
from autoq.runtime.litert import LiteRt
from autoq.runtime.ort import open_session, run_batches
from autoq.runtime.vela_compile import NPUS, estimate
from autoq.search.candidates import Candidates, activation_specs, weight_specs

SCHEMES = {bits: Scheme.parse(f"w{bits}a8{'' if bits == 8 else '-gptq'}@minmax") for bits in (8, 6, 5, 4, 3, 2)}
WIDE = {bits: Scheme.parse(f"w{bits}a16{'' if bits == 8 else '-gptq'}@minmax") for bits in (8, 4, 3)}
WIDE_ROWS = 40  # LiteRT has no fast kernels for them
FORMS = ("selecting-conv",)  # as the profiles of the Ethos-U have it


def lowering_of(model: Path, images: np.ndarray) -> Lowering:
    """The model laid out for all of SCHEMES."""
    graph = Graph(prepare(onnx.load(model)).model)
    layers = read_layers(graph)
    schemes = (*SCHEMES.values(), *WIDE.values())
    found = [Candidates(layer=layer, schemes=(FLOAT32,) if layer.integer_problem else schemes) for layer in layers]
    wanted = weight_specs(found)
    moment_layers = {layer.name: layer for layer, spec in wanted if sees_data(layer, spec)}
    statistics = calibrate(
        graph,
        [{graph.inputs[0]: images[i : i + 32]} for i in range(0, len(images), 32)],
        tensors=Placer(formed(graph, FORMS), layers, integer_products=True).tensors_to_calibrate(),
        moment_layers=list(moment_layers.values()),
    )
    bank = Bank(graph, calibration_id="")
    bank.compute(wanted, statistics.moments)
    affines = affine_table(statistics.statistics, activation_specs(found))
    return Lowering(graph, layers, affines, bank.entries, forms=FORMS, integer_products=True)


def policies(layers: tuple[Layer, ...]) -> dict[str, dict[str, Scheme]]:
    """Uniform ones, ones with 8 bits at both ends, and a mixed one."""
    ends = {layers[0].name, layers[-1].name}
    by_size = sorted((layer for layer in layers if layer.name not in ends), key=lambda layer: -layer.parameters)
    third = -(-len(by_size) // 3)
    mixed = {
        layer.name: SCHEMES[2 if rank < third else 4 if rank < 2 * third else 8] for rank, layer in enumerate(by_size)
    }
    inner = [layer.name for layer in by_size]
    return {
        "w8a8": {layer.name: SCHEMES[8] for layer in layers},
        **{
            f"w{bits}a8, ends at 8": dict.fromkeys(ends, SCHEMES[8]) | dict.fromkeys(inner, SCHEMES[bits])
            for bits in (6, 5, 4, 3, 2)
        },
        "mixed": dict.fromkeys(ends, SCHEMES[8]) | mixed,
        "w8a16": {layer.name: WIDE[8] for layer in layers},
        **{
            f"w{bits}a16, ends at 8": dict.fromkeys(ends, WIDE[8]) | dict.fromkeys(inner, WIDE[bits]) for bits in (4, 3)
        },
    }


def compared(candidate: bytes, x: np.ndarray, y: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    """The TFLite file, and how it compares."""
    file = to_tflite(candidate)
    runtime, session = LiteRt(), open_session(candidate)
    opened = runtime.open(file)
    (port,) = opened.outputs
    feeds = {session.get_inputs()[0].name: x}
    found = runtime.run(opened, feeds, 1)[port.name]
    expected = run_batches(session, feeds, 100)[port.name]
    steps = np.abs(found.astype(np.float64) - expected) / port.scale
    return file, {
        "largest_steps": float(steps.max()),
        "equal": float(np.mean(steps < 0.5)),
        "same_class": float(np.mean(found.argmax(1) == expected.argmax(1))),
        "top1_litert": float(np.mean(found.argmax(1) == y)),
        "top1_onnxruntime": float(np.mean(expected.argmax(1) == y)),
        "tflite_bytes": len(file),
        "onnx_bytes": len(candidate),
    }


def estimates(file: bytes, accelerators: tuple[str, ...]) -> dict[str, Any]:
    """Vela's figures, or why there are none."""
    made: dict[str, Any] = {}
    for name in accelerators:
        try:
            found = estimate(file, NPUS[name])
        except TrialError as error:
            made[name] = {"refused": str(error)}
            found = estimate(file, NPUS[name], host_cycles_per_value=1.0)
        made.setdefault(name, {}).update(
            cycles=found.cycles, sram_bytes=found.sram_bytes, flash_bytes=found.flash_bytes, on_host=found.on_host
        )
    return made


def main() -> None:
    """Build, compare, estimate, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=2000)
    given = arguments.parse_args()
    job = resnet20_job(given.bench)
    images, _ = rows(job, "calibration")
    with np.load(job["data"]["search"]["path"]) as data:
        job["data"]["search"] = {**job["data"]["search"], "slice": [0, min(given.rows, len(data["x"]))]}
    x, y = rows(job, "search")
    where, table = machine(), []
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}; {len(x)} images\n")
    titles = f"{'':36s} {'steps':>5s} {'equal':>7s} {'class':>7s} {'LiteRT':>7s} {'ORT':>7s}"
    print(f"{titles}  {'u55-256 cycles':>14s} {'flash':>8s}")
    for model, path in {"ResNet-20": Path(job["model"]["path"]), "MobileNetV3-style": trained(given.bench)}.items():
        lowering = lowering_of(path, images[:256])
        for name, policy in policies(lowering.layers).items():
            count = WIDE_ROWS if "a16" in name else len(x)
            file, row = compared(lowering.build(lowering.canonical(Policy.of(policy))), x[:count], y[:count])
            row["vela"] = estimates(file, tuple(NPUS))
            u55 = row["vela"]["ethos-u55-256"]
            table.append({"model": model, "policy": name, **row})
            print(
                f"{model + ', ' + name:36s} {row['largest_steps']:5.1f} {row['equal']:7.4f} {row['same_class']:7.4f} "
                f"{row['top1_litert']:7.4f} {row['top1_onnxruntime']:7.4f}  {u55['cycles']:14,d} "
                f"{u55['flash_bytes']:8,d} {' '.join(sorted(set(u55['on_host'])))}"
            )
    print(f"\n{'cycles, and to 8 bits':36s}" + "".join(f"{name:>20s}" for name in NPUS))
    whole = {row["model"]: row["vela"] for row in table if row["policy"] == "w8a8"}
    for row in table:
        cycles = {name: (row["vela"][name]["cycles"], whole[row["model"]][name]["cycles"]) for name in NPUS}
        cells = "".join(f"{own:>13,d} {own / eight:6.3f}" for own, eight in cycles.values())
        print(f"{row['model'] + ', ' + row['policy']:36s}{cells}")
    for row in table:
        if "a16" in row["policy"]:
            continue  # whose steps are 256 times finer
        met = row["largest_steps"] <= 1.01 and row["same_class"] >= 0.999
        print(f"{row['model']}, {row['policy']}: within one step and 99.9 % of the classes: {verdict(met)}")
    save("tflite_equal", {"machine": where, "table": table})


if __name__ == "__main__":
    main()
