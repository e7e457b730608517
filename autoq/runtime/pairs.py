"""The QuantizeLinear and DequantizeLinear nodes left in the graph that ONNX Runtime runs, each with its reason.

A pair that no kernel took in costs a pass over its tensor at every inference. It is a *defect* where the operator
beside it could have run on integers; :data:`REASONS` says why the others stand. Operators excuse each other only as far
as one of them has an excuse of its own: the operators that could all run on integers together are found as the largest
set in which each reads integers, or others of the set, and is read by a QuantizeLinear, or others of the set.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

from autoq.runtime.executed import LayerNames, is_of
from autoq.runtime.ort import open_session

REASONS = {
    "input": "the model's input comes in float",
    "output": "the model's output leaves in float",
    "policy": "the layer is float by its scheme",
    "no kernel": "ONNX Runtime has no integer kernel for the operator, and none that it could be written with",
    "kept": "attention and normalization stay float: their integer kernels are slower, or lose too much",
    "float operand": "another operand comes in float",
    "float reader": "its result is read in float",
    "constant operand": "an operand is constant, and would need a pair of its own",
    "form": "this form of the operator has no integer kernel, or one that computes something else",
    "layout": "the runtime turns an operand of a float operator round between pairs of its own",
    "product": "an integer MatMul that adds a bias, or has other readers, writes floats",
    "signed": "int8 activations: the runtime takes a pair away only where one reader takes what one node wrote",
}
"""Why a pair may be left. docs/lowering.md has the same table."""

DEFECT = ""

# Operators that move values; on integers they need no kernel of their own.
_MOVES = frozenset(
    [
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "ReorderInput",
        "ReorderOutput",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
_COMPUTES = frozenset(
    [
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mul",
        "QuickGelu",
        "Relu",
        "Sigmoid",
    ]
)
_LAYERS = frozenset(["Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"])
_WRITE_FLOATS = frozenset(["Gemm", "FusedGemm", "MatMul", "FusedMatMul"])  # their integer kernels can
_PRODUCTS = frozenset(
    ["DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm"]
)  # they run on integers, and may write floats
_KEPT = frozenset(
    [
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "Gelu",
        "LayerNormalization",
        "MultiHeadAttention",
        "SkipLayerNormalization",
        "Softmax",
        "Where",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """One QuantizeLinear or DequantizeLinear that runs: between integers and ``beside``, an operator (or ``"model"``).

    ``reason`` is a key of :data:`REASONS`, or :data:`DEFECT`.
    """

    op_type: str
    tensor: str
    beside: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} of {self.tensor!r} beside {self.beside}: {REASONS.get(self.reason, 'a defect')}"


def left_pairs(model: Path | bytes, integer_layers: Collection[LayerNames]) -> list[Left]:
    """What is left of the pairs of ``model`` on this machine; ``integer_layers`` are those with 8-bit activations.

    A DequantizeLinear with readers of several kinds counts once for each. Raises
    :class:`autoq.errors.TrialError` (``load``) when the runtime rejects the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        return _Audit(onnx.load(path).graph, integer_layers).left()


