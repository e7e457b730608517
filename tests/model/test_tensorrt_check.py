"""The static validator: a file that keeps every rule of TensorRT's, and one that breaks each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.errors import TrialError
from autoq.model.tensorrt_check import require, tensorrt_problems


def explicit(*, int4: bool = False) -> onnx.ModelProto:
    """``x [n, 8] -> Q -> DQ -> MatMul`` with int8 weights by channel, or without the pair INT4 ones in blocks of 4."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], "weight", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["y"], "bias"),
    ]
    values = np.arange(-16, 16, dtype=np.int8).reshape(8, 4)
    constants = {
        "xs": np.float32(0.1),
        "xz": np.int8(0),
        "w": values,
        "ws": np.full(4, 0.02, np.float32),
        "b": np.ones(4, np.float32),
    }
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    if int4:
        nodes[:2] = []
        nodes[0] = helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], "weight", axis=0, block_size=4)
        nodes[1].input[0] = "x"
        tensors = [t for t in tensors if t.name == "b"]
        tensors.append(helper.make_tensor("w", TensorProto.INT4, (8, 4), (values // 4).ravel().tolist()))
        tensors.append(numpy_helper.from_array(np.full((2, 4), 0.02, np.float32), "ws"))
    graph = helper.make_graph(
        nodes,
        "explicit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.name == name)


def replace(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def before(model: onnx.ModelProto, reader: str, made: onnx.NodeProto) -> None:
    """Puts ``made`` in front of the node called ``reader``."""
    index = next(i for i, each in enumerate(model.graph.node) if each.name == reader)
    model.graph.node.insert(index, made)


def unsigned(model: onnx.ModelProto) -> None:
    replace(model, "xz", np.asarray(np.uint8(0)))


def zero_point(model: onnx.ModelProto) -> None:
    replace(model, "xz", np.asarray(np.int8(3)))


def no_zero_point(model: onnx.ModelProto) -> None:
    """Without one, QuantizeLinear writes uint8 (ONNX)."""
    del node(model, "quantize").input[2]
    del node(model, "dequantize").input[2]


def computed_scale(model: onnx.ModelProto) -> None:
    before(model, "quantize", helper.make_node("Abs", ["xs"], ["xs2"], "scale"))
    node(model, "quantize").input[1] = "xs2"


def vanishing_scale(model: onnx.ModelProto) -> None:
    replace(model, "ws", np.array([0.1, 0, 0.1, 0.1], np.float32))


def per_channel_activation(model: onnx.ModelProto) -> None:
    replace(model, "xs", np.full(8, 0.1, np.float32))
    replace(model, "xz", np.zeros(8, np.int8))


def no_axis(model: onnx.ModelProto) -> None:
    del node(model, "weight").attribute[:]


def wrong_axis(model: onnx.ModelProto) -> None:
    node(model, "weight").attribute[0].i = 0
    replace(model, "ws", np.full(8, 0.02, np.float32))


def integer_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.int32), "bq"))
    before(model, "bias", helper.make_node("DequantizeLinear", ["bq", "ws"], ["bd"], "bias_dq", axis=0))
    node(model, "bias").input[1] = "bd"


def widened_weight(model: onnx.ModelProto) -> None:
    """ONNX Runtime folds such a Cast; TensorRT has none of integers that are quantized."""
    model.graph.initializer.append(helper.make_tensor("w4", TensorProto.INT4, (8, 4), [1] * 32))
    before(model, "weight", helper.make_node("Cast", ["w4"], ["w8"], "widen", to=TensorProto.INT8))
    node(model, "weight").input[0] = "w8"


def carried_on_integers(model: onnx.ModelProto) -> None:
    before(model, "dequantize", helper.make_node("Identity", ["xq"], ["xq2"], "carry"))
    node(model, "dequantize").input[0] = "xq2"


def contributed(model: onnx.ModelProto) -> None:
    made = helper.make_node("FastGelu", ["p"], ["p2"], "gelu", domain="com.microsoft")
    before(model, "bias", made)
    node(model, "bias").input[0] = "p2"


def found_at_run_time(model: onnx.ModelProto) -> None:
    made = helper.make_node("DynamicQuantizeLinear", ["x"], ["dq", "ds", "dz"], "dynamic")
    before(model, "quantize", made)


def raw_weight(model: onnx.ModelProto) -> None:
    node(model, "product").op_type = "MatMulInteger"
    node(model, "product").input[1] = "w"


def integer_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("xq", TensorProto.INT8, ["n", 8]))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 25


BREAKS: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    "uint8": (unsigned, "types", "quantize"),
    "zero point": (zero_point, "zero points", "quantize"),
    "default type": (no_zero_point, "types", "quantize"),
    "computed scale": (computed_scale, "scales", "quantize"),
    "scale of 0": (vanishing_scale, "scales", "weight"),
    "activation by channel": (per_channel_activation, "granularity", "quantize"),
    "no axis": (no_axis, "axes", "weight"),
    "wrong axis": (wrong_axis, "axes", "weight"),
    "int32 bias": (integer_bias, "biases", "bias_dq"),
    "Cast to int8": (widened_weight, "casts", "widen"),
    "carried integers": (carried_on_integers, "pairs", "carry"),
    "contrib operator": (contributed, "operators", "gelu"),
    "dynamic": (found_at_run_time, "operators", "dynamic"),
    "integer product": (raw_weight, "operators", "product"),
    "integer output": (integer_output, "outputs", "xq"),
    "old opset": (old_opset, "opset", "the model"),
    "new opset": (new_opset, "opset", "the model"),
}


