"""Sub-byte integers as ONNX stores them in ``raw_data``.

ONNX ``TensorProto``: INT4 and UINT4 pack two elements in a byte, INT2 and UINT2 four (opset 25), the first element in
the least significant bits, signed ones in two's complement, the last byte padded with zero bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]


def pack_int4(values: IntArray) -> bytes:
    """``values`` (any shape, within -8..7, row-major) as ``ceil(size / 2)`` bytes; ``ValueError`` out of range."""
    return _pack(values, 4)


def pack_int2(values: IntArray) -> bytes:
    """``values`` (any shape, within -2..1, row-major) as ``ceil(size / 4)`` bytes; ``ValueError`` out of range."""
    return _pack(values, 2)


def pack_rows(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """``values`` ``[..., n]``, below ``2**bits``, as ``[..., ceil(n * bits / 8)]`` bytes: each row begins a new byte.

    As MatMulNBits and GatherBlockQuantized of ONNX Runtime read them: the first element in the least significant bits.
    """
    per_byte = 8 // bits
    padded = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per_byte) * per_byte), np.uint8)
    padded[..., : values.shape[-1]] = values
    fields = padded.reshape(*padded.shape[:-1], -1, per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(fields, axis=-1))


def pack_indices(values: IntArray, bits: int) -> bytes:
    """``values`` within 0..2**bits - 1 as UINT4 or UINT2; ``ValueError`` out of range."""
    return _pack(values, bits, signed=False)


def unpack_int4(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """The int8 array that :func:`pack_int4` packed."""
    return _unpack(data, shape, 4)


def unpack_int2(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """The int8 array that :func:`pack_int2` packed."""
    return _unpack(data, shape, 2)


def _pack(values: IntArray, bits: int, *, signed: bool = True) -> bytes:
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    flat = np.asarray(values).reshape(-1)
    if flat.size and (flat.min() < low or flat.max() > high):
        raise ValueError(
            f"{'' if signed else 'u'}int{bits} holds {low}..{high}; the values reach {flat.min()}..{flat.max()}"
        )
    per_byte = 8 // bits
    fields = np.zeros((-(-flat.size // per_byte), per_byte), np.uint8)
    fields.reshape(-1)[: flat.size] = flat.astype(np.uint8) & ((1 << bits) - 1)
    fields <<= np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(fields, axis=1).tobytes()


def _unpack(data: bytes, shape: tuple[int, ...], bits: int) -> npt.NDArray[np.int8]:
    packed = np.frombuffer(data, np.uint8)
    size = int(np.prod(shape, dtype=np.int64))
    if packed.size != -(-size * bits // 8):
        raise ValueError(f"shape {shape} needs {-(-size * bits // 8)} bytes of int{bits}, not {packed.size}")
    fields = (packed[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & ((1 << bits) - 1)
    unsigned = fields.reshape(-1)[:size].astype(np.int8)
    half = 1 << (bits - 1)
    return np.asarray(((unsigned ^ half) - half).astype(np.int8).reshape(shape))
