"""Sensitivity probes: each from a whole file, and from parts that leave out what float32 has in common with it.

    python benchmarks/probes.py [--model minilm.onnx] [--share 1.0] [--workers 2] [--bench DIR]

The jobs of ``examples/resnet20-cifar10`` and, with ``--model``, ``examples/minilm-sts``, with their default space, bank
and ranges taken first (a second run finds the weights in the cache). Each probe is one layer in one scheme on a few
calibration rows. The old way builds, opens and runs a whole file for each; the new way is
:class:`autoq.model.suffix.Suffixes`. ``--share`` takes every n-th layer only, for a quick look. It prints

    seconds     of either way, the opening of float32 and its run included, with as many threads
    spearman    of the noise powers of both, and by how much they differ at most, as a share of their size
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, parser, resnet20_job, save, sts_job, verdict


def taken(job_data: dict[str, Any], share: float, workers: int) -> dict[str, Any]:
    """One model: its row of the table."""
    from autoq.model.suffix import Suffixes
    from autoq.numerics.bootstrap import spearman
    from autoq.search.sensitivity import measure, measure_by, noise_power, probe_rows, probes
    from autoq.setting import choose_forms, groundwork_of, read_setting
    from autoq.spec.job import load_job

    setting = choose_forms(read_setting(load_job(job_data)))
    lowering = groundwork_of(setting)
    found = probes(setting.candidates, lowering.canonical)
    rows = probe_rows(found, setting.candidates)
    inputs = {name: array[:rows] for name, array in setting.calibration.inputs.items()}
    layers = list(dict.fromkeys(probe.layer for probe in found))[:: max(1, round(1 / share))]
    found = [probe for probe in found if probe.layer in layers]
    seconds: dict[str, float] = {}
    noises: dict[str, list[float]] = {}
    for name in ("whole", "parts"):
        values: list[float] = []

        def keep(_: Any, value: float | None, values: list[float] = values) -> None:
            values.append(np.inf if value is None else value)

        start = time.perf_counter()
        if name == "whole":
            measure(found, lowering.build, inputs, batch=rows, workers=workers, judge=noise_power, keep=keep)
        else:
            measure_by(found, Suffixes(lowering, inputs, rows), workers=workers, judge=noise_power, keep=keep)
        seconds[name], noises[name] = time.perf_counter() - start, values
    whole, parts = np.array(noises["whole"]), np.array(noises["parts"])
    return {
        "model": setting.job.name,
        "layers": len(layers),
        "probes": len(found),
        "rows": rows,
        "seconds": seconds,
        "faster": seconds["whole"] / seconds["parts"],
        "spearman": spearman(whole, parts),
        "largest_difference": float(np.max(np.abs(parts - whole) / np.maximum(whole, 1e-12))),
        "noises": noises,
    }


def main() -> None:
    """A row for each model."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="minilm.onnx")
    arguments.add_argument("--share", type=float, default=1.0, help="of the layers")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--skip-resnet20", action="store_true")
    given = arguments.parse_args()
    jobs = [] if given.skip_resnet20 else [resnet20_job(given.bench)]
    if given.model:
        jobs.append(sts_job(given.bench, given.model))
    print(f"{'':18s} probes  rows  whole s  parts s  faster  spearman  largest difference")
    rows = []
    for job in jobs:
        row = taken(job, given.share, given.workers)
        rows.append(row)
        print(
            f"{row['model']:18s} {row['probes']:6d}  {row['rows']:4d}  {row['seconds']['whole']:7.1f}"
            f"  {row['seconds']['parts']:7.1f}  {row['faster']:5.1f}x  {row['spearman']:8.5f}"
            f"  {row['largest_difference']:.2%}",
            flush=True,
        )
    largest = max(rows, key=lambda row: row["seconds"]["whole"] / row["probes"])
    print(f"the dearest probes ({largest['model']}) 3 times faster: {verdict(largest['faster'] >= 3)}")
    save("probes", {"machine": machine(), "workers": given.workers, "rows": rows})


if __name__ == "__main__":
    main()
