"""Weights from codebooks: what is stored means what it should, and loses no more than a published or simpler way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.numerics.codebook import PEAK, fit, grid
from autoq.numerics.gptq import loss
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.numerics.weights import QuantizedWeight, quantize_weight


def second_moment(inputs: int, seed: int = 0, groups: int = 1) -> np.ndarray:
    """Of inputs that depend on each other, as activations do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, 8 * inputs, inputs)) @ rng.standard_normal((groups, inputs, inputs))
    return mixed.transpose(0, 2, 1) @ mixed


def error_of(weight: np.ndarray, found: QuantizedWeight, hessian: np.ndarray) -> float:
    rows = (weight - found.dequantize()).astype(np.float64).reshape(len(hessian), -1, hessian.shape[1])
    return float(loss(rows.transpose(0, 2, 1), hessian).sum())


def check(found: QuantizedWeight, bits: int) -> None:
    """What every entry of the bank has to be."""
    book = found.codebook
    assert book is not None and book.shape == (2**bits,) and book.dtype == found.values.dtype == np.int8
    assert (np.diff(book.astype(int)) >= 0).all() and np.abs(book.astype(int)).max() <= PEAK
    np.testing.assert_array_equal(book[found.indices], found.values)
    assert found.scale.dtype == np.float32 and (found.scale >= np.finfo(np.float32).tiny).all()


@given(st.lists(st.integers(-PEAK, PEAK), min_size=1, max_size=16), st.lists(st.floats(-1e3, 1e3), max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_grid_has_the_nearest_entry(entries: list[int], steps: list[float]) -> None:
    book = np.sort(np.array(entries, np.float64))
    values = np.array([*steps, *(entry + half for entry in entries for half in (0, 0.5, -0.5))])
    found = grid(book)(values)
    assert np.isin(found, book).all()
    np.testing.assert_array_equal(np.abs(found - values), np.abs(values[:, None] - book).min(axis=1))


def test_entries_are_safe_without_vnni() -> None:
    assert WEIGHT_LEVELS[7][1] >= PEAK


@pytest.mark.parametrize(("bits", "published"), [(2, 0.1175), (4, 0.009497)])
def test_a_normal_variable_loses_what_max_found(bits: int, published: float) -> None:
    """Max (1960), table 1. One row has its own scale and entries, so only their rounding is lost beside it."""
    weight = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32)
    found = quantize_weight(weight, bits=bits, axis=0, rounding="kmeans")
    check(found, bits)
    assert float(np.mean((weight - found.dequantize()) ** 2) / np.mean(weight**2)) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_from_a_codebook_come_back(bits: int, axis: int | None) -> None:
    """Each channel is a scale times a few integers: nothing is lost, with second moments or without."""
    rng = np.random.default_rng(3)
    book = np.array([-64, -20, 7, 31] if bits == 2 else [*range(-64, 60, 9), 64][:16])
    weight = rng.choice(book, (12, 40)).astype(np.float32)
    weight[:, :16], weight[:16] = rng.permuted(np.resize(book, (12, 16)), axis=1), np.resize(book, 40)
    weight *= 1e-3
    if axis is not None:
        weight = weight * np.geomspace(0.01, 100, weight.shape[axis]).astype(np.float32).reshape(
            (-1, 1)[:: 1 - 2 * axis]
        )
    inputs = weight.size // weight.shape[axis or 0]
    for hessian in (None, second_moment(inputs)):
        found = quantize_weight(weight, bits=bits, axis=axis, rounding="kmeans", hessian=hessian)
        check(found, bits)
        np.testing.assert_allclose(found.dequantize(), weight, rtol=2e-2 if axis is not None else 1e-5)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize(("shape", "groups"), [((24, 20), 1), ((12, 2, 3, 3), 4), ((9, 1, 3, 3), 9), ((5, 1), 1)])
def test_better_than_even_levels(bits: int, axis: int | None, shape: tuple[int, ...], groups: int) -> None:
    """Of weights with heavy tails, by the loss of the layer's output: plain against plain, made up for against GPTQ."""
    weight = np.random.default_rng(1).standard_t(4, shape).astype(np.float32)
    hessian = second_moment(int(np.prod(shape[1:])), groups=groups)
    errors = {}
    for rounding in ("nearest", "gptq", "kmeans"):
        found = quantize_weight(weight, bits=bits, axis=axis, rounding=rounding, hessian=hessian, groups=groups)
        errors[rounding] = error_of(weight, found, hessian)
    check(found, bits)
    plain = quantize_weight(weight, bits=bits, axis=axis, rounding="kmeans")
    check(plain, bits)
    assert errors["kmeans"] <= error_of(weight, plain, hessian)
    assert errors["kmeans"] <= errors["nearest"]
    if groups == 1 and shape[1] > 1:
        assert errors["kmeans"] < 0.9 * errors["gptq"]


def test_importance_moves_the_entries() -> None:
    """A column that never fires has no say where the entries lie."""
    rng = np.random.default_rng(0)
    weight, importance = rng.standard_normal((1, 30, 8)), np.ones((1, 30, 1))
    weight[0, 0], importance[0, 0] = 50.0, 0.0
    book, scale = fit(weight, importance, count=4, shared=False)
    other, _ = fit(np.delete(weight, 0, axis=1), np.delete(importance, 0, axis=1), count=4, shared=False)
    np.testing.assert_array_equal(book, other)
    assert (scale < 50 / PEAK).all()


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("hessian", [False, True])
def test_odd_weights(bits: int, hessian: bool) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, 10)).astype(np.float32)
    zeros = base.copy()
    zeros[[0, 3]] = 0
    kinds = {
        "channels of zeros": zeros,
        "all zeros": np.zeros_like(base),
        "one value": np.full_like(base, -0.7),
        "three values": rng.choice(np.array([-0.5, 0, 0.25], np.float32), (6, 10)),
        "subnormal": base * np.float32(1e-41),
        "huge": base * np.float32(1e37),
        "one large": np.where(np.eye(6, 10, dtype=bool), np.float32(1e6), base),
        "far apart": base * np.geomspace(1e-30, 1e30, 6, dtype=np.float32)[:, None],
    }
    for name, weight in kinds.items():
        moment = second_moment(10) if hessian else None
        found = quantize_weight(weight, bits=bits, axis=0, rounding="kmeans", hessian=moment)
        check(found, bits)
        restored = found.dequantize()
        assert np.isfinite(restored).all(), name
        if name in ("all zeros", "one value"):
            np.testing.assert_allclose(restored, weight, rtol=1e-6, atol=1e-25)
        if name == "three values" and not hessian and bits == 4:
            assert np.abs(restored - weight).max() < 0.05
        if name == "channels of zeros":
            assert np.abs(restored[[0, 3]]).max() < 1e-25
            others = quantize_weight(
                np.delete(weight, [0, 3], axis=0), bits=bits, axis=0, rounding="kmeans", hessian=moment
            )
            np.testing.assert_allclose(np.delete(restored, [0, 3], axis=0), others.dequantize(), rtol=1e-5)


