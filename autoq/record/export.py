"""Writes a point of the front as a folder that runs by itself: the model, its manifest, and a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from autoq.core.identity import sha256_hex
from autoq.core.objectives import Constraints
from autoq.core.result import FrontPoint
from autoq.errors import RunError
from autoq.record.choice import Choice, Weights, choose
from autoq.record.export_form import in_form
from autoq.record.files import write_atomically
from autoq.record.front import read_front
from autoq.record.health import HEALTH_FILE, point_health
from autoq.record.manifest import MANIFEST_FILE, manifest_of, model_file
from autoq.record.run_folder import RunFolder
from autoq.runtime.gauge import METER
from autoq.runtime.openvino import IR_FILES, write_ir
from autoq.runtime.vela import COMPILED_FILE, write_compiled

_INFER = '''"""Runs {file} on random data; put your own arrays in `feeds`. Needs onnxruntime and numpy, nothing else."""
import numpy as np
import onnxruntime as ort

session = ort.InferenceSession(__file__.replace("infer.py", "{file}"), providers=["CPUExecutionProvider"])
feeds = {{
{feeds}
}}
for output, value in zip(session.get_outputs(), session.run(None, feeds)):
    print(output.name, value.dtype, value.shape, value.ravel()[:10])
'''


_INFER_OPENVINO = '''"""Runs {file} on random data; put your own arrays in `feeds`. Needs openvino and numpy."""
import numpy as np
import openvino as ov

settings = {{"INFERENCE_PRECISION_HINT": "{precision}", "PERFORMANCE_HINT": "LATENCY"}}
model = ov.Core().compile_model(__file__.replace("infer.py", "{file}"), "CPU", settings)
feeds = {{
{feeds}
}}
for output, value in model(feeds).items():
    print(output.get_any_name(), value.dtype, value.shape, value.ravel()[:10])
'''


_INFER_LITERT = '''"""Runs {file} on random data; put your own arrays in place of `values`. Needs ai-edge-litert, numpy.

Inputs and outputs are integers, which stand for (integer - zero_point) * scale; images stand as batch, height, width,
channels.
"""
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(model_path=__file__.replace("infer.py", "{file}"))
interpreter.allocate_tensors()
for port in interpreter.get_input_details():
    (scale, zero_point), limits = port["quantization"], np.iinfo(port["dtype"])
    values = np.random.rand(*port["shape"]).astype("float32")
    stored = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max)
    interpreter.set_tensor(port["index"], stored.astype(port["dtype"]))
interpreter.invoke()
for port in interpreter.get_output_details():
    scale, zero_point = port["quantization"]
    value = (interpreter.get_tensor(port["index"]).astype("float32") - zero_point) * scale
    print(port["name"], value.dtype, value.shape, value.ravel()[:10])
'''


def export_point(
    run: Path, how: str | None, out: Path, *, bounds: Constraints | None = None, weights: Weights | None = None
) -> FrontPoint:
    """Exports the point that :func:`export_choice` chooses."""
    return export_choice(run, out, how, bounds=bounds, weights=weights).point


def export_choice(
    run: Path,
    out: Path,
    how: str | None = None,
    *,
    bounds: Constraints | None = None,
    weights: Weights | None = None,
    form: str | None = None,
) -> Choice:
    """Exports the point of ``run``'s front that is chosen (:func:`autoq.record.choice.choose`) into ``out``.

    The model is the very file that was scored, unless another ``form`` is asked for
    (:data:`autoq.record.export_form.FORMS`), which is scored anew. Raises :class:`RunError` when the run has no such
    point, its file is missing or changed, or ``out`` holds something else or cannot be written.
    """
    folder = RunFolder(run)
    front = read_front(folder.front)
    choice = choose(front, how, bounds=bounds, weights=weights)
    point = choice.point
    source = run / point.model_path
    try:
        model = source.read_bytes()
    except OSError as error:
        raise RunError(f"the model of point {point.id} cannot be read: {source}: {error.strerror or error}") from None
    if sha256_hex(model) != point.sha256:
        raise RunError(f"{source} is not the file that was scored: its SHA-256 differs; search again or --resume")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).exists())):
        raise RunError(f"{out} exists and holds no exported model; give another --out")
    manifest = manifest_of(front, point, folder.read(), model)
    if form is not None:
        model, manifest = in_form(form, model, manifest)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error.strerror or error}; give another --out") from None
    write_atomically(out / model_file(point), model)
    for name in ALSO_FILES:  # of a point that was exported here before
        (out / name).unlink(missing_ok=True)
    runtime = manifest["runtime"]
    gauge = folder.read().get("identity", {}).get("hardware", {}).get("measure", {"by": METER, "options": {}})
    # What is scored anew in another form is for another runtime.
    makers = {} if form else {runtime["name"]: runtime["options"], gauge["by"]: gauge["options"]}
    written = [file for name, given in makers.items() if name in ALSO for file in ALSO[name](model, out, given)]
    if written:
        manifest["also"] = {name: sha256_hex((out / name).read_bytes()) for name in written}
    write_atomically(out / MANIFEST_FILE, json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    script = INFER_SCRIPTS.get(runtime["name"])
    if script is not None:
        write_atomically(out / "infer.py", script(model, runtime["options"]))
    health = point_health(run, point.id)
    if health is not None:
        write_atomically(out / HEALTH_FILE, health)
    else:
        (out / HEALTH_FILE).unlink(missing_ok=True)  # of a point that was exported here before
    return choice


def infer_script(model: bytes, options: Mapping[str, Any] | None = None) -> str:
    """A script of about ten lines that runs the model on random inputs of the right shapes and types."""
    return _INFER.format(file="model.onnx", feeds=_feeds(model))


def openvino_script(model: bytes, options: Mapping[str, Any]) -> str:
    """As :func:`infer_script`, for the IR of the model, with the precision hint that it was scored with."""
    return _INFER_OPENVINO.format(file=IR_FILES[0], feeds=_feeds(model), precision=options.get("precision", "f32"))


def _feeds(model: bytes) -> str:
    graph = onnx.ModelProto.FromString(model).graph
    lines = []
    for value in graph.input:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        random = f"np.random.rand(*{shape})" if dtype.startswith("float") else f"np.ones({shape})"
        lines.append(f"    {value.name!r}: {random}.astype({dtype!r}),")
    return "\n".join(lines)


INFER_SCRIPTS: Mapping[str, Callable[[bytes, Mapping[str, Any]], str]] = {
    "onnxruntime": infer_script,
    "openvino": openvino_script,
    "litert": lambda model, options: _INFER_LITERT.format(file="model.tflite"),
}
"""Runtime -> what writes a script that runs a model on it, made with its options."""

ALSO: Mapping[str, Callable[[bytes, Path, Mapping[str, Any]], Sequence[str]]] = {
    "openvino": lambda model, folder, options: write_ir(model, folder),
    "vela": write_compiled,
}
"""Runtime or gauge -> what else the target reads: writes that of a model into a folder, and names the files."""

ALSO_FILES = (*IR_FILES, COMPILED_FILE)
"""All files that :data:`ALSO` may write."""
