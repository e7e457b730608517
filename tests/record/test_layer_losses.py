"""The losses of single layers as files and in words."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from autoq.core.layer_loss import LayerLoss, LayerLosses
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.record.layer_losses import describe_losses, losses_csv, losses_json, write_losses
from autoq.record.loss_plots import loss_maps, losses_div, plot_losses

W8, W2 = Scheme.parse("w8"), Scheme.parse("w2-gptq")


def losses(divergence: str = "kl") -> LayerLosses:
    first, last = {"layer": "<first>", "kind": "Conv"}, {"layer": "last", "kind": "MatMul"}
    none = {"divergence": 0.0, "noise": 0.0, "sqnr_db": math.inf}
    made = [
        LayerLoss(**first, scheme=W8, metric=0.9, drop=0.0, **none),  # type: ignore[arg-type]
        LayerLoss(**first, scheme=W2, metric=0.6, drop=0.3, divergence=0.5, noise=0.1, sqnr_db=10.0),
        LayerLoss(**last, scheme=W2, divergence=1e-3, noise=1e-4, sqnr_db=40.0, problem="it is <NaN>"),
    ]
    return LayerLosses(
        name="<net>", metric_name="accuracy", direction="maximize", baseline=0.9, rows=64,
        divergence=divergence, losses=tuple(made),  # type: ignore[arg-type]
    )  # fmt: skip


def test_tables() -> None:
    rows = list(csv.DictReader(io.StringIO(losses_csv(losses()))))
    assert [row["layer"] for row in rows] == ["<first>", "<first>", "last"]
    assert (rows[0]["sqnr_db"], rows[1]["scheme"], rows[2]["metric"]) == ("inf", "w2-gptq", "")
    document = json.loads(losses_json(losses()))
    assert document["version"] == 1 and document["metric"]["float32"] == 0.9
    # JSON knows no infinity: no noise and no ratio.
    assert (document["losses"][0]["noise"], document["losses"][0]["sqnr_db"]) == (0.0, None)
    assert document["losses"][2]["problem"] == "it is <NaN>"


def test_maps() -> None:
    drop, divergence, ratio = loss_maps(losses())
    assert drop.title == "drop, points of accuracy" and drop.labels == (("0", "30"), ("", ""))
    assert drop.shade[0].tolist() == [0.0, 1.0] and math.isnan(drop.shade[1, 1])
    assert divergence.labels[0][1] == "5e-1" and divergence.shade[0, 1] == 1.0
    assert ratio.labels == (("∞", "10"), ("", "40")) and ratio.shade[0, 0] == 0.0
    assert ratio.shade[0, 1] > ratio.shade[1, 1]
    assert [one.title for one in loss_maps(losses("noise"))] == [drop.title, ratio.title]


def test_pictures_of_any_size() -> None:
    figure = plot_losses(losses())
    assert len(figure.axes) == 3
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"30", "∞", "40"} <= texts
    made = losses().losses[1]
    many = tuple(
        LayerLoss(layer=f"layer {number} " + "x" * 90, kind="Conv", scheme=made.scheme, noise=0.1, sqnr_db=9.0)
        for number in range(300)
    )
    width, height = plot_losses(LayerLosses(
        name="n", metric_name="m", direction="minimize", baseline=3.0, rows=1, divergence="noise", losses=many
    )).get_size_inches()  # fmt: skip
    assert width <= 60 and height <= 80


def test_names_from_outside_do_not_reach_the_page_as_they_are() -> None:
    page = losses_div(losses())
    assert "<first>" not in page and "<NaN>" not in page and "<net>" not in page


def test_in_words() -> None:
    text = describe_losses(losses())
    assert text.startswith(
        "<first> under w2-gptq changes the outputs most (0.5), and loses 30 points of accuracy. On 64"
    )
    assert "KL divergence" in text and "relative noise power" in describe_losses(losses("noise"))


def test_files(tmp_path: Path) -> None:
    write_losses(losses(), tmp_path / "deep" / "out")
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {
        f"sensitivity.{ending}" for ending in ("csv", "json", "png", "html")
    }
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made: Not a directory; give another --out"):
        write_losses(losses(), tmp_path / "file" / "out")
