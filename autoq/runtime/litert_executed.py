"""Which kernel each layer really runs in on LiteRT: what the file has its operator compute on, and who took it over.

LiteRT computes an operator on the types of its tensors, which the file fixes: nothing is converted that the file does
not convert. Operators that XNNPACK takes are gone from LiteRT's own plan, between the ends of its node there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.runtime.executed import Executed, LayerNames
from autoq.runtime.litert import LiteRt, flat_model

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_DELEGATE = "DELEGATE"
_PRECISIONS = {("INT8", "INT8", "INT8"): "int8", ("INT16", "INT8", "INT16"): "int16", ("FLOAT32",) * 3: "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteLayer:
    """An operator that reads weights: its place in the file, its code, and its weights' and output's names.

    ``types`` are those of input, weights and output. ``weights`` are the integers as stored, with ``scales`` of theirs.
    """

    index: int
    code: str
    weight: str
    output: str
    types: tuple[str, str, str]
    weights: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    @property
    def precision(self) -> str:
        """``"int8"``, ``"int16"`` (its activations; weights have 8 bits), ``"float32"``, or all three types."""
        return _PRECISIONS.get(self.types, " x ".join(self.types[:2]).lower() + f" to {self.types[2]}".lower())


def executed_operators(runtime: LiteRt, model: Path, layers: Sequence[LayerNames]) -> list[Executed]:
    """For each layer, the operator that ``runtime`` runs it in on this machine.

    ``precision`` is as in :class:`TfliteLayer`. Raises :class:`autoq.errors.TrialError` (``load``).
    """
    data = model.read_bytes()
    taken = _delegated(runtime.open(data).interpreter)
    found = layers_of(data, layers)
    return [_executed(names, found.get(names.layer), taken) for names in layers]


def layers_of(data: bytes, layers: Sequence[LayerNames]) -> dict[str, TfliteLayer]:
    """The operator of each layer that a TFLite file has one for, by the weight that it reads and what it writes."""
    operators = _operators(data)
    found = {}
    for names in layers:
        own = [each for each in operators if each.weight == names.weight]
        alone = [each for each in own if each.output in names.outputs] if len(own) > 1 else own
        if alone:
            found[names.layer] = alone[0]
    return found


def _executed(names: LayerNames, operator: TfliteLayer | None, taken: Mapping[int, str]) -> Executed:
    if operator is None:
        return Executed(layer=names.layer, kernel="", precision="")
    by = taken.get(operator.index, "")
    return Executed(
        layer=names.layer, kernel=f"{operator.code}{f' ({by})' if by else ''}", precision=operator.precision
    )


def _operators(data: bytes) -> list[TfliteLayer]:
    model, schema = flat_model(data)
    codes = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    kinds = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    graph = model.subgraphs[0]
    found = []
    for index, operator in enumerate(graph.operators):
        entry = model.operatorCodes[operator.opcodeIndex]
        code = codes.get(max(entry.builtinCode, entry.deprecatedBuiltinCode), "")
        if code not in _LAYERS:
            continue
        source, weight, output = (
            graph.tensors[number] for number in (operator.inputs[0], operator.inputs[1], operator.outputs[0])
        )
        kind = kinds[weight.type]
        raw = np.asarray(model.buffers[weight.buffer].data, np.uint8)
        grid = weight.quantization
        scales = np.asarray([] if grid is None or grid.scale is None else grid.scale, np.float32)
        zeros = np.asarray([] if grid is None or grid.zeroPoint is None else grid.zeroPoint, np.int64)
        found.append(
            TfliteLayer(
                index=index,
                code=code,
                weight=weight.name.decode(),
                output=output.name.decode(),
                types=(kinds[source.type], kind, kinds[output.type]),
                weights=raw.view(np.int8) if kind == "INT8" else raw,
                scales=scales,
                zero_points=zeros,
            )
        )
    return found


def _delegated(interpreter: Any) -> dict[int, str]:
    """The operators that another took over, by their places in the file, and who that is."""
    details = interpreter._get_ops_details()  # LiteRT has no public way to ask
    own = [each for each in details if each["op_name"] != _DELEGATE]
    makers = {int(number): each for each in own for number in each["outputs"]}
    taken: dict[int, str] = {}
    for node in (each for each in details if each["op_name"] == _DELEGATE):
        ends = {int(number) for number in node["inputs"]}
        left = [int(number) for number in node["outputs"]]
        while left:
            maker = makers.get(left.pop())
            if maker is not None and maker["index"] not in taken:
                taken[maker["index"]] = "XNNPACK"  # the only one that LiteRT here applies by itself
                left += [int(number) for number in maker["inputs"] if int(number) not in ends]
    return taken
