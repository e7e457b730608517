"""OpenVINO on the CPU: reads the same ONNX files, or its own IR (``model.xml``); what changes figures is pinned.

Its package sends usage statistics when it is imported; here it finds no ``openvino_telemetry`` and sends nothing. Nor
does importing it, or making an :class:`OpenVino`, start a thread: both may be done before a fork.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from autoq.errors import ProfileError, RunError, TrialError
from autoq.runtime.base import InputSpec, load_runtime
from autoq.runtime.ort import batches_of, joined, rows_of_output

PRECISIONS = ("f32", "bf16")
IR_FILES = ("model.xml", "model.bin")
_SIXTEEN_BITS = {TensorProto.UINT16: "uint16", TensorProto.INT16: "int16"}


@dataclass(slots=True)
class OpenVinoSession:
    """A compiled model, one request on it, its inputs, and the names of its outputs in the model's order.

    ``source`` and ``threads`` are what it was opened on and with. ``compiled`` and ``request`` are ``None`` once a step
    was made of a model with open dimensions: that has a compiled model of its own.
    """

    source: bytes | Path
    threads: int
    compiled: Any
    request: Any
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]


class OpenVino:
    """The :class:`~autoq.runtime.base.Runtime` of OpenVINO's CPU plugin.

    ``precision`` is the hint for layers that are no integers: ``f32``, or ``bf16`` where the CPU has it. By itself
    OpenVINO takes bf16 on such CPUs.
    """

    name = "openvino"
    suffix = ".onnx"

    def __init__(self, precision: str = "f32") -> None:
        """Raises :class:`~autoq.errors.ProfileError` without the package, or for a precision that is not here."""
        if precision not in PRECISIONS:
            raise ProfileError(f"runtime.options.precision: {precision!r} is none of {', '.join(PRECISIONS)}")
        self.precision = precision
        openvino = import_openvino()
        self._core = openvino.Core()
        # Loads the plugin and the reader of ONNX files, so that they count neither as a model's memory nor as its load.
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        openvino.frontend.FrontEndManager().load_by_framework("onnx")
        if precision == "bf16" and "BF16" not in capabilities:
            raise ProfileError("runtime.options.precision: this CPU has no bf16 instructions; use f32")

    def open(self, model: bytes | Path, *, threads: int = 1) -> OpenVinoSession:
        """A session on an ONNX file, its bytes, or an IR file; one stream, in latency mode, threads not pinned.

        Raises :class:`~autoq.errors.TrialError` (``load``) for a model that OpenVINO rejects, and for one that it would
        get wrong (:func:`check_model`).
        """
        if not str(model).endswith(".xml") or isinstance(model, bytes):
            check_model(model, self.precision)
        try:
            compiled = self._compiled(model, threads)
            return OpenVinoSession(
                source=model,
                threads=threads,
                compiled=compiled,
                request=compiled.create_infer_request(),
                inputs=tuple(map(_input_spec, compiled.inputs)),
                outputs=tuple(_output_name(port) for port in compiled.outputs),
            )
        except RuntimeError as error:
            raise TrialError("load", f"OpenVINO rejects the model: {clean_message(error)}") from error

    def _compiled(self, model: bytes | Path, threads: int, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Two processes that score side by side would pin themselves to the same core; the meter pins its own.
            "ENABLE_CPU_PINNING": False,
        }
        read = self._core.read_model(model if isinstance(model, bytes) else str(model))
        if shapes is not None:
            read.reshape({name: list(shape) for name, shape in shapes.items()})
        return self._core.compile_model(read, "CPU", settings)

    def inputs(self, session: OpenVinoSession) -> tuple[InputSpec, ...]:
        """The model's inputs in its order."""
        return session.inputs

    def run(self, session: OpenVinoSession, inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
        """As :func:`autoq.runtime.ort.run_batches`, on OpenVINO."""
        if session.request is None:  # a step was made of it
            session.compiled = self._compiled(session.source, session.threads)
            session.request = session.compiled.create_infer_request()
        parts: dict[str, list[np.ndarray]] = {name: [] for name in session.outputs}
        start = 0
        for feeds, kept in batches_of(session.inputs, inputs, batch):
            _check_shapes(session, feeds, "metric")
            try:
                found = session.request.infer(feeds)
            except RuntimeError as error:
                where = f"rows {start} to {start + kept}"
                raise TrialError("metric", f"OpenVINO failed on {where}: {clean_message(error)}") from error
            fed = next(len(values) for values in feeds.values())
            for index, name in enumerate(session.outputs):
                parts[name].append(rows_of_output(name, found[index], fed)[:kept])
            start += kept
        return {name: joined(name, part) for name, part in parts.items()}

    def step(self, session: OpenVinoSession, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One ``infer`` on tensors that were set once, as an application's are; to hand them over takes Python 15 us.

        A model with open dimensions is compiled for the shapes of ``feeds``, as OpenVINO's documentation advises where
        latency counts: left open, each call pays for finding them out.
        """
        fed = {spec.name: np.ascontiguousarray(feeds[spec.name]) for spec in session.inputs}
        _check_shapes(session, fed, "measure")
        try:
            if any(None in spec.shape for spec in session.inputs):
                session.compiled = session.request = None  # first, so that there are never two in memory
                shapes = {name: values.shape for name, values in fed.items()}
                request = self._compiled(session.source, session.threads, shapes).create_infer_request()
            else:
                request = session.request
            tensor, infer = import_openvino().Tensor, request.infer
            for name, values in fed.items():
                request.set_tensor(name, tensor(values, shared_memory=True))
            infer(share_outputs=True)
        except RuntimeError as error:
            raise TrialError("measure", f"OpenVINO failed to run the model: {clean_message(error)}") from error

        def step(kept: object = fed) -> object:  # the tensors do not hold the arrays that they read
            return infer(share_outputs=True)

        return step


def write_ir(model: bytes, folder: Path) -> tuple[str, ...]:
    """Writes an ONNX model as OpenVINO's IR into ``folder``: :data:`IR_FILES`, whose names are returned.

    Weights keep their types: as stored, float16 for float32 is not put in their place. Raises
    :class:`~autoq.errors.ProfileError` without the package, and :class:`~autoq.errors.RunError` where ``folder`` cannot
    be written.
    """
    runtime: Any = load_runtime(OpenVino.name)
    openvino = import_openvino()
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".ir-") as aside:
            read = runtime._core.read_model(model)
            openvino.save_model(read, str(Path(aside) / IR_FILES[0]), compress_to_fp16=False)
            for name in IR_FILES:
                (Path(aside) / name).replace(folder / name)
    except (OSError, RuntimeError) as error:
        raise RunError(f"OpenVINO's IR cannot be written to {folder}: {clean_message(error)}") from None
    return IR_FILES


def import_openvino() -> Any:
    """The package, imported so that it cannot send usage statistics; raises ``ImportError`` where it is not there."""
    with _without_telemetry():
        return importlib.import_module("openvino")


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """While this lasts there is no package ``openvino_telemetry``: OpenVINO then takes its own stub, for good."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def check_model(model: bytes | Path, precision: str = "f32") -> None:
    """Raises :class:`~autoq.errors.TrialError` (``load``) for an ONNX file that OpenVINO 2026.4 runs, but wrongly.

    It takes 16-bit pairs of QuantizeLinear and DequantizeLinear out of the graph without a word, and with them the
    clipping that may stand for an activation. With bf16, a product with 2-bit weights in blocks without zero points
    gives no rows, and may write where it must not.
    """
    try:
        if isinstance(model, bytes):
            proto = onnx.ModelProto.FromString(model)
        else:
            proto = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's, or the file system's
        raise TrialError("load", f"OpenVINO rejects the model: {error}") from error
    for graph in _graphs(proto.graph):
        types = {each.name: each.data_type for each in graph.initializer}
        for node in graph.node:
            for each in node.attribute:
                if node.op_type == "Constant" and each.name == "value":
                    types[node.output[0]] = each.t.data_type
            if wrong := _wrong(node, types, precision):
                raise TrialError("load", f"{node.name or node.output[0]!r} {wrong}")


def _wrong(node: onnx.NodeProto, types: Mapping[str, int], precision: str) -> str:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "QuantizeLinear":
        zero_point = node.input[2] if len(node.input) > 2 else ""
        written = types.get(zero_point, numbers.get("output_dtype", TensorProto.UNDEFINED))
        if written in _SIXTEEN_BITS:
            return (
                f"quantizes to {_SIXTEEN_BITS[written]}: OpenVINO drops 16-bit pairs of QuantizeLinear and "
                "DequantizeLinear silently, and its outputs are wrong; use 8-bit or float activations there"
            )
    zero_points = len(node.input) > 3 and node.input[3]
    if node.op_type == "MatMulNBits" and numbers.get("bits") == 2 and not zero_points and precision == "bf16":
        return (
            "has 2-bit weights in blocks: with precision bf16 OpenVINO gives no outputs for it; use f32, zero points "
            "('-asym'), or 4 bits"
        )
    return ""


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _check_shapes(session: OpenVinoSession, feeds: Mapping[str, np.ndarray], reason: str) -> None:
    """OpenVINO takes a wrong shape without a word where another dimension is open, and gives outputs of no rows."""
    for spec in session.inputs:
        shape = feeds[spec.name].shape
        if len(shape) != len(spec.shape) or any(
            own not in (None, size) for own, size in zip(spec.shape, shape, strict=True)
        ):
            takes = ", ".join("any" if own is None else str(own) for own in spec.shape)
            raise TrialError(reason, f"input {spec.name!r} is {list(shape)} where the model takes [{takes}]")


def _input_spec(port: Any) -> InputSpec:
    name = port.get_node().get_friendly_name()
    try:
        dtype = np.dtype(port.get_element_type().to_dtype())
    except RuntimeError as error:
        raise TrialError("load", f"input {name!r} is no tensor of NumPy's types: {clean_message(error)}") from error
    shape = tuple(None if dimension.is_dynamic else dimension.get_length() for dimension in port.get_partial_shape())
    return InputSpec(name=name, dtype=dtype, shape=shape)


def _output_name(port: Any) -> str:
    """The output's name in the ONNX file: a tensor may have others, of nodes that OpenVINO took away."""
    return str(port.get_node().get_friendly_name()).partition("/sink_port")[0]


def clean_message(error: BaseException) -> str:
    """OpenVINO's message in one line, without the C++ files and lines that it came through."""
    text = re.sub(r"Exception from \S+?:\d+:|(?:Check '.*?' )?failed at \S+?:\d+:", " ", str(error))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
