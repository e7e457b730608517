"""Products on short numbers in PyTorch, against NumPy; sizes that no kernel takes as they are among them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.model.torch_products import (
    BlockMatrix,
    Float8Matrix,
    IntegerMatrix,
    block_product,
    float8_product,
    integer_product,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 40))


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, signed=st.booleans(), zero=st.integers(-128, 255), seed=st.integers(0, 2**31))
def test_integers(sizes: tuple[int, int, int], signed: bool, zero: int, seed: int) -> None:
    rows, inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    kind = np.int8 if signed else np.uint8
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    x = rng.integers(low, high + 1, (rows, inputs)).astype(kind)
    weight = rng.integers(-128, 128, (inputs, outputs)).astype(np.int8)
    point = kind(np.clip(zero, low, high))
    matrix = IntegerMatrix.of(torch.from_numpy(weight))
    found = integer_product(torch.from_numpy(x), torch.tensor(point), matrix)
    assert found.dtype == torch.int32
    assert (found.numpy() == (x.astype(np.int64) - int(point)) @ weight.astype(np.int64)).all()
    assert (integer_product(torch.from_numpy(x), None, matrix).numpy() == x.astype(np.int64) @ weight).all()


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**31))
def test_eight_bit_floats(sizes: tuple[int, int, int], seed: int) -> None:
    rows, inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, rows, inputs)).astype(ml_dtypes.float8_e4m3fn)
    weight = (100 * rng.standard_normal((inputs, outputs))).astype(ml_dtypes.float8_e4m3fn)
    short = [torch.from_numpy(each.view(np.uint8)).view(torch.float8_e4m3fn) for each in (x, weight)]
    found = float8_product(short[0], Float8Matrix.of(short[1]))
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    size = np.abs(x.astype(np.float64)) @ np.abs(weight.astype(np.float64))
    assert found.dtype == torch.float32
    assert (np.abs(found.numpy() - expected) <= 1e-6 * size + 1e-12).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs", "block"), [(128, 32, 32), (128, 48, 64), (100, 7, 32), (96, 16, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks(bits: int, inputs: int, outputs: int, block: int, dtype: torch.dtype) -> None:
    """In bfloat16 with 4 bits the first two have PyTorch's own int4 kernel, the others are widened."""
    rng = np.random.default_rng(bits)
    blocks = -(-inputs // block)
    levels = rng.integers(0, 1 << bits, (outputs, inputs)).astype(np.uint8)
    scales = (rng.uniform(0.5, 1.5, (outputs, blocks)) * rng.choice([-1, 1], (outputs, blocks))).astype(np.float32)
    zeros = rng.integers(0, 1 << bits, (outputs, blocks)).astype(np.float32)
    x = rng.standard_normal((3, 5, inputs)).astype(np.float32)
    made = BlockMatrix.of(*map(torch.from_numpy, (levels, scales, zeros)), block, bits, dtype)
    own_kernel = bits == 4 and dtype == torch.bfloat16 and inputs == 128
    assert (made.scales is not None) == own_kernel
    found = block_product(torch.from_numpy(x), made).numpy()
    wide = [np.repeat(each, block, axis=1)[:, :inputs].astype(np.float64) for each in (scales, zeros)]
    expected = x.astype(np.float64) @ ((levels - wide[1]) * wide[0]).T
    step = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
    assert np.abs(found - expected).max() <= step * np.abs(expected).max()
