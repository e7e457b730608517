"""The ONNX Runtime scorer, against the real runtime on small generated models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.errors import ProfileError, TrialError
from autoq.runtime.base import load_runtime
from autoq.runtime.ort import clean_message, input_specs, open_session, run_batches


def model_of(nodes, inputs, outputs, initializers=()) -> bytes:
    """A model's bytes; inputs and outputs are (name, TensorProto type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def linear(batch: int | str) -> tuple[bytes, np.ndarray]:
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, [batch, 4])],
        [("y", TensorProto.FLOAT, [batch, 3])],
        {"w": weight},
    )
    return model, weight


@pytest.mark.parametrize("batch_dim", ["n", 4])
@pytest.mark.parametrize("rows", [1, 3, 4, 8, 11])
def test_every_row_is_scored_once_and_in_order(batch_dim, rows):
    model, weight = linear(batch_dim)
    x = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32)
    outputs = run_batches(open_session(model), {"x": x, "unused": np.zeros(2)}, 4)
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], x @ weight, rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_is_filled_by_repeating_the_last_row():
    # Each row's output is the sum of its batch, so the filling shows: rows 3 and 4 are 3 + 4 + 4 + 4.
    model = model_of(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=1),
            helper.make_node("Expand", ["s", "shape"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, [4, 1])],
        [("y", TensorProto.FLOAT, [4, 1])],
        {"axes": np.array([0]), "shape": np.array([4, 1])},
    )
    x = np.array([[1], [1], [1], [1], [3], [4]], np.float32)
    outputs = run_batches(open_session(model), {"x": x}, 1)
    assert outputs["y"].ravel().tolist() == [4, 4, 4, 4, 15, 15]


def test_several_inputs_outputs_and_dtypes():
    model = model_of(
        [helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["f", "x"], ["sum"]),
         helper.make_node("Identity", ["i"], ["same"])],
        [("i", TensorProto.INT64, ["n", 2]), ("x", TensorProto.FLOAT, ["n", 2])],
        [("sum", TensorProto.FLOAT, ["n", 2]), ("same", TensorProto.INT64, ["n", 2])],
    )  # fmt: skip
    specs = input_specs(model)
    assert [(spec.name, spec.dtype, spec.shape) for spec in specs] == [
        ("i", np.dtype("int64"), (None, 2)),
        ("x", np.dtype("float32"), (None, 2)),
    ]
    i, x = np.arange(10).reshape(5, 2), np.full((5, 2), 0.5, np.float32)
    outputs = run_batches(open_session(model), {"x": x, "i": i}, 2)
    np.testing.assert_array_equal(outputs["same"], i)
    np.testing.assert_array_equal(outputs["sum"], i + 0.5)


def test_non_finite_outputs_are_left_to_the_metric():
    model = model_of(
        [helper.make_node("Log", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
    )
    y = run_batches(open_session(model), {"x": np.array([-1, 0, 1], np.float32)}, 2)["y"]
    assert np.isnan(y[0]) and np.isneginf(y[1]) and y[2] == 0


@pytest.mark.parametrize(
    ("node", "shape", "says"),
    [
        (helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0), [], r"output 'y' has shape \[\] for a batch of 2"),
        (helper.make_node("Transpose", ["x"], ["y"]), [3, "n"], r"output 'y' has shape \[3, 2\] for a batch of 2"),
        (helper.make_node("NonZero", ["x"], ["y"]), [2, None], r"output 'y' changes its shape"),
        (helper.make_node("SplitToSequence", ["x"], ["y"]), None, r"output 'y' is a list"),
    ],
)
def test_an_output_that_is_not_one_row_per_row_is_refused(node, shape, says):
    if shape is None:
        value = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    else:
        kind = TensorProto.INT64 if node.op_type == "NonZero" else TensorProto.FLOAT
        value = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])], [value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.ones((4, 3), np.float32)
    x[3] = 0
    with pytest.raises(TrialError, match=says) as caught:
        run_batches(open_session(model.SerializeToString()), {"x": x}, 2)
    assert caught.value.reason == "metric"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"z": np.ones((2, 4), np.float32)}, "input 'x' is not fed; the data has z"),
        ({"x": np.ones((0, 4), np.float32)}, "at least one"),
        ({"x": np.ones((2, 5), np.float32)}, "rows 0 to 2: Got invalid dimensions"),
        ({"x": np.ones((2, 4))}, "Unexpected input data type"),
    ],
)
def test_wrong_feeds_are_one_message(inputs, says):
    with pytest.raises(TrialError, match=says) as caught:
        run_batches(open_session(linear("n")[0]), inputs, 2)
    assert caught.value.reason == "metric"
    assert "\n" not in str(caught.value)


def test_inputs_of_different_lengths_are_refused():
    model = model_of(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
    )
    with pytest.raises(TrialError, match="a: 3, b: 1"):
        run_batches(open_session(model), {"a": np.ones(3, np.float32), "b": np.ones(1, np.float32)}, 2)


@pytest.mark.parametrize("content", [b"", b"no model", linear("n")[0][:60]])
def test_a_rejected_model_fails_to_load_silently(content, tmp_path, capfd):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for model in (content, path):
        with pytest.raises(TrialError, match="ONNX Runtime rejects the model") as caught:
            open_session(model)
        assert caught.value.reason == "load"
        assert "\n" not in str(caught.value) and "[ONNXRuntimeError]" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_and_a_missing_provider_say_so():
    with pytest.raises(TrialError, match=r"absent\.onnx.*doesn't exist"):
        open_session(Path("absent.onnx"))
    with pytest.raises(ProfileError, match=r"no 'NoSuchProvider'; it has .*CPUExecutionProvider"):
        open_session(linear("n")[0], provider="NoSuchProvider")
    with pytest.raises(ProfileError, match="unknown runtime 'tvm'; known: onnxruntime"):
        load_runtime("tvm")


def test_source_locations_are_left_out_of_messages():
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code.\n Status Message: "
        "/onnxruntime_src/onnxruntime/core/reshape_helper.h:91 it cannot be reshaped\n"
    )
    assert clean_message(error) == "Non-zero status code. Status Message: it cannot be reshaped"


def test_the_optimized_graph_is_written_where_asked(tmp_path):
    open_session(linear("n")[0], optimized_path=tmp_path / "optimized.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_an_int8_model_gives_the_same_bits_with_any_number_of_threads():
    rng = np.random.default_rng(2)
    weight = rng.integers(-127, 128, size=(256, 128), dtype=np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    initializers = {
        "w": weight, "ws": np.float32(0.01), "wz": np.int8(0), "xs": np.float32(0.02), "xz": np.uint8(128),
        "ys": np.float32(0.3), "yz": np.uint8(128),
    }  # fmt: skip
    value = (TensorProto.FLOAT, ["n", 256]), (TensorProto.FLOAT, ["n", 128])
    model = model_of(nodes, [("x", *value[0])], [("y", *value[1])], initializers)
    x = rng.normal(size=(50, 256)).astype(np.float32)
    one, two = (run_batches(open_session(model, threads=threads), {"x": x}, 16)["y"] for threads in (1, 2))
    assert one.std() > 0.1
    assert one.tobytes() == two.tobytes()


def test_sessions_keep_the_stock_options():
    stock, ours = onnxruntime.SessionOptions(), open_session(linear("n")[0], threads=2).get_session_options()
    assert ours.intra_op_num_threads == 2
    for name in ("graph_optimization_level", "execution_mode", "enable_cpu_mem_arena", "enable_mem_pattern"):
        assert getattr(ours, name) == getattr(stock, name)
