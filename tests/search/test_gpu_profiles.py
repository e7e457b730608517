"""The profiles for GPUs: what they offer a model's layers, and a whole search with PyTorch as the runtime."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import autoq
from autoq.core.scheme import Scheme
from autoq.model.source import read_model
from autoq.record.verify import verify
from autoq.runtime.base import load_runtime
from autoq.search.candidates import Candidates, all_candidates
from autoq.spec.hardware import load_profile
from autoq.spec.space import load_space
from tests.models import Net
from tests.small_job import QUIET_SEARCH, tracking_uri, write_job


def offered(tmp_path: Path, profile: str) -> dict[str, Candidates]:
    """By op, and for the MatMul of 20 inputs by ``odd``."""
    net = Net()
    x = net.add("Gather", net.weight(50, 32), net.input("n", 4, kind=7))
    x = net.add("MatMul", x, net.weight(32, 64))
    image = net.add("Unsqueeze", x, net.ints(1))
    y = net.add("Reshape", net.conv(image, 1, 5), net.ints(-1, 20))
    (tmp_path / "m.onnx").write_bytes(net.model(net.add("MatMul", y, net.weight(20, 32))).SerializeToString())
    model = read_model(tmp_path / "m.onnx")
    found = all_candidates(
        model.graph, model.layers, load_space("gpu", tmp_path), load_profile(profile, tmp_path), model.opset
    )
    return {("odd" if entry.layer.weight_shape == (20, 32) else entry.layer.op_type): entry for entry in found}


def families(entry: Candidates) -> set[str]:
    return {scheme.family for scheme in entry.schemes}


def reasons(entry: Candidates, text: str) -> set[str]:
    return {why for scheme, why in entry.refused if scheme == Scheme.parse(text)}


def test_what_pytorch_has_kernels_for(tmp_path: Path) -> None:
    found = offered(tmp_path, "gpu-nvidia-torch")
    assert families(found["MatMul"]) == {"float32", "bf16", "fp16", "fp8", "w8a8", "w4"}
    assert families(found["odd"]) == {"float32", "bf16", "fp16", "w4"}
    assert any("its 20 inputs are no multiple of 16" in why for why in reasons(found["odd"], "fp8"))
    assert any("torch._int_mm" in why for why in reasons(found["odd"], "w8a8@dynamic"))
    assert families(found["Conv"]) == {"float32", "fp16"}
    assert any("no integer convolution" in why for why in reasons(found["Conv"], "w8a8-s8@minmax"))
    assert families(found["Gather"]) == {"float32", "w8", "w4"}


def test_what_tensorrt_has_kernels_for(tmp_path: Path) -> None:
    found = offered(tmp_path, "gpu-nvidia-tensorrt")
    assert {str(scheme).partition("@")[0] for scheme in found["MatMul"].schemes} == {
        "float32",
        "w8a8-s8",
        "w4-b32-gptq",
    }
    assert {str(scheme).partition("@")[0] for scheme in found["Conv"].schemes} == {"float32", "w8a8-s8"}
    assert families(found["Gather"]) == {"float32"}
    assert any("its 32 inputs are no multiple of 128" in why for why in reasons(found["MatMul"], "w4-b128-gptq"))
    assert families(found["odd"]) == {"float32", "w8a8"}


def test_the_profiles_that_the_page_shows(repo_root: Path, tmp_path: Path) -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", (repo_root / "docs" / "gpu.md").read_text(), re.M | re.S)
    loaded = []
    for number, text in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(text)
        loaded.append(load_profile(f"{number}.yaml", tmp_path))
    on_cpu, by_command = loaded
    assert load_runtime(on_cpu.runtime.name, **on_cpu.runtime.arguments).name == "torch"
    assert load_runtime(by_command.runtime.name, **by_command.runtime.arguments).name == "tensorrt"
    assert by_command.match_problems("x86_64", []) == []


@pytest.mark.filterwarnings(*QUIET_SEARCH)
def test_a_search_scored_by_pytorch(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The GPU's profile on a CPU: the same files, kernels and checks. tests/model/test_torch_runtime.py has
    it timed."""
    job = write_job(
        tmp_path,
        tracking_uri(tmp_path_factory),
        hardware="torch.yaml",
        space="gpu",
        budget={"trials": 3},
    )
    root = Path(__file__).resolve().parents[2]
    profile = yaml.safe_load((root / "hardware_profiles" / "gpu-nvidia-torch.yaml").read_text())
    profile["runtime"]["options"] = {"device": "cpu"}
    profile.pop("match", None)
    (tmp_path / "torch.yaml").write_text(yaml.safe_dump(profile))
    result = autoq.search(job, out=tmp_path / "run", ray="off")
    assert [trial.failure for trial in result.trials] == [None] * 3
    export = result.export("best", tmp_path / "export")
    assert json.loads((export / "manifest.json").read_text())["runtime"]["name"] == "torch"
    found = verify(export)
    assert found.ok, found
    assert all(layer.executed.kernel for layer in found.layers), "each layer's kernel is known"
