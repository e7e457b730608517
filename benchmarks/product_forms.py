"""How fast MatMul and embedding tables run in each of their forms, by the number of rows: tables of docs/lowering.md.

    python benchmarks/product_forms.py [products] [levels] [shared] [convs] [tables]

Times are relative to float32 (less is better): one thread, stock ONNX Runtime, one layer at a time in warm blocks in
turn with float32. Products: the geometric mean over 384 x 384, 384 x 1536 and 1536 x 384, a bias behind each.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from harness import block, machine, save
from lowered_forms import one_layer
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.runtime.ort import open_session
from autoq.search.candidates import Candidates, activation_specs, weight_specs

SHAPES = ((384, 384), (384, 1536), (1536, 384))
ROWS = (1, 8, 64, 256)
PRODUCTS = (
    "w4", "w8a8@minmax", "w8a8@dynamic", "w4a8@dynamic", "w2a8@dynamic", "w8-b32", "w8-b64", "w8-b128", "w4-b32",
    "w4-b64", "w4-b128", "w4-b32-asym", "w2-b32", "w2-b64", "w2-b128", "w2-b128-asym",
)  # fmt: skip
TABLES = ("float16", "w8", "w4", "w2", "w8-b32", "w8-b128", "w4-b32", "w4-b128", "w4-b32-asym", "w2-b32", "w2-b128")
TABLE, IDS = (30522, 384), (1, 64, 512)
PEAK = """
import sys
from pathlib import Path
import numpy as np
from autoq.runtime.memory import peak_growth_bytes
from autoq.runtime.ort import open_session
def run():
    session = open_session(Path(sys.argv[1]))
    for _ in range(3):
        session.run(None, {"x": np.zeros((1, 64), np.int64)})
