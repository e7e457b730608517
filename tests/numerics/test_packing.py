import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from autoq.numerics.packing import pack_indices, pack_int2, pack_int4, unpack_int2, unpack_int4

KINDS = [
    (pack_int4, unpack_int4, -8, 7, TensorProto.INT4, ml_dtypes.int4),
    (pack_int2, unpack_int2, -2, 1, TensorProto.INT2, ml_dtypes.int2),
]


@pytest.mark.parametrize(("pack", "unpack", "low", "high", "onnx_type", "dtype"), KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (3, 3, 3, 3), (0,), (7, 0)])
def test_onnx_reads_what_was_packed(pack, unpack, low, high, onnx_type, dtype, shape):
    values = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int8)
    tensor = onnx.TensorProto(dims=shape, data_type=onnx_type, raw_data=pack(values))
    read = numpy_helper.to_array(tensor)
    assert read.dtype == dtype and read.shape == shape
    np.testing.assert_array_equal(read.astype(np.int8), values)
    np.testing.assert_array_equal(unpack(pack(values), shape), values)
    assert numpy_helper.from_array(values.astype(dtype)).raw_data == pack(values)


def test_the_first_element_is_in_the_low_bits():
    assert pack_int4(np.array([1, -1, 7], np.int8)) == bytes([0xF1, 0x07])
    assert pack_int2(np.array([1, 0, -1, -2, 1], np.int8)) == bytes([0b10_11_00_01, 0b01])


@pytest.mark.parametrize(("bits", "onnx_type"), [(4, TensorProto.UINT4), (2, TensorProto.UINT2)])
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (3, 3, 3, 3)])
def test_onnx_reads_packed_indices(bits, onnx_type, shape):
    values = np.random.default_rng(0).integers(0, 2**bits, shape).astype(np.uint8)
    tensor = onnx.TensorProto(dims=shape, data_type=onnx_type, raw_data=pack_indices(values, bits))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.uint8), values)
    with pytest.raises(ValueError, match=f"uint{bits} holds 0"):
        pack_indices(values + np.uint8(2**bits), bits)


@given(st.lists(st.integers(-8, 7)))
def test_int4_comes_back(values):
    assert unpack_int4(pack_int4(np.array(values, np.int64)), (len(values),)).tolist() == values


@given(st.lists(st.integers(-2, 1)))
def test_int2_comes_back(values):
    assert unpack_int2(pack_int2(np.array(values, np.int64)), (len(values),)).tolist() == values


@pytest.mark.parametrize(("pack", "bad"), [(pack_int4, 8), (pack_int4, -9), (pack_int2, 2), (pack_int2, -3)])
def test_a_value_that_does_not_fit_is_refused(pack, bad):
    with pytest.raises(ValueError, match=f"{bad}"):
        pack(np.array([0, bad]))


def test_a_wrong_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="needs 2 bytes"):
        unpack_int4(b"\0", (3,))
