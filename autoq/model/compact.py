"""Fewer bytes for the same model: what a file holds besides its weights, stored as small as it can be without a change.

In a small network a third of a 4-bit file is not weights. Three rewrites, each exact:

* float32 constants that float16 holds exactly, with a Cast back, which folds when the session loads. The weight bank
  and :mod:`autoq.model.lower` see to it that scales and biases are such numbers (:func:`autoq.numerics.affine.half`);
* short names for what lowering names itself; a layer's node, weight and output keep theirs, and so do the integers of
  an activation (``::q``), by which ``autoq verify`` finds them. Nodes that lowering adds need no name;
* equal scalars (zero points, scales) stored once, and attributes of a Conv that only repeat their default left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORTH_A_CAST = 24
"""Elements from which two bytes saved on each pay for the Cast and its names."""

# Suffixes of names that nobody looks for.
_PASSING = re.compile(r"::(gate(::\w+)?|b|bc|book|c|h|i32|in|raw|w?[sz])$")

_DEFAULTS: dict[str, Callable[[object], bool]] = {
    "auto_pad": lambda value: value == b"NOTSET",
    "dilations": lambda value: isinstance(value, list) and all(step == 1 for step in value),
    "group": lambda value: value == 1,
    "pads": lambda value: isinstance(value, list) and not any(value),
    "strides": lambda value: isinstance(value, list) and all(step == 1 for step in value),
}


def compact(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, TensorProto]
) -> tuple[list[onnx.NodeProto], dict[str, TensorProto]]:
    """``nodes`` over ``constants`` (lowering's own initializers, by name) in fewer bytes; the arguments stay.

    Equal arguments give equal results. Nodes stay in topological order.
    """
    made, tensors = _halved(constants)
    names = _short_names([*made, *nodes], tensors)
    written = {names.get(name, name): _named(tensor, names.get(name, name)) for name, tensor in tensors.items()}
    return [_rewritten(node, names) for node in (*made, *nodes)], written


def _halved(constants: Mapping[str, TensorProto]) -> tuple[list[onnx.NodeProto], dict[str, TensorProto]]:
    casts: list[onnx.NodeProto] = []
    tensors: dict[str, TensorProto] = {}
    for name, tensor in constants.items():
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= WORTH_A_CAST:
            values = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):  # infinity is not what it was
                short = values.astype(np.float16)
            if (short == values).all():
                casts.append(helper.make_node("Cast", [f"{name}::h"], [name], to=TensorProto.FLOAT))
                tensors[f"{name}::h"] = numpy_helper.from_array(short, f"{name}::h")
                continue
        tensors[name] = tensor
    return casts, tensors


def _short_names(nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, TensorProto]) -> dict[str, str]:
    """New names in order of appearance; the same for scalars that are equal."""
    names: dict[str, str] = {}
    scalars: dict[tuple[int, bytes], str] = {}
    for name, tensor in tensors.items():
        if _PASSING.search(name):
            code = f"::{len(names):x}"
            names[name] = code if tensor.dims else scalars.setdefault((tensor.data_type, tensor.raw_data), code)
    for node in nodes:
        for name in node.output:
            if _PASSING.search(name):
                names.setdefault(name, f"::{len(names):x}")
    return names


def _named(tensor: TensorProto, name: str) -> TensorProto:
    if tensor.name == name:
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _rewritten(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(node.input):
        copy.input[index] = names.get(name, name)
    for index, name in enumerate(node.output):
        copy.output[index] = names.get(name, name)
    if node.name.endswith(f"::{node.op_type}"):
        copy.ClearField("name")
    if node.op_type == "Conv" and not node.domain:
        kept = [entry for entry in node.attribute if not _is_default(entry)]
        del copy.attribute[:]
        copy.attribute.extend(kept)
    return copy


def _is_default(entry: onnx.AttributeProto) -> bool:
    return entry.name in _DEFAULTS and _DEFAULTS[entry.name](helper.get_attribute_value(entry))
