"""Vela's estimates: what they say, what falls to the host, and what is no estimate at all."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.core.result import Estimate
from autoq.errors import ProfileError, TrialError
from autoq.runtime.gauge import load_gauge
from autoq.runtime.timing import TimingPlan
from tests.models import Net, lowered

pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")
pytest.importorskip("ethosu", reason="the extra [npu] is not installed")

from autoq.model.tflite import to_tflite
from autoq.runtime.vela_compile import NPUS, Npu, _host_operators, _number, _rows, estimate


def tflite_of() -> bytes:
    """A convolution."""
    net = Net()
    y = net.conv(net.input("N", 8, 16, 16), 8, 8)
    x = np.random.default_rng(0).standard_normal((4, 8, 16, 16)).astype(np.float32)
    return to_tflite(lowered(net.model(y), ["w8a8@minmax"], {"x": x}, integer_products=True).build("w8a8@minmax"))


@pytest.mark.parametrize("name", ["ethos-u55-256", "ethos-u85-256"])
def test_an_estimate(name: str) -> None:
    found = estimate(tflite_of(), NPUS[name])
    macs = 8 * 8 * 9 * 16 * 16
    assert found.cycles >= macs / 256  # no accelerator of 256 units does more
    assert found.latency_ms == pytest.approx(1000 * found.cycles / found.clock_hz)
    assert found.on_host == () and found.host_cycles == 0
    assert found.sram_bytes + found.dram_bytes >= 8 * 16 * 16 and 0 < found.flash_bytes < 100_000
    assert sum(cycles for _, cycles in found.layers) > 0


def test_fewer_bits_take_less_flash_and_fewer_cycles() -> None:
    """Of a layer that waits for its weights: 64 channels on 8 by 8 pixels. At last multiplications set the limit."""
    net = Net()
    y = net.conv(net.input("N", 64, 8, 8), 64, 64)
    schemes = [f"w{bits}a8@minmax" for bits in (8, 6, 5, 4, 3, 2)]
    x = np.random.default_rng(0).standard_normal((4, 64, 8, 8)).astype(np.float32)
    subject = lowered(net.model(y), schemes, {"x": x}, integer_products=True)
    found = [estimate(to_tflite(subject.build(scheme)), NPUS["ethos-u55-256"]) for scheme in schemes]
    for more, less in itertools.pairwise(found):
        assert less.flash_bytes < more.flash_bytes and less.cycles <= more.cycles
    assert found[4].cycles < 0.6 * found[0].cycles


def test_operators_on_the_host_are_found() -> None:
    """In a file that was not compiled, all of them."""
    assert _host_operators(tflite_of()) == [("CONV_2D", 8 * 16 * 16)]


def test_what_falls_to_the_host_is_forbidden_or_charged() -> None:
    """Pixels taken at 1.5 times the size: no Ethos-U55 does that."""
    net = Net()
    y = net.conv(net.input("N", 8, 16, 16), 8, 8)
    y = net.add("Resize", y, "", net.constant(np.array([1, 1, 1.5, 1.5], np.float32)), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    x = np.random.default_rng(0).standard_normal((4, 8, 16, 16)).astype(np.float32)
    subject = lowered(net.model(net.conv(y, 8, 8)), ["w8a8@minmax"], {"x": x}, integer_products=True)
    model, npu = to_tflite(subject.build("w8a8@minmax")), NPUS["ethos-u55-256"]
    with pytest.raises(TrialError, match="ethos-u55-256 does not run RESIZE_NEAREST_NEIGHBOR") as caught:
        estimate(model, npu)
    assert caught.value.reason == "measure"
    free, charged = (estimate(model, npu, host_cycles_per_value=each) for each in (1e-9, 3.0))
    assert charged.host_cycles == 3 * 8 * 24 * 24 == charged.cycles - free.cycles
    assert charged.on_host == ("RESIZE_NEAREST_NEIGHBOR",)


def test_the_gauge(tmp_path: Path) -> None:
    """One estimate however it is asked for; equal files are compiled once; a file that fails is failed by itself."""
    reference, bad = tmp_path / "reference.tflite", tmp_path / "bad.tflite"
    reference.write_bytes(tflite_of())
    bad.write_bytes(b"no model")
    with load_gauge(
        "vela", reference, {}, runtime="litert", reference_name="w8a8", options={"npu": "ethos-u65-256"}
    ) as gauge:
        measured = gauge.measure(reference)
        assert isinstance(measured.latency, Estimate) and measured.latency.ratio == 1
        assert measured.latency.by.endswith("ethos-u65-256") and measured.latency.reference == "w8a8"
        assert measured.peak_memory_bytes and measured.size_bytes and not measured.disturbed
        start = time.monotonic()
        assert gauge.measure_many([reference] * 50) == [measured] * 50
        assert gauge.glance([reference], TimingPlan()) == ([1.0], False)
        assert time.monotonic() - start < 8  # each would take half a second anew
        with pytest.raises(TrialError, match="Vela failed"):
            gauge.measure(bad)


@pytest.mark.parametrize(
    ("options", "runtime", "message"),
    [
        ({"npu": "ethos-u56"}, "litert", "no accelerator 'ethos-u56' here; did you mean"),
        ({"npu": "ethos-u55-256", "timeout_s": 0}, "litert", "must be a number above 0"),
        ({"npu": "ethos-u55-256"}, "onnxruntime", "runtime.name must be litert"),
        ({}, "litert", "npu"),
        ({"npu": "ethos-u55-256", "timeout": 9}, "litert", "there is no 'timeout'; did you mean 'timeout_s'"),
        ({"npu": "ethos-u55-256", "runtime": "x"}, "litert", "there is no 'runtime'"),
    ],
)
def test_options_that_make_no_gauge(options: dict[str, Any], runtime: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=message):
        load_gauge("vela", tmp_path / "reference.tflite", {}, runtime=runtime, options=options)


def test_without_vela_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(ProfileError, match=r"pip install 'autoq\[npu\]'"):
        load_gauge("vela", tmp_path / "reference.tflite", {}, runtime="litert", options={"npu": "ethos-u55-256"})


def test_vela_that_fails() -> None:
    npu = NPUS["ethos-u55-256"]
    with pytest.raises(TrialError, match=r"Vela failed.*ethos-u55-256") as caught:
        estimate(b"no model", npu)
    assert caught.value.reason == "measure"
    unknown = Npu(accelerator=npu.accelerator, system="Nowhere", memory=npu.memory)
    with pytest.raises(TrialError, match="Vela failed"):
        estimate(b"no model", unknown)
    with pytest.raises(TrialError, match=r"more than 0\.01 s") as caught:
        estimate(b"no model", npu, limit_s=0.01)
    assert caught.value.reason == "timeout"


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "many"])
def test_nonsense_is_no_figure(text: str) -> None:
    with pytest.raises(TrialError, match="cycles_total"):
        _number({"cycles_total": text}, "cycles_total")


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="wrote no"):
        _rows(tmp_path, "*_summary_*.csv")
