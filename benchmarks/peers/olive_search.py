"""Olive's search of ResNet-20 beside autoq's: candidates a minute, same model, data and metrics, one after the other.

    python benchmarks/peers/olive_search.py [--candidates 12] [--autoq-trials 40] [--bench DIR]

Olive (in an environment of its own, made here on the first run) searches 24 global settings with TPE: calibration
method x per-channel x reduced range x preprocessing, as uint8 activations and int8 weights in QDQ form, the kind that
suits this runtime best. It calibrates on the same 512 images, scores top-1 on the same 2,000 and takes the latency of
a batch of one on one thread with its default of 10 + 20 runs. The metric may use all cores, as autoq's workers do
together.

autoq then runs its own search with Ray, by benchmarks/search_resnet20.py. Rates are distinct candidates over the wall
time of the search itself (imports, worker start, autoq's calibration and its final check left out), and over the whole
process. A candidate's time is also split: what it takes to *make* one (Olive: quantize; autoq: build and load), to
score it (Olive on all cores, autoq on one core with a worker on each), and to time it (Olive: a loop of 30 runs; autoq:
peak memory, and blocks in turn with float32 in fresh processes). "Ceiling" is what autoq would reach if a search were
nothing but metric inference.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
GOAL = 10.0


# Run by Olive's own Python -------------------------------------------------------------------------------------------


def search_with_olive(folder: Path) -> None:
    """Runs Olive's search on ``folder``'s arrays; writes ``result.json`` there. Needs nothing of autoq."""
    import numpy as np
    import olive
    import torch
    from olive.data.registry import Registry
    from olive.evaluator.olive_evaluator import OnnxEvaluator
    from olive.passes.onnx.quantization import OnnxStaticQuantization
    from olive.workflows import run

    task = json.loads((folder / "task.json").read_text())

    @Registry.register_dataset("bench_dataset")
    def bench_dataset(file: str) -> Any:
        with np.load(file) as data:
            x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"].astype(np.int64))
        return [({"input": image}, label) for image, label in zip(x, y, strict=True)]

    @Registry.register_post_process("bench_argmax")
    def bench_argmax(output: Any) -> Any:
        logits = output["logits"] if isinstance(output, dict) else output
        return torch.as_tensor(logits).argmax(-1)

    spent: dict[str, list[float]] = {"quantize": [], "metric": [], "latency": []}

    def clocked(owner: type, name: str, into: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[into].append(time.perf_counter() - start)

        setattr(owner, name, outer)

    clocked(OnnxStaticQuantization, "_run_for_config", "quantize")
    clocked(OnnxEvaluator, "_evaluate_accuracy", "metric")
    clocked(OnnxEvaluator, "_evaluate_raw_latency", "latency")

    def data(name: str, file: str, batch: int) -> dict[str, Any]:
        return {
            "name": name,
            "load_dataset_config": {"type": "bench_dataset", "params": {"file": file}},
            "post_process_data_config": {"type": "bench_argmax"},
            "dataloader_config": {"params": {"batch_size": batch}},
        }

    one_thread = {"onnx": {"session_options": {"intra_op_num_threads": 1}}}
    searched = ("calibrate_method", "per_channel", "reduce_range", "quant_preprocess")  # 3 x 2 x 2 x 2
    config = {
        "input_model": {"type": "ONNXModel", "model_path": task["model"]},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [
            data("calibration", task["calibration"], 32),
            data("search", task["search"], 100),
            data("one", task["search"], 1),
        ],
        "evaluators": {
            "both": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "search",
                        "sub_types": [
                            {
                                "name": "accuracy_score",
                                "priority": 1,
                                "metric_config": {"task": "multiclass", "num_classes": 10},
                            }
                        ],
                    },
                    {
                        "name": "latency",
                        "type": "latency",
                        "data_config": "one",
                        "sub_types": [{"name": "avg", "priority": 2}],
                        "user_config": {"inference_settings": one_thread},
                    },
                ]
            }
        },
        "passes": {
            "quantize": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "quant_format": "QDQ",
                "precision": "int8",
                "activation_type": "uint8",
                **dict.fromkeys(searched, "SEARCHABLE_VALUES"),
            }
        },
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "max_iter": task["candidates"],
            "sampler_config": {"seed": 0},
        },
        "evaluator": "both",
        "evaluate_input_model": False,
        "host": "here",
        "target": "here",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "olive"),
        "log_severity_level": 2,
    }
    start = time.perf_counter()
    outcome = run(config)
    wall = time.perf_counter() - start
    models = [
        {name: entry["value"] for name, entry in model.metrics_value.items()} for model in outcome.get_output_models()
    ]
    result = {"version": olive.__version__, "search_s": wall, "spent": spent, "models": models}
    (folder / "result.json").write_text(json.dumps(result))


# Run by autoq's Python -----------------------------------------------------------------------------------------------


def olive(given: Any, folder: Path) -> dict[str, Any]:
    """Olive's search in its own process."""
    import numpy as np
    from environments import environment
    from harness import resnet20_job, rows

    job = resnet20_job(given.bench)
    task = {"model": job["model"]["path"], "candidates": given.candidates}
    for split in ("calibration", "search"):
        x, y = rows(job, split)
        np.savez(folder / f"{split}.npz", x=x, y=y)
        task[split] = str(folder / f"{split}.npz")
    (folder / "task.json").write_text(json.dumps(task))
    python = environment("olive")
    settings = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    start = time.perf_counter()
    with (folder / "olive.log").open("w") as log:
        # -P: this script's folder must not come before the installed packages.
        subprocess.run(
            [python, "-P", HERE, "--inside", folder],
            check=True,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | settings,
            timeout=given.limit,
        )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found | {"process_s": time.perf_counter() - start}


