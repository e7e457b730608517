"""How a candidate becomes the file that ships on a target, and how that file is opened and run.

Lowering gives an ONNX model. A runtime that reads other files names their suffix, and :data:`WRITERS` has what writes
them; a new kind of file is one function and one line there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoq.runtime.base import Runtime, load_runtime

ONNX = ".onnx"

# suffix -> "module:function" from a serialized ONNX candidate to the file's bytes; ONNX itself is written already.
WRITERS: dict[str, str] = {
    ".tflite": "autoq.model.tflite:to_tflite",
    ".tensorrt.onnx": "autoq.model.tensorrt:to_tensorrt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A runtime, and the files that it runs."""

    runtime: Runtime

    @classmethod
    def load(cls, name: str, options: Mapping[str, Any] | None = None) -> Target:
        """The target with the runtime called ``name``; raises :class:`~autoq.errors.ProfileError`."""
        return cls(runtime=load_runtime(name, **(options or {})))

    @property
    def suffix(self) -> str:
        """Of its files, with the dot."""
        return self.runtime.suffix

    @property
    def runs_onnx(self) -> bool:
        """Whether its files are the ONNX models that lowering gives, and the model as given is one of them."""
        return self.suffix == ONNX

    def write(self, candidate: bytes) -> bytes:
        """The file for a serialized ONNX candidate; the same candidate gives the same bytes.

        Raises :class:`~autoq.errors.TrialError` (``build``) for what such a file cannot hold.
        """
        if self.runs_onnx:
            return candidate
        module, _, attribute = WRITERS[self.suffix].partition(":")
        write: Callable[[bytes], bytes] = getattr(importlib.import_module(module), attribute)
        return write(candidate)

    def outputs(
        self, model: bytes | Path, inputs: Mapping[str, np.ndarray], batch: int, *, threads: int = 1
    ) -> dict[str, np.ndarray]:
        """All rows of ``inputs`` through a file, as :meth:`autoq.runtime.base.Runtime.run`."""
        return self.runtime.run(self.runtime.open(model, threads=threads), inputs, batch)
