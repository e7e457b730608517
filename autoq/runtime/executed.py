"""Which kernel each layer really runs in, read from the graph that ONNX Runtime made of a file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from autoq.runtime.ort import open_session

INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
FLOAT_KERNELS = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gather",
        "Gemm",
        "MatMul",
        "MultiHeadAttention",
    }
)
BLOCK_KERNELS = frozenset({"GatherBlockQuantized", "MatMulNBits"})
"""Kernels that read packed weights in blocks. Activations are floats, which MatMulNBits may round inside."""
# What turns stored weights into others. In front of a layer at run time, it is paid for at every inference.
_CONVERSIONS = frozenset(["Cast", "DequantizeLinear", "Gather", "Mul", "Transpose"])


_PRECISION = {
    kernel: precision
    for precision, kernels in (("int8", INTEGER_KERNELS), ("float32", FLOAT_KERNELS), ("blocks", BLOCK_KERNELS))
    for kernel in kernels
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """How to find a layer in an optimized graph: its node, its weight and the tensors that it may write."""

    layer: str
    node: str
    weight: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What runs for one layer. ``kernel`` is empty where no kernel could be found.

    ``precision`` is ``"int8"``, ``"float32"`` or ``"blocks"``; ``runtime_conversion`` names an operator that converts
    the layer's weight at every inference, or is empty.
    """

    layer: str
    kernel: str
    precision: str
    runtime_conversion: str = ""


def executed_kernels(model: Path, layers: Sequence[LayerNames]) -> list[Executed]:
    """For each layer, the kernel that stock ONNX Runtime runs it in on this machine.

    Raises :class:`autoq.errors.TrialError` (``load``) when the runtime rejects the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path)
        graph = onnx.load(path).graph
    producers = {name: node for node in graph.node for name in node.output}
    kernels = [node for node in graph.node if node.op_type in _PRECISION]
    return [_executed(names, kernels, producers) for names in layers]


def _executed(names: LayerNames, kernels: Iterable[onnx.NodeProto], producers: dict[str, onnx.NodeProto]) -> Executed:
    node = next((kernel for kernel in kernels if is_of(kernel, names)), None)
    if node is None:
        return Executed(layer=names.layer, kernel="", precision="")
    return Executed(
        layer=names.layer,
        kernel=node.op_type,
        precision=_PRECISION[node.op_type],
        runtime_conversion=_conversion(node, names, producers),
    )


def is_of(kernel: onnx.NodeProto, names: LayerNames) -> bool:
    """Whether ``kernel``, a node of an optimized graph, runs the layer ``names``."""
    # Fusions rename nodes: "X_token_3", "X_nchwc", "fused X", "X/MatMulScaleFusion/". A blocked layout is named after
    # the tensor the layer writes.
    stems = {names.node, *names.outputs}
    name = re.sub(r"(_token_\d+|_nchwc|/\w+Fusion\w*/?)+$", "", kernel.name)
    if name in stems or name.removeprefix("fused ") in stems:
        return True
    if any(output in stems or output.split("::")[0] in names.outputs for output in kernel.output):
        return True
    return any(source == names.weight or source.startswith(f"{names.weight}::") for source in kernel.input)


def _conversion(kernel: onnx.NodeProto, names: LayerNames, producers: dict[str, onnx.NodeProto]) -> str:
    for source in kernel.input:
        made_by = producers.get(source)
        if made_by is not None and made_by.op_type in _CONVERSIONS and source.startswith(f"{names.weight}::"):
            return made_by.op_type
    return ""
