"""A finished search's front against the file that ONNX Runtime's own quantizer makes, all timed in one run.

    python benchmarks/front_vs_ort.py RUN [--blocks 24] [--runs 40] [--bench DIR]

RUN is a run folder of the ResNet-20 job. The rival is ``onnxruntime.quantization.quantize_static`` after
``quant_pre_process``, as its documentation recommends: QDQ, uint8 activations, int8 weights per channel, min-max, the
job's calibration images. The uniform W8A8 is autoq's own candidate ``w8a8@minmax``, built anew.

Metric: top-1 on the job's final split, which the search never saw, on stock ONNX Runtime. Latency: batch 1, 1 thread, a
block of one warm session after a block of the other, with nothing of autoq's meter; speed is the median over blocks of
float32's time / the model's, and "x ORT" that of ORT's time / the model's in the same block.

Goals: (1) a point at least as fast as ORT's file with at most 0.5 points lost; (2) a point under 0.18 of the float32
size with at most 1 point lost, at 0.95 or more of the uniform W8A8's speed. Both are judged by the median; its
bootstrap interval over blocks is shown beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import accuracy, machine, parser, resnet20_job, rows, save, timed_in_turn, verdict

FLOAT, ORT, UNIFORM = "float32", "ORT static U8S8", "uniform w8a8@minmax"


def quantize_with_ort(model: Path, images: np.ndarray, folder: Path) -> Path:
    """ONNX Runtime's own static quantizer, as its documentation has it."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter(
                {"input": images[i : i + 32]} for i in range(0, len(images), 32)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    prepared, made = folder / "prepared.onnx", folder / "ort.onnx"
    quant_pre_process(str(model), str(prepared))
    quantize_static(
        str(prepared),
        str(made),
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return made


def build_uniform(job: dict[str, Any], folder: Path) -> Path:
    """autoq's own candidate with ``w8a8@minmax`` wherever a layer may have it."""
    from autoq.core.scheme import Scheme
    from autoq.model.bank import default_cache_dir
    from autoq.search.groundwork import lay_groundwork
    from autoq.setting import read_setting
    from autoq.spec.job import load_job

    setting = read_setting(load_job(job))
    lowering = lay_groundwork(
        setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=default_cache_dir()
    )
    wanted = Scheme.parse("w8a8@minmax")
    chosen = {found.layer.name: wanted if wanted in found.schemes else found.schemes[0] for found in setting.candidates}
    from autoq.core.policy import Policy

    path = folder / "uniform.onnx"
    path.write_bytes(lowering.build(lowering.canonical(Policy.of(chosen))))
    return path


def interval(ratios: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median over blocks."""
    rng = np.random.default_rng(seed)
    medians = np.median(ratios[rng.integers(len(ratios), size=(2000, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Build, time, score, judge."""
    arguments = parser(__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--blocks", type=int, default=24)
    arguments.add_argument("--runs", type=int, default=40)
    given = arguments.parse_args()
    job = resnet20_job(given.bench)
    where = machine()
    front = json.loads((given.run / "front.json").read_text())
    float32 = Path(job["model"]["path"])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        calibration, _ = rows(job, "calibration")
        x, y = rows(job, "final")
        models = {
            FLOAT: float32,
            ORT: quantize_with_ort(float32, calibration, folder),
            UNIFORM: build_uniform(job, folder),
        }
        models |= {point["id"]: given.run / point["model_path"] for point in front["points"]}
        names = list(models)
        seconds = timed_in_turn(list(models.values()), x[:1], given.blocks, given.runs)
        metric = {name: accuracy(path, x, y) for name, path in models.items()}
        size = {name: path.stat().st_size for name, path in models.items()}
    origin = {point["id"]: point.get("origin", "") for point in front["points"]}

    def against(rival: str, name: str) -> np.ndarray:
        return seconds[names.index(rival)] / seconds[names.index(name)]

    table = []
    for name in names:
        row: dict[str, Any] = {
            "name": name,
            "origin": origin.get(name, ""),
            "metric": metric[name],
            "drop": metric[FLOAT] - metric[name],
            "size_ratio": size[name] / size[FLOAT],
        }
        for key, rival in (("speedup", FLOAT), ("speed_to_ort", ORT), ("speed_to_uniform", UNIFORM)):
            row[key] = float(np.median(against(rival, name)))
            row[f"{key}_ci95"] = interval(against(rival, name))
        table.append(row)

    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}; {len(y)} images\n")
    print(
        f"{'model':22s} {'metric':>7s} {'drop':>8s} {'size':>6s} {'speed':>6s} {'x ORT':>6s} "
        f"{'95 %':>15s} {'x w8a8':>7s}  origin"
    )
    for row in table:
        low, high = row["speed_to_ort_ci95"]
        print(
            f"{row['name'][:22]:22s} {row['metric']:7.4f} {row['drop']:+8.4f} {row['size_ratio']:6.3f} "
            f"{row['speedup']:5.2f}x {row['speed_to_ort']:6.3f} [{low:6.3f},{high:6.3f}] "
            f"{row['speed_to_uniform']:7.3f}  {row['origin']}"
        )
    points = table[3:]
    fast = [row for row in points if row["drop"] <= 0.005 and row["speed_to_ort"] >= 1.0]
    small = [row for row in points if row["size_ratio"] < 0.18 and row["drop"] <= 0.01]
    goals = {
        "as fast as ORT's file, at most 0.5 points lost": max(fast, key=lambda r: r["speed_to_ort"], default=None),
        "size < 0.18, at most 1 point lost, >= 0.95 of uniform w8a8": max(
            (row for row in small if row["speed_to_uniform"] >= 0.95),
            key=lambda r: r["speed_to_uniform"],
            default=None,
        ),
        "the same, >= 0.95 of ORT's file": max(
            (row for row in small if row["speed_to_ort"] >= 0.95), key=lambda r: r["speed_to_ort"], default=None
        ),
    }
    print()
    for goal, best in goals.items():
        print(f"{goal:60s} {verdict(best is not None)}")
        if best is not None:
            print(
                f"    {best['name']} ({best['origin']}): drop {best['drop']:+.4f}, size {best['size_ratio']:.3f}, "
                f"x ORT {best['speed_to_ort']:.3f}, x w8a8 {best['speed_to_uniform']:.3f}"
            )
    result = {"machine": where, "run": str(given.run), "blocks": given.blocks, "runs": given.runs, "table": table}
    save("front_vs_ort", result | {"goals": {goal: best and best["name"] for goal, best in goals.items()}})


if __name__ == "__main__":
    main()
