"""The weight bank of a space: how long it takes to fill, how much memory, and how long to read it back from its cache.

    python benchmarks/bank.py [--space default] [--model minilm.onnx] [--only resnet20|minilm] [--bench DIR]

For ResNet-20 and for MiniLM (made by ``examples/minilm-sts/prepare.sh``), every entry that the space's candidates can
ask for. Filling and reading happen in a process each; memory is that process's peak resident set, the libraries and the
model included. "Calibrating" is the pass over the data that GPTQ's moments and all ranges come from, "filling" what is
computed from it. Reading back is timed twice, since the first time the files may have to come from the disk.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import ROOT, machine, parser, resnet20_job, save, sts_job, verdict

GOALS = {"resnet20": {"fill_s": 60.0}, "minilm": {"fill_s": 300.0, "peak_gib": 4.0, "read_s": 2.0}}


def one(job_file: Path, cache: Path) -> dict[str, Any]:
    """What this process takes to lay the groundwork of a job over ``cache``."""
    from autoq.model.bank import Bank
    from autoq.search.candidates import weight_specs
    from autoq.search.groundwork import lay_groundwork
    from autoq.setting import read_setting
    from autoq.spec.job import load_job

    setting = read_setting(load_job(job_file))
    wanted = weight_specs(setting.candidates)
    identity = f"{setting.model.sha256}:{setting.calibration.fingerprint}"
    start = time.perf_counter()
    missing = Bank(setting.model.graph, calibration_id=identity, cache_dir=cache).read_cache(wanted)
    found: dict[str, Any] = {"entries": len(wanted), "missing": len(missing), "read_s": time.perf_counter() - start}
    if missing:
        marks: dict[str, tuple[float, float]] = {}
        lay_groundwork(
            setting.model,
            setting.candidates,
            setting.calibration,
            setting.inputs,
            cache_dir=cache,
            step=lambda text: marks.setdefault(text.split()[0], (time.perf_counter(), time.process_time())),
        )
        begun = marks["quantizing"]
        found["calibrate_s"] = begun[0] - marks.get("calibrating", begun)[0]
        found["fill_s"], found["fill_cpu_s"] = time.perf_counter() - begun[0], time.process_time() - begun[1]
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def main() -> None:
    """Prints the table."""
    made = parser(__doc__)
    made.add_argument("--space", default="default", help="search space [default: %(default)s]")
    made.add_argument("--model", type=Path, default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    made.add_argument("--only", choices=list(GOALS), help="one model")
    made.add_argument("--one", nargs=2, type=Path, help="(for the script itself)")
    given = made.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    jobs = {"resnet20": lambda: resnet20_job(given.bench), "minilm": lambda: sts_job(given.bench, given.model)}
    result: dict[str, Any] = {"space": given.space}
    print(f"\n{given.space}: the bank")
    print("| model | entries | calibrating s | filling s (of CPU) | peak GiB | reading s (the first) | on disk MB | |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [given.only] if given.only else list(jobs):
        with tempfile.TemporaryDirectory() as folder:
            file, cache = Path(folder) / "job.json", Path(folder) / "cache"
            file.write_text(json.dumps({**jobs[name](), "space": given.space}))
            runs = []
            for _ in range(3):
                command = [sys.executable, __file__, "--one", str(file), str(cache)]
                ran = subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ)
                runs.append(json.loads(ran.stdout.splitlines()[-1]))
            files = [path.stat().st_size for path in cache.rglob("*.npz")]
        filled, *read = runs
        assert not any(run["missing"] for run in read)
        row = {**filled, "read_s": min(run["read_s"] for run in read), "disk_mb": sum(files) / 1e6}
        row["first_read_s"] = read[0]["read_s"]
        met = all(row[goal] <= limit for goal, limit in GOALS[name].items())
        filling = f"{row['fill_s']:.1f} ({row['fill_cpu_s']:.1f})"
        print(
            f"| {name} | {row['entries']} | {row['calibrate_s']:.1f} | {filling} | {row['peak_gib']:.2f} | "
            f"{row['read_s']:.2f} ({row['first_read_s']:.2f}) | {row['disk_mb']:.0f} | {verdict(met)} |",
            flush=True,
        )
        result[name] = row
    save("bank", {**result, "goals": GOALS, **machine()})


if __name__ == "__main__":
    main()
