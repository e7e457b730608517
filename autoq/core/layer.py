"""A layer: a node with a weight that a scheme can be chosen for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

LAYER_OPS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One node with a constant weight, as the rest of autoq sees it.

    ``node`` is the ONNX node's name and ``weight``, ``bias`` the initializers'; ``input`` and ``output`` are tensor
    names. ``channel_axis`` is the axis of ``weight_shape`` that holds the output channels. ``integer_problem`` says
    why no integer kernel can run this layer whatever the runtime (a left-hand weight, scaled Gemm, …), or is empty.
    ``tied_to`` names the earlier layer that uses this weight in the same way: both always have the same scheme.
    ``strides`` are a ConvTranspose's. ``macs`` are the multiply-accumulates of one row (sample), 0 where unknown.
    """

    name: str
    op_type: str
    node: str
    weight: str
    weight_index: int
    weight_shape: tuple[int, ...]
    channel_axis: int
    input: str
    output: str
    bias: str | None = None
    groups: int = 1
    strides: tuple[int, ...] = ()
    integer_problem: str = ""
    tied_to: str | None = None
    macs: int = 0

    @property
    def parameters(self) -> int:
        """Number of weights, the bias left out."""
        return prod(self.weight_shape)

    @property
    def channels(self) -> int:
        """Number of output channels that a per-channel scale tells apart."""
        return self.weight_shape[self.channel_axis]

    @property
    def uses(self) -> float:
        """How often one sample reads each weight: the rows of a product, the positions of a convolution; at least 1."""
        return max(1.0, self.macs / max(self.parameters, 1))

    @property
    def kind(self) -> str:
        """The op in the reader's words: ``depthwise Conv``, ``Conv``, ``MatMul``, …"""
        if self.op_type == "Gather":
            return "embedding (Gather)"
        if self.op_type == "Conv" and self.groups > 1:
            return "depthwise Conv" if self.groups == self.weight_shape[0] else "grouped Conv"
        return self.op_type
