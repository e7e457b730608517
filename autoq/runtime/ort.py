"""ONNX Runtime with stock options: what is scored here is what the exported file will do at its user's.

Nothing is set but the number of threads and the log level. Graph optimization, arena, spinning and execution mode stay
as ONNX Runtime ships them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from autoq.errors import ProfileError, TrialError
from autoq.runtime.base import InputSpec, fixed_batch

# Every error reaches us as an exception; at the level of errors ONNX Runtime would print each to stderr as well.
_FATAL = 4
onnxruntime.set_default_logger_severity(_FATAL)

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    "string": "object",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


class OnnxRuntime:
    """The :class:`~autoq.runtime.base.Runtime` of ONNX Runtime, on one execution provider."""

    name = "onnxruntime"
    suffix = ".onnx"

    def __init__(self, provider: str = "CPUExecutionProvider", optimized: bool = True) -> None:
        """With ``optimized=False`` nothing is fused: each node runs as it is written, which is not stock."""
        _check_provider(provider)
        self.provider, self.optimized = provider, optimized

    def open(self, model: bytes | Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
        """See :func:`open_session`."""
        return open_session(model, threads=threads, provider=self.provider, optimized=self.optimized)

    def inputs(self, session: onnxruntime.InferenceSession) -> tuple[InputSpec, ...]:
        """See :func:`input_specs`."""
        return input_specs(session)

    def run(
        self, session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], batch: int
    ) -> dict[str, np.ndarray]:
        """See :func:`run_batches`."""
        return run_batches(session, inputs, batch)

    def step(self, session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """``session.run`` on NumPy arrays, as a user's code calls it, copies into and out of the runtime included."""
        run, fed = session.run, dict(feeds)
        try:
            run(None, fed)
        except Exception as error:  # as in open_session
            raise TrialError("measure", f"ONNX Runtime failed to run the model: {clean_message(error)}") from error
        return lambda: run(None, fed)


