"""MatMul and Gemm with activations whose range is found at run time.

They are written in ONNX's own operators: ``DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul``, a Gemm's bias by
``Add``. ONNX Runtime makes one kernel of them, the Add of a bias behind a MatMul included: DynamicQuantizeMatMul where
one layer reads the tensor, and MatMulIntegerToFloat for each where several do, behind one DynamicQuantizeLinear, which
is faster than each finding the range anew.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def found_range(tensor: str) -> onnx.NodeProto:
    """The node that quantizes ``tensor`` to uint8 with the range of its present values."""
    outputs = [f"{tensor}::dyn", f"{tensor}::dyn::s", f"{tensor}::dyn::z"]
    return helper.make_node("DynamicQuantizeLinear", [tensor], outputs, f"{tensor}::DynamicQuantizeLinear")


def dynamic_product(
    node: onnx.NodeProto, tensor: str, matrix: str, scales: str, bias: str | None
) -> list[onnx.NodeProto]:
    """The nodes that compute a MatMul or Gemm ``node`` behind :func:`found_range`; the last has its output.

    ``matrix`` is int8 ``[K, N]``, ``scales`` and ``bias`` are float32 ``[N]`` (or one scale).
    """
    out = node.output[0]
    exact = f"{out}::sum" if bias else out
    nodes = [
        helper.make_node("MatMulInteger", [f"{tensor}::dyn", matrix, f"{tensor}::dyn::z"], [f"{out}::i32"], node.name),
        helper.make_node("Cast", [f"{out}::i32"], [f"{out}::f32"], f"{out}::Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{tensor}::dyn::s", scales], [f"{out}::scale"], f"{out}::scale::Mul"),
        helper.make_node("Mul", [f"{out}::f32", f"{out}::scale"], [exact], f"{out}::Mul"),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [exact, bias], [out], f"{out}::Add"))
    return nodes
