"""A small real job: a convolutional network of four layers on 8x8 images, and data that it labels itself.

Random weights, and as labels the float model's own arg-max: float32 has accuracy 1, and quantizing costs a little, so
that fronts have several points. A search of it takes a few tenths of a second a trial.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from autoq import search

ROOT = Path(__file__).resolve().parents[1]
# The user's own cache is left alone, and nothing that an earlier version computed is taken for this one's.
CACHE = tempfile.mkdtemp(prefix="autoq-test-cache-")
os.environ["AUTOQ_CACHE"] = CACHE
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# For whole searches in this process: MLflow's way with pandas, which is none of autoq's.
QUIET_SEARCH = ("ignore:For backward compatibility, 'str' dtypes are included:DeprecationWarning",)

LAYERS = ("conv1", "conv2", "fc1", "fc2")
ROWS = 480


def small_model(seed: int = 0, *, batch: int | str = "N") -> onnx.ModelProto:
    """Conv-Relu, Conv-Add-Relu, pool, Gemm-Relu, MatMul-Sub; input ``x`` [N, 3, 8, 8], output ``y`` [N, 10]."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int, fan: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) * np.sqrt(2 / fan)).astype(np.float32), name)

    initializers = [
        weight("w1", 16, 3, 3, 3, fan=27),
        weight("b1", 16, fan=32),
        weight("w2", 16, 16, 3, 3, fan=144),
        weight("b2", 16, fan=32),
        weight("w3", 32, 256, fan=256),
        weight("b3", 32, fan=32),
        weight("w4", 32, 10, fan=32),
        weight("b4", 10, fan=32),
    ]
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", **conv),
        helper.make_node("Add", ["c2", "r1"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["r2"], name="relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="fc1", transB=1),
        helper.make_node("Relu", ["g"], ["r3"], name="relu3"),
        helper.make_node("MatMul", ["r3", "w4"], ["m"], name="fc2"),
        # Not an Add, which preparing would fold into a Gemm.
        helper.make_node("Sub", ["m", "b4"], ["y"], name="shift"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    _balance(model, initializers[6], initializers[7])
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(initializers)
    onnx.checker.check_model(model)
    return model


def _balance(model: onnx.ModelProto, weight: onnx.TensorProto, bias: onnx.TensorProto) -> None:
    """Every output to mean 0 and variance 1, so that all ten classes occur."""
    x = np.random.default_rng(9).normal(size=(256, 3, 8, 8)).astype(np.float32)
    open_batch = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*open_batch.graph.input, *open_batch.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    session = onnxruntime.InferenceSession(open_batch.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    scaled = numpy_helper.to_array(weight) / y.std(axis=0)
    shifted = (numpy_helper.to_array(bias) + y.mean(axis=0)) / y.std(axis=0)
    weight.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), weight.name))
    bias.CopyFrom(numpy_helper.from_array(shifted.astype(np.float32), bias.name))


def small_data(model: onnx.ModelProto, seed: int = 1, rows: int = ROWS) -> dict[str, np.ndarray]:
    """``x`` [rows, 3, 8, 8] float32 and ``y`` [rows] int64, the model's own arg-max."""
    x = np.random.default_rng(seed).normal(size=(rows, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return {"x": x, "y": y.argmax(axis=1)}


def job_values(tracking: str | None = None, **changes: Any) -> dict[str, Any]:
    """The job as a mapping; ``changes`` replace top-level fields."""
    values: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "model": {"path": "small.onnx"},
        "data": {
            "calibration": {"path": "data.npz", "slice": [0, 64]},
            "search": {"path": "data.npz", "slice": [64, 272]},
            "final": {"path": "data.npz", "slice": [272, 480]},
            "target": "y",
        },
        "metric": {"name": "accuracy"},
        "hardware": "cpu.yaml",
        "space": "space.yaml",
        "objectives": ["metric", "size"],
        "budget": {"trials": 10},
        # Two short rounds: these tests are not about the figures.
        "latency": {"samples": 2},
        "seed": 3,
    }
    if tracking is not None:
        values["tracking"] = {"uri": tracking}
    return values | changes


# Unlike the shipped profile it fits any machine, so that the tests run on all.
_PROFILE = {
    "version": 1,
    "name": "any-cpu",
    "kind": "cpu",
    "runtime": {"name": "onnxruntime"},
    "forms": "none",  # their probe takes a second or two
    "ops": {op: {"allow": ["float32", "float16", "w*"]} for op in ("Conv", "Gemm", "MatMul")},
    "cost": {"float16": 1.0, "w8": 1.0, "w4": 1.0, "w2": 1.0, "w8a8": 0.5, "w4a8": 0.5, "w2a8": 0.5},
}
# A model of a chip in the meter's place: nothing is timed, and a trial takes a few hundredths of a second.
ESTIMATED = {
    "by": "roofline",
    "options": {
        "int8_gmacs_s": 64,
        "vector_gops_s": 16,
        "memory_gb_s": 4,
        "sram_kib": 64,
        "host_gmacs_s": 4,
        "host_gops_s": 1,
        "host_gb_s": 2,
    },
}
_SPACE = {
    "version": 1,
    "name": "small",
    "schemes": ["float32", "w8", "w{4,2}-gptq", "w8a8@{minmax,mse}", "w4a8-gptq@minmax"],
}


def write_job(folder: Path, tracking: str | None = None, *, timed: bool = True, **changes: Any) -> Path:
    """Model, data, profile, space and job file in ``folder``; the path of the job file.

    Latencies are measured where ``timed``, else estimated: for tests that are about something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = small_model()
    (folder / "small.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "data.npz", **small_data(model))  # type: ignore[arg-type]
    (folder / "cpu.yaml").write_text(yaml.safe_dump(_PROFILE if timed else _PROFILE | {"measure": ESTIMATED}))
    (folder / "space.yaml").write_text(yaml.safe_dump(_SPACE))
    return dump_job(folder / "job.yaml", job_values(tracking, **changes))


def write_npu_job(folder: Path, tracking: str | None = None, **changes: Any) -> Path:
    """As :func:`write_job`, the model without the Sub at its end, which has no form in TFLite here."""
    path = write_job(folder, tracking, **changes)
    model = small_model()
    matmul, shift = model.graph.node[-2:]
    matmul.output[0] = shift.output[0]
    del model.graph.node[-1]
    (folder / "small.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "data.npz", **small_data(model))  # type: ignore[arg-type]
    return path


def dump_job(path: Path, values: Mapping[str, Any]) -> Path:
    """``values`` as the YAML file ``path``, which is returned."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
    return path


def environment(**changes: str) -> dict[str, str]:
    """What a subprocess gets: one thread, this checkout on the path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **changes}


def autoq(*arguments: str | os.PathLike[str], timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python -m autoq ARGUMENTS`` to its end; stdout and stderr apart."""
    command = [sys.executable, "-m", "autoq", *map(os.fspath, arguments)]
    options.setdefault("env", environment())
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job whose search is finished in ``run``, made once for all tests and processes: do not change it.

    The folder holds ``job.yaml`` and what it names, ``mlflow.db``, and the run folder ``run``.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    with (folder / ".making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "front.png").exists():
            job = write_job(folder, own_store(folder), constraints={"max_metric_drop": 0.3})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                search(job, out=folder / "run", ray="off")
    return folder


@functools.cache
def _empty_store() -> Path:
    """An MLflow database without runs, made once in a process: making one takes seconds."""
    from autoq.record.tracking_server import quiet

    path = Path(CACHE) / "empty.db"
    with quiet():
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def own_store(folder: Path) -> str:
    """The URI of an MLflow database of its own in ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copyfile(_empty_store(), path)
    return f"sqlite:///{path}"


def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests of this process."""
    return own_store(tmp_path_factory.getbasetemp())


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A real file system of that size, mounted on ``folder``; the test is skipped where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "autoq-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command, so no small disk to fill")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted to be filled: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def one_policy_space(policy: Mapping[str, str]) -> dict[str, Any]:
    """A space in which every layer has one scheme: the search has one trial."""
    rules = [{"match": layer, "schemes": [scheme]} for layer, scheme in policy.items()]
    return {"version": 1, "name": "one", "schemes": sorted(set(policy.values())), "rules": rules}