@pytest.mark.parametrize("int4", [False, True])
def test_a_file_that_keeps_the_rules(int4: bool) -> None:
    model = explicit(int4=int4)
    assert tensorrt_problems(model) == ()
    require(model)


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule(name: str) -> None:
    change, rule, where = BREAKS[name]
    model = explicit()
    change(model)
    found = tensorrt_problems(model)
    assert any(each.rule == rule and where in str(each) for each in found), [str(each) for each in found]
    assert all(each.helps for each in found)
    with pytest.raises(TrialError, match="TensorRT does not read this file"):
        require(model)


def odd_columns(model: onnx.ModelProto) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors["w"].CopyFrom(helper.make_tensor("w", TensorProto.INT4, (8, 3), [1] * 24))
    replace(model, "ws", np.full((2, 3), 0.02, np.float32))


def blocks_along_outputs(model: onnx.ModelProto) -> None:
    given = {each.name: each for each in node(model, "weight").attribute}
    given["axis"].i = 1


def blocks_that_do_not_divide(model: onnx.ModelProto) -> None:
    given = {each.name: each for each in node(model, "weight").attribute}
    given["block_size"].i = 3


def left_operand(model: onnx.ModelProto) -> None:
    node(model, "product").input[:] = ["wd", "x"]


def opset_20(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (odd_columns, "a last dimension of 3"),
        (blocks_along_outputs, "do not lie along the inputs"),
        (blocks_that_do_not_divide, "do not divide 8 inputs"),
        (left_operand, "for the second operand"),
        (opset_20, "INT4 in opset 20"),
    ],
)
def test_rules_of_int4(change: Callable[[onnx.ModelProto], None], said: str) -> None:
    model = explicit(int4=True)
    change(model)
    found = tensorrt_problems(model)
    assert len(found) == 1
    assert said in str(found[0])


@pytest.mark.parametrize(
    ("op_type", "axis", "right"),
    [("Conv", 0, True), ("Conv", 1, False), ("ConvTranspose", 1, True), ("ConvTranspose", 0, False)],
)
def test_axes_of_convolutions(op_type: str, axis: int, right: bool) -> None:
    model = explicit()
    replace(model, "w", np.ones((4, 4, 1, 1), np.int8))
    node(model, "weight").attribute[0].i = axis
    node(model, "product").op_type = op_type
    assert (tensorrt_problems(model) == ()) == right


def test_many_problems_are_told_as_three() -> None:
    model = explicit()
    unsigned(model)
    zero_point(model)
    wrong_axis(model)
    vanishing_scale(model)
    computed_scale(model)
    model.opset_import[0].version = 11
    count = len(tensorrt_problems(model))
    with pytest.raises(TrialError, match=f"and {count - 3} more$"):
        require(model)
