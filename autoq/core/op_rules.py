"""What an op can have at all, whatever the hardware: what no file that autoq writes has a form for."""

from __future__ import annotations

from autoq.core.scheme import Scheme

_PRODUCTS = ("Gemm", "MatMul")


def op_problem(op_type: str, scheme: Scheme) -> str | None:
    """Why no layer of ``op_type`` can have ``scheme``, or ``None``."""
    weight, activation = scheme.weight, scheme.activation
    if scheme.floats is not None and op_type not in (*_PRODUCTS, *(["Conv"] if scheme.floats == "fp16" else [])):
        return (
            f"{scheme.floats} multiplies in {'MatMul, Gemm and Conv' if scheme.floats == 'fp16' else 'MatMul and Gemm'}"
        )
    if activation is not None and activation.dynamic and op_type not in _PRODUCTS:
        return "ranges found at run time are for MatMul and Gemm: convolutions would run slower than in float32"
    if activation is not None and op_type == "Gather":
        return "a table of embeddings is looked up: it has no activations to quantize"
    if weight is not None and weight.block is not None and op_type not in (*_PRODUCTS, "Gather"):
        return "blocks of inputs have kernels for MatMul, Gemm and embedding tables only"
    if weight is not None and weight.rounding == "pq" and op_type != "Gather":
        return "product quantization ('-pq') codes the rows of embedding tables; '-kmeans' is for layers that compute"
    return None
