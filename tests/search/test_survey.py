"""The losses of single layers: against models built and scored by hand, and from the cache."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoq.core.policy import Policy
from autoq.core.scheme import FLOAT32, Scheme
from autoq.model.suffix import Suffixes
from autoq.numerics.distortion import decibels, kl_divergence, relative_noise
from autoq.runtime.data import Split
from autoq.runtime.metric import Metric
from autoq.runtime.ort import open_session, run_batches
from autoq.search.candidates import Candidates
from autoq.search.sensitivity import Probe, cached
from autoq.search.survey import survey
from tests.models import Lowered, lowered
from tests.small_job import small_data, small_model

SCHEMES = ("float32", "w8", "w2-gptq", "w4a8@minmax")


@pytest.fixture(scope="module")
def subject() -> tuple[Lowered, tuple[Candidates, ...], Split]:
    model = small_model()
    data = small_data(model, rows=80)
    laid = lowered(model, SCHEMES, {"x": data["x"][:32]})
    schemes = tuple(map(Scheme.parse, SCHEMES))
    return (
        laid,
        tuple(Candidates(layer=layer, schemes=schemes) for layer in laid.layers),
        Split(inputs={"x": data["x"]}, targets=data["y"]),
    )


def taken(subject: Any, metric: Metric, cache: Path | None = None, **changes: Any) -> Any:
    laid, candidates, split = subject
    options: dict[str, Any] = {
        "canonical": laid.lowering.canonical,
        "runs": lambda: Suffixes(laid.lowering, split.inputs, 50),
        "float32": run_batches(open_session(laid.graph.model.SerializeToString()), split.inputs, 50),
        "workers": 2,
        "cache_dir": cache,
        "identity": "test",
    }
    return survey("test", candidates, split, metric, **options | changes)


def test_each_is_what_its_model_loses(subject: Any) -> None:
    laid, _, split = subject
    metric = Metric.from_spec({"name": "accuracy"}, ".")
    found = taken(subject, metric)
    assert (found.divergence, found.rows, found.baseline) == ("kl", 80, 1.0)
    assert len(found.losses) == 4 * 3 and {loss.layer for loss in found.losses} == set(found.layers)
    exact = run_batches(open_session(laid.graph.model.SerializeToString()), split.inputs, 50)
    for loss in found.losses:
        policy = {layer.name: loss.scheme if layer.name == loss.layer else FLOAT32 for layer in laid.layers}
        outputs = run_batches(open_session(laid.lowering.build(Policy.of(policy))), split.inputs, 50)
        assert loss.metric == metric(outputs, split.targets)
        assert loss.drop == pytest.approx(1 - loss.metric)
        # Within rounding: the parts before and behind the layer are run apart from it.
        assert loss.noise == pytest.approx(relative_noise(exact["y"], outputs["y"]), rel=1e-3)
        assert loss.sqnr_db == pytest.approx(decibels(loss.noise))
        assert loss.divergence == pytest.approx(kl_divergence(exact["y"], outputs["y"]), rel=1e-3, abs=1e-9)
    worst = max(found.losses, key=lambda loss: loss.divergence)
    assert str(worst.scheme) == "w2-gptq"


def test_outputs_that_are_no_classes_have_their_noise(subject: Any, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def first(outputs, targets):\n    return float(outputs['y'][0, 0])\n")
    own = Metric.from_spec({"function": "m.py:first"}, tmp_path)
    laid, candidates, split = subject
    # Targets that are whole numbers of classes tell a classifier, whatever the function is.
    assert taken(subject, own).divergence == "kl"
    floats = Split(inputs=split.inputs, targets=split.targets.astype(np.float32))
    found = taken((laid, candidates, floats), own)
    assert found.divergence == "noise"
    assert all(loss.divergence == loss.noise for loss in found.losses)


def test_what_does_not_build_or_score_says_so(subject: Any, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "def picky(outputs, targets):\n"
        "    accuracy = float((outputs['y'].argmax(1) == targets).mean())\n"
        "    return accuracy if accuracy == 1 else float('nan')\n"
    )
    laid, _, split = subject
    broken = Scheme.parse("w8")
    # Without its weights, it cannot be built.
    bank = {key: entry for key, entry in laid.lowering.bank.items() if key[1] != broken.weight}
    runs = Suffixes(dataclasses.replace(laid.lowering, bank=bank), split.inputs, 50)
    found = taken(subject, Metric.from_spec({"function": "m.py:picky"}, tmp_path), runs=lambda: runs)
    for loss in found.losses:
        if loss.scheme == broken:
            assert (loss.noise, loss.metric, loss.problem) == (None, None, "the model did not build or run")
        elif loss.metric is None:
            assert "must be finite" in loss.problem and loss.noise is not None
    assert any("must be finite" in loss.problem for loss in found.losses)


def test_what_was_taken_is_taken_once(subject: Any, tmp_path: Path) -> None:
    metric = Metric.from_spec({"name": "accuracy"}, ".")
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taken(subject, metric, tmp_path, progress=interrupt)
    assert seen == [(count, 12) for count in range(6)]
    seen.clear()
    found = taken(subject, metric, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(count, 12) for count in range(5, 13)]

    def refuse() -> Suffixes:
        raise AssertionError("nothing is left to be run")

    assert taken(subject, metric, tmp_path, runs=refuse) == found == taken(subject, metric)
    # Other data, another metric: another table.
    with pytest.raises(AssertionError, match="nothing is left"):
        taken(subject, metric, tmp_path, runs=refuse, identity="other")


def test_a_damaged_cache_costs_time_alone(tmp_path: Path) -> None:
    probes = [Probe(layer=name, policy=Policy.of({name: FLOAT32})) for name in "ab"]
    calls: list[int] = []

    def take(missing: Any, keep: Any) -> None:
        calls.append(len(missing))
        for probe in missing:
            keep(probe, {"for": probe.layer})

    expected = [{"for": "a"}, {"for": "b"}]
    assert cached(tmp_path, probes, "x", take) == expected
    (file,) = (tmp_path / "sensitivity").iterdir()
    lines = file.read_text().splitlines()
    assert [json.loads(line)[1] for line in lines] == expected
    file.write_text(f"{lines[0]}\n\n[1, 2, 3]\nnull\n{lines[1][:20]}")
    assert cached(tmp_path, probes, "x", take) == expected
    file.unlink()
    file.mkdir()
    assert cached(tmp_path, probes, "x", take) == expected
    assert cached(None, probes, "x", take) == expected
    assert calls == [2, 1, 2, 2]
