"""How fast each lowered form runs, beside the plainer forms that it is preferred to: the table of docs/lowering.md.

    python benchmarks/lowered_forms.py

One layer at a time, one thread, stock ONNX Runtime, in warm blocks in turn with float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.bank import Bank
from autoq.model.calibrate import affine_table, calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.lower import Lowering
from autoq.model.placement import Placer
from autoq.model.prepare import prepare
from autoq.numerics.bootstrap import median_ratio
from autoq.runtime.ort import open_session
from autoq.runtime.timing import TimingPlan, time_sitting
from autoq.search.candidates import Candidates, activation_specs, weight_specs

SCHEMES = ("float16", "w8", "w4", "w2", "w8a8@minmax", "w4a8@minmax", "w2a8@minmax", "w8a8-s8@minmax")
PLAIN = {"w8": "straight into DequantizeLinear", "w4": "straight into DequantizeLinear"}
PLAIN_INTEGER = {"w4a8@minmax": "int4 straight into DequantizeLinear"}
KERNELS = frozenset(
    [
        "Conv",
        "DequantizeLinear",
        "FusedConv",
        "Gemm",
        "MatMul",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
    ]
)


def one_layer(op: str, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """A layer with a bias, and a Relu where it is a convolution."""
    rng = np.random.default_rng(0)
    channels = weight[0] if op == "Conv" else weight[1]
    constants = {
        "w": (rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype(np.float32),
        "b": rng.standard_normal(channels).astype(np.float32),
    }
    if op == "Conv":
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer", **attributes),
            helper.make_node("Relu", ["y"], ["z"], "relu"),
        ]
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], "layer"),
            helper.make_node("Add", ["y", "b"], ["z"], "bias"),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * len(shape))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layer", [x], [z], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def lowered(model: onnx.ModelProto, x: np.ndarray) -> dict[str, bytes]:
    """Scheme, or what is done plainly -> candidate, float32 first."""
    graph = Graph(prepare(model).model)
    layers = read_layers(graph)
    schemes = tuple(map(Scheme.parse, SCHEMES))
    found = [Candidates(layer=layer, schemes=schemes) for layer in layers]
    statistics = calibrate(graph, [{"x": x}], tensors=Placer(graph, layers).tensors_to_calibrate())
    bank = Bank(graph, calibration_id="")
    bank.compute(weight_specs(found), {})
    lowering = Lowering(graph, layers, affine_table(statistics.statistics, activation_specs(found)), bank.entries)
    built = {"float32": lowering.build(Policy.uniform([layers[0].name], Scheme()))}
    for text, scheme in zip(SCHEMES, schemes, strict=True):
        built[text] = lowering.build(Policy.uniform([layers[0].name], scheme))
        if text in PLAIN or text in PLAIN_INTEGER:
            built[f"{text}, {({**PLAIN, **PLAIN_INTEGER})[text]}"] = plain(built[text], weight_only=text in PLAIN)
    return built


def plain(candidate: bytes, *, weight_only: bool) -> bytes:
    """The candidate with its stored integers read by DequantizeLinear, without the Cast that folds."""
    model = onnx.load_from_string(candidate)
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    reader = next(node for node in model.graph.node if cast.output[0] in node.input)
    model.graph.node.remove(cast)
    reader.input[0] = cast.input[0]
    del reader.input[2:]  # the zero point is 0, and would have to be of the stored type
    if weight_only:
        reader.op_type = "DequantizeLinear"
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == reader.input[1])
        axis = int(np.argmax(scale.dims))
        del scale.dims[:]
        scale.dims.append(numpy_helper.to_array(scale).size if not scale.raw_data else len(scale.raw_data) // 4)
        reader.attribute.append(helper.make_attribute("axis", axis))
    return model.SerializeToString()


def kernels(model: bytes) -> str:
    """What runs at every inference."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        ran = [node.op_type for node in onnx.load(path).graph.node if node.op_type in KERNELS]
    return ", ".join(dict.fromkeys(ran))


def show(title: str, candidates: Mapping[str, bytes], x: np.ndarray) -> None:
    """Times every candidate against the first, and prints a row for each."""
    print(f"\n{title}\n| form | runs | file | time |\n|---|---|---|---|")
    sessions = {name: open_session(model) for name, model in candidates.items()}
    base, *others = (lambda session=session: session.run(None, {"x": x}) for session in sessions.values())
    sizes = [len(model) for model in candidates.values()]
    for (name, model), step, size in zip(list(candidates.items())[1:], others, sizes[1:], strict=True):
        rounds = time_sitting([base, step], TimingPlan(max_rounds=12), setup_s=2.0)
        ratio, _ = median_ratio(rounds.blocks_ms[1], rounds.blocks_ms[0], seed=0)
        print(f"| {name} | {kernels(model)} | {size / sizes[0]:.2f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Prints the tables."""
    rng = np.random.default_rng(1)
    for title, op, shape, weight, attributes in (
        ("Conv 3x3, 64 channels, 16x16", "Conv", (1, 64, 16, 16), (64, 64, 3, 3), {"pads": [1, 1, 1, 1]}),
        (
            "Conv 3x3, depthwise, 128 channels, 16x16",
            "Conv",
            (1, 128, 16, 16),
            (128, 1, 3, 3),
            {"pads": [1, 1, 1, 1], "group": 128},
        ),
        ("MatMul 384 x 1536, 1 row of 64 tokens", "MatMul", (1, 64, 384), (384, 1536), {}),
    ):
        x = rng.standard_normal(shape).astype(np.float32)
        show(title, lowered(one_layer(op, shape, weight, **attributes), x), x)


if __name__ == "__main__":
    main()
