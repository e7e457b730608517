"""Seeded ways to spoil a job file and an ONNX model."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

_ODD: list[Any] = [
    None, "", " ", "x", "\x00", "é\u202e", "../../..", "/", "a" * 5000, 0, 1, -1, 2**31, 2**80, 0.5, -0.0, 1e308,
    float("inf"), float("nan"), True, False, [], {}, [[]], [None], {"": ""}, {"path": None}, {1: 2}, "w8a8@minmax",
    "10m", "-5s", "accuracy", "file.py:f", "small.onnx", "data.npz", "NHWC->NCHW", [0, -1], [5, 2], ["metric"] * 2,
]  # fmt: skip
_FRAGMENTS = [":", "- ", "  ", "\t", "{", "}", "[", "]", "&a", "*a", "!!python/name:os.system", "|", ">", "#", "'", '"',
              "\n", "\x00", "\ufeff", "<<: *a", "%YAML 9.9", "---", "...", "é", "\U0001f600", "0x",
              "1e999", "~"]  # fmt: skip


def spoiled_job(values: dict[str, Any], rng: random.Random) -> bytes:
    """The text of a job file with one to three things wrong in its content, its text, or its bytes."""
    document = copy.deepcopy(values)
    kind = rng.random()
    if kind < 0.6:
        for _ in range(rng.choice([1, 1, 2, 3])):
            _change_a_value(document, rng)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(document, sort_keys=False)
    for _ in range(rng.choice([1, 2, 4])):
        place = rng.randrange(len(text) + 1)
        if rng.random() < 0.4:
            text = text[:place] + text[place + rng.randrange(1, 12) :]
        elif rng.random() < 0.5:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "\n".join(lines)
        else:
            text = text[:place] + rng.choice(_FRAGMENTS) + text[place:]
    data = bytearray(text.encode())
    if kind > 0.9 and data:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _change_a_value(document: Any, rng: random.Random) -> None:
    places = list(_places(document))
    holder, key = rng.choice(places)
    action = rng.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.35 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "path", "name", str(key) + "s", str(key).upper()])] = holder.pop(key)
    elif action < 0.45 and len(places) > 1:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    else:
        holder[key] = copy.deepcopy(rng.choice(_ODD))


def _places(document: Any) -> Any:
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(pairs):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


def spoiled_model(model: onnx.ModelProto, rng: random.Random) -> bytes:
    """The bytes of an ONNX file with one to three things wrong in its graph, or in its bytes."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(model)
    kind = rng.random()
    if kind < 0.85:
        changes = _VALID_CHANGES if kind < 0.5 else [*_VALID_CHANGES, *_MODEL_CHANGES]
        for _ in range(rng.choice([1, 2, 3, 4])):
            rng.choice(changes)(spoiled, rng)
        return spoiled.SerializeToString()
    data = bytearray(spoiled.SerializeToString())
    if rng.random() < 0.3:
        return bytes(data[: rng.randrange(len(data))])
    # Most of a file is weights, where a flipped bit harms nobody: aim at the rest.
    ends = [rng.randrange(min(600, len(data))), len(data) - 1 - rng.randrange(min(600, len(data)))]
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.choice([*ends, rng.randrange(len(data))])] = rng.randrange(256)
    return bytes(data)


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice(model.graph.node) if model.graph.node else model.graph.node.add()


def _tensor(model: onnx.ModelProto, rng: random.Random) -> onnx.TensorProto:
    return rng.choice(model.graph.initializer) if model.graph.initializer else model.graph.initializer.add()


def _names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    found = [name for node in graph.node for name in (*node.input, *node.output)]
    return [*found, *(tensor.name for tensor in graph.initializer), "", "nowhere", "::", "a" * 300, "é\u202e", "x::q"]


