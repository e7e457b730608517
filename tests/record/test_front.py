"""front.json: every front comes back as it was, and a damaged file is refused with the field's name."""

from __future__ import annotations

import copy
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoq.core.objectives import OBJECTIVES
from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, FormGain, Front, FrontPoint, Latency, MetricPair
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.record.front import front_json, read_front, write_front

FIXTURE_V1 = Path(__file__).parent / "front_v1.json"

texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-9, 1e9)
counts = st.integers(0, 2**60)
intervals = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))
schemes = st.sampled_from(["float32", "float16", "w2", "w4-gptq", "w8a8-s8-tensor@mse", "w4a8@percentile99.99"])
latencies = st.builds(
    Latency,
    median_ms=positive,
    ratio=positive,
    ratio_ci95=st.tuples(positive, positive).map(lambda pair: (min(pair), max(pair))),
    batch=st.integers(1, 512),
    threads=st.integers(1, 64),
    blocks_ms=st.just((1.0, 2.0)),
)
points = st.builds(
    FrontPoint,
    id=texts,
    policy=st.dictionaries(texts, schemes, max_size=5).map(Policy.from_text),
    metric=st.builds(
        MetricPair,
        search=numbers,
        final=st.none() | numbers,
        final_ci95=st.none() | intervals,
        drop_ci95=st.none() | intervals,
        gap_se=st.dictionaries(texts, numbers, max_size=2).map(lambda errors: tuple(errors.items())),
    ),
    latency=latencies,
    size_bytes=counts,
    peak_memory_bytes=counts,
    weight_bits_mean=numbers,
    model_path=texts,
    sha256=texts,
    origin=texts,
    load_ms=st.none() | positive,
    zip_bytes=st.none() | counts,
)
fronts = st.builds(
    Front,
    name=texts,
    objectives=st.lists(st.sampled_from(OBJECTIVES), unique=True, min_size=1).map(tuple),
    metric_name=texts,
    metric_direction=st.sampled_from(["maximize", "minimize"]),
    baseline=points,
    points=st.lists(points, max_size=3).map(tuple),
    dropped=st.lists(st.builds(DroppedPoint, point=points, why=texts), max_size=2).map(tuple),
    trials_complete=counts,
    trials_failed=counts,
    why_empty=texts,
    wall_s=numbers,
    final=st.booleans(),
    stop_reason=texts,
    notes=st.lists(texts, max_size=2).map(tuple),
    form=st.none() | st.builds(FormGain, names=st.lists(texts, max_size=3).map(tuple), latency=latencies),
)


Timed = TypeVar("Timed", FrontPoint, FormGain)


def without_samples(timed: Timed) -> Timed:
    latency = timed.latency and replace(timed.latency, blocks_ms=(), baseline_blocks_ms=())
    return replace(timed, latency=latency)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(front=fronts)
def test_any_front_comes_back_as_it_was(front: Front, tmp_path: Path) -> None:
    write_front(front, tmp_path / "front.json")
    expected = replace(
        front,
        baseline=without_samples(front.baseline),
        points=tuple(without_samples(point) for point in front.points),
        dropped=tuple(DroppedPoint(point=without_samples(d.point), why=d.why) for d in front.dropped),
        form=front.form and without_samples(front.form),
    )
    assert read_front(tmp_path / "front.json") == expected


def test_version_1_is_still_read() -> None:
    front = read_front(FIXTURE_V1)
    assert (front.name, front.objectives, front.final) == ("fixture", ("metric", "latency", "size"), True)
    assert (front.trials_complete, front.trials_failed, front.wall_s) == (97, 3, 301.5)
    (point,) = front.points
    assert point.policy.to_text() == {"/conv1/Conv": "w8a8@minmax", "/fc/Gemm": "w4a8-gptq@percentile99.99"}
    assert point.metric == MetricPair(search=0.881, final=0.8755, final_ci95=(0.861, 0.89), drop_ci95=(0.0, 0.008))
    assert point.latency == Latency(median_ms=0.96, ratio=0.505, ratio_ci95=(0.49, 0.52), batch=1, threads=1)
    assert (point.size_bytes, point.peak_memory_bytes, point.weight_bits_mean) == (196236, None, 6.0)
    assert (point.load_ms, point.zip_bytes) == (None, None)  # not taken in those days
    assert front.dropped[0].why == "slower than float32 when timed again"


