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
              "\n", "\x00", "\ufeff", "<<: *a", "%YAML 9.9", "---", "...", "é", "\U0001f600", "0x", "1e999", "~"]  # fmt: skip


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
    if rng.random() < 0.75:
        for _ in range(rng.choice([1, 1, 2, 3])):
            rng.choice(_MODEL_CHANGES)(spoiled, rng)
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
        [0, -1, 7, 2**40, -(2**62), 0.0, float("nan"), "", "SAME_UPPER", [], [0], [1, 1], [-1, 5, 2**33], [0.5],
         helper.make_tensor("t", TensorProto.INT64, [2], [3, -9])]  # fmt: skip
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


_MODEL_CHANGES = [
    _reconnect, _reconnect, _add_edge, _drop_edge, _drop_node, _repeat_node, _shuffle_nodes, _other_operator,
    _other_operator, _attribute, _attribute, _weight_shape, _weight_shape, _weight_type, _weight_values, _weight_data,
    _drop_weight, _repeat_weight, _external, _interface, _interface, _opset,
]  # fmt: skip
