"""Blocks of inputs with a scale, and a zero point, of their own."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autoq.numerics.blocks import blocks_of, quantize_in_blocks, spread, with_positive_scales
from autoq.numerics.packing import pack_rows
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.numerics.weights import QuantizedWeight, quantize_weight

TINY = np.finfo(np.float32).tiny


def levels_of(bits: int, symmetric: bool) -> tuple[int, int]:
    return WEIGHT_LEVELS[bits] if symmetric else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def per_weight(quantized: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each weight of a ``[channels, K]``."""
    assert quantized.block is not None
    zeros = np.zeros_like(quantized.values) if quantized.zero_point is None else quantized.zero_point
    inputs = quantized.values.shape[1]
    scale, zero = (np.repeat(each, quantized.block, axis=1)[:, :inputs] for each in (quantized.scale, zeros))
    return scale.astype(np.float64), zero.astype(np.float64)


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.floats(-60000, 60000, width=16)
    ),
    st.sampled_from([8, 4, 2]),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.sampled_from([1.0, 1e-40, 1e33]),
)
def test_what_lies_in_the_range_comes_back_within_half_a_scale(weight, bits, block, symmetric, unit):
    weight = (weight * np.float32(unit)).astype(np.float32)
    weight[~np.isfinite(weight)] = 0
    quantized = quantize_weight(weight, bits=bits, axis=0, block=block, symmetric=symmetric)
    low, high = levels_of(bits, symmetric)
    assert quantized.values.shape == weight.shape and quantized.values.dtype == np.int8
    assert quantized.values.min() >= low and quantized.values.max() <= high
    assert quantized.scale.shape == (len(weight), blocks_of(weight.shape[1], block))
    assert np.isfinite(quantized.scale).all() and (np.abs(quantized.scale) >= TINY).all()
    scale, zero = per_weight(quantized)
    ends = np.sort([(low - zero) * scale, (high - zero) * scale], axis=0)
    inside = (weight >= ends[0]) & (weight <= ends[1])
    error = np.abs(quantized.dequantize().astype(np.float64) - weight)
    assert (error[inside] <= (0.5 + 1e-6) * np.abs(scale[inside]) + TINY).all()
    # Beyond the range, the nearest end of it.
    expected = np.clip(weight.astype(np.float64), *ends)
    assert (np.abs(quantized.dequantize() - expected)[~inside] <= 1e-6 * np.abs(expected[~inside])).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 2])
def test_errors_are_near_the_best_of_a_dense_search(bits, symmetric):
    """Every zero point and sign, and 400 scales: no block of 32 is far from the best of them."""
    rng = np.random.default_rng(0)
    weight = (rng.laplace(size=(30, 32)) + rng.normal(size=(30, 1)) * 0.5).astype(np.float32)
    quantized = quantize_weight(weight, bits=bits, axis=0, block=32, symmetric=symmetric)
    errors = ((quantized.dequantize() - weight) ** 2).sum(axis=1)
    low, high = levels_of(bits, symmetric)
    zeros = [0] if symmetric else range(low, high + 1)
    ratios = []
    for row, error in zip(weight.astype(np.float64), errors, strict=True):
        widest = np.ptp(np.append(row, 0)) / (high if symmetric else high - low)
        best = np.inf
        for zero, sign in product(zeros, (1, -1) if symmetric else (1,)):
            scales = sign * widest * np.linspace(0.1, 1, 400)[:, None]
            levels = np.clip(np.rint(row / scales), low - zero, high - zero)
            best = min(best, float(((levels * scales - row) ** 2).sum(axis=1).min()))
        ratios.append(error / best)
    assert np.mean(ratios) < 1.05 and max(ratios) < 1.35


def test_a_negative_scale_where_the_long_side_is_positive():
    weight = np.zeros((2, 32), np.float32)
    weight[0, :9], weight[1, :9] = np.arange(9), -np.arange(9)
    levels, scale, zero = quantize_in_blocks(weight, bits=4, block=32, symmetric=True)
    assert zero is None and scale.ravel().tolist() == [-1.0, 1.0]
    assert levels[:, :9].tolist() == [list(range(0, -9, -1))] * 2


def test_an_asymmetric_block_by_hand():
    weight = np.concatenate([np.arange(-3, 13), np.zeros(16)]).astype(np.float32)[None]
    levels, scale, zero = quantize_in_blocks(weight, bits=4, block=32, symmetric=False)
    assert zero is not None
    assert (scale.item(), zero.item()) == (1.0, -5)
    assert levels[0].tolist() == [*range(-8, 8), *[-5] * 16]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("inputs", "block"), [(1, 32), (40, 32), (128, 64), (70, 128)])
