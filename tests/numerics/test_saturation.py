"""Why x86 without VNNI gets 7-bit weights: ``vpmaddubsw``, with which its integer kernels begin, emulated.

The instruction multiplies unsigned bytes with signed ones, adds each two neighbouring products and saturates the sum to
16 bits (Intel, Architectures Software Developer's Manual, volume 2, PMADDUBSW). ``benchmarks/no_vnni.py`` shows the
same in ONNX Runtime itself, on an emulated CPU.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autoq.numerics.scales import WEIGHT_LEVELS

SAFE = [bits for bits in WEIGHT_LEVELS if bits < 8]


def pmaddubsw(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """int16 ``[n / 2]`` of uint8 ``[n]`` and int8 ``[n]``."""
    products = a.astype(np.int32) * b.astype(np.int32)
    return np.clip(products[0::2] + products[1::2], -(2**15), 2**15 - 1).astype(np.int16)


def dot_without_vnni(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> int:
    """As AVX2 kernels add up: pairs in 16 bits, then (vpmaddwd, vpaddd) in 32."""
    return int(pmaddubsw(a, b).astype(np.int32).sum())


def exact(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> int:
    return int(a.astype(np.int64) @ b.astype(np.int64))


def test_eight_bits_saturate() -> None:
    a, b = np.full(2, 255, np.uint8), np.full(2, 127, np.int8)
    assert (dot_without_vnni(a, b), exact(a, b)) == (32767, 64770)
    assert (dot_without_vnni(a, -b), exact(a, -b)) == (-32768, -64770)
    # Nor is it a matter of the last few levels: ordinary activations with ordinary weights of one sign will do.
    assert dot_without_vnni(np.full(2, 200, np.uint8), np.full(2, 90, np.int8)) == 32767 < 2 * 200 * 90


@pytest.mark.parametrize("bits", SAFE)
def test_fewer_bits_never_do(bits: int) -> None:
    low, high = WEIGHT_LEVELS[bits]
    # The sum is linear in each operand, so its extremes lie at the corners.
    for x, y in ((0, 0), (0, 255), (255, 0), (255, 255)):
        for v, w in ((low, low), (low, high), (high, low), (high, high)):
            a, b = np.array([x, y], np.uint8), np.array([v, w], np.int8)
            assert dot_without_vnni(a, b) == exact(a, b)


def test_no_wider_symmetric_grid_is_safe() -> None:
    high = WEIGHT_LEVELS[7][1] + 1
    a, b = np.full(2, 255, np.uint8), np.full(2, high, np.int8)
    assert dot_without_vnni(a, b) != exact(a, b)


@given(
    bits=st.sampled_from(SAFE),
    data=st.data(),
    a=arrays.arrays(np.uint8, st.integers(1, 40).map(lambda pairs: 2 * pairs)),
)
def test_any_input(bits: int, data: st.DataObject, a: npt.NDArray[np.uint8]) -> None:
    low, high = WEIGHT_LEVELS[bits]
    b = data.draw(arrays.arrays(np.int8, a.shape, elements=st.integers(low, high)))
    assert dot_without_vnni(a, b) == exact(a, b)
