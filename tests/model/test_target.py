"""What candidates are written for: files, and who opens them."""

from __future__ import annotations

import numpy as np
import pytest

from autoq.errors import ProfileError
from autoq.model.target import WRITERS, Target
from autoq.runtime.base import RUNTIMES
from tests.small_job import small_model


def test_onnx_is_written_already() -> None:
    target = Target.load("onnxruntime", {"provider": "CPUExecutionProvider"})
    model = small_model().SerializeToString()
    assert target.runs_onnx and target.suffix == ".onnx" and target.write(model) is model
    inputs = {"x": np.zeros((3, 3, 8, 8), np.float32)}
    (output,) = target.outputs(model, inputs, 2).values()
    assert len(output) == 3


def test_every_runtime_has_a_writer() -> None:
    for name in RUNTIMES:
        try:
            target = Target.load(name)
        except ProfileError:  # not installed, or nothing for it here
            continue
        assert target.runs_onnx or target.suffix in WRITERS


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_option_that_a_runtime_has_not_is_named(name: str) -> None:
    with pytest.raises(ProfileError, match=f"runtime.options of '{name}': there is no 'threds'"):
        Target.load(name, {"threds": 2})


def test_options_have_a_nearest() -> None:
    with pytest.raises(ProfileError, match="there is no 'providr'; did you mean 'provider'"):
        Target.load("onnxruntime", {"providr": "CPUExecutionProvider"})


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(ProfileError, match="unknown runtime 'onnxrt'; did you mean 'onnxruntime'; known: onnxruntime"):
        Target.load("onnxrt")
