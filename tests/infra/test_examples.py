"""The examples: the digits model really trains, and every job file names what it needs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

JOBS = ("digits", "resnet20-cifar10", "minilm-sts")


def job_of(repo_root: Path, name: str) -> dict[str, Any]:
    """The job file as plain values."""
    loaded = yaml.safe_load((repo_root / "examples" / name / "job.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def digits(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that train.py has filled."""
    folder = tmp_path_factory.mktemp("digits")
    script = repo_root / "examples" / "digits" / "train.py"
    command = [sys.executable, str(script), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("trained digits.onnx: ")
    assert done.stdout.count("\n") == 1
    return folder


def test_digits_model(digits: Path) -> None:
    model = onnx.load(digits / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in model.graph.initializer)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 5
    assert "Add" in kinds
    assert "BatchNormalization" not in kinds
    groups = [attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "group"]
    assert 64 in groups, "the depthwise convolution is gone"
    # The exporter's stack traces name files of the machine that it ran on.
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"train.py" not in (digits / "digits.onnx").read_bytes()


def test_digits_data_and_accuracy(repo_root: Path, digits: Path) -> None:
    """The job's own preprocessing, written out by hand, gives the accuracy that the example promises."""
    job = job_of(repo_root, "digits")
    spec = job["data"]["inputs"]["image"]
    session = onnxruntime.InferenceSession(digits / "digits.onnx", providers=["CPUExecutionProvider"])
    seen: set[bytes] = set()
    for split, rows in (("calibration", 897), ("search", 450), ("final", 450)):
        with np.load(digits / job["data"][split]["path"], allow_pickle=False) as data:
            x, y = data[spec["from"]], data[job["data"]["target"]]
        assert (x.shape, x.dtype, y.shape) == ((rows, 8, 8, 1), np.uint8, (rows,))
        assert set(y.tolist()) == set(range(10))
        if split != "calibration":
            image = (x.astype(np.float32) / spec["scale"] - spec["mean"]) / spec["std"]
            (logits,) = session.run(None, {"image": image.transpose(0, 3, 1, 2).astype(np.float32)})
            assert (logits.argmax(1) == y).mean() >= 0.97
        images = {row.tobytes() for row in x}
        assert not images & seen, f"{split} shares images with another split"
        seen |= images


@pytest.mark.parametrize("name", JOBS)
def test_job_names_what_is_there(repo_root: Path, name: str) -> None:
    job = job_of(repo_root, name)
    assert job["version"] == 1
    assert job["name"] == name
    assert (repo_root / "hardware_profiles" / f"{job['hardware']}.yaml").is_file()
    assert (repo_root / "search_spaces" / f"{job['space']}.yaml").is_file()
    function = job["metric"].get("function")
    if function:
        file, attribute = function.split(":")
        assert callable(runpy.run_path(str(repo_root / "examples" / name / file))[attribute])


@pytest.mark.parametrize("name", JOBS)
def test_job_is_read_by_autoq(repo_root: Path, name: str) -> None:
    from autoq.spec.job import load_job

    assert load_job(repo_root / "examples" / name / "job.yaml").name == name


def test_resnet20_job_fits_the_bench(repo_root: Path, bench: Path) -> None:
    job = job_of(repo_root, "resnet20-cifar10")
    session = onnxruntime.InferenceSession(bench / "cifar10" / Path(job["model"]["path"]).name)
    assert [tensor.name for tensor in session.get_inputs()] == list(job["data"]["inputs"])
    for split in ("calibration", "search", "final"):
        with np.load(bench / "cifar10" / Path(job["data"][split]["path"]).name, allow_pickle=False) as data:
            assert job["data"]["inputs"]["input"]["from"] in data
            assert len(data[job["data"]["target"]]) >= job["data"][split].get("slice", [0, 512])[1]


def test_minilm_metric_ranks_pairs(repo_root: Path) -> None:
    """Worked by hand: cosines 1, 0, -1 and scores 5, 3, 1 agree fully; scores 1, 3, 5 disagree fully."""
    path = repo_root / "examples" / "minilm-sts" / "sts_metric.py"
    metric = runpy.run_path(str(path))["paired_cosine_spearman"]
    embedding = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    outputs = {"sentence_embedding": embedding}
    assert metric(outputs, np.array([5, 5, 3, 3, 1, 1])) == pytest.approx(1.0)
    assert metric(outputs, np.array([1, 1, 3, 3, 5, 5])) == pytest.approx(-1.0)
    assert metric(outputs, np.array([3, 3, 5, 5, 1, 1])) == pytest.approx(0.5)  # 1 - 6*(1+1+0)/(3*8)
