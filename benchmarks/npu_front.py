"""A search of ResNet-20 for an Arm Ethos-U: what fewer bits save in cycles, and what they cost in accuracy.

    python benchmarks/npu_front.py [--npu u55-256] [--space npu] [--trials 60] [--objectives metric latency]
                                   [--out RUN] [--bench DIR]

Needs the extra [npu]. Searches the space with ``hardware: npu-ethos-...``: accuracy on LiteRT, cycles by Vela, both of
the file that would ship. Prints the front on the final split, which no label of had a say in the search, and how far
the best point within 0.5 points of float32 is below the cycles of the same network with 8 bits throughout (its
profile's reference). Then Vela's cycles layer by layer, for that point and the reference. Cycles are estimates: nothing
ran on a chip.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import machine, parser, resnet20_job, save, verdict

LOST, SAVED = 0.005, 0.25


def searched(job: dict[str, Any], out: Path) -> Any:
    """The finished search."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import autoq

    return autoq.search(job, out=out, ray="off", tracking_uri=f"sqlite:///{out.parent / 'mlflow.db'}")


def estimated(file: Path, npu: str) -> Any:
    """Vela's figures for a file."""
    from autoq.runtime.vela_compile import NPUS, estimate

    return estimate(file.read_bytes(), NPUS[f"ethos-{npu}"])


def main() -> None:
    """Search, print, save."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--npu", default="u55-256", help="u55-128, u55-256, u65-256 or u85-256 [default: %(default)s]"
    )
    arguments.add_argument("--space", default="npu")
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--objectives", nargs="+", default=["metric", "latency"])
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    job = resnet20_job(given.bench) | {
        "name": f"npu-{given.npu}",
        "hardware": f"npu-ethos-{given.npu}",
        "space": given.space,
        "objectives": given.objectives,
        "constraints": {"max_metric_drop": 0.03},
        "budget": {"trials": given.trials},
    }
    out = given.out or Path(tempfile.mkdtemp(prefix="autoq-npu-")) / "run"
    start, where = time.time(), machine()
    result = searched(job, out)
    seconds = time.time() - start
    base, table = result.front.baseline.metric.final, []
    print(f"{where['processor']}, {where['cores']} cores; {given.npu}, {given.space}, {given.trials} trials")
    print(f"{seconds:.0f} s; float32 {base:.4f}\n")
    print(
        f"{'point':14s} {'top-1':>7s} {'lost':>6s} {'cycles':>9s} {'saved':>6s} {'SRAM':>8s} {'flash':>8s} {'bits':>5s}"
    )
    for point in result.front.points:
        figures, saved = point.latency.figures, 1 - point.latency.ratio
        lost = base - point.metric.final
        row = {"id": point.id, "top1": point.metric.final, "lost": lost, "saved": saved, **figures}
        table.append(row | {"policy": {name: str(scheme) for name, scheme in point.policy.items_}})
        print(
            f"{point.id:14s} {point.metric.final:7.4f} {100 * lost:6.2f} {figures['cycles']:9,.0f} {saved:6.1%} "
            f"{figures['sram_bytes']:8,.0f} {figures['flash_bytes']:8,.0f} {point.weight_bits_mean:5.2f}"
        )
    whole = estimated(out / "reference.tflite", given.npu)
    print(f"{'8 bits':30s} {whole.cycles:9,d} {'':6s} {whole.sram_bytes:8,d} {whole.flash_bytes:8,d} {8:5.2f}")
    kept = [row for row in table if row["lost"] <= LOST + 1e-9]
    best = max(kept, key=lambda row: row["saved"], default=None)
    met = best is not None and best["saved"] >= SAVED
    print(f"\nat most 0.5 points lost: {best['saved'] if best else 0:.1%} fewer cycles; 25 %: {verdict(met)}")
    layers: list[tuple[str, int, int]] = []
    if best:
        mine = estimated(out / "models" / f"{best['id']}.tflite", given.npu)
        layers = [(name, before, after) for (name, before), (_, after) in zip(whole.layers, mine.layers, strict=True)]
        print("\ncycles of each operator, 8 bits throughout and here, where they differ")
        for name, before, after in layers:
            if before != after:
                print(f"  {name:32s} {before:8,d} {after:8,d}")
    save(
        f"npu_front_{given.npu}_{given.space}",
        {"machine": where, "seconds": seconds, "float32": base, "points": table, "layers": layers},
    )


if __name__ == "__main__":
    main()