def open_session(
    model: bytes | Path,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    provider_options: Mapping[str, Any] | None = None,
    config: Mapping[str, str] | None = None,
    optimized: bool = True,
    optimized_path: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session on ``model`` (a file, or its bytes where it has no external data).

    ``threads`` is the intra-op thread count: fixed, so that outputs do not depend on the machine's load.
    ``provider_options`` go to the provider, ``config`` are entries of the session's configuration; by default none.
    With ``optimized=False`` every node runs as it is written. ``optimized_path`` is where the runtime writes the graph
    that it really runs.

    Raises :class:`~autoq.errors.TrialError` (``load``) for a model that the runtime rejects, and
    :class:`~autoq.errors.ProfileError` for a provider that this build of ONNX Runtime lacks.
    """
    _check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[(provider, dict(provider_options or {}))])
    except Exception as error:  # ONNX Runtime's errors have no common base below Exception
        raise TrialError("load", f"ONNX Runtime rejects the model: {clean_message(error)}") from error


def available_providers() -> list[str]:
    """The execution providers of this build of ONNX Runtime."""
    return list(onnxruntime.get_available_providers())


def input_specs(model: onnxruntime.InferenceSession | bytes | Path) -> tuple[InputSpec, ...]:
    """The inputs of a session, or of a model (which is opened for it), in the model's order.

    Raises :class:`~autoq.errors.TrialError` (``load``) for an input that is no tensor of numbers.
    """
    session = open_session(model) if isinstance(model, bytes | Path) else model
    specs = []
    for given in session.get_inputs():
        match = re.fullmatch(r"tensor\((\w+)\)", given.type)
        if match is None or match[1] not in _DTYPES:
            raise TrialError("load", f"input {given.name!r} has the type {given.type}; only NumPy's types can be fed")
        shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in given.shape)
        specs.append(InputSpec(name=given.name, dtype=np.dtype(_DTYPES[match[1]]), shape=shape))
    return tuple(specs)


def run_batches(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    """All rows of ``inputs`` through the session; outputs by name, with as many rows.

    ``inputs`` are arrays [rows, ...] of the model's dtypes. A model with an open first dimension gets ``batch`` rows at
    a time, the last time what is left; one with a fixed first dimension gets that many, the last batch filled by
    repeating its last row, whose outputs are dropped. A model that quantizes its activations at run time (dynamic
    quantization) sees the batch as a whole: score and verify it with the same ``batch``.

    Non-finite outputs are returned: the metric judges them. Raises :class:`~autoq.errors.TrialError` (``metric``) if a
    run fails, or if an output is not one tensor row per input row.
    """
    names = [output.name for output in session.get_outputs()]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    start = 0
    for feeds, kept in batches_of(input_specs(session), inputs, batch):
        outputs = run_batch(session, feeds, names, f"rows {start} to {start + kept}")
        fed = next(len(values) for values in feeds.values())
        for name in names:
            parts[name].append(rows_of_output(name, outputs[name], fed)[:kept])
        start += kept
    return {name: joined(name, part) for name, part in parts.items()}


def batches_of(
    specs: Sequence[InputSpec], inputs: Mapping[str, np.ndarray], batch: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """What a model with these inputs is fed, batch by batch, as :func:`run_batches` says; and how many rows count.

    Raises :class:`~autoq.errors.TrialError` (``metric``) where ``inputs`` cannot be fed.
    """
    missing = [spec.name for spec in specs if spec.name not in inputs]
    if missing:
        raise TrialError("metric", f"the model's input {missing[0]!r} is not fed; the data has {', '.join(inputs)}")
    rows_of = {spec.name: len(inputs[spec.name]) if inputs[spec.name].ndim else 0 for spec in specs}
    rows = max(rows_of.values(), default=0)
    if rows == 0 or any(count != rows for count in rows_of.values()):
        counts = ", ".join(f"{name}: {count}" for name, count in rows_of.items())
        raise TrialError("metric", f"every input must have the same number of rows, at least one; rows are {counts}")
    fixed = _one_fixed_batch(specs)
    size = fixed or batch
    for start in range(0, rows, size):
        kept = min(size, rows - start)
        feeds = {spec.name: np.asarray(inputs[spec.name][start : start + size]) for spec in specs}
        if fixed and kept < fixed:
            feeds = {name: np.concatenate([x, np.repeat(x[-1:], fixed - kept, axis=0)]) for name, x in feeds.items()}
        yield feeds, kept


def run_batch(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray], names: Sequence[str], what: str
) -> dict[str, Any]:
    """The outputs ``names`` of one run. Raises :class:`~autoq.errors.TrialError` (``metric``), which names ``what``."""
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # as in open_session
        raise TrialError("metric", f"ONNX Runtime failed on {what}: {clean_message(error)}") from error


def clean_message(error: BaseException) -> str:
    """ONNX Runtime's message in one line, without its status code and the C++ file and line it came from."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error) or type(error).__name__)
    text = re.sub(r"\S*/onnxruntime(?:_src)?/\S+?:\d+ ", "", text)
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:397] + "..."


def _check_provider(provider: str) -> None:
    available = available_providers()
    if provider not in available:  # ONNX Runtime itself would warn and silently run on the CPU
        raise ProfileError(f"this onnxruntime has no {provider!r}; it has {', '.join(available)}")


def _one_fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """The first dimension that the model fixes, or None where all are open; all inputs must agree."""
    sizes = {spec.shape[0] for spec in specs if spec.shape} - {None}
    if any(not spec.shape for spec in specs):
        name = next(spec.name for spec in specs if not spec.shape)
        raise TrialError("metric", f"input {name!r} is a scalar; only inputs [rows, ...] can be fed from data")
    if len(sizes) > 1:
        fixed = ", ".join(map(str, sizes))
        raise TrialError("metric", f"the inputs' first dimensions are fixed to different sizes: {fixed}")
    return fixed_batch(specs)


def rows_of_output(name: str, output: Any, fed: int) -> np.ndarray:
    """``output`` of a run of ``fed`` rows, checked to have as many."""
    if not isinstance(output, np.ndarray):
        raise TrialError("metric", f"output {name!r} is a {type(output).__name__}, not a tensor")
    if output.ndim == 0 or output.shape[0] != fed:
        raise TrialError(
            "metric",
            f"output {name!r} has shape {list(output.shape)} for a batch of {fed}; its first dimension must follow the "
            "batch, one row per input row",
        )
    return output


def joined(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """One output of several batches; raises :class:`~autoq.errors.TrialError` (``metric``) where its shape changes."""
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = sorted({str(list(part.shape[1:])) for part in parts})
        raise TrialError("metric", f"output {name!r} changes its shape from batch to batch: {', '.join(shapes)}")
    return np.concatenate(parts)
