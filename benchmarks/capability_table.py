"""What each op may have on each hardware profile, and how it runs: the table of docs/capabilities.md, and its proof.

    python benchmarks/capability_table.py --check     # run every cell that can run on this machine
    python benchmarks/capability_table.py --write     # write the table that the profiles say into the docs

The table is what the profiles claim. ``--check`` writes a one-layer model for every cell, opens it in the profile's own
runtime, runs it, and looks up which kernel it got; a claim that does not hold is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.errors import AutoqError, TrialError
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.model.operations import operations
from autoq.model.prepare import prepare
from autoq.model.target import Target
from autoq.runtime.detect import fit
from autoq.runtime.executed import LayerNames, executed_kernels
from autoq.runtime.machine import describe, software_versions
from autoq.runtime.ort import open_session
from autoq.search.probe import build_forms
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.probed import form
from autoq.spec.resources import named

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "capabilities.md"
START, END = "<!-- the table: benchmarks/capability_table.py --write -->", "<!-- end of the table -->"

OPS = ("Conv", "depthwise Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
SCHEMES = (
    "float16", "bf16", "fp16", "fp8", "w8", "w4", "w2", "w8a8@minmax", "w8a8-s8@minmax", "w8a8@dynamic", "w6a8@minmax",
    "w5a8@minmax", "w4a8@minmax", "w3a8@minmax", "w2a8@minmax",
    "w8a16@minmax",     "w8-b128", "w4-b32", "w4-b32-asym", "w4-b128", "w2-b128", "w4-kmeans", "w4-pq",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One op under one scheme on one profile, and what the profile says of it."""

    profile: str
    op: str
    scheme: str
    claim: str


def claims(profile: Profile) -> list[Cell]:
    """What ``profile`` says of every op and scheme of the table."""
    return [
        Cell(
            profile=profile.name,
            op=op,
            scheme=text,
            claim=profile.runs(op.split()[-1], profile.instead_of(Scheme.parse(text))),
        )
        for op in OPS
        for text in SCHEMES
    ]


def table() -> str:
    """The whole table in Markdown: for each op a row a scheme, a column for profiles that say the same."""
    lines: list[str] = []
    profiles = {name: load_profile(name, ROOT) for name in named("hardware_profiles")}
    for op in OPS:
        columns: dict[tuple[str, ...], list[str]] = {}
        for name, profile in profiles.items():
            said = tuple(cell.claim for cell in claims(profile) if cell.op == op)
            columns.setdefault(said, []).append(name)
        lines += [f"## {op}", ""]
        heads = {said: ", ".join(f"`{name}`" for name in names) for said, names in columns.items()}
        refused = [head for said, head in heads.items() if set(said) == {"refused"}]
        shown = {said: head for said, head in heads.items() if set(said) != {"refused"}}
        lines.append("| scheme | " + " | ".join(shown.values()) + " |")
        lines.append("|---" * (len(shown) + 1) + "|")
        for number, text in enumerate(SCHEMES):
            row = [said[number] for said in shown]
            if set(row) != {"refused"}:
                lines.append(f"| `{form(Scheme.parse(text))}` | " + " | ".join(_word(each) for each in row) + " |")
        if refused:
            lines += ["", f"Float32 alone: {', '.join(refused)}."]
        lines.append("")
    return "\n".join(lines)


def check(profile: Profile, cells: Sequence[Cell]) -> list[tuple[Cell, str]]:
    """The cells that do not hold on this machine, each with what was found instead."""
    wrong = []
    target = Target.load(profile.runtime.name, profile.runtime.arguments)
    for op in dict.fromkeys(cell.op for cell in cells):
        wanted = {cell.scheme: cell for cell in cells if cell.op == op and cell.claim != "refused"}
        if not wanted:
            continue
        graph, layer, feeds = _one(op)
        forms = {text: profile.instead_of(Scheme.parse(text)) for text in wanted}
        built = build_forms(graph, layer, forms, feeds, profile)
        for text, cell in wanted.items():
            found = _found(profile, target, layer, graph, built.get(text), feeds)
            if found not in (cell.claim, "runs"):
                wrong.append((cell, found))
    return wrong


def checkable(profile: Profile) -> bool:
    """Whether what ``profile`` says can be run on this machine."""
    return fit(profile, describe()).fits


def _found(
    profile: Profile,
    target: Target,
    layer: Layer,
    graph: Graph,
    candidate: bytes | None,
    feeds: Mapping[str, np.ndarray],
) -> str:
    """How a candidate runs here: as a cell says it, ``"runs"`` where its kernel cannot be seen, or what went wrong."""
    if candidate is None:
        return "no such file can be built"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"layer{target.suffix}"
        try:
            path.write_bytes(target.write(candidate))
            if profile.measure.by == "roofline":
                return _on_accelerator(path, feeds)
            target.runtime.step(target.runtime.open(path), feeds)()
            names = LayerNames(layer=layer.name, node=layer.node, weight=layer.weight, outputs=(layer.output,))
            if profile.runtime.name == "onnxruntime":
                return _in_onnxruntime(path, names, layer)
            if profile.runtime.name == "openvino":
                return _in_openvino(target.runtime, path, names, layer)
        except TrialError as error:
            return f"{error.reason}: {error}"
    return "runs"


