"""Profiles held against the runtimes and gauges that there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autoq.errors import ProfileError
from autoq.runtime.profiles import read_profile
from autoq.spec.resources import named
from tests.cli.calls import assert_one_message, call
from tests.small_job import write_job


def written(folder: Path, **fields: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "name": "mine", **fields}))
    return path


@pytest.mark.parametrize("name", named("hardware_profiles"))
def test_every_profile_that_comes_with_autoq_can_be_used(name: str) -> None:
    assert read_profile(name, ".").name == name


@pytest.mark.parametrize(
    ("base", "fields", "problem"),
    [
        (
            "cpu-x86-onnxruntime",
            {"measure": {"by": "metre"}},
            "measure.by: unknown gauge 'metre'; did you mean 'meter'",
        ),
        ("cpu-x86-onnxruntime", {"runtime": {"name": "onnxruntim"}}, "did you mean 'onnxruntime'"),
        (
            "cpu-x86-onnxruntime",
            {"measure": {"by": "meter", "options": {"timeout": 3}}},
            "measure.options of 'meter': there is no 'timeout'; did you mean 'timeout_s'",
        ),
        (
            "cpu-x86-onnxruntime",
            {"measure": {"by": "command", "options": {"run": ["bench", "{model}"], "round": 3}}},
            "there is no 'round'; did you mean 'rounds'",
        ),
        (
            "cpu-x86-onnxruntime",
            {"measure": {"by": "command", "options": {"run": ["bench", "{modle}"]}}},
            "{modle}",
        ),
        ("cpu-x86-onnxruntime", {"measure": {"by": "command"}}, "missing a required argument: 'run'"),
        (
            "npu-generic-int8",
            {"measure": {"options": {"int8_gmac_s": 5}}},
            "the roofline has no 'int8_gmac_s'; did you mean 'int8_gmacs_s'",
        ),
        (
            "npu-generic-int8",
            {"measure": {"options": {"sram_kib": "much"}}},
            "measure.options.sram_kib: must be a number",
        ),
        (
            "npu-ethos-u55-256",
            {"measure": {"options": {"npu": "ethos-u55-265"}}},
            "no accelerator 'ethos-u55-265' here; did you mean 'ethos-u55-256'",
        ),
        ("npu-ethos-u55-256", {"measure": {"options": {"timeout_s": "1 min"}}}, "timeout_s: must be a number above 0"),
        ("npu-ethos-u55-256", {"runtime": {"name": "onnxruntime"}}, "runtime.name must be litert, not onnxruntime"),
    ],
)
def test_what_there_is_not_is_refused_with_the_nearest_name(
    tmp_path: Path, base: str, fields: dict[str, object], problem: str
) -> None:
    if base.startswith("npu-ethos"):
        pytest.importorskip("ethosu")
    path = written(tmp_path, extends=base, **fields)
    with pytest.raises(ProfileError) as caught:
        read_profile("mine.yaml", tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and problem in str(caught.value)


def test_a_job_is_refused_before_its_model_and_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, hardware="mine.yaml")
    written(tmp_path, extends="cpu-x86-onnxruntime", measure={"by": "metre"})
    for name in ("small.onnx", "data.npz"):
        (tmp_path / name).unlink()
    for command in (
        ("search", job, "--out", tmp_path / "run", "--quiet"),
        ("profile", "probe", job, "--json"),
        ("profile", "show", tmp_path / "mine.yaml"),
        ("layers", tmp_path / "absent.onnx", "--hardware", tmp_path / "mine.yaml"),
    ):
        assert_one_message(call(capsys, *command), "unknown gauge 'metre'; did you mean 'meter'")
    assert not (tmp_path / "run").exists()
