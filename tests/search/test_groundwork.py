"""One pass over the data and the bank, laid once: every policy over the candidates can then be built."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import DataError
from autoq.model.lower import Lowering
from autoq.model.source import SourceModel, read_model
from autoq.runtime.data import Split
from autoq.runtime.ort import input_specs
from autoq.search.candidates import Candidates
from autoq.search.groundwork import lay_groundwork
from tests.models import Net, check, distance, run

SCHEMES = (
    "float32",
    "float16",
    "w8",
    "w4-gptq",
    "w8a8@minmax",
    "w8a8@ema",
    "w4a8-gptq-bc@mse",
    "w8a8-s8@percentile99.9",
)


def source(folder: Path, batch: int | str = "rows") -> SourceModel:
    net = Net()
    first = net.add("Relu", net.conv(net.input(batch, 3, 6, 6), 3, 4))
    y = net.add("Add", net.conv(first, 4, 4), first)
    path = folder / "model.onnx"
    path.write_bytes(net.model(net.conv(y, 4, 2)).SerializeToString())
    return read_model(path)


def split(rows: int, seed: int = 0) -> Split:
    x = np.random.default_rng(seed).standard_normal((rows, 3, 6, 6)).astype(np.float32)
    return Split(inputs={"x": x}, targets=None)


def laid(
    model: SourceModel, data: Split, cache: Path | None = None, schemes: tuple[str, ...] = SCHEMES
) -> tuple[Lowering, list[str]]:
    parsed = tuple(map(Scheme.parse, schemes))
    found = [Candidates(layer=layer, schemes=parsed) for layer in model.layers]
    steps: list[str] = []
    specs = input_specs(model.path)
    return lay_groundwork(model, found, data, specs, cache_dir=cache, step=steps.append), steps


def test_every_policy_can_be_built(tmp_path: Path) -> None:
    model, data = source(tmp_path), split(40)
    lowering, steps = laid(model, data)
    assert steps == ["calibrating on 40 rows", "quantizing weights: 9 entries for the bank"]
    names = [layer.name for layer in model.layers]
    (exact,) = run(model.graph.model, data.inputs).values()
    for number, chosen in enumerate(itertools.product(map(Scheme.parse, SCHEMES), repeat=3)):
        if number % 7 == 0:
            policy = lowering.canonical(Policy.of(dict(zip(names, chosen, strict=True))))
            candidate = lowering.build(policy)
            check(candidate)
            (found,) = run(candidate, data.inputs).values()
            assert distance(found, exact) < 0.35, policy.to_text()


def test_the_next_search_finds_the_bank_and_needs_no_pass_for_it(tmp_path: Path) -> None:
    model, data, cache = source(tmp_path), split(40), tmp_path / "cache"
    schemes = ("float32", "w4-gptq", "w2")
    first, steps = laid(model, data, cache, schemes)
    assert len(steps) == 2
    second, again = laid(model, data, cache, schemes)
    assert again == []
    policy = Policy.uniform([layer.name for layer in model.layers], Scheme.parse("w4-gptq"))
    assert second.build(policy) == first.build(policy)
    _, other = laid(model, split(40, seed=1), cache, schemes)
    assert other == ["calibrating on 40 rows", "quantizing weights: 3 entries for the bank"], "GPTQ saw other data"


def test_corrections_are_found_again_too(tmp_path: Path) -> None:
    model, data, cache = source(tmp_path), split(40), tmp_path / "cache"
    schemes = ("float32", "w4", "w4-bc")
    first, steps = laid(model, data, cache, schemes)
    assert steps == ["calibrating on 40 rows", "quantizing weights: 3 entries for the bank"], "w4's are w4-bc's too"
    second, again = laid(model, data, cache, schemes)
    assert again == []
    policy = Policy.uniform([layer.name for layer in model.layers], Scheme.parse("w4-bc"))
    assert second.build(policy) == first.build(policy)
    _, other = laid(model, split(40, seed=1), cache, schemes)
    assert other == ["calibrating on 40 rows"], "the integers saw no data, the corrections did"


def test_an_equalized_model_has_entries_of_its_own(tmp_path: Path) -> None:
    """The file is the same, and so is float32; what is searched has other weights, in the cache too."""
    model, data, cache = source(tmp_path), split(40), tmp_path / "cache"
    equalized = read_model(model.path, equalized=True)
    assert (equalized.sha256, equalized.layers) == (model.sha256, model.layers)
    assert equalized.identity != model.identity == model.sha256
    assert any("equalization rescaled 1 tensor" in note for note in equalized.notes)
    schemes = ("float32", "w4-tensor", "w4-tensor-gptq", "w4-tensor-bc")
    laid(model, data, cache, schemes)
    lowering, steps = laid(equalized, data, cache, schemes)
    assert steps == ["calibrating on 40 rows", "quantizing weights: 6 entries for the bank"], (
        "each reads or writes what was rescaled"
    )
    (exact,) = run(model.graph.model, data.inputs).values()
    policy = Policy.uniform([layer.name for layer in model.layers], Scheme.parse("float32"))
    (found,) = run(lowering.build(policy), data.inputs).values()
    assert distance(found, exact) < 1e-5


def test_smoothed_inputs_take_a_second_pass(tmp_path: Path) -> None:
    """The second search finds the bank; its scales and ranges, pure functions of the data, come out the same."""
    net = Net()
    y = net.add("Relu", net.add("Gemm", net.input("rows", 6, name="x"), net.weight(6, 8), net.weight(8)))
    path = tmp_path / "model.onnx"
    path.write_bytes(net.model(net.add("Gemm", y, net.weight(8, 3), net.weight(3))).SerializeToString())
    model, cache = read_model(path), tmp_path / "cache"
    data = Split(inputs={"x": np.random.default_rng(0).standard_normal((70, 6)).astype(np.float32)}, targets=None)
    text = "w4a8-gptq-bc-smooth0.5@percentile99.9"
    first, steps = laid(model, data, cache, ("float32", text))
    assert steps[:2] == ["calibrating on 70 rows", "calibrating smoothed inputs"]
    second, again = laid(model, data, cache, ("float32", text))
    assert again == steps[:2], "nothing is quantized again"
    policy = first.canonical(Policy.uniform([layer.name for layer in model.layers], Scheme.parse(text)))
    assert first.build(policy) == second.build(policy)
    (exact,), (found,) = run(model.graph.model, data.inputs).values(), run(first.build(policy), data.inputs).values()
    assert distance(found, exact) < 0.3


def test_ranges_are_collected_only_where_wanted(tmp_path: Path) -> None:
    lowering, steps = laid(source(tmp_path), split(40), schemes=("float32", "w8"))
    assert (len(lowering.affines), steps) == (0, ["quantizing weights: 3 entries for the bank"])


def test_a_fixed_batch(tmp_path: Path) -> None:
    model = source(tmp_path, batch=4)
    lowering, _ = laid(model, split(10), schemes=("w8a8@minmax",))
    # Eight of ten rows, in two batches of four; the rest would not fill a batch.
    used = split(10).inputs["x"][:8]
    scale, zero = next(affine for (tensor, _), affine in lowering.affines.items() if tensor == "x")
    low, high = float(used.min()), float(used.max())
    assert scale == pytest.approx((high - low) / 255) and zero == round(-low / float(scale))
    with pytest.raises(DataError, match=r"3 rows.*fixed batch of 4"):
        laid(model, split(3), schemes=("w8a8@minmax",))


def test_moving_averages_are_over_batches_of_32_rows(tmp_path: Path) -> None:
    x = np.zeros((64, 3, 6, 6), np.float32)
    x[:32, 0, 0, 0], x[32:, 0, 0, 0] = 1, 2
    lowering, _ = laid(source(tmp_path), Split(inputs={"x": x}, targets=None), schemes=("w8a8@ema",))
    scale, _ = next(affine for (tensor, _), affine in lowering.affines.items() if tensor == "x")
    assert 255 * scale == pytest.approx(0.9 * 1 + 0.1 * 2)


def test_rounding_by_block_fills_the_bank_and_its_cache(tmp_path: Path) -> None:
    model, data, schemes = source(tmp_path), split(40), ("w4-brecq", "w2-brecq-bc", "w4-adaround", "w2a8-brecq@minmax")
    first, steps = laid(model, data, tmp_path / "cache", schemes)
    assert "rounding block by block: 9 entries for the bank" in steps
    second, steps = laid(model, data, tmp_path / "cache", schemes)
    assert steps == ["calibrating on 40 rows"], "for the ranges"
    for scheme in schemes:
        policy = Policy.uniform([layer.name for layer in model.layers], Scheme.parse(scheme))
        built = first.build(first.canonical(policy))
        check(built)
        assert built == second.build(second.canonical(policy))
