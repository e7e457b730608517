"""The same job and seed evaluated in this process and by Ray: are the candidates and their metrics the same?

    python benchmarks/ray_equals_local.py [--trials 24] [--workers 0] [--seed 0] [--bench DIR]

Compares trial by trial: policy, origin, metric (to the last digit), and the SHA-256 of the file. Latency differs from
run to run and is not compared. Exit code 1 when anything differs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import machine, parser, resnet20_job, save

COMPARED = ("id", "origin", "metric", "size_bytes", "sha256")


def main() -> None:
    """Two searches, one table."""
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=24)
    arguments.add_argument("--workers", type=int, default=0)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import autoq

    job, where = resnet20_job(given.bench), machine()
    trials: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="autoq-bench-") as folder:
        for ray in ("off", "local"):
            out = Path(folder) / ray
            autoq.search(
                job,
                out=out,
                trials=given.trials,
                ray=ray,
                workers=given.workers,
                seed=given.seed,
                tracking_uri=f"sqlite:///{folder}/mlflow.db",
                on_step=lambda text, ray=ray: print(f"ray {ray:5s}  {text}", flush=True),  # type: ignore[misc]
            )
            trials[ray] = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    differing = {
        key: [i for i, (a, b) in enumerate(zip(*trials.values(), strict=True)) if a[key] != b[key]] for key in COMPARED
    }
    from_sampler = sum(trial["origin"].startswith("sampler") for trial in trials["off"])
    print(f"\n{given.trials} trials, {from_sampler} of them proposed by the sampler\n{'':12s} differing trials")
    for key, where_not in differing.items():
        print(f"{key:12s} {where_not or 'none'}")
    same = not any(differing.values())
    save(
        "ray_equals_local", {"machine": where, "trials": given.trials, "sampled": from_sampler, "differing": differing}
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
