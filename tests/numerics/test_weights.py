import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from autoq.core.scheme import WEIGHT_BITS
from autoq.numerics.weights import WEIGHT_LEVELS, QuantizedWeight, quantize_weight

TINY = np.finfo(np.float32).tiny


def squared_error(weight: np.ndarray, quantized: QuantizedWeight, axis: int = 0) -> np.ndarray:
    difference = (weight.astype(np.float64) - quantized.dequantize()) ** 2
    return np.moveaxis(difference, axis, 0).reshape(weight.shape[axis], -1).sum(axis=1)


def rounded_error(row: np.ndarray, scale: float, bits: int) -> float:
    return float(((row - scale * np.clip(np.rint(row / scale), *WEIGHT_LEVELS[bits])) ** 2).sum())


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 3, 3), (16, 1, 3, 3), (4, 700)])
def test_scales_are_near_the_best_of_a_dense_search(bits, shape):
    weight = np.random.default_rng(1).laplace(size=shape).astype(np.float32)
    errors = squared_error(weight, quantize_weight(weight, bits=bits, axis=0))
    for row, error in zip(weight.reshape(len(weight), -1).astype(np.float64), errors, strict=True):
        high = WEIGHT_LEVELS[bits][1]
        widest = np.abs(row).max() / high
        assert error <= rounded_error(row, widest, bits) * (1 + 1e-5)
        best = min(rounded_error(row, widest * share, bits) for share in np.linspace(0.05, 1, 3000))
        # 8 bits search few scales: rows that short have an error all over the place.
        assert error <= best * {8: 1.35, 6: 1.15, 5: 1.1, 4: 1.05, 3: 1.05, 2: 1.03}[bits]


def test_eight_bits_by_hand():
    weight = np.array([[127.0, -64.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    quantized = quantize_weight(weight, bits=8, axis=0)
    assert quantized.values.tolist() == [[127, -64, 1, 0], [0, 0, 0, 0]]
    assert quantized.values.dtype == np.int8 and quantized.scale.dtype == np.float32
    assert quantized.scale.tolist() == [1.0, 1.0]


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-60000, 60000, width=16)
    ),
    st.sampled_from(WEIGHT_BITS),
    st.sampled_from([0, 1, None]),
    st.sampled_from([1.0, 1e-40, 1e33]),
)
def test_levels_scales_and_shapes(weight, bits, axis, unit):
    weight = (weight * np.float32(unit)).astype(np.float32)
    weight[~np.isfinite(weight)] = 0
    quantized = quantize_weight(weight, bits=bits, axis=axis)
    low, high = WEIGHT_LEVELS[bits]
    assert quantized.values.shape == weight.shape and quantized.values.flags["C_CONTIGUOUS"]
    assert quantized.values.min() >= low and quantized.values.max() <= high
    assert quantized.scale.shape == ((1,) if axis is None else (weight.shape[axis],))
    assert np.isfinite(quantized.scale).all() and (quantized.scale >= TINY).all()
    # No weight changes its sign.
    restored = quantized.dequantize()
    assert (restored * np.sign(weight) >= 0).all()
    zero = np.moveaxis(weight, axis or 0, 0).reshape(weight.shape[axis or 0], -1)
    if axis is not None:
        dead = (zero == 0).all(axis=1)
        assert (quantized.scale[dead] == 1).all()
        assert (np.moveaxis(quantized.values, axis, 0)[dead] == 0).all()


def test_the_axis_only_names_the_channels():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, 10)).astype(np.float32)  # a MatMul: [K, N]
    x = rng.normal(size=(200, 24))
    hessian = x.T @ x
    for rounding in ("nearest", "gptq"):
        columns = quantize_weight(weight, bits=4, axis=1, rounding=rounding, hessian=hessian)
        rows = quantize_weight(weight.T, bits=4, axis=0, rounding=rounding, hessian=hessian)
        np.testing.assert_array_equal(columns.values, rows.values.T)
        np.testing.assert_array_equal(columns.scale, rows.scale)
        tensor = quantize_weight(weight, bits=4, axis=None, rounding=rounding, hessian=hessian, output_axis=1)
        assert tensor.scale.shape == (1,) and tensor.axis is None
    transposed = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)  # a ConvTranspose: [I, O, kh, kw]
    quantized = quantize_weight(transposed, bits=4, axis=1)
    for channel in range(4):
        alone = quantize_weight(transposed[:, channel].reshape(1, -1), bits=4, axis=0)
        np.testing.assert_array_equal(quantized.values[:, channel].reshape(1, -1), alone.values)
        assert quantized.scale[channel] == alone.scale[0]


def test_importance_moves_the_scale_to_the_inputs_that_matter():
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 32)).astype(np.float32)
    weight[:, 0] *= 6
    diagonal = np.where(np.arange(32) == 0, 1e-3, 1.0)
    plain = quantize_weight(weight, bits=2, axis=0)
    weighed = quantize_weight(weight, bits=2, axis=0, hessian=np.diag(diagonal))

    def weighted(quantized: QuantizedWeight) -> float:
        return float((((weight - quantized.dequantize()) ** 2) @ diagonal).sum())

    assert weighted(weighed) < 0.9 * weighted(plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_weight_names_its_channel(bad):
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[2, 1] = bad
    with pytest.raises(ValueError, match=r"channel 2 \(axis 0\)"):
        quantize_weight(weight, bits=8, axis=0)
    with pytest.raises(ValueError, match=r"channel 1 \(axis 1\)"):
        quantize_weight(weight, bits=8, axis=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, "9 bits"),
        ({"axis": 2}, "axis 2"),
        ({"rounding": "floor"}, "floor"),
        ({"rounding": "gptq"}, "needs a hessian"),
        ({"rounding": "gptq", "hessian": np.eye(4)}, "does not fit"),
        ({"hessian": np.full((3, 3), np.nan)}, "finite"),
        ({"hessian": -np.eye(3)}, "negative"),
        ({"hessian": np.eye(3), "groups": 2}, "2 groups"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_weight(np.ones((4, 3), np.float32), **{"bits": 4, "axis": 0, **arguments})


def test_more_bits_and_better_scales_on_a_real_model(bench):
    model = onnx.load(bench / "cifar10" / "resnet20.onnx")
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
    weights = [w for w in weights if w.ndim == 4]
    assert len(weights) >= 19
    for weight in weights:
        channel = {
            bits: squared_error(weight, quantize_weight(weight, bits=bits, axis=0)) for bits in (8, 6, 5, 4, 3, 2)
        }
        assert all((channel[more] < channel[less]).all() for more, less in itertools.pairwise(channel))
        tensor = squared_error(weight, quantize_weight(weight, bits=4, axis=None))
        assert channel[4].sum() < tensor.sum()
