"""Which forms pay: real files on the real meter, decided once for a model and machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autoq.core.form import FORM_NAMES
from autoq.core.scheme import Scheme
from autoq.model.source import SourceModel, read_model
from autoq.search.candidates import Candidates
from autoq.search.form_probe import FormFigure, Ratio, probe_forms
from tests.models import Net

SCHEMES = tuple(map(Scheme.parse, ("float32", "w4-gptq", "w4a8-gptq@mse", "w8a8@percentile99.9", "w8a8-s8@mse")))


def residual(folder: Path) -> SourceModel:
    """A wide first layer on three channels and a shortcut of Slices and a Pad, on images large enough to time."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("rows", 3, 64, 64), 3, 16))
    y = net.conv(x, 16, 32, strides=[2, 2])
    s = net.add("Slice", x, net.ints(0, 0), net.ints(2**31 - 1, 2**31 - 1), net.ints(2, 3), net.ints(2, 2))
    s = net.add("Pad", s, net.ints(0, 8, 0, 0, 0, 8, 0, 0))
    path = folder / "model.onnx"
    path.write_bytes(net.model(net.conv(net.add("Add", y, s), 32, 32)).SerializeToString())
    return read_model(path)


def probe(
    model: SourceModel, cache: Path | None, schemes: tuple[Scheme, ...] = SCHEMES
) -> tuple[tuple[FormFigure, ...], list[str]]:
    steps: list[str] = []
    figures = probe_forms(
        model,
        [Candidates(layer=layer, schemes=schemes) for layer in model.layers],
        {"x": np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)},
        threads=1,
        runtime="onnxruntime",
        runtime_options={"provider": "CPUExecutionProvider"},
        cache_dir=cache,
        step=steps.append,
    )
    return figures, steps


def test_forms_that_change_a_file_are_timed_once(tmp_path: Path) -> None:
    model = residual(tmp_path)
    figures, steps = probe(model, tmp_path / "cache")
    assert steps == ["timing forms of the graph"]
    selecting, wide = figures
    assert (selecting.name, wide.name) == ("selecting-conv", "wide-input")
    assert selecting.float32 is not None and selecting.quantized is not None
    assert wide.float32 is None and wide.quantized is not None  # float32 is the same file with and without it
    for ratio, low, high in (selecting.float32, selecting.quantized, wide.quantized):
        assert 0.2 < low <= ratio <= high < 5
    assert wide.pays  # copying patches of three channels takes as long as the rest of this model
    assert probe(model, tmp_path / "cache") == (figures, [])  # a second search finds the answer


def test_where_nothing_runs_on_integers_only_float32_is_timed(tmp_path: Path) -> None:
    figures, _ = probe(residual(tmp_path), None, SCHEMES[:2])
    (selecting,) = figures
    assert selecting.float32 is not None and selecting.quantized is None


def test_a_model_without_a_place_for_a_form_costs_nothing(tmp_path: Path) -> None:
    net = Net()
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.conv(net.input("rows", 4, 64, 64), 4, 16)).SerializeToString())
    model = read_model(path)
    for _ in range(2):
        figures = probe_forms(
            model,
            [Candidates(layer=layer, schemes=SCHEMES) for layer in model.layers],
            {"x": np.zeros((1, 4, 64, 64), np.float32)},
            threads=1,
            runtime="no such runtime",  # would be missed when something is timed
            runtime_options={},
            cache_dir=tmp_path / "cache",
        )
        assert figures == ()
        (stored,) = (tmp_path / "cache" / "forms").iterdir()
        assert json.loads(stored.read_text()) == []
        stored.write_text("{")  # a cache that cannot be read costs time and nothing else


CLEAR, WIDE = 0.001, 0.1


@pytest.mark.parametrize(
    ("float32", "quantized", "spread", "pays"),
    [
        (0.9, 0.95, CLEAR, True),
        (1.0, 0.999, CLEAR, False),
        (None, 0.98, CLEAR, True),
        (0.95, None, CLEAR, True),
        (1.1, 0.95, CLEAR, False),
        (1.01, 0.9, CLEAR, True),
        (1.0, 1.01, WIDE, True),  # in doubt, as where it was found
        (1.2, 1.2, WIDE, False),
    ],
)
def test_a_form_is_left_out_where_it_surely_does_not_pay(
    float32: float | None, quantized: float | None, spread: float, pays: bool
) -> None:
    def measured(ratio: float | None) -> Ratio | None:
        return None if ratio is None else (ratio, ratio - spread, ratio + spread)

    figure = FormFigure(name=FORM_NAMES[0], float32=measured(float32), quantized=measured(quantized))
    assert figure.pays is pays
    assert not FormFigure(name=FORM_NAMES[0], float32=None, quantized=None).pays
