import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from autoq.numerics.affine import LEVELS, MIN_SCALE, Affine, activation_affine, dequantize, quantize

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def runtime(op: str, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None) -> np.ndarray:
    """What ONNX Runtime makes of one QuantizeLinear or DequantizeLinear node."""
    attributes = {} if axis is None else {"axis": axis}
    out = zero_point.dtype if op == "QuantizeLinear" else np.dtype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "scale", "zero_point"], ["y"], **attributes)],
        "one_node",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(out), x.shape)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.tobytes(), raw=True),
            helper.make_tensor(
                "zero_point",
                helper.np_dtype_to_tensor_dtype(zero_point.dtype),
                zero_point.shape,
                zero_point.tobytes(),
                raw=True,
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def hard_values(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Random values, every tie between two levels and its neighbours, and the ends of float32."""
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    ends = np.array([0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, np.inf, -np.inf], np.float32)
    around = [np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    return np.concatenate([rng.normal(size=4000).astype(np.float32) * np.float32(100 * scale), ties, *around, ends])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("scale", [1.0, 0.1, 4 / 255, 3.1e-5, 77.7])
def test_quantize_is_bit_exact_with_onnx_runtime(dtype, scale):
    rng = np.random.default_rng(0)
    x = hard_values(rng, scale)
    for zero_point in {LEVELS[dtype][0], 0, 3, 120}:
        scale_array, zero_array = np.array(scale, np.float32), np.array(zero_point, dtype)
        ours = quantize(x, scale_array, zero_array, *LEVELS[dtype])
        assert ours.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(ours, runtime("QuantizeLinear", x, scale_array, zero_array, None))
        np.testing.assert_array_equal(
            dequantize(ours, scale_array, zero_array), runtime("DequantizeLinear", ours, scale_array, zero_array, None)
        )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_axis_is_bit_exact_with_onnx_runtime(axis):
    rng = np.random.default_rng(axis)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    scale = rng.uniform(0.005, 0.02, x.shape[axis]).astype(np.float32)
    zero_point = rng.integers(-100, 100, x.shape[axis]).astype(np.int8)
    ours = quantize(x, scale, zero_point, -128, 127, axis)
    np.testing.assert_array_equal(ours, runtime("QuantizeLinear", x, scale, zero_point, axis))
    np.testing.assert_array_equal(
        dequantize(ours, scale, zero_point, axis), runtime("DequantizeLinear", ours, scale, zero_point, axis)
    )


def test_division_is_no_multiplication_by_the_reciprocal():
    # The runtime test above would not notice if no value told the two apart.
    x, scale = hard_values(np.random.default_rng(0), 0.1), np.float32(0.1)
    with np.errstate(over="ignore", invalid="ignore"):
        by_reciprocal = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
    assert (quantize(x, scale, 0, -128, 127) != by_reciprocal).any()


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scale", "zero_point"),
    [
        (-1.0, 3.0, "uint8", 4 / 255, 64),  # 1 / (4/255) = 63.75
        (-1.0, 1.0, "uint8", 2 / 255, 127),  # 127.5, but float32 rounds the scale up
        (0.0, 6.0, "uint8", 6 / 255, 0),
        (2.0, 6.0, "uint8", 6 / 255, 0),  # widened to zero
        (-6.0, -2.0, "uint8", 6 / 255, 255),
        (0.0, 0.0, "uint8", 1 / 255, 0),
        (-1.0, 3.0, "int8", 3 / 127, 0),
        (-5.0, 3.0, "int8", 5 / 127, 0),
        (0.0, 0.0, "int8", 1 / 127, 0),
        (-1.0, 3.0, "int16", 3 / 32767, 0),
        (-5.0, 3.0, "int16", 5 / 32767, 0),
        (0.0, 0.0, "int16", 1 / 32767, 0),
        (0.0, 1e-45, "uint8", MIN_SCALE, 0),
        (-1e-40, 1e-40, "int8", MIN_SCALE, 0),
    ],
)
def test_activation_affine_by_hand(low, high, dtype, scale, zero_point):
    got_scale, got_zero_point = activation_affine(low, high, dtype)
    assert (got_scale, got_zero_point) == (np.float32(scale), zero_point)
    assert isinstance(got_scale, np.float32) and isinstance(got_zero_point, int)


@settings(deadline=None)
@given(a=FINITE, b=FINITE, dtype=st.sampled_from(["uint8", "int8", "int16"]), share=st.floats(0, 1))
def test_a_value_in_range_comes_back_within_half_a_step(a, b, dtype, share):
    low, high = min(a, b), max(a, b)
    affine = Affine.of_range(low, high, dtype)
    assert affine.scale >= MIN_SCALE
    assert affine.dequantize(affine.quantize(np.zeros(1, np.float32)))[0] == 0.0
    x = np.float32(low + share * (high - low))
    # The rounded zero point may move either end of the range by half a step.
    bound = (1.0 if dtype == "uint8" else 0.5) * float(affine.scale)
    assert abs(float(affine.dequantize(affine.quantize(x))) - float(x)) <= bound * (1 + 1e-4) + 2**-22 * abs(x)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_a_bad_range_is_refused(low, high):
    with pytest.raises(ValueError, match="no range"):
        activation_affine(low, high, "uint8")


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([1.0, np.nan]), 0.1, 0, 0, 255)


def test_int32_keeps_every_level():
    x = np.array([2.0**31 * 1.5, -(2.0**31) * 1.5, 16777216.0], np.float32)
    got = quantize(x, 1.0, 0, -(2**31), 2**31 - 1)
    assert got.dtype == np.int32
    assert got.tolist() == [2**31 - 1, -(2**31), 16777216]


def test_a_scale_that_is_not_normal_is_refused():
    with pytest.raises(ValueError, match="scale"):
        Affine(scale=np.float32(1e-45), zero_point=np.int8(0), dtype="int8")
    with pytest.raises(ValueError, match="zero point"):
        Affine(scale=np.float32(1.0), zero_point=np.int16(300), dtype="uint8")
