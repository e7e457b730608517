"""What the integer forms of activations give: the MobileNetV3-style network in 8 bits with and without each of them.

    python benchmarks/integer_forms.py [--blocks 40] [--bench DIR]

Each file is a uniform ``w8a8@minmax``. "without" takes a form out of the tables of autoq/model/operators.py, so that
its operator stays float between pairs; "none of them" is all together. Q and DQ nodes are counted in the graph that
ONNX Runtime runs; speed is float32's time / the file's, batch 1, 1 thread, warm blocks in turn: the median over blocks,
and the ratio of the fastest blocks, which a busy machine disturbs less. Top-1 is on the first half of ``val.npz``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from harness import accuracy, machine, parser, resnet20_job, rows, save, timed_in_turn
from mobile_nets import trained

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model import operators
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.runtime.ort import open_session
from autoq.search.candidates import Candidates, activation_specs, weight_specs

SCHEME = Scheme.parse("w8a8@minmax")
VARIANTS = {
    "all forms": (),
    "without HardSwish": ("HardSwish",),
    "without HardSigmoid": ("HardSigmoid",),
    "without GlobalAveragePool": ("GlobalAveragePool",),
    "none of them": ("HardSwish", "HardSigmoid", "GlobalAveragePool"),
}


@contextlib.contextmanager
def without(names: tuple[str, ...]) -> Iterator[None]:
    """The tables less some operators."""
    with contextlib.ExitStack() as stack:
        kept = {name: condition for name, condition in operators.INTEGER.items() if name not in names}
        stack.enter_context(mock.patch.dict(operators.INTEGER, kept, clear=True))
        if "HardSigmoid" in names:  # nor taken over by the layer before it
            codes = operators.hard_sigmoid_codes
            stack.enter_context(
                mock.patch.object(
                    operators, "hard_sigmoid_codes", lambda node: codes(node) if node.op_type == "HardSwish" else None
                )
            )
        yield


def built(model: Path, images: np.ndarray) -> bytes:
    """The uniform candidate."""
    graph = Graph(prepare(onnx.load(model)).model)
    layers = read_layers(graph)
    found = [Candidates(layer=layer, schemes=(FLOAT32 if layer.integer_problem else SCHEME,)) for layer in layers]
    batches = [{graph.inputs[0]: images[i : i + 32]} for i in range(0, len(images), 32)]
    statistics = calibrate(graph, batches, tensors=Placer(graph, layers).tensors_to_calibrate())
    bank = Bank(graph, calibration_id="")
    bank.compute(weight_specs(found), {})
    lowering = Lowering(graph, layers, affine_table(statistics.statistics, activation_specs(found)), bank.entries)
    return lowering.build(lowering.canonical(Policy.of({entry.layer.name: entry.schemes[0] for entry in found})))


def pairs(model: Path) -> tuple[int, int]:
    """QuantizeLinear and DequantizeLinear nodes that run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        kinds = [node.op_type for node in onnx.load(path).graph.node]
    return kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")


def main() -> None:
    """Build, time, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--blocks", type=int, default=40)
    given = arguments.parse_args()
    job, model = resnet20_job(given.bench), trained(given.bench)
    images, _ = rows(job, "calibration")
    x, y = rows(job, "search")
    where = machine()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        files = {"float32": model}
        for name, names in VARIANTS.items():
            with without(names):
                files[name] = Path(made) / f"{len(files)}.onnx"
                files[name].write_bytes(built(model, images))
        seconds = timed_in_turn(list(files.values()), x[:1], given.blocks, 20)
        for index, (name, path) in enumerate(files.items()):
            quantize, dequantize = pairs(path)
            speed = float(np.median(seconds[0] / seconds[index]))
            fastest = float(seconds[0].min() / seconds[index].min())
            row = {"name": name, "quantize": quantize, "dequantize": dequantize, "speed": speed, "fastest": fastest}
            table.append({**row, "top1": accuracy(path, x, y)})
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}\n")
    print(f"{'':28s} {'Q':>3s} {'DQ':>3s} {'speed':>6s} {'fastest blocks':>15s} {'top-1':>7s}")
    for row in table:
        print(
            f"{row['name']:28s} {row['quantize']:3d} {row['dequantize']:3d} {row['speed']:5.2f}x "
            f"{row['fastest']:14.2f}x {row['top1']:7.4f}"
        )
    save("integer_forms", {"machine": where, "table": table})


if __name__ == "__main__":
    main()