def _reconnect(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    names = rng.choice([node.input, node.output])
    if names:
        names[rng.randrange(len(names))] = rng.choice(_names(model))


def _add_edge(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    rng.choice([node.input, node.output]).append(rng.choice(_names(model)))


def _drop_edge(model: onnx.ModelProto, rng: random.Random) -> None:
    names = rng.choice([_node(model, rng).input, _node(model, rng).output])
    if names:
        del names[rng.randrange(len(names))]


def _drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


def _repeat_node(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.node.add().CopyFrom(_node(model, rng))


def _shuffle_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _other_operator(model: onnx.ModelProto, rng: random.Random) -> None:
    names = ["Relu", "Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Reshape", "Concat", "Split", "If", "Loop",
             "Constant", "ConstantOfShape", "Identity", "QuantizeLinear", "BatchNormalization", "Nonsense", "",
             "LSTM", "Cast", "Pad", "Slice", "Clip", "Einsum", "SequenceConstruct", "Optional"]  # fmt: skip
    _node(model, rng).op_type = rng.choice(names)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.attribute and rng.random() < 0.3:
        del node.attribute[rng.randrange(len(node.attribute))]
        return
    names = [a.name for a in node.attribute] + ["group", "pads", "strides", "kernel_shape", "axis", "transB", "alpha",
                                                "dilations", "auto_pad", "value", "to", "perm", "body"]  # fmt: skip
    value = rng.choice(
        [
            0,
            -1,
            7,
            2**40,
            -(2**62),
            0.0,
            float("nan"),
            "",
            "SAME_UPPER",
            [],
            [0],
            [1, 1],
            [-1, 5, 2**33],
            [0.5],
            helper.make_tensor("t", TensorProto.INT64, [2], [3, -9]),
        ]
    )
    name = rng.choice(names)
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(
        helper.make_attribute(name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None)
    )


def _weight_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    dims = list(tensor.dims)
    change = rng.random()
    if change < 0.25 and dims:
        dims[rng.randrange(len(dims))] = rng.choice([0, -1, 1, 3, 2**31, 2**62])
    elif change < 0.5:
        dims = []
    elif change < 0.75:
        rng.shuffle(dims)
    else:
        dims.append(rng.choice([0, 1, 2]))
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _weight_type(model: onnx.ModelProto, rng: random.Random) -> None:
    _tensor(model, rng).data_type = rng.choice([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 21, 22, 99])


def _weight_values(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    try:
        array = numpy_helper.to_array(tensor).astype(np.float32).copy()
    except Exception:  # spoiled before
        return
    if array.size:
        array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e-45])
        if rng.random() < 0.3:
            array[...] = rng.choice([0.0, np.nan, 1e38])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _weight_data(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]


def _drop_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def _repeat_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.initializer.add().CopyFrom(_tensor(model, rng))


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    tensor.data_location = TensorProto.EXTERNAL
    for key, values in {
        "location": ["", "x.bin", "/etc/passwd", "../x", "\x00", "a" * 400, "."],
        "offset": ["0", "-5", "x", str(2**70)],
        "length": ["1", "-1", "", str(2**62)],
    }.items():
        if rng.random() < 0.7:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, rng.choice(values)


def _interface(model: onnx.ModelProto, rng: random.Random) -> None:
    values = rng.choice([model.graph.input, model.graph.output])
    if not values or rng.random() < 0.2:
        values.add().name = rng.choice(_names(model))
        return
    value = rng.choice(values)
    kind = rng.random()
    if kind < 0.3:
        value.name = rng.choice(_names(model))
    elif kind < 0.6:
        value.type.tensor_type.elem_type = rng.choice([0, 1, 2, 7, 8, 10, 11, 99])
    elif kind < 0.8:
        value.type.tensor_type.shape.dim.add().dim_value = rng.choice([0, -7, 1, 2**62])
    else:
        value.ClearField("type")


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.8:
        entry = rng.choice(model.opset_import)
        if rng.random() < 0.8:
            entry.version = rng.choice([-3, 0, 1, 12, 13, 18, 21, 25, 99, 2**40])
        else:
            entry.domain = rng.choice(["com.example", "ai.onnx.ml", "\x00"])
    elif rng.random() < 0.5:
        del model.opset_import[:]
    else:
        model.ir_version = rng.choice([0, 3, 7, 99, 2**40])


# What follows keeps the file valid to a checker, as far as it looks: it is to get into what comes behind it.


def _valid_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    found = [(node, a) for node in model.graph.node for a in node.attribute]
    if not found:
        return
    _, attribute = rng.choice(found)
    if attribute.type == onnx.AttributeProto.INTS:
        values = [rng.choice([0, 1, 2, 3, -1, 9, 2**31]) for _ in attribute.ints]
        del attribute.ints[:]
        attribute.ints.extend(values)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice([0, 1, -1, 2, 5, 2**40])
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, 1e38, float("nan")])


