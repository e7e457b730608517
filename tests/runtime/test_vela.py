"""Vela's estimates: what they say, what falls to the host, and what is no estimate at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoq.errors import TrialError
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


def test_operators_on_the_host_are_found() -> None:
    """In a file that was not compiled, all of them."""
    assert _host_operators(tflite_of()) == [("CONV_2D", 8 * 16 * 16)]


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
