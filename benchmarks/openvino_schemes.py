"""What each scheme runs as in OpenVINO, how fast, and how far from ONNX Runtime's outputs: the costs of its profiles.

    python benchmarks/openvino_schemes.py [f32] [bf16]

One layer at a time, batch 1, one thread, in warm blocks in turn with the float32 model in OpenVINO itself
under the same precision hint; less is better. ``ran as`` is the layer's precision in OpenVINO's execution graph;
``off`` the largest difference from ONNX Runtime's output, as a share of its largest value, on the same file.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from harness import block, machine, save
from lowered_forms import one_layer
from product_forms import built, lowering_of

from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import TrialError
from autoq.runtime.executed import LayerNames
from autoq.runtime.openvino import PRECISIONS, OpenVino
from autoq.runtime.openvino_executed import executed_layers
from autoq.runtime.ort import OnnxRuntime

CONVS = ("float16", "w8", "w4", "w2", "w8a8@minmax", "w8a8-s8@minmax", "w4a8@minmax", "w2a8@minmax")
PRODUCTS = (
    *CONVS, "w8a8@dynamic", "w8-b32", "w8-b128", "w4-b32", "w4-b128", "w4-b128-asym", "w2-b32", "w2-b128-asym",
)  # fmt: skip
PAD = {"pads": [1, 1, 1, 1]}
LAYERS: dict[str, tuple[tuple[str, ...], onnx.ModelProto, tuple[int, ...]]] = {
    "Conv 3x3, 16 channels, 32x32": (CONVS, one_layer("Conv", ("n", 16, 32, 32), (16, 16, 3, 3), **PAD), (16, 32, 32)),
    "Conv 3x3, 64 channels, 16x16": (CONVS, one_layer("Conv", ("n", 64, 16, 16), (64, 64, 3, 3), **PAD), (64, 16, 16)),
    "Conv 1x1, 128 channels, 16x16": (CONVS, one_layer("Conv", ("n", 128, 16, 16), (128, 128, 1, 1)), (128, 16, 16)),
    "depthwise Conv, 128 channels, 16x16": (
        CONVS,
        one_layer("Conv", ("n", 128, 16, 16), (128, 1, 3, 3), group=128, **PAD),
        (128, 16, 16),
    ),
    **{
        f"MatMul 384x1536, {rows} rows": (PRODUCTS, one_layer("MatMul", ("n", rows, 384), (384, 1536)), (rows, 384))
        for rows in (1, 8, 64)
    },
}


def measured(runtime: OpenVino, name: str, rounds: int = 9) -> dict[str, dict[str, object]]:
    """Scheme -> its ratio to float32, what it ran as, how far off it is; or why it does not run."""
    schemes, model, shape = LAYERS[name]
    x = np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)
    lowering = lowering_of(model, schemes, x)
    (layer,) = lowering.layers
    names = LayerNames(layer=layer.name, node=layer.node, weight=layer.weight, outputs=(layer.output,))
    base = runtime.step(runtime.open(built(lowering, FLOAT32)), {"x": x})
    found: dict[str, dict[str, object]] = {}
    for text in schemes:
        try:
            candidate = built(lowering, Scheme.parse(text))
            session = runtime.open(candidate)
            step = runtime.step(session, {"x": x})
        except TrialError as error:
            found[text] = {"refused": str(error)}
            continue
        ratios = []
        for turn in range(rounds):
            taken = {each: block(each) for each in ((base, step) if turn % 2 else (step, base))}
            ratios.append(taken[step] / taken[base])
        (own,) = runtime.run(session, {"x": x}, 1).values()
        stock = OnnxRuntime()
        (truth,) = stock.run(stock.open(candidate), {"x": x}, 1).values()
        (ran,) = executed_layers(runtime, candidate, [names])
        off = float(np.abs(own - truth).max() / np.abs(truth).max())
        found[text] = {"ratio": float(np.median(ratios)), "ran_as": ran.precision or "?", "off": off}
    return found


def main() -> None:
    chosen = [name for name in PRECISIONS if name in sys.argv[1:]] or list(PRECISIONS)
    result = {}
    for precision in chosen:
        runtime = OpenVino(precision)
        for name in LAYERS:
            result[f"{precision}: {name}"] = rows = measured(runtime, name)
            print(f"\n{precision}: {name}\n| scheme | time | ran as | off |\n|---|---|---|---|")
            for text, row in rows.items():
                if "refused" in row:
                    print(f"| `{text}` | refused: {str(row['refused'])[:90]} | | |")
                else:
                    print(f"| `{text}` | {row['ratio']:.2f} | {row['ran_as']} | {row['off']:.4f} |", flush=True)
    save("openvino_schemes", {"machine": machine(), "layers": result})


if __name__ == "__main__":
    main()