def main() -> None:
    """Olive, then autoq, then the table."""
    sys.path.insert(0, str(HERE.parents[1]))
    from harness import OUT, machine, parser, save, verdict

    arguments = parser(__doc__)
    arguments.add_argument("--candidates", type=int, default=12, help="how many Olive tries, at most 24")
    arguments.add_argument("--autoq-trials", type=int, default=40)
    arguments.add_argument("--limit", type=float, default=240.0, help="seconds after which Olive is ended")
    given = arguments.parse_args()
    where = machine()
    folder = Path(tempfile.mkdtemp(prefix="autoq-olive-"))
    theirs = olive(given, folder)
    command = [sys.executable, HERE.parents[1] / "search_resnet20.py", "--trials", str(given.autoq_trials)]
    subprocess.run([*command, "--bench", given.bench], check=True, stdout=subprocess.DEVNULL)
    ours = json.loads((OUT / "search_resnet20.json").read_text())

    made = len(theirs["spent"]["quantize"])
    olive_row = {
        "candidates": made,
        "search_per_minute": 60 * made / theirs["search_s"],
        "whole_per_minute": 60 * made / theirs["process_s"],
        "make_s": statistics.median(theirs["spent"]["quantize"]),
        "metric_s": statistics.median(theirs["spent"]["metric"]),
        "latency_s": statistics.median(theirs["spent"]["latency"]),
    }
    trials = [json.loads(line) for line in (Path(ours["run"]) / "trials.jsonl").read_text().splitlines()]
    autoq_row = {
        "candidates": ours["trials"],
        "search_per_minute": ours["candidates_per_minute_loop"],
        "whole_per_minute": ours["candidates_per_minute_whole"],
        "make_s": statistics.median(t["seconds"]["build"] + t["seconds"]["load"] for t in trials if not t["failure"]),
        "metric_s": ours["metric_s_median"],
        "latency_s": ours["measure_s_median"],
    }
    ratio = autoq_row["search_per_minute"] / olive_row["search_per_minute"]
    print(f"{where['processor']}, {where['cores']} cores, load {where['load_average']}; Olive {theirs['version']}\n")
    print(f"{'':24s} {'Olive':>9s} {'autoq':>9s} {'ratio':>8s}")
    for name, key, inverse in (
        ("distinct candidates", "candidates", None),
        ("a minute, search alone", "search_per_minute", False),
        ("a minute, whole process", "whole_per_minute", False),
        ("s to make one", "make_s", True),
        ("s to score one", "metric_s", True),
        ("s to time one", "latency_s", True),
    ):
        a, b = olive_row[key], autoq_row[key]
        shown = "" if inverse is None else f"{(a / b if inverse else b / a):7.2g}x"
        print(f"{name:24s} {a:9.3g} {b:9.3g} {shown:>8s}")
    print(f"{'autoq ceiling, a minute':34s} {ours['candidates_per_minute_ceiling']:9.3g}")
    print(f"\nsearch alone, autoq / Olive: {ratio:.1f}x, goal {GOAL:.0f}x, {verdict(ratio >= GOAL)}")
    save("olive_search", {"machine": where, "olive": theirs | olive_row, "autoq": autoq_row, "ratio": ratio})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        search_with_olive(Path(sys.argv[2]))
    else:
        main()
