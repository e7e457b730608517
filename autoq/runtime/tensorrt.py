"""TensorRT through ONNX Runtime's execution provider for it: what is scored there is what TensorRT makes of the file.

Its files are ONNX in explicit-quantization form (:func:`autoq.model.tensorrt.to_tensorrt`), hence their suffix. A node
that TensorRT does not take is an error here, never a silent run on the CPU. Where there is no such provider but
NVIDIA's ``trtexec``, latencies can be taken by command (docs/gpu.md).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from autoq.errors import ProfileError
from autoq.runtime.ort import OnnxRuntime, available_providers, open_session

PROVIDER = "TensorrtExecutionProvider"

_CPU = "CPUExecutionProvider"
_ALONE: Mapping[str, str] = {"session.disable_cpu_ep_fallback": "1"}


class TensorRt(OnnxRuntime):
    """The :class:`~autoq.runtime.base.Runtime` of TensorRT's provider in ONNX Runtime."""

    name = "tensorrt"
    suffix = ".tensorrt.onnx"

    def __init__(
        self, scored_on: str = "tensorrt", fp16: bool = False, workspace_mb: int = 4096, engines: str = ""
    ) -> None:
        """``fp16`` lets float layers run in half precision; ``engines`` is a folder that keeps built engines.

        With ``scored_on="cpu"`` files are run by ONNX Runtime's CPU provider, every node as it is written: for machines
        whose TensorRT is reached by a command alone, which takes the latency. Raises
        :class:`~autoq.errors.ProfileError` where this machine has no such provider, with what it lacks.
        """
        if scored_on not in ("tensorrt", "cpu"):
            raise ProfileError(f"runtime.options.scored_on: {scored_on!r} is neither tensorrt nor cpu")
        self.optimized, self.config, self.provider_options = (
            True,
            _ALONE,
            _provider_options(fp16, workspace_mb, engines),
        )
        if scored_on == "cpu":
            self.provider, self.optimized, self.config, self.provider_options = _CPU, False, {}, {}
            return
        missing = tensorrt_problem(available_providers(), shutil.which("trtexec"))
        if missing:
            raise ProfileError(missing)
        self.provider = PROVIDER

    def open(self, model: bytes | Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
        """See :func:`autoq.runtime.ort.open_session`; building the engine takes seconds to minutes."""
        return open_session(
            model,
            threads=threads,
            provider=self.provider,
            provider_options=self.provider_options,
            config=self.config,
            optimized=self.optimized,
        )


def tensorrt_problem(providers: list[str], trtexec: str | None) -> str:
    """What keeps TensorRT from running here, and what to do; empty where nothing does.

    ``providers`` are those of this build of ONNX Runtime, ``trtexec`` where that program lies, if anywhere.
    """
    if PROVIDER in providers:
        return ""
    beside = (
        f"but trtexec is here ({trtexec}), by which a profile can time files (docs/gpu.md)"
        if trtexec
        else "nor is there trtexec on the PATH"
    )
    return (
        f"this onnxruntime has no {PROVIDER} (it has {', '.join(providers)}), {beside}. Install an NVIDIA driver, "
        "TensorRT 10 and onnxruntime-gpu in place of onnxruntime; files for TensorRT can be made and scored on the CPU "
        "without, with `autoq export RUN --form tensorrt`"
    )


def _provider_options(fp16: bool, workspace_mb: int, engines: str) -> Mapping[str, Any]:
    folder = engines or str(Path(tempfile.gettempdir()) / "autoq-tensorrt")
    return {
        "trt_int8_enable": "1",  # Q/DQ in the file say where
        "trt_fp16_enable": str(int(fp16)),
        "trt_max_workspace_size": str(workspace_mb * 1024 * 1024),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_engine_cache_enable": str(int(bool(engines))),
        **({"trt_engine_cache_path": engines} if engines else {}),
    }
