"""The form of attention: softmax(scale q k' + mask) v as one operator.

ONNX has had the operator Attention since opset 23. ONNX Runtime's kernel reads queries, keys and values [rows, tokens,
heads x size] as the projections write them, so that transposing them and the result falls away. Where heads are split
in another way, it reads them split, [rows, heads, tokens, size].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from autoq.model.draft import Draft, Shape, is_onnx
from autoq.model.graph import attribute

_OLDEST_OPSET = 21
"""Preparing brings a model here; one that it could not upgrade is none to put an operator of opset 23 into."""


@dataclass(slots=True)
class _Core:
    """softmax(scale q k' + mask) v over split heads: ``query`` and ``value`` [rows, heads, tokens, size], ``key`` with
    the last two axes exchanged; ``nodes`` are what it consists of, ``scores`` the shape of q k'."""

    query: str
    key: str
    value: str
    mask: str
    scale: float
    scores: Shape
    output: str
    nodes: list[onnx.NodeProto]


@dataclass(slots=True)
class _Operands:
    """What the operator reads and writes: tensors with ``heads`` joined, or split where that is 0."""

    query: str
    key: str
    value: str
    output: str
    heads: int
    dead: list[onnx.NodeProto] = field(default_factory=list)
    new: list[onnx.NodeProto] = field(default_factory=list)


def fuse_attention(draft: Draft) -> int:
    """Writes every attention that it recognizes as the operator Attention."""
    if draft.opset < _OLDEST_OPSET:
        return 0
    count = 0
    for softmax in list(draft.nodes):
        core = _core(draft, softmax) if softmax.op_type == "Softmax" and is_onnx(softmax) else None
        operands = (_joined(draft, core) or _split(draft, core)) if core is not None else None
        if core is None or operands is None or (core.mask and not _fits(draft, core)):
            continue
        mask = _full_mask(draft, core, operands) if core.mask else ""
        heads: dict[str, Any] = (
            {"q_num_heads": operands.heads, "kv_num_heads": operands.heads} if operands.heads else {}
        )
        inputs = [operands.query, operands.key, operands.value, *([mask] if mask else [])]
        name = f"{operands.output}::Attention"
        operator = helper.make_node("Attention", inputs, [operands.output], name, scale=core.scale, **heads)
        draft.replace([*core.nodes, *operands.dead], [*operands.new, operator])
        count += 1
    return count


def _core(draft: Draft, softmax: onnx.NodeProto) -> _Core | None:
    out = draft.sole_reader(softmax.output[0])
    if attribute(softmax, "axis", -1) not in (-1, 3) or out is None:
        return None
    if out.op_type != "MatMul" or out.input[0] != softmax.output[0]:
        return None
    nodes, mask, tensor = [softmax, out], "", softmax.input[0]
    added = _only_for(draft, tensor, "Add")
    if added is not None:
        product = next((index for index in (0, 1) if _is_product(draft, added.input[index])), None)
        if product is None:
            return None
        nodes.append(added)
        tensor, mask = added.input[product], added.input[1 - product]
    tensor, scale = _unscaled(draft, tensor, nodes)
    matmul = _only_for(draft, tensor, "MatMul")
    scores = draft.shapes.get(tensor, ())
    if matmul is None or len(scores) != 4:
        return None
    nodes.append(matmul)
    query, of_query = _unscaled(draft, matmul.input[0], nodes)
    key, of_key = _unscaled(draft, matmul.input[1], nodes)
    scale *= of_query * of_key
    return _Core(query, key, out.input[1], mask, scale, scores, out.output[0], nodes)


def _is_product(draft: Draft, tensor: str) -> bool:
    return _only_for(draft, _unscaled(draft, tensor, [])[0], "MatMul") is not None


def _unscaled(draft: Draft, tensor: str, nodes: list[onnx.NodeProto]) -> tuple[str, float]:
    """``tensor`` before a Mul or Div by one constant number, which joins ``nodes``, and that factor."""
    node = _only_for(draft, tensor, "Mul", "Div")
    for index in () if node is None else (1, 0) if node.op_type == "Mul" else (1,):
        assert node is not None
        number = draft.constant(node.input[index])
        if number is not None and number.size == 1 and number.ndim <= 1 and 0 < float(number.reshape(())) < np.inf:
            nodes.append(node)
            factor = float(number.reshape(()))
            return node.input[1 - index], factor if node.op_type == "Mul" else 1.0 / factor
    return tensor, 1.0


def _only_for(draft: Draft, tensor: str, *op_types: str) -> onnx.NodeProto | None:
    """The node that makes ``tensor``, if it is one of these and no more than one node reads the tensor."""
    return draft.made_by(tensor, *op_types) if draft.sole_reader(tensor) is not None else None


def _joined(draft: Draft, core: _Core) -> _Operands | None:
    """The operands with heads joined, where each is reshaped from that and the result reshaped to it."""
    key = draft.made_by(core.key, "Transpose")
    twice = key is not None and _permutes(key, 0, 1, 3, 2)
    query, value = _unsplit(draft, core.query), _unsplit(draft, core.value)
    joined_key = _unsplit(draft, key.input[0]) if twice and key is not None else _unsplit(draft, core.key, (0, 2, 3, 1))
    transpose = draft.sole_reader(core.output)
    reshape = draft.sole_reader(transpose.output[0]) if transpose is not None else None
    if query is None or value is None or joined_key is None or transpose is None or reshape is None:
        return None
    if not _permutes(transpose, 0, 2, 1, 3) or reshape.op_type != "Reshape":
        return None
    heads = {query[1], joined_key[1], value[1], _heads(draft, reshape.output[0], transpose.output[0])}
    rows = [draft.shapes[tensor][0] for tensor in (query[0], joined_key[0], value[0])]
    if len(heads) != 1 or 0 in heads or not _all_equal(rows):
        return None
    dead = [transpose, reshape]
    return _Operands(query[0], joined_key[0], value[0], reshape.output[0], heads.pop(), dead)


def _split(draft: Draft, core: _Core) -> _Operands | None:
    """The operands with heads split; the key is transposed back, or rather not at all."""
    shapes = [draft.shapes.get(tensor, ()) for tensor in (core.query, core.key, core.value)]
    if any(len(shape) != 4 for shape in shapes) or not all(_all_equal([s[axis] for s in shapes]) for axis in (0, 1)):
        return None
    transpose = draft.made_by(core.key, "Transpose")
    if transpose is not None and _permutes(transpose, 0, 1, 3, 2):
        return _Operands(core.query, transpose.input[0], core.value, core.output, 0)
    if transpose is None or not _permutes(transpose, 0, 2, 3, 1):
        return None
    key = f"{core.key}::Key"
    new = helper.make_node("Transpose", [transpose.input[0]], [key], f"{key}::Transpose", perm=[0, 2, 1, 3])
    return _Operands(core.query, key, core.value, core.output, 0, [], [new])


def _unsplit(draft: Draft, tensor: str, perm: tuple[int, ...] = (0, 2, 1, 3)) -> tuple[str, int] | None:
    """What [rows, tokens, heads x size] ``tensor`` is reshaped and then transposed from, and the number of heads."""
    transpose = draft.made_by(tensor, "Transpose")
    reshape = draft.made_by(transpose.input[0], "Reshape") if transpose is not None else None
    if transpose is None or reshape is None or not _permutes(transpose, *perm):
        return None
    return reshape.input[0], _heads(draft, reshape.input[0], transpose.input[0])


def _heads(draft: Draft, joined: str, split: str) -> int:
    """How many heads [rows, tokens, heads x size] ``joined`` has as [rows, tokens, heads, size] ``split``; 0 where the
    shapes do not show that one is the other."""
    whole, parts = draft.shapes.get(joined, ()), draft.shapes.get(split, ())
    if len(whole) != 3 or len(parts) != 4 or not _all_equal([whole[1], parts[1]]):
        return 0
    heads, size = parts[2:]
    if not isinstance(heads, int) or not isinstance(size, int) or whole[2] != heads * size:
        return 0
    return heads


def _permutes(node: onnx.NodeProto, *perm: int) -> bool:
    return node.op_type == "Transpose" and is_onnx(node) and tuple(attribute(node, "perm", ())) == perm


def _all_equal(sizes: list[int | str | None]) -> bool:
    return sizes[0] is not None and all(size == sizes[0] for size in sizes)


def _fits(draft: Draft, core: _Core) -> bool:
    """Whether the mask leaves the scores their shape: it might also make more rows or heads of them."""
    mask = draft.shapes.get(core.mask)
    if mask is None or len(mask) > len(core.scores):
        return False
    return all(size == 1 or _all_equal([size, of]) for size, of in zip(mask[::-1], core.scores[::-1], strict=False))


def _full_mask(draft: Draft, core: _Core, operands: _Operands) -> str:
    """The mask with a row for every query and a column for every key, which the kernel wants."""
    sizes = core.scores[2:]
    if draft.shapes[core.mask][-2:] == sizes and None not in sizes:
        return core.mask
    known = all(isinstance(size, int) for size in sizes)
    name = f"{core.mask}::{sizes[0]}x{sizes[1]}::Mask" if known else f"{operands.output}::Mask"
    if draft.producer(name) is not None:  # most masks serve every layer
        return name
    if known:
        shape = draft.add_constant(f"{name}::Shape", np.array([1, 1, *sizes], np.int64))
    else:
        shape, axis = f"{name}::Shape", 1 if operands.heads else 2
        ones = draft.add_constant("mask::Ones", np.ones(2, np.int64))
        for which, source in (("Queries", operands.query), ("Keys", operands.key)):
            length = f"{name}::{which}"
            cut: dict[str, Any] = {"start": axis, "end": axis + 1}
            operands.new.append(helper.make_node("Shape", [source], [length], f"{length}::Shape", **cut))
        parts = [ones, f"{name}::Queries", f"{name}::Keys"]
        operands.new.append(helper.make_node("Concat", parts, [shape], f"{shape}::Concat", axis=0))
    operands.new.append(helper.make_node("Expand", [core.mask, shape], [name], f"{name}::Expand"))
    return name
