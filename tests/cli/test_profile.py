"""``autoq profile`` on the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoq.runtime.machine import describe
from autoq.spec.hardware import fitting_profiles
from autoq.spec.resources import named
from tests.cli.calls import assert_one_message, call


def test_the_list_has_every_profile_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "profile", "list", "--json")
    assert (done.code, done.err) == (0, "")
    found = {entry["name"]: entry for entry in json.loads(done.out)}
    assert set(found) == set(named("hardware_profiles"))
    machine = describe()
    matching = set(fitting_profiles(machine.arch, machine.flags))
    assert {name for name, entry in found.items() if not entry["problems"]} == matching
    assert found["cpu-x86-onnxruntime"]["latency"] == "measured"
    table = call(capsys, "profile", "list")
    assert table.code == 0 and all(name in table.out for name in found)


def test_detect_puts_what_fits_first_and_says_why_others_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(call(capsys, "profile", "detect", "--json").out)
    fits = [entry["fits"] for entry in found]
    assert fits == sorted(fits, reverse=True)
    lines = call(capsys, "profile", "detect").out
    for entry in found:
        assert f"profile {entry['name']}: {'; '.join(entry['problems'])}" in lines
    if found[0]["fits"]:
        assert f"In a job: hardware: {found[0]['name']}" in lines


def test_show_is_a_page_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    page = call(capsys, "profile", "show", "cpu-x86-onnxruntime")
    assert (page.code, page.err) == (0, "")
    flat = " ".join(page.out.split())
    for text in (
        "architecture x86_64 or AMD64, a CPU with any of avx512_vnni, avx_vnni",
        "never w[8742]a8*: ONNX Runtime's CPU provider has no integer ConvTranspose",
        "measured here, in turn with the reference",
    ):
        assert text in flat
    document = json.loads(call(capsys, "profile", "show", "cpu-x86-onnxruntime", "--json").out)
    families = {family["family"]: family for family in document["ops"][0]["families"]}
    assert families["w8a8"]["weights"] == "8 bits, a scale per channel or tensor; symmetric, zero points 0"
    assert families["w8a8"]["activations"] == (
        "8 bits, unsigned with a zero point or signed and symmetric (-s8), ranges calibrated"
    )
    ops = {page["op"]: {family["family"] for family in page["families"]} for page in document["ops"]}
    assert "w8a8" in ops["Conv"] and "w8a8" not in ops["ConvTranspose"] | ops["Gather"]
    blocks = {page["op"]: any("block" in family["weights"] for family in page["families"]) for page in document["ops"]}
    assert blocks == {"Conv": False, "Gemm": True, "MatMul": True, "Gather": True, "ConvTranspose": False}


def test_what_stands_in_for_another_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    page = call(capsys, "profile", "show", "cpu-x86-avx2-onnxruntime")
    assert "what a space calls w8a8 is w7a8 here" in page.out


def test_unknown_and_broken_profiles(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert_one_message(call(capsys, "profile", "show", "cpu-arm-onnxrutime"), "did you mean 'cpu-arm-onnxruntime'")
    (tmp_path / "p.yaml").write_text("version: 1\nname: p\nkind: tpu\n")
    assert_one_message(call(capsys, "profile", "show", str(tmp_path / "p.yaml")), "kind: must be 'cpu', 'gpu' or 'npu'")