class _Audit:
    """One optimized graph."""

    def __init__(self, graph: onnx.GraphProto, layers: Collection[LayerNames]) -> None:
        self.nodes = list(graph.node)
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.constants = {tensor.name for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.layers = layers
        self.signed = any(
            tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims and tensor.name in zero_points
            for zero_points in [{n.input[2] for n in graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2}]
            for tensor in graph.initializer
        )
        self.reasons = self._why_float()

    def left(self) -> list[Left]:
        found: dict[Left, None] = {}
        for node in self.nodes:
            if node.op_type == "QuantizeLinear":
                maker = self.producer.get(node.input[0])
                found.setdefault(self._of(node, maker))
            elif node.op_type == "DequantizeLinear":
                if node.input[0] in self.constants:
                    reason = "signed" if self.signed else DEFECT
                    found.setdefault(
                        Left(op_type=node.op_type, tensor=node.input[0], beside="a constant", reason=reason)
                    )
                    continue
                if node.output[0] in self.outputs:
                    found.setdefault(self._of(node, None, "output"))
                for reader in self.readers.get(node.output[0], ()):
                    found.setdefault(self._of(node, reader))
        return list(found)

    def _of(self, node: onnx.NodeProto, neighbour: onnx.NodeProto | None, outside: str = "input") -> Left:
        tensor = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
        if neighbour is None:
            return Left(op_type=node.op_type, tensor=tensor, beside="model", reason=outside)
        pair = neighbour.op_type in ("QuantizeLinear", "DequantizeLinear")
        reason = DEFECT if pair else self.reasons[id(neighbour)]
        return Left(op_type=node.op_type, tensor=tensor, beside=neighbour.op_type, reason=reason)

    def _why_float(self) -> dict[int, str]:
        """Reason by node: the largest set that could run on integers has none."""
        reasons = {id(node): self._own_reason(node) for node in self.nodes}
        changed = True
        while changed:
            changed = False
            for node in self.nodes:
                if (
                    node.op_type not in _PRODUCTS
                    and reasons[id(node)] == DEFECT
                    and (reason := self._excuse(node, reasons))
                ):
                    reasons[id(node)], changed = reason, True
        reasons |= {id(node): "layout" for node in self.nodes if self._turns_float_operand(node, reasons)}
        if self.signed:
            reasons = {key: reason or "signed" for key, reason in reasons.items()}
        return reasons

    def _own_reason(self, node: onnx.NodeProto) -> str:
        kind = node.op_type
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            return "pair"
        if kind in _PRODUCTS:
            alone = kind != "DynamicQuantizeMatMul" and len(self.readers.get(node.output[0], ())) == 1
            bias = kind == "MatMulIntegerToFloat" and len(node.input) > 6 and node.input[6]
            return DEFECT if alone and not bias else "product"
        if kind in _LAYERS:
            maker = self.producer.get(node.input[1])
            if maker is not None and not (maker.op_type == "DequantizeLinear" and maker.input[0] in self.constants):
                return "kept"  # a product of two activations
            return DEFECT if any(is_of(node, names) for names in self.layers) else "policy"
        if kind in _KEPT:
            return "kept"
        if kind == "Sum" and len(node.input) == 1:  # a copy that keeps a float layer apart
            return "policy"
        if kind not in _MOVES | _COMPUTES:
            return "no kernel"
        return "form" if not _has_form(node) else DEFECT

    def _turns_float_operand(self, node: onnx.NodeProto, reasons: dict[int, str]) -> bool:
        """Whether the runtime made ``node``, and behind it stand a pair and operators that all have a reason."""
        if node.op_type != "Transpose" or "_token_" not in node.name or reasons[id(node)] != DEFECT:
            return False
        ends = [node]
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            ends = [reader for end in ends for reader in self.readers.get(end.output[0], ())]
            if not ends or any(end.op_type != kind for end in ends):
                return False
        readers = [reader for end in ends for reader in self.readers.get(end.output[0], ())]
        return all(reasons[id(reader)] not in (DEFECT, "pair") for reader in readers)

    def _excuse(self, node: onnx.NodeProto, reasons: dict[int, str]) -> str:
        operands = node.input[:1] if node.op_type in _MOVES | _LAYERS | {"Clip"} else node.input
        for name in operands:
            if name in self.constants:
                return "constant operand"
            maker = self.producer.get(name)
            floats = maker is None or maker.op_type in _PRODUCTS or reasons[id(maker)] not in (DEFECT, "pair")
            if floats:
                return reasons[id(maker)] if maker is not None and node.op_type in _MOVES else "float operand"
        if node.op_type in _WRITE_FLOATS:
            return DEFECT
        for name in filter(None, node.output):
            readers = self.readers.get(name, ())
            if name in self.outputs or any(reasons[id(reader)] not in (DEFECT, "pair") for reader in readers):
                return "float reader"
        return DEFECT


def _has_form(node: onnx.NodeProto) -> bool:
    """Whether the integer form, where the operator has one, has this one's attributes."""
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "AveragePool":
        return all(step == 1 for step in values.get("dilations", ()))
    if node.op_type == "MaxPool":
        return len(node.output) == 1
    if node.op_type == "Resize":
        return bool(values.get("mode", b"nearest") == b"nearest")
    return True
