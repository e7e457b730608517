"""Which kernel each layer really runs in, read from OpenVINO's own execution graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoq.runtime.executed import Executed, LayerNames
from autoq.runtime.openvino import OpenVino

_KERNELS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Gather", "Embedding"})
_INTEGERS = frozenset({"i8", "u8", "i4", "u4", "i2", "u2"})
# What OpenVINO appends to the name of a node that it takes apart, and ONNX Runtime's notes on a name of ours.
_SUFFIX = re.compile(r"(/(WithoutBiases|DequantizationMultiply|transpose_[ab]|Scale)|::q)+$")


def executed_layers(runtime: OpenVino, model: bytes | Path, layers: Sequence[LayerNames]) -> list[Executed]:
    """For each layer, the kernel that ``runtime`` runs it in on this machine.

    ``precision`` is ``int8``, ``float32``, ``bf16``, or ``weights`` for a kernel that reads integer weights beside
    float activations, which it may round to 8 bits in groups. Raises :class:`autoq.errors.TrialError` (``load``).
    """
    graph = runtime.open(model).compiled.get_runtime_model()
    kernels = [node for node in graph.get_ops() if _info(node, "layerType") in _KERNELS]
    return [_executed(names, kernels) for names in layers]


def _executed(names: LayerNames, kernels: Sequence[Any]) -> Executed:
    node = next((kernel for kernel in kernels if _is_of(kernel, names)), None)
    if node is None:
        return Executed(layer=names.layer, kernel="", precision="")
    return Executed(layer=names.layer, kernel=_info(node, "layerType"), precision=_precision(node))


def _precision(node: Any) -> str:
    primitive, precision = _info(node, "primitiveType").lower(), _info(node, "runtimePrecision")
    if primitive.endswith("_i8"):
        return "int8"
    if precision in _INTEGERS:
        return "weights"
    return {"f32": "float32"}.get(precision, precision)


def _is_of(kernel: Any, names: LayerNames) -> bool:
    """Whether ``kernel`` runs the layer ``names``: it has its name, or reads its weight."""
    stems = {_SUFFIX.sub("", name) for name in _info(kernel, "originalLayersNames").split(",")}
    if not stems.isdisjoint({names.node, *names.outputs}):
        return True
    return any(_reads(port.get_source_output().get_node(), names.weight) for port in kernel.inputs())


def _reads(node: Any, weight: str) -> bool:
    """Whether ``node`` holds ``weight``, or turns it into another layout or type."""
    while _info(node, "layerType") in {"Convert", "Reorder", "Reshape", "Transpose"} and node.inputs():
        node = node.input(0).get_source_output().get_node()
    name = node.get_friendly_name()
    return bool(name == weight or name.startswith(f"{weight}::"))


def _info(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