def _in_onnxruntime(path: Path, names: LayerNames, layer: Layer) -> str:
    if layer.op_type == "Gather":
        return _table_in_onnxruntime(path, layer)
    (executed,) = executed_kernels(path, [names])
    if executed.precision in ("int8", "blocks"):
        return "native"
    if executed.precision == "float32":
        return "float" if executed.runtime_conversion else "folded"
    return f"an unknown kernel ({executed.kernel or 'none'})"


def _table_in_onnxruntime(path: Path, layer: Layer) -> str:
    optimized = path.with_name("optimized.onnx")
    open_session(path, optimized_path=optimized)
    graph = onnx.load(optimized).graph
    if any(node.op_type == "GatherBlockQuantized" for node in graph.node):
        return "native"
    full = any(
        each.data_type == TensorProto.FLOAT and np.prod(each.dims) >= layer.parameters for each in graph.initializer
    )
    return "folded" if full else "float"


def _in_openvino(runtime: Any, path: Path, names: LayerNames, layer: Layer) -> str:
    from autoq.runtime.openvino_executed import executed_layers

    (executed,) = executed_layers(runtime, path, [names])
    if executed.precision in ("int8", "weights"):
        return "native"
    # OpenVINO's graph does not tell weights that were widened once from those that are at every inference.
    return "runs" if executed.precision in ("float32", "bf16", "") else f"in {executed.precision}"


def _on_accelerator(path: Path, feeds: Mapping[str, np.ndarray]) -> str:
    found = operations(path, feeds)
    return "native" if any(each.macs and each.integer for each in found) else "float"


@cache
def _one(op: str) -> tuple[Graph, Layer, Mapping[str, np.ndarray]]:
    """A model of one layer, and an inference's inputs."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = {
        "Conv": ((1, 16, 8, 8), (16, 16, 3, 3), 16, {"pads": [1] * 4}),
        "depthwise Conv": ((1, 16, 8, 8), (16, 1, 3, 3), 16, {"pads": [1] * 4, "group": 16}),
        "ConvTranspose": ((1, 16, 8, 8), (16, 16, 2, 2), 16, {"strides": [2, 2]}),
        "Gemm": ((4, 256), (256, 64), 64, {}),
        "MatMul": ((4, 256), (256, 64), 0, {}),
        "Gather": ((1, 8), (2048, 128), 0, {}),
    }
    size, weight, bias, attributes = shapes[op]
    constants = [numpy_helper.from_array((rng.standard_normal(weight) / 8).astype(np.float32), "w")]
    if bias:
        constants.append(numpy_helper.from_array(rng.standard_normal(bias).astype(np.float32), "b"))
    read = ["w", "x"] if op == "Gather" else ["x", "w", *(["b"] if bias else [])]
    kind = TensorProto.INT64 if op == "Gather" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op.split()[-1], read, ["y"], "layer", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kind, size)],
        [onnx.ValueInfoProto(name="y")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model).graph.output[0])
    prepared = Graph(prepare(model).model)
    (layer,) = read_layers(prepared)
    values = rng.integers(0, 2048, size) if op == "Gather" else rng.standard_normal(size).astype(np.float32)
    return prepared, layer, {"x": values}


def _word(claim: str) -> str:
    return "-" if claim == "refused" else claim


def page() -> str:
    """The docs page with the table that the profiles say today."""
    text = PAGE.read_text()
    head, rest = text.split(START)
    return f"{head}{START}\n\n{table()}{END}{rest.split(END)[1]}"


def main(arguments: Iterable[str] | None = None) -> int:
    """Writes or checks; 1 where a claim does not hold."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--write", action="store_true", help="write the table into docs/capabilities.md")
    made.add_argument("--check", action="store_true", help="run every cell that can run on this machine")
    chosen = made.parse_args(None if arguments is None else list(arguments))
    if chosen.write:
        PAGE.write_text(page())
    if not chosen.check:
        if not chosen.write:
            print(table())
        return 0
    record: dict[str, Any] = {"machine": describe().cpu_model, "versions": software_versions(), "profiles": {}}
    bad = 0
    for name in named("hardware_profiles"):
        try:
            profile = load_profile(name, ROOT)
            cells = claims(profile)
            ran = sum(cell.claim != "refused" for cell in cells) if checkable(profile) else 0
            wrong = check(profile, cells) if ran else []
        except AutoqError as error:
            print(f"{name}: {error}")
            bad += 1
            continue
        bad += len(wrong)
        record["profiles"][name] = {
            "cells": len(cells),
            "ran": ran,
            "wrong": [[cell.op, cell.scheme, cell.claim, found] for cell, found in wrong],
        }
        why = "" if ran else f" ({fit(profile, describe()).reason})"
        print(f"{name}: {ran} of {len(cells)} cells run here, {len(wrong)} wrong{why}")
        for cell, found in wrong:
            print(f"  {cell.op} {cell.scheme}: said to be {cell.claim}, found: {found}")
    out = ROOT / "benchmarks" / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "capability_table.json").write_text(json.dumps(record, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
