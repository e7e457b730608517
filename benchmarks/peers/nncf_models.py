"""NNCF's quantizers, for benchmarks/equal_time.py, which runs this in an environment of its own.

``quantize`` with its defaults, with the preset for mixed signs, and with the slower bias correction;
``quantize_with_accuracy_control`` at several drops, scored on the same search rows as autoq's candidates; for
transformers ``compress_weights`` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import nncf
import onnx
import onnxruntime
from peer_task import given_task


def session(model: bytes) -> onnxruntime.InferenceSession:
    """On one thread, as everybody's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """The plainest first."""
    task = given_task()
    model = onnx.load(task.model)
    data = nncf.Dataset(task.batches(task.calibration, 1, 300))
    kind: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if task.kind == "pairs" else {}
    mixed = {"preset": nncf.QuantizationPreset.MIXED}

    def plain(options: dict[str, Any], target: Path) -> None:
        onnx.save(nncf.quantize(model, data, **kind, **options), target)

    def validate(candidate: Any, rows: Iterable[Any]) -> tuple[float, None]:
        """The search rows' metric; NNCF gives a prepared model, of which the file's bytes are asked."""
        proto = candidate if isinstance(candidate, onnx.ModelProto) else candidate.model
        opened = session(proto.SerializeToString())
        return task.scored(lambda feeds: opened.run(None, feeds)[0]), None

    def controlled(drop: float, target: Path) -> None:
        made = nncf.quantize_with_accuracy_control(
            model, data, nncf.Dataset(task.batches(task.search, 1)), validate, max_drop=drop,
            drop_type=nncf.DropType.ABSOLUTE, **kind,
        )  # fmt: skip
        onnx.save(made, target)

    def compressed(mode: str, options: dict[str, Any], target: Path) -> None:
        onnx.save(nncf.compress_weights(onnx.load(task.model), mode=nncf.CompressWeightsMode[mode], **options), target)

    attempts: dict[str, Callable[[Path], None]] = {
        "quantize": partial(plain, {}),
        "quantize-mixed": partial(plain, mixed),
        "quantize-slow-bias": partial(plain, {"fast_bias_correction": False}),
    }
    if task.kind == "pairs":
        attempts["compress-int8"] = partial(compressed, "INT8_SYM", {})
        attempts["compress-int4"] = partial(compressed, "INT4_SYM", {"group_size": 128, "all_layers": True})
    for drop in (0.01, 0.005, 0.001):
        attempts[f"accuracy-control-{drop:g}"] = partial(controlled, drop)
    for name, make in attempts.items():
        task.attempt(name, make)


if __name__ == "__main__":
    main()