def test_the_fixture_holds_what_is_written_today(tmp_path: Path) -> None:
    # Unknown fields aside: a change of the written form must come with a new version and a new fixture.
    known = json.loads(FIXTURE_V1.read_text())
    del known["written_by"]
    assert json.loads(front_json(read_front(FIXTURE_V1))) == known


def test_raw_samples_stay_out_of_the_file(front: Front) -> None:
    assert front.points[0].latency is not None and front.points[0].latency.blocks_ms
    assert "blocks_ms" not in front_json(front)


def test_the_file_is_replaced_whole_and_leaves_nothing_behind(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text("old")
    write_front(front, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["front.json"]
    assert read_front(path).name == front.name
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_keeps_the_old_file(front: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    write_front(front, path)
    before = path.read_bytes()
    with pytest.raises(RunError, match="not finite"):
        write_front(replace(front, wall_s=float("nan")), path)
    assert path.read_bytes() == before
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(RunError, match=r"taken cannot be written"):
        write_front(front, folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["front.json", "taken"]


def test_a_missing_folder_is_named(front: Front, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent/front\.json cannot be written"):
        write_front(front, tmp_path / "absent" / "front.json")
    with pytest.raises(RunError, match=r"absent\.json cannot be read"):
        read_front(tmp_path / "absent.json")


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, inner in items for deeper in paths_of(inner, (*path, key)))]


WRONG: list[Any] = [None, True, -1, 1.5, 10**400, "text", [], [1], [2, 1], {}, {"a": 1}, [[[[]]]]]


def test_any_field_missing_or_of_another_kind_is_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    document = json.loads(FIXTURE_V1.read_text())
    path = tmp_path / "front.json"
    refused = 0
    for place in paths_of(document)[1:]:
        for wrong in ["delete", *WRONG]:
            damaged = copy.deepcopy(document)
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            if wrong == "delete":
                del parent[place[-1]]
            else:
                parent[place[-1]] = wrong
            path.write_text(json.dumps(damaged))
            try:
                read_front(path)
            except RunError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    assert refused > 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2; this autoq reads up to 1"),
        ({"version": "1"}, "version is '1' and must be a whole number"),
        ({"version": 0}, "version is 0 and must be 1 or more"),
        ({"wall_s": True}, "wall_s is True and must be a finite number"),
        ({"objectives": ["speed"]}, r"objectives\[0\] is 'speed' and must be one of metric, latency"),
        ({"objectives": ["peak_memory"]}, r"points.0..peak_memory_bytes is None and must be given"),
        ({"points": [{}]}, r"points\[0\]\.(\w+) is missing"),
        ({"metric": {"name": "accuracy", "direction": "up"}}, "metric.direction is 'up'"),
    ],
)
def test_the_field_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text(json.dumps(json.loads(FIXTURE_V1.read_text()) | change))
    with pytest.raises(RunError, match=message):
        read_front(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1, 2]", "is no front"),
        (b'{"name": "x"}', "no version field"),
        (b'{"version": NaN}', "NaN is no number"),
        (b"[" * 100_000, "is damaged"),
        (b"9" * 10_000, "is damaged"),
    ],
)
def test_foreign_content_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_front(path)


def test_an_unreadable_scheme_is_told_with_the_grammar(tmp_path: Path) -> None:
    document = json.loads(FIXTURE_V1.read_text())
    document["points"][0]["policy"]["/fc/Gemm"] = "w9a8"
    path = tmp_path / "front.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"points\[0\]\.policy .*'w9a8' is no scheme"):
        read_front(path)


def test_a_scheme_of_every_family_is_written_by_its_name(make_front: Any, make_point: Any) -> None:
    names = ["float32", "float16", "w2", "w8a8@minmax"]
    front = make_front(*(make_point(f"p{i}", scheme=name) for i, name in enumerate(names)))
    written = json.loads(front_json(front))
    assert [point["policy"]["a"] for point in written["points"]] == names
    assert all(str(Scheme.parse(name)) == name for name in names)
