"""What the search asks of a runtime: open a model, run data through it, and one step to time.

A runtime is one file with one class, and one line in :data:`RUNTIMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from autoq.runtime.named import made_by_name

# name -> "module:class". Text, so that naming a runtime does not import its library.
RUNTIMES: dict[str, str] = {
    "onnxruntime": "autoq.runtime.ort:OnnxRuntime",
    "torch": "autoq.model.torch_runtime:TorchRuntime",
    "tensorrt": "autoq.runtime.tensorrt:TensorRt",
    "openvino": "autoq.runtime.openvino:OpenVino",
    "litert": "autoq.runtime.litert:LiteRt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model. ``shape`` has ``None`` for every dimension that the model leaves open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


def fixed_batch(specs: Iterable[InputSpec]) -> int | None:
    """The rows that a model takes at a time, where its inputs fix the first dimension; ``None`` where all are open."""
    return max((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None), default=None)


class Runtime(Protocol):
    """A runtime on this machine. Sessions are opaque: only the runtime that opened one looks inside.

    A model's failure is a :class:`~autoq.errors.TrialError`: ``load`` from :meth:`open` and :meth:`inputs`, ``metric``
    from :meth:`run`, ``measure`` from :meth:`step`.
    """

    name: str
    suffix: str
    """Of the files that it runs, with the dot: ``".onnx"``."""

    def open(self, model: bytes | Path, *, threads: int = 1) -> Any:
        """A session on ``model`` that computes with ``threads`` threads."""
        ...

    def inputs(self, session: Any) -> tuple[InputSpec, ...]:
        """The inputs that a session must be fed."""
        ...

    def run(self, session: Any, inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
        """All rows of ``inputs`` through the session, ``batch`` rows at a time; outputs by name, one row per row."""
        ...

    def step(self, session: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One inference on ``feeds``, run once already, for the meter to time."""
        ...


def load_runtime(name: str, /, **options: Any) -> Runtime:
    """The runtime called ``name``, made with ``options``; raises :class:`~autoq.errors.ProfileError`."""
    runtime: Runtime = made_by_name(RUNTIMES, "runtime", name, field="runtime.options", options=options)
    return runtime
