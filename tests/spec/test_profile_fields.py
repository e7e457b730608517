"""What a profile may build on, what it bounds, which GPU it asks for, and what a probe added to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq.core.layer import Layer
from autoq.core.scheme import Scheme
from autoq.errors import JobError
from autoq.spec.hardware import Profile, load_profile
from autoq.spec.limits import Limits, limit_problem
from autoq.spec.probed import form


def load(tmp_path: Path, **values: Any) -> Profile:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"version": 1, "name": "mine", **values}))
    return load_profile("p.yaml", tmp_path)


def test_mappings_are_merged_and_everything_else_replaces(tmp_path: Path) -> None:
    base = load_profile("npu-generic-int8", tmp_path)
    mine = load(tmp_path, extends="npu-generic-int8", measure={"options": {"sram_kib": 64}}, latency={"batch": 4})
    assert mine.name == "mine" and mine.kind == base.kind and mine.ops == base.ops and mine.costs == base.costs
    assert mine.measure.options == {**base.measure.options, "sram_kib": 64}
    assert mine.latency.batch == 4
    narrow = load(tmp_path, extends="npu-generic-int8", ops={"Conv": {"allow": ["float32", "w8a8*"]}})
    assert narrow.ops["Conv"].forbid == base.ops["Conv"].forbid
    assert narrow.legal("Conv", Scheme.parse("w4a8@mse")) == "the profile mine allows Conv only float32, w8a8*"
    # Another gauge does not get the first one's options.
    assert load(tmp_path, extends="npu-generic-int8", measure={"by": "meter"}).measure.options == {}


def test_a_profile_builds_on_one_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "a.yaml").write_text("version: 1\nextends: cpu-arm-onnxruntime\nname: a\n")
    (tmp_path / "boards" / "b.yaml").write_text("version: 1\nextends: ./a.yaml\nname: b\nlatency: {threads: 2}\n")
    found = load_profile("boards/b.yaml", tmp_path)
    assert (found.name, found.latency.threads, found.match.arch) == ("b", 2, ("aarch64", "arm64"))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("npu-genric-int8", "extends: unknown hardware profile 'npu-genric-int8'; did you mean 'npu-generic-int8'"),
        ("./p.yaml", "extends: .*in a circle"),
        (7, r"extends: must be the name of a profile, or a path \(7\)"),
    ],
)
def test_what_cannot_be_built_on(tmp_path: Path, base: Any, said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        load(tmp_path, extends=base)
    assert str(tmp_path / "p.yaml") in str(caught.value)


def test_the_page_on_the_roofline_loads(repo_root: Path, tmp_path: Path) -> None:
    text = (repo_root / "docs" / "roofline.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(text)
    found = load_profile("mine.yaml", tmp_path)
    assert found.measure.options["int8_gmacs_s"] == 2048 and found.measure.options["host_gmacs_s"] == 4


def test_gpus_are_known_by_name(tmp_path: Path) -> None:
    found = load(
        tmp_path, extends="cpu-arm-onnxruntime", match={"arch": [], "any_cpu_flags": [], "gpu_names": ["*H200*"]}
    )
    assert found.match_problems("x86_64", [], ["NVIDIA H200"]) == []
    assert found.match_problems("x86_64", [], ["NVIDIA A10"]) == ["no GPU here is *H200*; there is NVIDIA A10"]
    assert found.match_problems("x86_64", []) == ["no GPU here is *H200*; there is none"]


def test_limits_name_what_goes_over(tmp_path: Path) -> None:
    limits = load(tmp_path, extends="npu-generic-int8", limits={"flash_bytes": 1000, "sram_bytes": 500}).limits
    fine: dict[str, Any] = {"file_bytes": 2000, "stored_bytes": 900, "memory_bytes": None, "figures": {}}
    assert limit_problem(limits, **fine) == ""
    assert limit_problem(Limits(), **fine) == ""
    said = limit_problem(limits, **{**fine, "stored_bytes": None, "memory_bytes": 501})
    assert said == (
        "goes over what the hardware has room for: what the device stores: 2,000 bytes, limits.flash_bytes is 1,000; "
        "the activations on the chip: 501 bytes, limits.sram_bytes is 500"
    )
    assert limit_problem(limits, **{**fine, "memory_bytes": 900, "figures": {"sram_bytes": 400.0}}) == ""
    with pytest.raises(JobError, match=r"limits\.flsh_bytes: unknown field; did you mean 'flash_bytes'"):
        load(tmp_path, extends="npu-generic-int8", limits={"flsh_bytes": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float32", "float32"),
        ("bf16", "bf16"),
        ("w8", "w8"),
        ("w4-gptq-bc", "w4"),
        ("w4-kmeans", "w4-kmeans"),
        ("w4-b128-asym-gptq", "w4-b128-asym"),
        ("w8a8@percentile99.99", "w8a8"),
        ("w8a8@dynamic", "w8a8@dynamic"),
        ("w4a8-s8-tensor-gptq-smooth0.5@mse", "w4a8-s8-tensor"),
    ],
)
def test_the_form_of_a_scheme_is_what_its_kernel_sees(text: str, expected: str) -> None:
    assert form(Scheme.parse(text)) == expected


PROBED: dict[str, Any] = {
    "machine": "A CPU",
    "arch": "x86_64",
    "versions": {"onnxruntime": "1.0"},
    "date": "2026-01-02",
    "model": "m.onnx",
    "threads": 1,
    "batch": 1,
}
CONV = Layer(
    name="c", op_type="Conv", node="c", weight="w", weight_index=1, weight_shape=(8, 1, 3, 3), channel_axis=0,
    input="x", output="y", groups=8, macs=72 * 100,
)  # fmt: skip


def finding(uses: float = 100, dropped: str = "slow") -> dict[str, Any]:
    return {
        "kind": "depthwise Conv", "weight": [8, 1, 3, 3], "uses": uses, "scheme": "w8a8", "float32_ms": 0.5,
        "beside_float": [1.5, 1.4, 1.6], "size": 0.3, "dropped": dropped,
    }  # fmt: skip


def test_what_a_probe_dropped_is_no_candidate(tmp_path: Path) -> None:
    probed = load(tmp_path, extends="cpu-x86-onnxruntime", probed={**PROBED, "findings": [finding()]}).probed
    assert probed is not None
    assert probed.problem(CONV, Scheme.parse("w8a8-gptq@mse")) == "slow"
    assert not probed.problem(CONV, Scheme.parse("w4a8@mse"))
    assert not probed.problem(CONV, Scheme.parse("w8a8@dynamic"))
    other = Layer(**{name: getattr(CONV, name) for name in Layer.__slots__} | {"macs": 72 * 50})
    assert not probed.problem(other, Scheme.parse("w8a8@mse"))
    # Where the uses are unknown, all findings for the shape must agree.
    unknown = Layer(**{name: getattr(CONV, name) for name in Layer.__slots__} | {"macs": 0})
    assert probed.problem(unknown, Scheme.parse("w8a8@mse")) == "slow"
    both = [finding(), finding(50, "")]
    mixed = load(tmp_path, extends="cpu-x86-onnxruntime", probed={**PROBED, "findings": both}).probed
    assert mixed is not None and not mixed.problem(unknown, Scheme.parse("w8a8@mse"))


def test_a_probe_holds_for_its_machine_and_versions(tmp_path: Path) -> None:
    probed = load(tmp_path, extends="cpu-x86-onnxruntime", probed=PROBED).probed
    assert probed is not None
    assert probed.elsewhere("A CPU", {"onnxruntime": "1.0"}) == []
    assert probed.elsewhere("Another", {"onnxruntime": "1.1"}) == [
        "it was probed on A CPU, and this is Another: probe again (autoq profile probe)",
        "it was probed with onnxruntime 1.0, and here is 1.1: probe again (autoq profile probe)",
    ]
    # What a probe found out of one profile says nothing of another that builds on it.
    (tmp_path / "q.yaml").write_text("version: 1\nextends: ./p.yaml\nname: q\n")
    assert load_profile("q.yaml", tmp_path).probed is None
