"""The grammar of schemes: one text for each, and which options go together."""

from __future__ import annotations

import pytest

from autoq.core.scheme import WEIGHT_BITS, ActivationSpec, Calibration, Scheme, WeightSpec
from autoq.errors import JobError


def test_options_are_read_and_written_in_one_order() -> None:
    scheme = Scheme.parse("w4a8-s8-tensor-kmeans-bc-smooth0.25@percentile99.9")
    assert scheme.weight == WeightSpec(
        bits=4, granularity="tensor", rounding="kmeans", bias_correction="empirical", smoothing=0.25
    )
    calibration = Calibration(method="percentile", percentile=99.9)
    assert scheme.activation == ActivationSpec(calibration=calibration, signed=True, smoothing=0.25)
    assert str(scheme) == "w4a8-s8-tensor-kmeans-bc-smooth0.25@percentile99.9"
    assert scheme.family == "w4a8"


KEPT = ["w4-b32-asym-gptq", "w8-b128", "w2-pq", "w7a8@minmax", "w8a8@dynamic", "w8-brecq-bc"]
KEPT += ["w6a8-tensor@mse", "w5a8-gptq-bc@minmax", "w3a8-brecq@mse", "w8a16@minmax", "w4a16-gptq-bc@percentile99.9"]


@pytest.mark.parametrize("text", KEPT)
def test_texts_survive(text: str) -> None:
    assert str(Scheme.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w7", "7-bit weights leave room"),
        ("w6", "6-bit weights pay on hardware that packs them"),
        ("w5-gptq", "5-bit weights pay"),
        ("w3-b32", "3-bit weights pay"),
        ("w3a8-b32@mse", "have 8, 4 or 2 bits"),
        ("w3a8-kmeans@mse", "have 4 or 2 bits, not 3"),
        ("w1a8@mse", "is no scheme"),
        ("w8-kmeans", "have 4 or 2 bits, not 8"),
        ("w8-pq", "have 4 or 2 bits, not 8"),
        ("w4-tensor-pq", "has one scale a row"),
        ("w4-asym", "come with blocks only"),
        ("w4-b32-adaround", "rounded to nearest or by '-gptq'"),
        ("w4a8-b32@mse", "are weight-only"),
        ("w4a8-pq@mse", "are weight-only"),
        ("w8-smooth0.5", "has float activations"),
        ("w8a8-smooth1.5@mse", "not between 0 and 1"),
        ("w8a8-s8@dynamic", "dynamic activations are unsigned"),
        ("w8a8", "does not say how activations are calibrated"),
        ("w4-gptq-b32", "is no scheme"),
        ("w8a16", "does not say how activations are calibrated"),
        ("w8a16@mse", "steps to spare"),
        ("w8a16@dynamic", "steps to spare"),
        ("w8a16-smooth0.5@minmax", "no smoothing"),
        ("w8a16-s8@minmax", "those of 16 bits are always signed"),
        ("w4a16-b32@minmax", "are weight-only"),
        ("w8a4@minmax", "is no scheme"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        Scheme.parse(text)


def test_bits_in_the_file_and_on_the_target() -> None:
    """What no ONNX type holds takes a byte there, and its own bits where the target packs it."""
    schemes = [Scheme.parse(f"w{bits}a8@mse") for bits in WEIGHT_BITS]
    assert [scheme.weight.stored_bits for scheme in schemes if scheme.weight] == [8, 8, 8, 8, 4, 8, 2]
    assert [scheme.weight_bits for scheme in schemes] == [8, 8, 6, 5, 4, 3, 2]
    assert [scheme.family for scheme in schemes] == [f"w{bits}a8" for bits in WEIGHT_BITS]
