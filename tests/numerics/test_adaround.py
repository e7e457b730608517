"""AdaRound against brute force, and never behind GPTQ."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.scheme import WEIGHT_BITS
from autoq.numerics.adaround import adaround
from autoq.numerics.gptq import factorize, loss, uniform
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.numerics.weights import QuantizedWeight, quantize_weight


def second_moment(rng: np.random.Generator, inputs: int, samples: int | None = None) -> np.ndarray:
    x = rng.normal(size=(samples or 3 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    return np.asarray(x.T @ x / len(x))


def losses(weight: np.ndarray, quantized: QuantizedWeight, hessian: np.ndarray) -> np.ndarray:
    """Each row's loss under the damped Hessian, which rounding minimises."""
    factors = factorize(hessian[None] / np.diagonal(hessian).mean())
    error = (weight.astype(np.float64) - quantized.dequantize())[:, factors.order[0]]
    return np.einsum("ok,kj,oj->o", error, factors.damped[0], error, optimize=True)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(WEIGHT_BITS), st.integers(1, 24), st.integers(1, 5), st.booleans())
def test_no_row_is_worse_than_after_gptq(seed: int, bits: int, inputs: int, rows: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    hessian = second_moment(rng, inputs)
    weight = rng.normal(size=(rows, inputs)).astype(np.float32)
    axis = None if shared else 0
    plain, soft = (
        quantize_weight(weight, bits=bits, axis=axis, rounding=rounding, hessian=hessian, output_axis=0)
        for rounding in ("gptq", "adaround")
    )
    low, high = WEIGHT_LEVELS[bits]
    assert soft.values.min() >= low and soft.values.max() <= high and (soft.scale > 0).all()
    before, after = losses(weight, plain, hessian), losses(weight, soft, hessian)
    if shared:
        before, after = before.sum(), after.sum()
    assert (after <= before * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_it_gains_where_inputs_are_many_and_correlated(bits: int) -> None:
    rng = np.random.default_rng(0)
    hessian = second_moment(rng, 150, 400)
    weight = rng.normal(size=(64, 150)).astype(np.float32)
    plain, soft = (
        losses(weight, quantize_weight(weight, bits=bits, axis=0, rounding=rounding, hessian=hessian), hessian)
        for rounding in ("gptq", "adaround")
    )
    assert soft.sum() < 0.97 * plain.sum()


def test_near_the_best_of_all_levels() -> None:
    """Six weights of two bits: all 4096 choices are tried, with the scale given."""
    rng = np.random.default_rng(1)
    grid, gained, lost = uniform(-2, 1), 0.0, 0.0
    every = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float64)
    for _ in range(20):
        hessian = factorize(second_moment(rng, 6)[None]).damped
        weight = rng.normal(size=(1, 6, 5))
        scale = np.full((1, 5), 0.7)
        nearest = grid(weight / scale[:, None])
        found, own = adaround(weight, hessian, scale, nearest, grid=grid, shared=False)
        for row in range(5):
            errors = weight[0, :, row] - every * own[0, row]
            best = np.einsum("nk,kj,nj->n", errors, hessian[0], errors).min()
            after = loss(weight - found * own[:, None], hessian)[0, row]
            before = loss(weight - nearest * scale[:, None], hessian)[0, row]
            assert best <= after + 1e-12 and after <= before + 1e-12
            gained, lost = gained + before - after, lost + after - best
    assert gained > 8 * lost


@pytest.mark.parametrize("case", ["zero channel", "one input", "one row of data", "silent inputs", "tiny"])
def test_odd_weights_and_data(case: str) -> None:
    rng = np.random.default_rng(2)
    inputs = 1 if case == "one input" else 12
    weight = rng.normal(size=(4, inputs)).astype(np.float32)
    hessian = second_moment(rng, inputs, 1 if case == "one row of data" else None)
    if case == "zero channel":
        weight[1] = 0
    if case == "silent inputs":
        hessian[:] = 0
    if case == "tiny":
        weight *= np.float32(1e-42)
    found = quantize_weight(weight, bits=2, axis=0, rounding="adaround", hessian=hessian)
    assert np.isfinite(found.scale).all() and (found.scale > 0).all()
    if case == "zero channel":
        assert not found.values[1].any()


@pytest.mark.parametrize(("rounding", "value"), [("adaround", np.nan), ("gptq", np.inf)])
def test_weights_that_are_not_finite(rounding: str, value: float) -> None:
    weight = np.ones((3, 4), np.float32)
    weight[2, 1] = value
    with pytest.raises(ValueError, match=r"channel 2 .* NaN or an infinity"):
        quantize_weight(weight, bits=4, axis=0, rounding=rounding, hessian=np.eye(4))
    with pytest.raises(ValueError, match=f"'{rounding}' needs a hessian"):
        quantize_weight(np.ones((3, 4), np.float32), bits=4, axis=0, rounding=rounding)


def test_groups_are_rounded_alone() -> None:
    """A depthwise convolution's channels, each under its own moments."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 1, 3, 3)).astype(np.float32)
    hessians = np.stack([second_moment(rng, 9) for _ in range(6)])
    hessians /= np.diagonal(hessians, axis1=1, axis2=2).mean()
    together = quantize_weight(weight, bits=2, axis=0, rounding="adaround", hessian=hessians, groups=6)
    for channel in range(6):
        alone = quantize_weight(
            weight[channel : channel + 1], bits=2, axis=0, rounding="adaround", hessian=hessians[channel]
        )
        np.testing.assert_array_equal(together.values[channel], alone.values[0])
        np.testing.assert_allclose(together.scale[channel], alone.scale[0], rtol=1e-6)


PROCESS = """
import hashlib, numpy as np
from autoq.numerics.weights import quantize_weight
rng = np.random.default_rng(0)
x = rng.normal(size=(500, 160)) @ rng.normal(size=(160, 160))
found = quantize_weight(rng.normal(size=(450, 160)).astype("f"), bits=2, axis=0, rounding="adaround", hessian=x.T @ x)
print(hashlib.sha256(found.values.tobytes() + found.scale.tobytes()).hexdigest())
"""


def test_the_same_bytes_with_any_number_of_threads(printed_on_threads: Callable[[str], set[bytes]]) -> None:
    assert len(printed_on_threads(PROCESS)) == 1