@pytest.mark.parametrize("moment", ["zero", "one input"])
def test_inputs_that_say_little(moment: str) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    hessian = np.zeros((5, 5))
    if moment == "one input":
        hessian[2, 2] = 3.0
    found = quantize_weight(weight, bits=4, axis=0, rounding="kmeans", hessian=hessian)
    check(found, 4)
    assert np.abs(found.dequantize() - weight).max() < 0.5


def test_what_cannot_be_is_refused() -> None:
    weight = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="codebooks have 4 or 2 bits, not 8"):
        quantize_weight(weight, bits=8, axis=0, rounding="kmeans")
    weight[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"channel 1 .* NaN"):
        quantize_weight(weight, bits=4, axis=0, rounding="kmeans")
    weight[1, 2] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        quantize_weight(weight, bits=2, axis=0, rounding="kmeans")


def test_threads_change_nothing(printed_on_threads: Callable[[str], set[bytes]]) -> None:
    program = (
        "import numpy as np; from autoq.numerics.weights import quantize_weight; r = np.random.default_rng(0); "
        "x = r.standard_normal((900, 300)) @ r.standard_normal((300, 300)); w = r.standard_normal((300, 300)); "
        "q = quantize_weight(w, bits=4, axis=0, rounding='kmeans', hessian=x.T @ x / 900); "
        "print(q.values.tobytes().hex(), q.codebook.tobytes().hex())"
    )
    assert len(printed_on_threads(program)) == 1
