"""What each scheme does to all-MiniLM-L6-v2: points lost, size, speed and memory of uniform policies.

    python benchmarks/minilm_schemes.py [--model minilm.onnx] [--no-times] [--bench DIR]

One scheme for the 36 products and one for the three embedding tables. Points of Spearman's rank correlation lost on
sentence pairs of which nothing was calibrated or chosen (the final split: 1,200), file size and peak memory as shares
of float32's, speed in warm blocks in turn with float32: batch 1, 64 tokens, one thread, plain ONNX Runtime. The model
is made by ``examples/minilm-sts/prepare.sh``. All are written in the forms that a search's probe finds to pay for this
model (docs/forms.md), float32 as well: the first row is the model as it came.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import ROOT, machine, parser, save, sts_job, timed_feeds_in_turn

POLICIES = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("w8a8@mse", "w8"),
    ("w8a8@mse", "w4"),
    ("w8a8@dynamic", "w8"),
    ("w8a8@dynamic", "w4"),
    ("w8a8@dynamic", "w4-b128"),
    ("w8a8@dynamic", "w4-b32"),
    ("w8a8@dynamic", "w2"),
    ("w8a8@dynamic", "w2-b32"),
    ("w4a8-gptq@mse", "w4"),
    ("w4a8-gptq@dynamic", "w4"),
    ("w4a8-gptq@dynamic", "w4-b128"),
    ("w4a8-gptaq@dynamic", "w4"),
    ("w2a8-gptq@dynamic", "w4"),
    ("w2a8-gptaq@dynamic", "w4"),
    ("w4-gptq", "w4"),
    ("w2-gptq", "w4"),
    ("w8-b128", "w8"),
    ("w4-b32-gptq", "w4-b128"),
    ("w4-b128-gptq", "w4-b128"),
    ("w2-b32-gptq", "w4-b128"),
    ("w2-b128-gptq", "w4-b128"),
)
FORMS = ("attention", "tanh-gelu", "product-bias")
PEAK = """
import sys
from pathlib import Path
import numpy as np
from autoq.runtime.memory import peak_growth_bytes
from autoq.runtime.ort import open_session
feeds = dict(np.load(sys.argv[2]))
def run():
    session = open_session(Path(sys.argv[1]))
    for _ in range(3):
        session.run(None, feeds)
print(peak_growth_bytes(run))
"""


def main() -> None:
    """Prints the table."""
    from autoq.core.policy import Policy
    from autoq.core.scheme import Scheme
    from autoq.model.bank import default_cache_dir
    from autoq.model.source import read_model
    from autoq.runtime.data import load_split
    from autoq.runtime.metric import resolve_metric
    from autoq.runtime.ort import input_specs, open_session, run_batches
    from autoq.search.candidates import Candidates
    from autoq.search.groundwork import lay_groundwork
    from autoq.spec.job import load_job

    made = parser(__doc__)
    made.add_argument("--model", type=Path, default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    made.add_argument("--no-times", action="store_true", help="leave out speed and memory")
    made.add_argument("--only", type=int, nargs="*", help="numbers of the policies to do")
    given = made.parse_args()
    job = load_job(sts_job(given.bench, given.model), given.bench)
    model, specs, metric = read_model(job.model_path), input_specs(open_session(job.model_path)), resolve_metric(job)
    chosen = POLICIES if given.only is None else [POLICIES[number] for number in given.only]

    found = []
    for layer in model.layers:
        texts = dict.fromkeys(["float32", *(pair[layer.op_type == "Gather"] for pair in chosen)])
        found.append(Candidates(layer=layer, schemes=tuple(map(Scheme.parse, texts))))
    calibration = load_split(job, "calibration", specs)
    lowering = lay_groundwork(model, found, calibration, specs, cache_dir=default_cache_dir(), forms=FORMS, step=print)
    final = load_split(job, "final", specs)
    feeds = {name: values[:1] for name, values in final.inputs.items()}

    rows, folder = [], Path(tempfile.mkdtemp())
    np.savez(folder / "feeds.npz", **feeds)
    paths = {"float32": job.model_path}
    for products, tables in chosen:
        policy = {layer.name: Scheme.parse(tables if layer.op_type == "Gather" else products) for layer in model.layers}
        paths[f"{products}, tables {tables}"] = folder / f"{len(paths)}.onnx"
        paths[f"{products}, tables {tables}"].write_bytes(lowering.build(lowering.canonical(Policy.of(policy))))
    base: dict[str, float] = {}
    print("\n| policy | metric | points lost | size | x float32 | memory |\n|---|---|---|---|---|---|")
    for name, path in paths.items():
        row: dict[str, object] = {"policy": name}
        row["metric"] = metric(run_batches(open_session(path), final.inputs, job.data.batch), final.targets)
        row["size_bytes"] = path.stat().st_size
        base = base or dict(row)  # type: ignore[arg-type]
        row["points_lost"] = 100 * (base["metric"] - row["metric"])
        row["size"] = row["size_bytes"] / base["size_bytes"]
        if not given.no_times:
            command = [sys.executable, "-c", PEAK, str(path), str(folder / "feeds.npz")]
            row["memory"] = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            base.setdefault("memory", row["memory"])
            row["memory_share"] = row["memory"] / base["memory"]
            blocks = timed_feeds_in_turn([job.model_path, path], feeds, blocks=12, runs=12)
            row["speed"] = float(np.median(blocks[0] / blocks[1]))
        rows.append(row)
        shown = [f"{row.get('speed', 0):.2f}", f"{row.get('memory_share', 0):.2f}"]
        print(
            f"| {name} | {row['metric']:.4f} | {row['points_lost']:+.2f} | {row['size']:.3f} | {' | '.join(shown)} |",
            flush=True,
        )
    save("minilm_schemes", {"rows": rows, **machine()})


if __name__ == "__main__":
    main()
