"""One calibration pass for all methods against ONNX Runtime's calibrators, one method each: peak memory and time.

    python benchmarks/calibration_memory.py [--rows 512 2048] [--batch 32] [--bench DIR]

Each row runs in a process of its own, which loads the data and the libraries first; memory is the growth of its
resident high-water mark from there. autoq's pass collects histograms of every tensor that any scheme could need, for
all its methods at once, in the batches given; ORT's read the same batches. ORT's time is for ``collect_data`` and
``compute_data``, autoq's for the pass and the ranges of all methods. Every process is bound to one core. Rows beyond
those of the calibration file repeat it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, parser, resnet20_job, rows, save

SPECS = ("minmax", "ema", "percentile99.9", "percentile99.99", "percentile99.999", "entropy", "mse")
METHODS = ("autoq, all methods", "ORT MinMax", "ORT Entropy", "ORT Percentile")


def with_autoq(model: Path, batches: Iterator[dict[str, np.ndarray]]) -> int:
    """autoq's pass; the number of tensors."""
    from autoq.core.scheme import Scheme
    from autoq.model.calibrate import affine_table, calibrate
    from autoq.model.placement import Placer
    from autoq.model.source import read_model

    source = read_model(model)
    specs = [Scheme.parse(f"w8a8@{method}").activation for method in SPECS]
    tensors = Placer(source.graph, source.layers).tensors_to_calibrate()
    statistics = calibrate(source.graph, batches, tensors=tensors, threads=1).statistics
    affine_table(statistics, [spec for spec in specs if spec is not None])
    return len(statistics)


def with_ort(model: Path, batches: Iterator[dict[str, np.ndarray]], method: str) -> int:
    """ORT's calibrator; the number of tensors."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(model), augmented_model_path=f"{folder}/a.onnx", calibrate_method=CalibrationMethod[method]
        )
        calibrator.collect_data(Batches())
        return len(calibrator.compute_data().data)


def one(method: str, model: Path, data: Path, count: int, batch: int) -> dict[str, Any]:
    """What one row of the table needs, measured in this process."""
    import onnxruntime.quantization.calibrate

    import autoq.model.calibrate
    import autoq.model.source  # noqa: F401
    from autoq.runtime.memory import peak_growth_bytes

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    images = np.resize(np.load(data), (count, 3, 32, 32))
    # A session of its own first, so that no one pays for the runtime's first use.
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    session.run(None, {"input": images[:1]})
    batches = iter([{"input": images[i : i + batch]} for i in range(0, count, batch)])
    found: dict[str, Any] = {}

    def run() -> None:
        start = time.perf_counter()
        if method.startswith("autoq"):
            found["tensors"] = with_autoq(model, batches)
        else:
            found["tensors"] = with_ort(model, batches, method.removeprefix("ORT "))
        found["seconds"] = time.perf_counter() - start

    return {"peak_bytes": peak_growth_bytes(run), **found}


def main() -> None:
    """A process for each method and number of rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    arguments.add_argument("--batch", type=int, default=32)
    given = arguments.parse_args()
    job, where = resnet20_job(given.bench), machine()
    images, _ = rows(job, "calibration")
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}; batches of {given.batch}\n")
    print(f"{'rows':>5s} {'method':20s} {'tensors':>7s} {'peak MB':>8s} {'ratio':>7s} {'s':>7s} {'ratio':>7s}")
    table = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npy"
        np.save(data, images)
        for count in given.rows:
            own: dict[str, Any] = {}
            for method in METHODS:
                asked = [method, job["model"]["path"], str(data), str(count), str(given.batch)]
                done = subprocess.run(
                    [sys.executable, __file__, "--one", *asked], stdout=subprocess.PIPE, text=True, check=True
                )
                row = json.loads(done.stdout.splitlines()[-1]) | {"method": method, "rows": count}
                own = own or row
                row["memory_ratio"] = row["peak_bytes"] / own["peak_bytes"]
                row["time_ratio"] = row["seconds"] / own["seconds"]
                table.append(row)
                print(
                    f"{count:5d} {method:20s} {row['tensors']:7d} {row['peak_bytes'] / 1e6:8.1f} "
                    f"{row['memory_ratio']:6.1f}x {row['seconds']:7.2f} {row['time_ratio']:6.2f}x",
                    flush=True,
                )
    save("calibration_memory", {"machine": where, "batch": given.batch, "table": table})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        name, model_path, data_path, row_count, batch_size = sys.argv[2:]
        print(json.dumps(one(name, Path(model_path), Path(data_path), int(row_count), int(batch_size))))
    else:
        main()
