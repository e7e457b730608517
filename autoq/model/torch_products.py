"""Products on short numbers in PyTorch, as tensor cores have them: integers, 8-bit floats, 4-bit weights.

Each is exact where the file says what it is: int8 products have int32 sums (``torch._int_mm``), products of 8-bit
floats float32 ones (``torch._scaled_mm``). Kernels want sizes that are multiples of 8 or 16, and ``_int_mm`` more than
16 rows: weights are filled up with zeros when they are laid out, rows when they come. The same functions run on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from autoq.model.torch_spatial import Tensor

_INT8_STEP, _FP8_STEP, _LEAST_ROWS = 8, 16, 17
_INT4_BLOCKS = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """int8 weights ``[K, N]``: ``values`` filled up and laid out by columns, ``sums`` int32 of each column."""

    values: Tensor
    sums: Tensor
    outputs: int

    @classmethod
    def of(cls, weight: Tensor) -> IntegerMatrix:
        """From int8 ``[K, N]``."""
        sums = weight.to(torch.int32).sum(0, dtype=torch.int32)
        return cls(values=_by_columns(weight, _INT8_STEP), sums=sums, outputs=weight.shape[1])


def integer_product(x: Tensor, zero: Tensor | None, matrix: IntegerMatrix) -> Tensor:
    """``(x - zero) @ weight`` in int32, ``[..., N]``; ``x`` is uint8 or int8 ``[..., K]``, ``zero`` one number."""
    rows = x.reshape(-1, x.shape[-1])
    offset = torch.zeros((), dtype=torch.int32, device=x.device) if zero is None else zero.reshape(()).to(torch.int32)
    if rows.dtype == torch.uint8:
        rows, offset = (rows.to(torch.int16) - 128).to(torch.int8), offset - 128
    count = rows.shape[0]
    rows = F.pad(rows, (0, matrix.values.shape[0] - rows.shape[1], 0, max(0, _LEAST_ROWS - count)))
    sums = torch._int_mm(rows, matrix.values)[:count, : matrix.outputs]
    return (sums - offset * matrix.sums).reshape(*x.shape[:-1], matrix.outputs)


@dataclass(frozen=True, slots=True)
class Float8Matrix:
    """8-bit float weights ``[K, N]``, filled up and laid out by columns."""

    values: Tensor
    outputs: int

    @classmethod
    def of(cls, weight: Tensor) -> Float8Matrix:
        """From float8_e4m3fn ``[K, N]``."""
        bytes_ = _by_columns(weight.view(torch.uint8), _FP8_STEP)
        return cls(values=bytes_.view(torch.float8_e4m3fn), outputs=weight.shape[1])


def float8_product(x: Tensor, matrix: Float8Matrix) -> Tensor:
    """``x @ weight`` in float32, ``[..., N]``; ``x`` is float8_e4m3fn ``[..., K]``."""
    rows = x.reshape(-1, x.shape[-1]).view(torch.uint8)
    rows = F.pad(rows, (0, matrix.values.shape[0] - rows.shape[1])).contiguous().view(torch.float8_e4m3fn)
    one = torch.ones((), dtype=torch.float32, device=x.device)
    sums = torch._scaled_mm(rows, matrix.values, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return sums[:, : matrix.outputs].reshape(*x.shape[:-1], matrix.outputs)


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """Weights in blocks: packed for PyTorch's int4 kernel with ``scales`` and zeros, or widened, ``[N, K]``."""

    values: Tensor
    scales: Tensor | None
    block: int
    outputs: int

    @classmethod
    def of(
        cls, levels: Tensor, scales: Tensor, zeros: Tensor, block: int, bits: int, dtype: torch.dtype
    ) -> BlockMatrix:
        """From levels uint8 ``[N, K]``, float32 scales and zero points ``[N, K / block]`` (the last may be cut).

        A weight is ``(level - zero) * scale``. ``dtype`` is what is multiplied in. PyTorch has a kernel for 4 bits in
        bfloat16; anything else is widened once, which saves bytes in the file and none in memory.
        """
        outputs, inputs = levels.shape
        if bits == 4 and dtype == torch.bfloat16 and _has_int4_kernel(inputs, outputs, block):
            # The kernel's weight is (level - 8) * scale + zero.
            pairs = torch.stack([scales, (8 - zeros) * scales], dim=-1).transpose(0, 1).to(torch.bfloat16).contiguous()
            return cls(values=_packed(levels, inputs), scales=pairs, block=block, outputs=outputs)
        spread = [each.repeat_interleave(block, dim=1)[:, :inputs] for each in (scales, zeros)]
        return cls(values=((levels - spread[1]) * spread[0]).to(dtype), scales=None, block=block, outputs=outputs)


def block_product(x: Tensor, matrix: BlockMatrix) -> Tensor:
    """``x @ weight.T`` in float32, ``[..., N]``, computed in the matrix's type."""
    dtype = matrix.values.dtype if matrix.scales is None else torch.bfloat16
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    if matrix.scales is None:
        y = rows @ matrix.values.T
    elif x.device.type == "cuda":
        y = torch._weight_int4pack_mm(rows, matrix.values, matrix.block, matrix.scales)
    else:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, matrix.values, matrix.block, matrix.scales)
    return y.to(torch.float32).reshape(*x.shape[:-1], matrix.outputs)


def _has_int4_kernel(inputs: int, outputs: int, block: int) -> bool:
    return block in _INT4_BLOCKS and inputs % block == 0 and inputs % 64 == 0 and outputs % 16 == 0


def _packed(levels: Tensor, inputs: int) -> Tensor:
    if levels.device.type == "cuda":
        pairs = (levels[:, ::2] << 4) | levels[:, 1::2]
        tiles = next(each for each in (8, 4, 2) if inputs % (16 * each) == 0)
        return torch._convert_weight_to_int4pack(pairs.contiguous(), tiles)
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
    return packed


def _by_columns(weight: Tensor, step: int) -> Tensor:
    """``[K, N]`` with zeros up to multiples of ``step``; columns lie together, as kernels read them."""
    inputs, outputs = weight.shape
    return F.pad(weight.T, (0, -inputs % step, 0, -outputs % step)).contiguous().T
