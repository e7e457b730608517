"""``manifest.json``: what an exported model is, where it came from, and what was measured of it.

Version 1::

    {"version": 1, "name": str, "id": str, "origin": str,
     "model": {"file": "model.onnx", "sha256": str, "size_bytes": int, "zip_bytes": int | null,
               "weight_bits_mean": float},
     "source": {"file": str, "sha256": str, "size_bytes": int},
     "layers": [{"layer", "op", "node", "weight", "weight_index": int, "outputs": [str], "scheme"}],
     "scales": {tensor: {"scale": float, "zero_point": int, "dtype": "uint8" | "int8"}},
     "metric": {"name", "direction", "search", "final", "final_ci95", "drop_ci95", "float32": {"search", "final"}},
     "polish": {"kind", "measure", "held_out", "before": {"sha256", "search", "final"}} | null,
     "latency": LATENCY of front.json | null,
     "peak_memory_bytes": int | null, "load_ms": float | null, "profile": str, "runtime": {"name": str, "options": {}},
     "also": {file: sha256} (where the runtime reads another form of the model, too),
     "versions": {package: version},
     "job": {...}, "base_dir": str}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from autoq.core.layer import Layer
from autoq.core.result import Front, FrontPoint
from autoq.core.scheme import Scheme
from autoq.errors import JobError, RunError
from autoq.record.json_reader import Node
from autoq.record.speed import latency_document

VERSION = 1
MANIFEST_FILE = "manifest.json"


ONNX_RUNTIME: Mapping[str, Any] = {"name": "onnxruntime", "options": {}}
"""What scored the models of runs and manifests that do not say it."""


def model_file(point: FrontPoint) -> str:
    """What a point's file is called where it is exported: ``"model.onnx"``."""
    return f"model{Path(point.model_path).suffix}"


def layer_record(layer: Layer, outputs: tuple[str, ...]) -> dict[str, Any]:
    """What ``run.json`` and the manifest keep of a layer, for :mod:`autoq.record.verify` to find it again."""
    return {
        "layer": layer.name,
        "op": layer.op_type,
        "node": layer.node,
        "weight": layer.weight,
        "weight_index": layer.weight_index,
        "outputs": list(outputs),
    }


def manifest_of(front: Front, point: FrontPoint, run: Mapping[str, Any], model: bytes) -> dict[str, Any]:
    """The manifest of a point; ``run`` is the run folder's ``run.json``, ``model`` the file that is exported.

    Raises :class:`RunError` when ``run.json`` is damaged or of another model.
    """
    base = front.baseline
    record = Node(dict(run), "run.json", "")
    return {
        "version": VERSION,
        "name": front.name,
        "id": point.id,
        "origin": point.origin,
        "model": {
            "file": model_file(point),
            "sha256": point.sha256,
            "size_bytes": point.size_bytes,
            "zip_bytes": point.zip_bytes,
            "weight_bits_mean": point.weight_bits_mean,
        },
        "source": {"file": Path(base.model_path).name, "sha256": base.sha256, "size_bytes": base.size_bytes},
        "layers": _layers(record.get("layers"), point.policy.to_text()),
        "scales": activation_scales(model) if point.model_path.endswith(".onnx") else {},
        "metric": {
            "name": front.metric_name,
            "direction": front.metric_direction,
            "search": point.metric.search,
            "final": point.metric.final,
            "final_ci95": point.metric.final_ci95,
            "drop_ci95": point.metric.drop_ci95,
            "float32": {"search": base.metric.search, "final": base.metric.final},
        },
        "polish": _polish(point),
        "latency": None if point.latency is None else latency_document(point.latency),
        "peak_memory_bytes": point.peak_memory_bytes,
        "load_ms": point.load_ms,
        "profile": record.get("profile").value,
        "runtime": run.get("runtime", ONNX_RUNTIME),
        "versions": record.get("versions").value,
        "job": record.get("job").value,
        "base_dir": record.get("base_dir").value,
    }


def _layers(records: Node, texts: Mapping[str, str]) -> list[dict[str, Any]]:
    if [layer.get("layer").value for layer in records.items()] != list(texts):
        records.fail("must have the layers of the front: it is of another model")
    return [{**layer.value, "scheme": texts[layer.value["layer"]]} for layer in records.items()]


def activation_scales(model: bytes) -> dict[str, dict[str, Any]]:
    """Scale and zero point of every activation tensor that autoq quantized; not of what was quantized before."""
    graph = onnx.ModelProto.FromString(model).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    scales: dict[str, dict[str, Any]] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or not node.output[0].endswith("::q") or len(node.input) < 3:
            continue
        if all(name in values for name in node.input[1:3]):
            scale, zero_point = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
            scales[node.output[0].removesuffix("::q")] = {
                "scale": float(scale),
                "zero_point": int(zero_point),
                "dtype": str(zero_point.dtype),
            }
    return scales


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in ``folder``; raises :class:`RunError` when it is missing, damaged or of a newer version."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{folder} is no exported model: it has no {MANIFEST_FILE}; make one with `autoq export`"
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise RunError(f"{path} is damaged: it is not JSON; export again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("version"), int):
        raise RunError(f"{path} is no manifest of autoq: it has no version")
    if manifest["version"] > VERSION:
        raise RunError(f"{path} has version {manifest['version']}; this autoq reads up to {VERSION}")
    _check(Node(manifest, str(path), ""))
    return manifest


def _check(root: Node) -> None:
    """What :mod:`autoq.record.verify` reads is there and of the right kind."""
    model = root.get("model")
    model.get("sha256").text()
    file = model.get("file")
    if Path(file.text()).name != file.value:
        file.fail("must be the name of a file beside the manifest")
    for layer in root.get("layers").items():
        for name in ("layer", "node", "weight"):
            layer.get(name).text()
        layer.get("weight_index").integer()
        for output in layer.get("outputs").items():
            output.text()
        scheme = layer.get("scheme")
        try:
            Scheme.parse(scheme.text())
        except JobError:
            scheme.fail("must name a scheme")
    root.get("scales").fields()
    root.get("job").fields()
    root.get("base_dir").text()
    metric = root.get("metric")
    metric.get("search").number()
    metric.get("final").number_or_none()


def _polish(point: FrontPoint) -> dict[str, Any] | None:
    if point.polish is None:
        return None
    before = point.polish.before
    return {
        "kind": point.polish.kind,
        "measure": point.polish.measure,
        "held_out": list(point.polish.held_out),
        "before": {"sha256": before.sha256, "search": before.metric.search, "final": before.metric.final},
    }
