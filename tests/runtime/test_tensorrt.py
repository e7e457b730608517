"""TensorRT where it is, and what is said where it is not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from autoq.errors import ProfileError
from autoq.model.target import Target
from autoq.runtime.base import load_runtime
from autoq.runtime.tensorrt import PROVIDER, TensorRt, tensorrt_problem
from tests.models import Net, distance, lowered, run_unfused

HERE = PROVIDER in onnxruntime.get_available_providers()


@pytest.mark.skipif(HERE, reason="this machine has TensorRT's provider")
def test_a_machine_without_it_is_told_what_is_missing() -> None:
    with pytest.raises(ProfileError, match=r"no TensorrtExecutionProvider .*--form tensorrt"):
        load_runtime("tensorrt")


def test_what_is_missing() -> None:
    assert tensorrt_problem([PROVIDER, "CPUExecutionProvider"], None) == ""
    neither = tensorrt_problem(["CPUExecutionProvider"], None)
    assert "it has CPUExecutionProvider" in neither
    assert "nor is there trtexec" in neither
    assert "but trtexec is here (/opt/trtexec)" in tensorrt_problem(["CPUExecutionProvider"], "/opt/trtexec")


def test_scored_on_the_cpu() -> None:
    """For a machine whose TensorRT a command reaches: its files, every node as it is written."""
    with pytest.raises(ProfileError, match="'gpu' is neither tensorrt nor cpu"):
        load_runtime("tensorrt", scored_on="gpu")
    net = Net(1)
    y = net.add("Relu", net.conv(net.input("n", 8, 16, 16), 8, 16))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 16, 16)).astype(np.float32)}
    candidate = lowered(net.model(y), ["w8a8-s8@minmax"], feeds).build("w8a8-s8@minmax")
    target = Target.load("tensorrt", {"scored_on": "cpu"})
    model = target.write(candidate)
    assert model != candidate
    (found,), (expected,) = target.outputs(model, feeds, 2).values(), run_unfused(model, feeds).values()
    assert (found == expected).all()


def test_its_files_are_written_for_it() -> None:
    """Without a machine that has it: the class's suffix is one that a writer exists for."""
    from autoq.model.target import WRITERS

    assert TensorRt.suffix in WRITERS


@pytest.mark.skipif(not HERE, reason=f"this onnxruntime has no {PROVIDER}")
def test_it_computes_what_the_file_says() -> None:
    net = Net(1)
    y = net.add("Relu", net.conv(net.input("n", 8, 16, 16), 8, 16))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 16, 16)).astype(np.float32)}
    candidate = lowered(net.model(y), ["w8a8-s8@minmax"], feeds).build("w8a8-s8@minmax")
    target = Target.load("tensorrt")
    model = target.write(candidate)
    (expected,) = run_unfused(model, feeds).values()
    (found,) = target.outputs(model, feeds, 2).values()
    assert distance(found, expected) < 0.02
