"""ONNX Runtime's own quantizers, for benchmarks/equal_time.py, which runs this in an environment of its own.

Static (uint8 activations, int8 weights per channel, QDQ) by each of its calibration methods, on the model as its own
preparation leaves it; dynamic per channel, and MatMul weights in blocks of 32 at 4 and 8 bits, where the model has
products. The histogram calibrators keep every tensor of every row: of sentences they have 32 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from peer_task import Feeds, Task, given_task


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Batches, once."""

    def __init__(self, batches: list[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Feeds | None:
        """The next batch."""
        return next(self._batches, None)


def static(task: Task, method: CalibrationMethod, rows: int | None, prepared: Path, target: Path) -> None:
    """Static, QDQ."""
    quantize_static(
        str(prepared), str(target), Rows(task.batches(task.calibration, 16, rows)), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True, calibrate_method=method,
    )  # fmt: skip


def dynamic(prepared: Path, target: Path) -> None:
    """Dynamic, per channel."""
    quantize_dynamic(str(prepared), str(target), per_channel=True, weight_type=QuantType.QInt8)


def blocks(bits: int, symmetric: bool, prepared: Path, target: Path) -> None:
    """MatMulNBits, and tables in blocks where it can."""
    kinds = ("MatMul", "Gather") if bits == 4 else ("MatMul",)
    made = MatMulNBitsQuantizer(
        onnx.load(prepared),
        bits=bits,
        block_size=32,
        is_symmetric=symmetric,
        accuracy_level=4,
        op_types_to_quantize=kinds,
    )
    made.process()
    made.model.save_model_to_file(str(target))


def main() -> None:
    """The plainest first."""
    task = given_task()
    prepared = task.folder / "prepared.onnx"
    quant_pre_process(str(task.model), str(prepared), skip_symbolic_shape=task.kind == "pairs")
    rows = 32 if task.kind == "pairs" else None
    attempts: dict[str, Callable[[Path], None]] = {}
    if task.kind == "pairs":
        attempts["dynamic"] = partial(dynamic, prepared)
        for bits, symmetric in ((4, True), (4, False), (8, True)):
            name = f"matmul-{bits}-bits" + ("" if symmetric else "-asymmetric")
            attempts[name] = partial(blocks, bits, symmetric, prepared)
    for method in ("MinMax", "Percentile", "Entropy"):
        attempts[f"static-{method.lower()}"] = partial(static, task, CalibrationMethod[method], rows, prepared)
    for name, make in attempts.items():
        task.attempt(name, make)


if __name__ == "__main__":
    main()