print(peak_growth_bytes(run))
"""


def lowering_of(model: onnx.ModelProto, texts: Sequence[str], x: np.ndarray) -> Lowering:
    """Everything laid out to lower ``model`` under each of ``texts``."""
    graph = Graph(prepare(model).model)
    layers = read_layers(graph)
    found = [Candidates(layer=layer, schemes=tuple(map(Scheme.parse, texts))) for layer in layers]
    tensors = Placer(graph, layers).tensors_to_calibrate() if activation_specs(found) else ()
    statistics = calibrate(graph, [{"x": x}], tensors=tensors)
    bank = Bank(graph, calibration_id="")
    bank.compute(weight_specs(found), {})
    return Lowering(graph, layers, affine_table(statistics.statistics, activation_specs(found)), bank.entries)


def built(lowering: Lowering, scheme: Scheme) -> bytes:
    """The candidate with one scheme everywhere."""
    return lowering.build(Policy.uniform([layer.name for layer in lowering.layers], scheme))


def ratios(candidates: Mapping[str, bytes], x: np.ndarray, rounds: int = 9, block_s: float = 0.008) -> dict[str, float]:
    """Time of each candidate relative to the first: medians of blocks in turn, and of rounds."""
    steps = {name: _step(model, x) for name, model in candidates.items()}
    base, *others = steps
    found = {}
    for name in others:
        values = []
        for turn in range(rounds):
            pair = {each: block(steps[each], block_s) for each in ((base, name) if turn % 2 else (name, base))}
            values.append(pair[name] / pair[base])
        found[name] = float(np.median(values))
    return found


def _step(model: bytes, x: np.ndarray) -> Callable[[], object]:
    session = open_session(model)
    return lambda: session.run(None, {"x": x})


def products(texts: Sequence[str] = PRODUCTS, level: int = 4) -> dict[str, dict[str, list[float]]]:
    """Scheme -> rows -> the ratio for each shape; prints the geometric means."""
    rng = np.random.default_rng(1)
    found: dict[str, dict[str, list[float]]] = {text: {str(rows): [] for rows in ROWS} for text in texts}
    for shape in SHAPES:
        x = rng.standard_normal((1, max(ROWS), shape[0])).astype(np.float32)
        lowering = lowering_of(one_layer("MatMul", ("n", "rows", shape[0]), shape), texts, x)
        lowering.accuracy_level = level
        candidates = {text: built(lowering, Scheme.parse(text)) for text in texts}
        for rows in ROWS:
            taken = ratios({"float32": built(lowering, FLOAT32), **candidates}, x[:, :rows])
            for text, ratio in taken.items():
                found[text][str(rows)].append(ratio)
    print(f"\nMatMul, accuracy level {level}")
    print(f"| form | {' | '.join(f'{rows} rows' for rows in ROWS)} |\n|---|" + "---|" * len(ROWS))
    for text, by_rows in found.items():
        print(
            f"| `{text}` | {' | '.join(f'{np.exp(np.log(each).mean()):.2f}' for each in by_rows.values())} |",
            flush=True,
        )
    return found


def levels() -> dict[str, dict[str, list[float]]]:
    """As :func:`products`, with activations that stay float32."""
    return products(("w8-b32", "w4-b32", "w4-b128", "w2-b32"), level=1)


def shared() -> dict[str, float]:
    """Three products that read one tensor, with its range found once and three times; against three in float32."""
    rng = np.random.default_rng(1)
    found = {}
    for rows in (1, 64):
        x = rng.standard_normal((1, rows, 384)).astype(np.float32)
        nodes, tensors = [], []
        for index in range(3):
            nodes += [
                helper.make_node("MatMul", ["x", f"w{index}"], [f"m{index}"], f"layer{index}"),
                helper.make_node("Add", [f"m{index}", f"b{index}"], [f"y{index}"], f"bias{index}"),
            ]
            for name, size in ((f"w{index}", (384, 384)), (f"b{index}", (384,))):
                tensors.append(numpy_helper.from_array((rng.standard_normal(size) / 20).astype(np.float32), name))
        nodes.append(helper.make_node("Sum", ["y0", "y1", "y2"], ["z"], "sum"))
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "rows", 384]) for name in "xz"]
        graph = helper.make_graph(nodes, "three", infos[:1], infos[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        lowering = lowering_of(model, ["w8a8@dynamic"], x)
        once = built(lowering, Scheme.parse("w8a8@dynamic"))
        candidates = {"float32": built(lowering, FLOAT32), "once": once, "each": _found_by_each(once)}
        for name, ratio in ratios(candidates, x, rounds=15).items():
            found[f"{rows} rows, {name}"] = ratio
    print("\nThree products of one tensor, ranges found\n| rows | once | by each |\n|---|---|---|")
    for rows in (1, 64):
        print(f"| {rows} | {found[f'{rows} rows, once']:.3f} | {found[f'{rows} rows, each']:.3f} |")
    return found


def _found_by_each(model: bytes) -> bytes:
    """The model with a DynamicQuantizeLinear for every product."""
    parsed = onnx.load_from_string(model)
    first = next(node for node in parsed.graph.node if node.op_type == "DynamicQuantizeLinear")
    position = list(parsed.graph.node).index(first)
    for index, product in enumerate([node for node in parsed.graph.node if node.op_type == "MatMulInteger"]):
        own = onnx.NodeProto()
        own.CopyFrom(first)
        own.name = f"{first.name}{index}"
        del own.output[:]
        own.output.extend(f"{name}{index}" for name in first.output)
        scales = next(
            n for n in parsed.graph.node if n.op_type == "Mul" and n.output[0].startswith(product.output[0][:2])
        )
        product.input[0], product.input[2], scales.input[0] = own.output[0], own.output[2], own.output[1]
        parsed.graph.node.insert(position, own)
    parsed.graph.node.remove(first)
    return parsed.SerializeToString()


def convs() -> dict[str, float]:
    """Convolutions whose range is found at run time (ConvInteger): a form that is not written."""
    rng, found = np.random.default_rng(1), {}
    for title, channels, groups in (("64 channels", 64, 1), ("depthwise, 128 channels", 128, 128)):
        x = rng.standard_normal((1, channels, 16, 16)).astype(np.float32)
        at = {"pads": [1, 1, 1, 1], "group": groups}
        plain = one_layer("Conv", x.shape, (channels, channels // groups, 3, 3), **at)
        candidates = {"float32": plain.SerializeToString()}
        for kind in (np.int8, np.uint8):
            candidates[f"{title}, {np.dtype(kind).name} weights"] = _conv_integer(plain, kind, at)
        found |= ratios(candidates, x)
    print("\nConvInteger, 3x3, 16x16\n| | time |\n|---|---|")
    for name, ratio in found.items():
        print(f"| {name} | {ratio:.2f} |")
    return found


def _conv_integer(model: onnx.ModelProto, kind: type[np.integer], attributes: dict[str, object]) -> bytes:  # type: ignore[type-arg]
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    zero = 128 if kind is np.uint8 else 0
    constants = {
        "w": (np.rint(weight / scale) + zero).astype(kind),
        "wz": np.asarray(zero, kind),
        "s": scale.reshape(1, -1, 1, 1).astype(np.float32),
        "b": bias.reshape(1, -1, 1, 1),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("ConvInteger", ["q", "w", "qz", "wz"], ["i"], **attributes),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qs", "s"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["z"]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "conv", model.graph.input, model.graph.output, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def tables() -> dict[str, dict[str, float]]:
    """MiniLM's table of words in each form: file, memory and time of a look-up."""
    rng = np.random.default_rng(1)
    weight = numpy_helper.from_array((rng.standard_normal(TABLE) * 0.05).astype(np.float32), "table.weight")
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["n", "rows"])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", "rows", TABLE[1]])
    node = helper.make_node("Gather", ["table.weight", "x"], ["z"], "layer")
    graph = helper.make_graph([node], "table", [ids], [out], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    lowering = lowering_of(model, TABLES, rng.integers(0, TABLE[0], (1, 64)))
    candidates = {"float32": built(lowering, FLOAT32)}
    candidates |= {text: built(lowering, Scheme.parse(text)) for text in TABLES}
    found: dict[str, dict[str, float]] = {name: {"bytes": len(made)} for name, made in candidates.items()}
    exact = numpy_helper.to_array(weight)
    with tempfile.TemporaryDirectory() as folder:
        for name, made in candidates.items():
            path = Path(folder) / "table.onnx"
            path.write_bytes(made)
            command = [sys.executable, "-c", PEAK, str(path)]
            found[name]["peak_bytes"] = int(subprocess.run(command, capture_output=True, check=True).stdout)
            rows = open_session(path).run(None, {"x": np.arange(2000)[None]})[0][0]
            noise = np.square(rows - exact[:2000]).mean() / np.square(exact).mean() + 1e-12
            found[name]["noise_db"] = float(10 * np.log10(noise))
    for count in IDS:
        picked = rng.integers(0, TABLE[0], (1, count))
        for name, model_bytes in candidates.items():
            found[name][f"us_{count}"] = 1e6 * min(block(_step(model_bytes, picked), 0.01) for _ in range(5))
    print(
        "\nA table of 30522 x 384 (normal values)\n| form | MB | peak MB | noise dB | "
        + " | ".join(f"{n} ids, us" for n in IDS)
    )
    print("|" + "---|" * (4 + len(IDS)))
    for name, row in found.items():
        times = " | ".join(f"{row[f'us_{count}']:.1f}" for count in IDS)
        print(
            f"| `{name}` | {row['bytes'] / 1e6:.2f} | {row['peak_bytes'] / 1e6:.0f} | {row['noise_db']:.1f} | {times} |"
        )
    return found


def main() -> None:
    """Prints the tables that are asked for, or all."""
    parts = {"products": products, "levels": levels, "shared": shared, "convs": convs, "tables": tables}
    chosen = sys.argv[1:] or list(parts)
    save("product_forms", {**{name: parts[name]() for name in chosen}, **machine()})


if __name__ == "__main__":
    main()
