"""Products of short floats: as written, against float64 by hand, and in ONNX Runtime where it has them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from autoq.core.layer import Layer
from autoq.core.scheme import FLOATS
from autoq.model.floats import floats_problem, to_fp8
from tests.models import Lowered, Net, check, distance, lowered, run

SHORT = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}


def products() -> Lowered:
    """Two layers that read one tensor, a bias of each kind, a weight that is transposed."""
    net = Net(5)
    x = net.input("n", 6, 64)
    a = net.add("Add", net.add("MatMul", x, net.weight(64, 32)), net.weight(32))
    b = net.add("Sigmoid", net.add("MatMul", x, net.weight(64, 32)))
    c = net.add("Reshape", net.add("Mul", a, b), net.ints(-1, 32))
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 6, 64)).astype(np.float32)}
    return lowered(net.model(net.add("Gemm", c, net.weight(16, 32), net.weight(16), transB=1)), list(FLOATS), feeds)


def rounded(values: np.ndarray, floats: str, axis: int) -> np.ndarray:
    """``values`` in short floats, as float64; 8-bit ones with a scale for each index but those of ``axis``."""
    if floats != "fp8":
        return values.astype(SHORT[floats]).astype(np.float64)
    scale = np.abs(values).max(axis=axis, keepdims=True).astype(np.float32) * np.float32(1 / 448)
    return (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("floats", FLOATS)
def test_values_by_hand(floats: str) -> None:
    subject = products()
    model = subject.build(floats)
    parsed = check(model)
    weights = {layer.node: subject.graph.constant(layer.weight).astype(np.float64) for layer in subject.layers}
    first, second, last = weights.values()
    biases = [numpy_helper.to_array(t) for t in subject.graph.model.graph.initializer if t.dims in ([32], [16])]

    def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        y = rounded(x, floats, -1) @ rounded(weight.astype(np.float32), floats, 0)
        return y if floats == "fp8" else y.astype(np.float32).astype(SHORT[floats]).astype(np.float64)

    x = subject.feeds["x"]
    a, b = product(x, first) + biases[0], 1 / (1 + np.exp(-product(x, second)))
    expected = product((a * b).astype(np.float32).reshape(-1, 32), last.T) + biases[1]
    (found,) = ReferenceEvaluator(parsed).run(None, subject.feeds)
    assert distance(np.asarray(found, np.float64), expected) < (2e-2 if floats != "fp16" else 2e-3)
    if floats != "bf16":  # stock ONNX Runtime has no bfloat16 MatMul on the CPU
        (ort,) = run(model, subject.feeds).values()
        assert distance(ort, expected) < (5e-3 if floats == "fp8" else 2e-3)
    kinds = [tensor.data_type for tensor in parsed.graph.initializer]
    stored = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "fp8": TensorProto.FLOAT8E4M3FN}[floats]
    assert kinds.count(stored) == 3
    casts = [node for node in parsed.graph.node if node.op_type == "Cast" and node.input[0] == "x"]
    assert len(casts) == (0 if floats == "fp8" else 1), "both layers read one short tensor"


def test_a_convolution_in_float16() -> None:
    net = Net(2)
    y = net.conv(net.input("n", 4, 8, 8), 4, 6)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    subject = lowered(net.model(y), ["fp16"], feeds)
    (found,), (expected,) = run(subject.build("fp16"), feeds).values(), subject.float32().values()
    assert 0 < distance(found, expected) < 3e-3
    assert len(onnx.load_from_string(subject.build("fp16")).graph.node) > 1


def test_eight_bit_floats_reach_their_largest() -> None:
    rng = np.random.default_rng(3)
    weight = (rng.standard_normal((40, 7)) * 10.0 ** np.arange(-3, 4)).astype(np.float32)
    weight[:, 5] = 0
    levels, scale = to_fp8(weight, 1)
    assert levels.dtype == ml_dtypes.float8_e4m3fn
    peaks = np.abs(levels.astype(np.float32)).max(axis=0)
    assert (peaks[[0, 1, 2, 3, 4, 6]] == 448).all()
    assert peaks[5] == 0
    error = np.abs(levels.astype(np.float32) * scale - weight)
    # Half a step: 2**-4 of the value, and of the least normal number, 2**-6, below it.
    assert (error <= np.maximum(np.abs(weight) / 16, scale * 2.0**-10) * 1.0001).all()


def test_which_layers_cannot() -> None:
    def layer(*shape: int, problem: str = "") -> Layer:
        return Layer(
            name="a",
            op_type="MatMul",
            node="a",
            weight="w",
            weight_index=1,
            weight_shape=shape,
            channel_axis=len(shape) - 1,
            input="x",
            output="y",
            integer_problem=problem,
        )

    assert floats_problem(layer(4, 5), "fp8") is None
    assert "two dimensions" in str(floats_problem(layer(2, 4, 5), "fp8"))
    assert floats_problem(layer(4, 5, problem="its weight is on the left"), "bf16") == "its weight is on the left"
