"""Olive's search, for benchmarks/equal_time.py, which runs this in an environment of its own.

TPE, seed 0, over Olive's own settings of static quantization (calibration method x per channel x reduced range x
preparation, uint8 activations, int8 weights, QDQ) and, where the model has products, of dynamic quantization as well;
it scores on the same search rows as autoq and takes the latency of a batch of one on one thread. Every model that it
quantizes is handed in, not only the front that it reports.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from olive.data.registry import Registry
from olive.evaluator.metric_result import MetricResult
from olive.evaluator.olive_evaluator import OnnxEvaluator
from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization
from olive.workflows import run
from peer_task import given_task

TASK = given_task()
SEARCHED = ("per_channel", "reduce_range", "quant_preprocess")


@Registry.register_dataset("equal_time_rows")
def rows(count: int) -> Any:
    """The first rows to calibrate on, one at a time."""
    feeds = {name: torch.from_numpy(values[:count]) for name, values in TASK.calibration.items()}
    return [({name: values[i] for name, values in feeds.items()}, 0) for i in range(len(next(iter(feeds.values()))))]


def opened(model: Any) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.model_path, options, providers=["CPUExecutionProvider"])


def evaluate(_: Any, model: Any, metric: Any, *__: Any, **___: Any) -> MetricResult:
    """In place of Olive's accuracy, which knows classes alone: the search rows' metric."""
    session = opened(model)
    value = TASK.scored(lambda feeds: session.run(None, feeds)[0])
    (kind,) = metric.sub_types
    told = {"value": value, "priority": kind.priority, "higher_is_better": True}
    return MetricResult.model_validate({kind.name: told})


def handing_in(owner: type, name: str, counter: Any) -> None:
    """Hands in what a pass makes, as soon as it is made."""
    inner = owner._run_for_config  # type: ignore[attr-defined]

    def outer(*args: Any, **kwargs: Any) -> Any:
        made = inner(*args, **kwargs)
        TASK.hand_in(f"{name}-{next(counter)}", Path(made.model_path))
        return made

    owner._run_for_config = outer  # type: ignore[attr-defined]


def data(name: str, count: int, batch: int) -> dict[str, Any]:
    """The first rows, for Olive."""
    return {
        "name": name,
        "load_dataset_config": {"type": "equal_time_rows", "params": {"count": count}},
        "dataloader_config": {"params": {"batch_size": batch}},
    }


def main() -> None:
    """One joint search until the time is over."""
    counter = itertools.count()
    handing_in(OnnxStaticQuantization, "static", counter)
    handing_in(OnnxDynamicQuantization, "dynamic", counter)
    static = {
        "type": "OnnxStaticQuantization", "data_config": "calibration", "quant_format": "QDQ", "precision": "int8",
        "activation_type": "uint8", **dict.fromkeys(("calibrate_method", *SEARCHED), "SEARCHABLE_VALUES"),
    }  # fmt: skip
    dynamic = {"type": "OnnxDynamicQuantization", "precision": "int8", **dict.fromkeys(SEARCHED, "SEARCHABLE_VALUES")}
    pairs = TASK.kind == "pairs"
    one_thread = {"intra_op_num_threads": 1}
    OnnxEvaluator._evaluate_accuracy = evaluate
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(TASK.model)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [data("calibration", 32 if pairs else 512, 16), data("one", 1, 1)],
        "evaluators": {
            "both": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "calibration",
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
                        "user_config": {"inference_settings": {"onnx": {"session_options": one_thread}}},
                    },
                ]
            }
        },
        "passes": {"quantize": [dynamic, static] if pairs else static},
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "max_iter": 1000,
            "max_time": max(1, int(TASK.left)),
            "sampler_config": {"seed": 0},
        },
        "evaluator": "both",
        "evaluate_input_model": False,
        "host": "here",
        "target": "here",
        "cache_dir": str(TASK.folder / "cache"),
        "output_dir": str(TASK.folder / "olive"),
        "log_severity_level": 2,
    }
    np.random.seed(0)
    run(config)


if __name__ == "__main__":
    main()
