"""The latency model: its design and fit against times known beforehand, and measured with the real meter."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoq.core.latency_check import LatencyCheck
from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.model.parts import FLOAT, Part, Parts, latency_class
from autoq.runtime.meter import Meter
from autoq.search.candidates import Candidates
from autoq.search.latency import (
    FEWEST,
    LIMIT_S,
    LatencyModel,
    LatencyTable,
    Timed,
    cached_table,
    fit_table,
    keep,
    measure_table,
    read_kept,
    time_for_it,
)
from autoq.search.latency_design import design
from autoq.search.problem import Problem
from tests.models import Lowered, Net, lowered
from tests.search.problems import PROFILE, make_problem

SCHEMES = tuple(map(Scheme.parse, ("float32", "w8", "w4", "w8a8@minmax", "w4a8@minmax")))
CHECK = LatencyCheck(files=40, spearman=0.9, median_error=0.01, profile_spearman=0.2, disturbed=0, seconds=1.0)


@pytest.fixture(scope="module")
def subject() -> Lowered:
    """Five convolutions and Relus, one behind the other."""
    net = Net()
    x = net.input("rows", 8, 16, 16)
    for _ in range(5):
        x = net.add("Relu", net.conv(x, 8, 8))
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)}
    return lowered(net.model(x), map(str, SCHEMES), feeds)


@pytest.fixture(scope="module")
def problem(subject: Lowered) -> Problem:
    found = tuple(Candidates(layer=dataclasses.replace(layer, macs=1000), schemes=SCHEMES) for layer in subject.layers)
    return dataclasses.replace(make_problem(), candidates=found, canonical=subject.lowering.canonical)


@pytest.fixture(scope="module")
def told(subject: Lowered) -> Parts:
    return Parts(subject.lowering.formed, subject.layers, subject.lowering.placer)


def policies(problem: Problem, count: int) -> list[Policy]:
    return [problem.complete(choice) for choice in itertools.islice(design(problem.candidates), count)]


TRUE = {"layer": -0.12, "quantize": 0.03, "dequantize": 0.05, "barrier": 0.02}


def truth(parts: tuple[Part, ...]) -> float:
    """Later layers gain more."""
    return 1.01 + sum(TRUE[part.kind] * (1.2 if part.kind == "layer" and "5" in part.name else 1) for part in parts)


def test_a_design_is_the_same_for_a_seed_and_has_every_class_and_boundary(problem: Problem) -> None:
    first, again = (list(itertools.islice(design(problem.candidates, seed=3), 40)) for _ in range(2))
    assert first == again != list(itertools.islice(design(problem.candidates, seed=4), 40))
    classes = [
        {entry.layer.name: latency_class(entry.layer, choice[entry.layer.name]) for entry in problem.candidates}
        for choice in first
    ]
    assert [set(each.values()) for each in classes[:2]] == [{FLOAT}, {"int8"}]
    names = list(classes[0])
    for before, behind in itertools.pairwise(names):
        pairs = [(each[before], each[behind]) for each in classes]
        assert all(pairs.count(pair) >= 3 for pair in itertools.product((FLOAT, "int8"), repeat=2))


def test_a_layer_that_cannot_have_a_class_takes_another(problem: Problem) -> None:
    head, *rest = problem.candidates
    mixed = [dataclasses.replace(head, schemes=SCHEMES[:1]), *rest]
    for choice in itertools.islice(design(mixed), 12):
        assert choice[head.layer.name] == SCHEMES[0]
    only = [dataclasses.replace(head, schemes=SCHEMES[3:]), *rest]
    for choice in itertools.islice(design(only), 12):
        assert choice[head.layer.name] in SCHEMES[3:]


def test_times_known_beforehand_are_found(problem: Problem, told: Parts) -> None:
    files = policies(problem, 40)
    parts = [told.of(policy) for policy in files]
    timed = [
        Timed(policy=policy, ratio=truth(each), disturbed=False) for policy, each in zip(files, parts, strict=True)
    ]
    table = fit_table(timed, parts, problem.candidates, PROFILE, seconds=1.0)
    assert table.check.spearman is not None and table.check.spearman > 0.95
    assert table.check.median_error < 0.01 and table.check.good
    for policy in policies(problem, 90)[40:]:
        assert table.ratio(told.of(policy)) == pytest.approx(truth(told.of(policy)), rel=0.03)


def test_a_model_of_noise_is_not_used(problem: Problem, told: Parts) -> None:
    files = policies(problem, 40)
    parts = [told.of(policy) for policy in files]
    believed = [problem.modelled_latency(policy) for policy in files]
    rng = np.random.default_rng(0)
    timed = [
        Timed(policy=policy, ratio=ratio * rng.lognormal(0, 0.02), disturbed=True)
        for policy, ratio in zip(files, believed, strict=True)
    ]
    noise = fit_table(
        [dataclasses.replace(each, ratio=rng.lognormal(0, 0.2)) for each in timed],
        parts,
        problem.candidates,
        PROFILE,
        seconds=1.0,
    )
    assert noise.check.spearman is None or noise.check.spearman < 0.5
    worse = dataclasses.replace(CHECK, profile_spearman=0.95, disturbed=2)
    assert not worse.good and "costs are used instead" in str(worse) and "2 of them" in str(worse)
    assert not dataclasses.replace(CHECK, spearman=None).good
    assert dataclasses.replace(CHECK, profile_spearman=0.905).good  # no difference that so few files could show


def test_single_layers_add_up_to_the_model_where_there_are_no_boundaries(problem: Problem, told: Parts) -> None:
    parts = {part for policy in policies(problem, 40) for part in told.of(policy)}
    table = LatencyTable(base=1.0, times={p: truth((p,)) - 1.01 for p in parts if p.kind == "layer"}, check=CHECK)
    model = LatencyModel(table=table, parts=told)
    times = model.layer_times(problem.candidates, problem.complete)
    for entry in problem.candidates:
        name = entry.layer.name
        assert times[name, SCHEMES[1]] == times[name, SCHEMES[0]] and min(times[name, s] for s in SCHEMES) >= 0
        gain = times[name, SCHEMES[3]] - times[name, SCHEMES[0]]
        assert gain == pytest.approx(-0.144 if "5" in name else -0.12, abs=2e-3)
    for policy in policies(problem, 10):
        total = sum(times[name, scheme] for name, scheme in policy.items_)
        assert total == pytest.approx(model.ratio(policy), abs=0.02)


def test_a_part_that_was_never_timed_takes_what_those_alike_do() -> None:
    known = [Part("layer", name, "int8", "layer int8 x") for name in "ab"]
    table = LatencyTable(base=1.0, times=dict(zip(known, (-0.1, -0.2), strict=True)), check=CHECK)
    assert table.ratio([Part("layer", "c", "int8", "layer int8 x")]) == pytest.approx(0.85)
    assert table.ratio([Part("layer", "d", "int8", "layer int8 y")]) == 1.0
    assert LatencyTable(base=0.1, times=table.times, check=CHECK).ratio(known) > 0


def test_the_problem_models_latency_by_it(problem: Problem) -> None:
    policy = problem.complete({})
    assert (
        dataclasses.replace(problem, latency=lambda each: 0.5 if each == policy else 9).modelled_latency(policy) == 0.5
    )


@pytest.fixture(scope="module")
def table(subject: Lowered, problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatencyTable]:
    path = tmp_path_factory.mktemp("latency") / "float32.onnx"
    path.write_bytes(subject.graph.model.SerializeToString())
    with Meter(path, subject.feeds) as meter:
        found = measure_table(
            problem.candidates,
            subject.lowering,
            problem.complete,
            PROFILE,
            meter,
            limit_s=60,
            clock=time.monotonic,
            files=FEWEST,
        )
        assert found is not None
        yield found


def test_real_files_are_timed(table: LatencyTable) -> None:
    assert table.check.files == FEWEST and table.check.seconds > 0
    assert 0.3 < table.base < 3  # float32 itself, on a machine that may be busy
    assert {part.kind for part in table.times} == set(TRUE)


def test_too_little_time_gives_no_table(subject: Lowered, problem: Problem, tmp_path: Path) -> None:
    path = tmp_path / "float32.onnx"
    path.write_bytes(subject.graph.model.SerializeToString())
    with Meter(path, subject.feeds) as meter:
        given = (problem.candidates, subject.lowering, problem.complete, PROFILE, meter)
        assert measure_table(*given, limit_s=0.001, clock=time.monotonic) is None
    assert time_for_it(FEWEST - 1, None) == 0
    assert time_for_it(100, None) == time_for_it(100, 3600.0) == LIMIT_S
    assert time_for_it(100, 60.0) == 6


def test_a_table_is_kept_in_the_cache_and_in_the_run_folder(table: LatencyTable, tmp_path: Path) -> None:
    asked: list[int] = []

    def take() -> LatencyTable:
        asked.append(1)
        return table

    assert [cached_table(tmp_path, ["m", n], take) for n in (1, 1, 2)] == [table] * 3
    assert len(asked) == 2
    keep(tmp_path / "latency.json", table)
    assert read_kept(tmp_path / "latency.json") == table
    keep(tmp_path / "latency.json", "no time")
    assert read_kept(tmp_path / "latency.json") == "no time"
    assert read_kept(tmp_path / "other.json") is None
    for text in ("{", json.dumps(table.to_dict() | {"version": 0}), "[]"):
        (tmp_path / "latency.json").write_text(text)
        with pytest.raises(RunError, match="damaged, or of another version"):
            read_kept(tmp_path / "latency.json")
    with pytest.raises(RunError, match="cannot be written"):
        keep(tmp_path / "nowhere" / "latency.json", table)
