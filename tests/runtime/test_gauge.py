"""Gauges by their names, and what they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoq.errors import ProfileError
from autoq.runtime.gauge import GAUGES, load_gauge
from autoq.runtime.meter import Meter


def test_the_meter_is_one(tmp_path: Path) -> None:
    gauge = load_gauge("meter", tmp_path / "model.onnx", {}, threads=2, reference_name="w8a8")
    assert isinstance(gauge, Meter) and gauge.threads == 2 and gauge.baseline == (tmp_path / "model.onnx").resolve()
    gauge.close()


def test_unknown_names_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=f"unknown gauge 'metre'; did you mean 'meter'; known: {', '.join(GAUGES)}"):
        load_gauge("metre", tmp_path / "model.onnx", {})
    with pytest.raises(ProfileError, match=r"measure\.options of 'meter': .*speed"):
        load_gauge("meter", tmp_path / "model.onnx", {}, options={"speed": 1})
