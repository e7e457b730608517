"""Single operators in several forms: what became a form of the graph, and what was tried and did not pay.

The figures are those of docs/forms.md.

    python benchmarks/forms_tried.py

Each line is one operator, or the few that do the same, alone in a model; batch 1, one thread, stock ONNX Runtime, the
tenth percentile of its runs, all of a group in turn.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
from harness import machine, save
from onnx import TensorProto, helper, numpy_helper

from autoq.runtime.ort import open_session

OWN = "com.microsoft"
RNG = np.random.default_rng(0)
TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
Model = tuple[bytes, dict[str, np.ndarray]]


def model(nodes: list[onnx.NodeProto], feeds: dict[str, np.ndarray], constants: dict[str, Any], out: str) -> Model:
    """A model of ``nodes`` over ``feeds`` with one output of the type ``out``, and the feeds."""
    inputs = [helper.make_tensor_value_info(k, TYPES[str(v.dtype)], v.shape) for k, v in feeds.items()]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TYPES[out], None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one", inputs, [output], tensors)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(OWN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString(), feeds


def node(op: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs are the words of a text; ``_`` is one left out."""
    return helper.make_node(op, [x.strip("_") for x in inputs.split()], [output], domain=domain, **attributes)


def conv(
    size: tuple[int, int], inputs: int, outputs: int, kernel: tuple[int, int], group: int = 1, **more: Any
) -> Model:
    """An integer convolution as the runtime makes it, channels last, padded by half its kernel."""
    weight = RNG.integers(-127, 128, (outputs, inputs // group, *kernel)).astype(np.int8)
    constants = {"s": np.float32(0.02), "z": np.uint8(3), "w": weight, "ws": np.full(outputs, 0.01, np.float32)}
    constants |= {"wz": np.int8(0), "b": np.zeros(outputs, np.int32)}
    attributes = {
        "kernel_shape": kernel,
        "pads": [kernel[0] // 2, 1 if kernel[1] > 1 else 0] * 2,
        "group": group,
    } | more
    if group == inputs and kernel[0] > 3:
        attributes["pads"] = [kernel[0] // 2] * 4
    feeds = {"x": RNG.integers(0, 256, (1, *size, inputs)).astype(np.uint8)}
    return model(
        [node("QLinearConv", "x s z w ws wz s z b", "y", OWN, channels_last=1, **attributes)], feeds, constants, "uint8"
    )


def attention(kind: str) -> Model:
    """64 tokens, 12 heads of 32, a mask; biases of the projections included."""
    feeds = {name: RNG.standard_normal((1, 64, 384)).astype(np.float32) for name in "qkv"}
    feeds["m"] = np.zeros((1, 1, 64, 64), np.float32)
    bias = {f"b{name}": RNG.standard_normal(384).astype(np.float32) for name in "qkv"}
    added = [node("Add", f"{name} b{name}", f"{name}1") for name in "qkv"]
    scale = float(32**-0.5)
    if kind == "MultiHeadAttention":
        joined = {"b": np.concatenate(list(bias.values()))}
        return model([node(kind, "q k v b _ m", "y", OWN, num_heads=12, scale=scale)], feeds, joined, "float32")
    if kind == "Attention":
        heads = {"q_num_heads": 12, "kv_num_heads": 12, "scale": scale}
        return model([*added, node(kind, "q1 k1 v1 m", "y", **heads)], feeds, bias, "float32")
    nodes = added
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [node("Reshape", f"{name}1 split", f"{name}2"), node("Transpose", f"{name}2", f"{name}3", perm=perm)]
    nodes += [node("MatMul", "q3 k3", "s1"), node("Mul", "s1 scale", "s2"), node("Add", "s2 m", "s3")]
    nodes += [node("Softmax", "s3", "s4", axis=-1), node("MatMul", "s4 v3", "o")]
    nodes += [node("Transpose", "o", "o1", perm=[0, 2, 1, 3]), node("Reshape", "o1 whole", "y")]
    shapes = {"split": np.array([0, 64, 12, 32]), "whole": np.array([0, 64, 384]), "scale": np.float32(scale)}
    return model(nodes, feeds, bias | shapes, "float32")


def product(outputs: int, kind: str) -> Model:
    """64 rows of 384 inputs, 8-bit activations and weights."""
    feeds = {"x": RNG.integers(0, 256, (1, 64, 384)).astype(np.uint8)}
    constants: dict[str, Any] = {
        "w": RNG.integers(-127, 128, (384, outputs)).astype(np.int8),
        "ws": np.full(outputs, 0.001, np.float32),
        "wz": np.zeros(outputs, np.int8),
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "b": RNG.standard_normal(outputs).astype(np.float32),
        "i": RNG.integers(-999, 999, outputs).astype(np.int32),
        "flat": np.array([-1, 384]),
        "back": np.array([-1, 64, outputs]),
    }
    operands = "x w xs ws xz wz"
    nodes = {
        "alone": [node("MatMulIntegerToFloat", operands, "y", OWN)],
        "and Add": [node("MatMulIntegerToFloat", operands, "t", OWN), node("Add", "t b", "y")],
        "with bias": [node("MatMulIntegerToFloat", f"{operands} b", "y", OWN)],
        "as QGemm": [
            node("Reshape", "x flat", "x2"),
            node("QGemm", "x2 xs xz w ws wz i", "t", OWN, transB=0),
            node("Reshape", "t back", "y"),
        ],
    }[kind]
    return model(nodes, feeds, constants, "float32")


def gelu(how: str) -> Model:
    """64 x 1536 values: bias, Gelu, quantization."""
    feeds = {"x": RNG.standard_normal((1, 64, 1536)).astype(np.float32)}
    nodes = [node("Add", "x b", "t"), node("Gelu", "t", "u", approximate=how), node("QuantizeLinear", "u s z", "y")]
    constants = {"b": RNG.standard_normal(1536).astype(np.float32), "s": np.float32(0.02), "z": np.uint8(8)}
    return model(nodes, feeds, constants, "uint8")


GROUPS: dict[str, dict[str, Model]] = {
    "attention, 64 tokens": {kind: attention(kind) for kind in ("nodes", "Attention", "MultiHeadAttention")},
    "bias, Gelu, quantization, 64 x 1536": {how: gelu(how) for how in ("none", "tanh")},
    "product 384 x 384": {kind: product(384, kind) for kind in ("alone", "and Add", "with bias", "as QGemm")},
    "product 384 x 1152": {kind: product(1152, kind) for kind in ("alone", "and Add")},
    "3x3, 16 channels, 32 x 32": {
        "as it is": conv((32, 32), 16, 16, (3, 3)),
        "pairs of pixels": conv((32, 32), 16, 32, (3, 4), strides=[1, 2]),
        "four pixels": conv((32, 32), 16, 64, (3, 6), strides=[1, 4]),
    },
    "first layer, 3 channels, 32 x 32": {
        "as it is": conv((32, 32), 3, 16, (3, 3)),
        "four channels": conv((32, 32), 4, 16, (3, 3)),
        "four channels, four pixels": conv((32, 32), 4, 64, (3, 6), strides=[1, 4]),
    },
    "32 groups of 4 channels, 3x3, 14 x 14": {
        "groups": conv((14, 14), 128, 128, (3, 3), 32),
        "dense": conv((14, 14), 128, 128, (3, 3)),
    },
    "4 groups of 12 channels, 1x1, 16 x 16": {
        "groups": conv((16, 16), 48, 48, (1, 1), 4),
        "dense": conv((16, 16), 48, 48, (1, 1)),
    },
    "8 groups of 16 channels, 3x3, 14 x 14": {
        "groups": conv((14, 14), 128, 128, (3, 3), 8),
        "dense": conv((14, 14), 128, 128, (3, 3)),
    },
    "depthwise 3x3, 16 x 16": {f"{c} channels": conv((16, 16), c, c, (3, 3), c) for c in (72, 80)},
    "depthwise 3x3, 14 x 14": {f"{c} channels": conv((14, 14), c, c, (3, 3), c) for c in (200, 208)},
}


def microseconds(models: dict[str, Model], seconds: float = 2.0) -> dict[str, float]:
    """The tenth percentile of the runs of each, in turn."""
    sessions = {name: (open_session(data), feeds) for name, (data, feeds) in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (session, feeds) in sessions.items():
            session.run(None, feeds)
            for _ in range(20):
                start = time.perf_counter()
                session.run(None, feeds)
                times[name].append(time.perf_counter() - start)
    return {name: 1e6 * float(np.percentile(each, 10)) for name, each in times.items()}


def main() -> None:
    """Prints a table: microseconds, and the ratio to the first of the group."""
    result: dict[str, Any] = {"machine": machine()}
    print("| what | form | us | ratio |\n|---|---|---|---|")
    for title, models in GROUPS.items():
        found = result[title] = microseconds(models)
        first = next(iter(found.values()))
        for name, us in found.items():
            print(f"| {title} | {name} | {us:.1f} | {us / first:.2f} |", flush=True)
    save("forms_tried", result)


if __name__ == "__main__":
    main()
