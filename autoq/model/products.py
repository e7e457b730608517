"""Products and look-ups that are not written with Q/DQ pairs.

* MatMul and Gemm with activations whose range is found at run time, in ONNX's own operators: ``DynamicQuantizeLinear ->
  MatMulInteger -> Cast -> Mul``, a Gemm's bias by ``Add``. ONNX Runtime makes one kernel of them, the Add of a bias
  behind a MatMul included: DynamicQuantizeMatMul where one layer reads the tensor, and MatMulIntegerToFloat for each
  where several do, behind one DynamicQuantizeLinear, which is faster than each finding the range anew.
* Weights in blocks: MatMulNBits and GatherBlockQuantized, ONNX Runtime's own operators (domain com.microsoft), which
  read the packed weights at every run. ONNX has no operator of that kind, and DequantizeLinear with blocks would run at
  every inference. An Add of a bias behind a MatMulNBits is fused by the runtime, too.
* Tables of codes (product quantization), in ONNX's own operators: the codes of the rows taken are looked up, then the
  runs of columns that they stand for. Nothing of the table is unpacked when the session loads.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.numerics.product import ProductCodes

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


def coded_look_up(
    node: onnx.NodeProto, entry: ProductCodes, codes: str, centroids: str, first: str, scale: str
) -> list[onnx.NodeProto]:
    """A Gather ``node`` of a table's rows from codes; the last node has its output.

    ``codes`` is uint8 ``[rows, M]``, ``centroids`` int8 ``[M * entries, sub]``, of which those of run m begin at
    ``first[m]`` (int32 ``[M]``), and ``scale`` float32 ``[rows, 1]``.
    """
    out, indices = node.output[0], node.input[1]
    made: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], suffix: str, **attributes: Any) -> str:
        name = f"{out}::rows::{suffix}"
        made.append(helper.make_node(op_type, inputs, [name], f"{name}::{op_type}", **attributes))
        return name

    taken = helper.make_node("Gather", [codes, indices], [f"{out}::rows::codes"], node.name, axis=0)
    made.append(taken)
    where = add("Add", [add("Cast", [taken.output[0]], "i32", to=TensorProto.INT32), first], "where")
    runs = add("Gather", [centroids, where], "runs", axis=0)
    # The indices may have any rank, known or not: rows are put together in the shape that they have.
    width = entry.codes.shape[1] * entry.centroids.shape[2]
    columns = add("Constant", [], "columns", value_ints=[width])
    shape = add("Concat", [add("Shape", [indices], "indices"), columns], "shape", axis=0)
    rows = add("Reshape", [runs, shape], "rows")
    if width > entry.columns:
        bounds = [add("Constant", [], name, value_ints=[at]) for name, at in (("0", 0), ("end", entry.columns))]
        rows = add("Slice", [rows, *bounds, add("Constant", [], "last", value_ints=[-1])], "slice")
    scales = add("Gather", [scale, indices], "s", axis=0)
    values = add("Cast", [rows], "f32", to=TensorProto.FLOAT)
    made.append(helper.make_node("Mul", [values, scales], [out], f"{out}::Mul"))
    return made