def _resized_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    shape = [dim if rng.random() < 0.6 else rng.choice([0, 1, 2, 5]) for dim in tensor.dims if dim >= 0]
    kind = rng.choice([np.float32, np.float32, np.float16, np.float64, np.int8, np.int64, np.bool_])
    size = int(np.prod([float(dim) for dim in shape])) if shape else 1
    if size < 10**6:
        array = np.random.default_rng(rng.randrange(2**32)).normal(size=shape).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))


def _expose(model: onnx.ModelProto, rng: random.Random) -> None:
    names = [name for node in model.graph.node for name in node.output if name]
    if names:
        value = model.graph.output.add()
        name = rng.choice(names)
        shape = ["N", "K"] if name in ("f", "g", "r3", "m") else ["N", "C", "H", "W"]
        value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _share_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    weights = [tensor.name for tensor in model.graph.initializer]
    node = _node(model, rng)
    if weights and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(weights)


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    old = rng.choice(_names(model))
    new = rng.choice(
        ["", "a b", "x::q", "w1::w", "::", "é\u202e", "%s", "{}", "[red]", "a" * 3000, "/a/b.0", "\n", "'"]
    )
    if not old or not new:
        return
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        if node.name == old or rng.random() < 0.1:
            node.name = new
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new


def _insert(model: onnx.ModelProto, rng: random.Random) -> None:
    index = rng.randrange(len(model.graph.node) + 1)
    reader = model.graph.node[index] if index < len(model.graph.node) else None
    if reader is None or not reader.input or not reader.input[0]:
        return
    made = f"inserted{rng.randrange(10**9)}"
    op = rng.choice(
        ["Identity", "Relu", "Sigmoid", "Neg", "Shape", "Transpose", "Cast", "Exp", "ReduceMean", "Dropout"]
    )
    place = rng.randrange(len(reader.input))
    if not reader.input[place]:
        return
    options = {"to": rng.choice([1, 6, 7, 9, 10, 11])} if op == "Cast" else {}
    node = helper.make_node(op, [reader.input[place]], [made], name=made, **options)
    reader.input[place] = made
    model.graph.node.insert(index, node)


def _weight_as_input(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = _tensor(model, rng)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type or 1, list(tensor.dims)))
    if rng.random() < 0.5:
        kept = [other for other in model.graph.initializer if other.name != tensor.name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def _weight_as_constant(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = onnx.TensorProto()
    tensor.CopyFrom(_tensor(model, rng))
    kept = [other for other in model.graph.initializer if other.name != tensor.name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], name=f"c{tensor.name}", value=tensor))


def _input_shape(model: onnx.ModelProto, rng: random.Random) -> None:
    if model.graph.input:
        dims = rng.choice([None, [], ["N"], [1, 3, 8, 8], ["N", 3, "H", "W"], [0, 3, 8, 8], ["N", 4, 8, 8], [2**40]])
        value = model.graph.input[0]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))


def _under_a_condition(model: onnx.ModelProto, rng: random.Random) -> None:
    """The last node becomes the branches of an If, which read what is outside."""
    if not model.graph.node or not model.graph.node[-1].output:
        return
    last = model.graph.node[-1]
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = onnx.NodeProto()
        inner.CopyFrom(last)
        inner.output[0] = f"{name}_out"
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 10])
        branches[name] = helper.make_graph([inner], name, [], [output])
    node = helper.make_node("If", ["condition"], [last.output[0]], name="if", **branches)
    model.graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), "condition"))
    del model.graph.node[-1]
    model.graph.node.append(node)


_MODEL_CHANGES = [
    _reconnect, _add_edge, _drop_edge, _drop_node, _repeat_node, _shuffle_nodes, _other_operator, _attribute,
    _weight_shape, _weight_type, _weight_values, _weight_data, _drop_weight, _repeat_weight, _external, _interface,
    _opset,
]  # fmt: skip
_VALID_CHANGES = [
    _valid_attribute, _valid_attribute, _resized_weight, _resized_weight, _expose, _share_weight, _rename, _rename,
    _insert, _insert, _weight_as_input, _weight_as_constant, _input_shape, _under_a_condition, _weight_values,
]  # fmt: skip