def test_gptq_loses_no_channel(inputs, block, bits, symmetric):
    rng = np.random.default_rng(inputs)
    x = rng.normal(size=(3 * inputs, inputs)) @ (np.eye(inputs) + 0.5 * rng.normal(size=(inputs, inputs)))
    hessian, weight = x.T @ x, rng.normal(size=(inputs, 6)).astype(np.float32)

    def losses(rounding):
        quantized = quantize_weight(
            weight, bits=bits, axis=1, rounding=rounding, hessian=hessian, block=block, symmetric=symmetric
        )
        error = (weight.astype(np.float64) - quantized.dequantize()).T
        return np.einsum("ok,kj,oj->o", error, hessian, error, optimize=True), quantized

    (near, _), (found, quantized) = losses("nearest"), losses("gptq")
    assert (found <= near * (1 + 1e-6)).all()
    if inputs > 1 and bits < 8:
        assert found.sum() < 0.7 * near.sum()
    low, high = levels_of(bits, symmetric)
    assert quantized.values.min() >= low and quantized.values.max() <= high


def test_smaller_blocks_lose_less_and_gptq_less_than_nearest():
    rng = np.random.default_rng(3)
    weight = (rng.normal(size=(256, 32)) * np.exp(rng.normal(size=(256, 1)) * 0.5)).astype(np.float32)
    x = rng.normal(size=(600, 256)) @ (np.eye(256) + 0.3 * rng.normal(size=(256, 256)) / 16)
    hessian = x.T @ x

    def loss_of(**options):
        error = weight - quantize_weight(weight, bits=4, axis=1, hessian=hessian, **options).dequantize()
        return float(np.einsum("ko,kj,jo->", error, hessian, error, optimize=True))

    for rounding in ("nearest", "gptq"):
        found = [loss_of(rounding=rounding, block=block) for block in (32, 64, 128, None)]
        assert found == sorted(found)
    assert loss_of(rounding="gptq", block=128) < loss_of(rounding="nearest", block=64)


def test_scales_are_halves_where_halves_hold_them():
    rng = np.random.default_rng(0)
    for unit, halves in ((1.0, True), (1e-6, False), (1e9, False)):
        weight = (rng.normal(size=(4, 64)) * unit).astype(np.float32)
        scale = quantize_weight(weight, bits=4, axis=0, block=32).scale
        with np.errstate(over="ignore"):
            assert (scale.astype(np.float16) == scale).all() == halves


def test_what_does_not_fit_together():
    weight = np.ones((4, 8), np.float32)
    for wrong in ({"axis": None}, {"axis": 0, "groups": 2}):
        with pytest.raises(ValueError, match="blocks divide the inputs of a channel"):
            quantize_weight(weight, bits=4, block=32, **wrong)
    with pytest.raises(ValueError, match="needs a hessian"):
        quantize_weight(weight, bits=4, axis=0, block=32, rounding="gptq")


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_rows_of_packed_bytes(bits, size):
    values = np.random.default_rng(size).integers(0, 2**bits, (3, 2, size)).astype(np.uint8)
    packed = pack_rows(values, bits)
    assert packed.shape == (3, 2, -(-size * bits // 8)) and packed.dtype == np.uint8
    for index in np.ndindex(*values.shape):
        byte, shift = divmod(index[-1] * bits, 8)
        assert packed[(*index[:-1], byte)] >> shift & (2**bits - 1) == values[index]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from([2, 4]), inputs=st.integers(1, 40))
def test_positive_scales(seed: int, bits: int, inputs: int) -> None:
    """Blocks that need not change their levels keep their weights exactly; the others come as near as any scale lets
    them that is tried, which is nearer than cutting the level off."""
    rng, block, low = np.random.default_rng(seed), 16, -(1 << (bits - 1))
    levels = rng.integers(low, -low, (3, inputs)).astype(np.int8)
    scale = (rng.uniform(0.5, 2, (3, -(-inputs // block))) * rng.choice([-1, 1], (3, 1))).astype(np.float32)
    found, positive = with_positive_scales(levels, scale, bits=bits, block=block)
    assert (positive > 0).all()
    assert found.min() >= low and found.max() < -low
    before, after = levels * spread(scale, inputs, block), found * spread(positive, inputs, block)
    for start in range(0, inputs, block):
        for row, at in ((row, start // block) for row in range(3)):
            part = slice(start, start + block)
            if scale[row, at] > 0 or levels[row, part].min() > low:
                assert (after[row, part] == before[row, part]).all()
            else:
                cut = np.where(levels[row, part] == low, low + 1, levels[row, part]) * scale[row, at]
                errors = [np.square(each - before[row, part]).sum() for each in (after[row, part], cut)]
                assert errors[0] <= errors[1] * (1 + 1e-6)
