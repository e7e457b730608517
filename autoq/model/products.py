"""Products and look-ups that are not written with Q/DQ pairs.

* MatMul and Gemm with activations whose range is found at run time, in ONNX's own operators: ``DynamicQuantizeLinear ->
  MatMulInteger -> Cast -> Mul``, a Gemm's bias by ``Add``. ONNX Runtime makes one kernel of them, the Add of a bias
  behind a MatMul included: DynamicQuantizeMatMul where one layer reads the tensor, and MatMulIntegerToFloat for each
  where several do, behind one DynamicQuantizeLinear, which is faster than each finding the range anew.
* Weights in blocks: MatMulNBits and GatherBlockQuantized, ONNX Runtime's own operators (domain com.microsoft), which
  read the packed weights at every run. ONNX has no operator of that kind, and DequantizeLinear with blocks would run at
  every inference. An Add of a bias behind a MatMulNBits is fused by the runtime, too.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec

OWN_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


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


def blockwise_product(
    node: onnx.NodeProto,
    layer: Layer,
    spec: WeightSpec,
    stored: tuple[str, str, str],
    bias: str | None,
    accuracy_level: int,
) -> onnx.NodeProto:
    """A MatMul or Gemm ``node`` as MatMulNBits.

    ``stored`` names integers, scales and zero points (or nothing); ``accuracy_level`` is the profile's: 4 rounds the
    activations to 8 bits, one scale for each row's part of a block, inside the kernel.
    """
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], *stored, *(["", bias] if bias else [])],
        [node.output[0]],
        node.name,
        domain=OWN_DOMAIN,
        K=layer.parameters // layer.channels,
        N=layer.channels,
        bits=spec.bits,
        block_size=spec.block,
        accuracy_level=accuracy_level,
    )


def blockwise_look_up(node: onnx.NodeProto, spec: WeightSpec, stored: tuple[str, str, str]) -> onnx.NodeProto:
    """A Gather ``node`` of a table's rows as GatherBlockQuantized; ``stored`` as in :func:`blockwise_product`."""
    integers, scales, zeros = stored
    return helper.make_node(
        "GatherBlockQuantized",
        [integers, node.input[1], scales, *([zeros] if zeros else [])],
        [node.output[0]],
        node.name,
        domain=OWN_DOMAIN,
        bits=spec.bits,
        block_size=spec.block,
        gather_axis=0,
        quantize_axis=1,
    )
