"""Which profiles describe a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoq.runtime import extras
from autoq.runtime.detect import detect, fit
from autoq.runtime.machine import MachineInfo, describe
from autoq.spec.hardware import load_profile


def machine(arch: str, *flags: str) -> MachineInfo:
    return replace(describe(), arch=arch, flags=frozenset(flags))


@pytest.mark.parametrize(
    ("arch", "flags", "best"),
    [
        ("x86_64", ("avx2", "avx512_vnni"), "cpu-x86-onnxruntime"),
        ("x86_64", ("avx2", "fma"), "cpu-x86-avx2-onnxruntime"),
        ("aarch64", ("asimd", "asimddp", "i8mm"), "cpu-arm-onnxruntime"),
        ("arm64", ("feat_dotprod",), "cpu-arm-onnxruntime"),
    ],
)
def test_the_best_profile_of_a_machine(arch: str, flags: tuple[str, ...], best: str) -> None:
    found = [each for each in detect(machine(arch, *flags)) if each.name.endswith("-onnxruntime")]
    assert found[0].name == best and found[0].fits
    assert not any(each.fits for each in found[1:])


def test_arm_without_dot_products_says_what_it_lacks() -> None:
    found = {each.name: each for each in detect(machine("aarch64", "asimd"))}
    assert found["cpu-arm-onnxruntime"].reason == "the CPU has none of asimddp, feat_dotprod"


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "onnxruntime", (("no_such_module",), "npu"))
    found = fit(load_profile("cpu-arm-onnxruntime", Path()), machine("aarch64", "asimddp"))
    assert not found.fits and found.reason == "its runtime is not installed: pip install 'autoq[npu]'"
