"""LiteRT (TensorFlow Lite): runs the .tflite file that an NPU's compiler takes, on this machine's CPU.

Data comes and goes as the ONNX model has it, in floats and in its order of axes; the file says how its own stand. What
is scored is the file, integers included: inputs are rounded to its grid as ``QuantizeLinear`` rounds them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.errors import TrialError
from autoq.runtime.base import InputSpec
from autoq.runtime.ort import joined

AXES_KEY = "autoq.axes"
"""Names the metadata of the file that says, for each input and output, its ONNX name and how its axes stand:
``[[[name, order], ...], [[name, order], ...]]``, where ``order[i]`` is the ONNX axis that stands ``i``-th."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of the file: tensor ``index``, in ``shape``, whose ``i``-th axis is ONNX's ``order[i]``.

    ``scale`` is 0 for a tensor that is not quantized.
    """

    name: str
    index: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    scale: float
    zero_point: int

    def stored(self, values: np.ndarray) -> np.ndarray:
        """What the file takes for ``values`` in ONNX's order."""
        turned = np.ascontiguousarray(values.transpose(self.order))
        if not self.scale:
            return turned.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        scaled = np.rint(turned.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return np.clip(scaled, limits.min, limits.max).astype(self.dtype)

    def real(self, values: np.ndarray) -> np.ndarray:
        """What an output's integers stand for, float32 in ONNX's order."""
        if self.scale:
            values = (values.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)
        return values.transpose(np.argsort(self.order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An interpreter with its tensors allocated; one thread at a time may use it."""

    interpreter: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class LiteRt:
    """The :class:`~autoq.runtime.base.Runtime` of LiteRT, with XNNPACK as it ships."""

    name = "litert"
    suffix = ".tflite"

    def __init__(self) -> None:
        """Raises ``ImportError`` where LiteRT is not installed."""
        self._interpreter = _interpreter()

    def open(self, model: bytes | Path, *, threads: int = 1) -> Session:
        """A session; raises :class:`TrialError` (``load``) for a file that LiteRT rejects."""
        data = model if isinstance(model, bytes) else model.read_bytes()
        if data[4:8] != b"TFL3":  # LiteRT itself does not check
            raise TrialError("load", "LiteRT rejects the model: it is no TFLite file")
        try:
            with _first_words():
                interpreter = self._interpreter(model_content=data, num_threads=threads)
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise TrialError("load", f"LiteRT rejects the model: {_message(error)}") from error
        axes = _axes(data)
        details = (interpreter.get_input_details(), interpreter.get_output_details())
        inputs, outputs = (tuple(map(_port, found, names)) for found, names in zip(details, axes, strict=True))
        return Session(interpreter=interpreter, inputs=inputs, outputs=outputs)

    def inputs(self, session: Session) -> tuple[InputSpec, ...]:
        """The inputs in ONNX's order of axes, float32 where the file has integers on a grid."""
        specs = []
        for port in session.inputs:
            shape = tuple(port.shape[port.order.index(axis)] for axis in range(len(port.shape)))
            dtype = np.dtype(np.float32) if port.scale else port.dtype
            specs.append(InputSpec(name=port.name, dtype=dtype, shape=shape))
        return tuple(specs)

    def run(self, session: Session, inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
        """All rows of ``inputs``, as many at a time as the file takes (one), whatever ``batch`` says."""
        missing = [port.name for port in session.inputs if port.name not in inputs]
        if missing:
            raise TrialError("metric", f"the model's input {missing[0]!r} is not fed; the data has {', '.join(inputs)}")
        fed = [(port, np.asarray(inputs[port.name])) for port in session.inputs]
        rows = {len(values) for _, values in fed}
        if len(rows) != 1 or rows == {0}:
            raise TrialError("metric", "every input must have the same number of rows, at least one")
        size = session.inputs[0].shape[0]
        parts: dict[str, list[np.ndarray]] = {port.name: [] for port in session.outputs}
        count = rows.pop()
        for start in range(0, count, size):
            kept = min(size, count - start)
            for port, values in fed:
                batch_of = values[start : start + size]
                if kept < size:
                    batch_of = np.concatenate([batch_of, np.repeat(batch_of[-1:], size - kept, axis=0)])
                self._set(session, port, batch_of)
            self._invoke(session, "metric")
            for port in session.outputs:
                parts[port.name].append(port.real(session.interpreter.get_tensor(port.index))[:kept])
        return {name: joined(name, part) for name, part in parts.items()}

    def step(self, session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One inference on integers that have been set already, as a program on the device has them."""
        for port in session.inputs:
            self._set(session, port, feeds[port.name], "measure")
        self._invoke(session, "measure")
        invoke: Callable[[], object] = session.interpreter.invoke
        return invoke

    def _set(self, session: Session, port: Port, values: np.ndarray, reason: str = "metric") -> None:
        try:
            session.interpreter.set_tensor(port.index, port.stored(values))
        except (RuntimeError, ValueError) as error:
            raise TrialError(reason, f"LiteRT takes no such input {port.name!r}: {_message(error)}") from error

    def _invoke(self, session: Session, reason: str) -> None:
        try:
            session.interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise TrialError(reason, f"LiteRT failed to run the model: {_message(error)}") from error


@contextlib.contextmanager
def _first_words() -> Iterator[None]:
    """Leaves out the line that LiteRT prints on stderr when a process makes its first interpreter; no option does."""
    if not _SILENT.acquire(blocking=False):  # said already, or being said
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_SILENT = threading.Lock()
"""Held from the first interpreter on."""


def _interpreter() -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter


def flat_model(model: bytes) -> tuple[Any, Any]:
    """What a TFLite file holds, as objects of the format's schema; and that schema."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0)), schema


def _axes(model: bytes) -> list[list[Any]]:
    """Names and orders of inputs and outputs that the file carries; raises ``load`` for a file of another make."""
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.Model.GetRootAs(model, 0)
    for index in range(parsed.MetadataLength()):
        note = parsed.Metadata(index)
        if note is not None and note.Name() == AXES_KEY.encode():
            found: list[list[Any]] = json.loads(parsed.Buffers(note.Buffer()).DataAsNumpy().tobytes())
            return found
    raise TrialError("load", f"the TFLite file has no {AXES_KEY!r}: only files that autoq wrote can be scored")


def _port(detail: Mapping[str, Any], named: tuple[str, list[int]]) -> Port:
    name, order = named
    parameters = detail["quantization_parameters"]
    quantized = parameters["scales"].size == 1
    return Port(
        name=name,
        index=detail["index"],
        dtype=np.dtype(detail["dtype"]),
        shape=tuple(int(size) for size in detail["shape"]),
        order=tuple(order),
        scale=float(parameters["scales"][0]) if quantized else 0.0,
        zero_point=int(parameters["zero_points"][0]) if quantized else 0,
    )


def _message(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
