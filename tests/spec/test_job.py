"""Job files: every field, every wrong field, and mutations of which only a JobError may come out."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.identity import content_id
from autoq.core.objectives import Constraints
from autoq.errors import AutoqError, JobError
from autoq.spec.durations import parse_duration
from autoq.spec.job import Job, load_job

TEXT = """
version: 1
name: resnet20-cifar10
model: {path: resnet20.onnx}
data:
  calibration: {path: train.npz, limit: 512}
  search: {path: val.npz, slice: [0, 2000]}
  final: {path: val.npz, slice: [2000, 4000]}
  inputs:
    input: {from: x, layout: NHWC->NCHW, scale: 255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
  target: y
  group: 1
metric: {name: accuracy}
hardware: cpu-x86-onnxruntime
space: default
objectives: [metric, latency, size]
constraints: {max_metric_drop: 0.02}
budget: {trials: 100, time: 10m}
seed: 0
"""
FULL: dict[str, Any] = yaml.safe_load(TEXT) | {
    "metric": {
        "name": "roc_auc",
        "output": "p",
        "axis": 1,
        "kwargs": {"max_fpr": 0.1, "x": None, "y": [1, {"z": "é"}]},
    },
    "tracking": {"uri": "sqlite:///m.db", "experiment": "e"},
    "latency": {"batch": 2, "threads": 4, "samples": 30},
}


def changed(**changes: Any) -> dict[str, Any]:
    """FULL with fields replaced; ``a__b`` is the field b of a, and ``...`` removes it."""
    values = copy.deepcopy(FULL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = values
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return values


def test_a_whole_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(TEXT)
    job = load_job(path)
    assert job == load_job(str(path)) == load_job(yaml.safe_load(TEXT), tmp_path)
    assert job.base_dir == tmp_path and job.base_dir.is_absolute()
    assert job.model_path == tmp_path / "resnet20.onnx"
    assert job.data.calibration.rows == (0, 512)
    assert job.data.split("final").rows == (2000, 4000)
    assert job.data.inputs is not None
    image = job.data.inputs["input"]
    assert (image.source, image.scale, image.permutation, image.channel_axis) == ("x", 255, (0, 3, 1, 2), 3)
    assert image.mean == (0.485, 0.456, 0.406)
    assert (job.data.target, job.data.group, job.data.batch) == ("y", 1, 100)
    assert (job.metric.name, job.metric.direction, job.hardware, job.space) == (
        "accuracy", None, "cpu-x86-onnxruntime", "default",
    )  # fmt: skip
    assert job.objectives == ("metric", "latency", "size")
    assert job.constraints == Constraints(max_metric_drop=0.02)
    assert (job.budget.trials, job.budget.time_s, job.seed) == (100, 600.0, 0)


def test_what_may_be_left_out(tmp_path: Path) -> None:
    job = load_job(
        {
            "version": 1,
            "name": "n",
            "model": {"path": "m.onnx"},
            "data": {"calibration": {"path": "c.npz"}, "search": {"path": "s.npz"}, "final": {"function": "f.py:g"}},
            "metric": {"function": "m.py:score", "direction": "minimize"},
            "hardware": "h",
        },
        tmp_path,
    )
    assert job.data.inputs is None and job.data.target is None
    assert (job.space, job.objectives, job.seed) == ("default", ("metric", "latency", "size"), 0)
    assert (job.budget.trials, job.budget.time_s) == (100, None)
    assert (job.budget.until, job.budget.patience) == (None, 200)
    assert job.data.search.rows == (0, None)


def test_a_job_survives_its_dict_json_and_pickle(tmp_path: Path) -> None:
    job = load_job(FULL | {"budget": {"trials": 5, "until": {"max_size_ratio": 0.5}, "patience": 0}}, tmp_path)
    assert job.budget.until is not None and job.budget.until.bounds == Constraints(max_size_ratio=0.5)
    values = json.loads(json.dumps(job.to_dict(), allow_nan=False))
    assert load_job(values, tmp_path) == job
    assert load_job(job.to_dict(), tmp_path).to_dict() == job.to_dict()
    assert content_id(job.to_dict()) == content_id(values)
    assert pickle.loads(pickle.dumps(job)) == job
    assert load_job(job) is job
    assert load_job(values, tmp_path / "elsewhere") != job


def test_a_relative_job_file_has_an_absolute_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    assert load_job("job.yaml").base_dir == tmp_path
    assert load_job(yaml.safe_load(TEXT)).base_dir == tmp_path


def test_anchors(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        TEXT.replace(
            "search: {path: val.npz, slice: [0, 2000]}", "search: &v {path: val.npz, slice: [0, 2000]}"
        ).replace("final: {path: val.npz, slice: [2000, 4000]}", "final: {<<: *v, slice: [2000, 4000]}")
    )
    assert load_job(path).data.final.rows == (2000, 4000)


def test_overriding_from_the_command_line(tmp_path: Path) -> None:
    job = load_job(FULL, tmp_path)
    other = job.overridden(trials=7, time="1h30m", tracking_uri="http://x", seed=3)
    assert (other.budget.trials, other.budget.time_s, other.tracking.uri, other.seed) == (7, 5400.0, "http://x", 3)
    assert job.overridden() == job
    with pytest.raises(JobError, match=r"budget\.trials: must be greater than or equal to 1"):
        job.overridden(trials=0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m 5s", 5405), ("1.5h", 5400), ("45", 45), (12, 12), (0.5, 0.5)],
)
def test_durations(value: str | float, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "m", "10 minutes", "-5s", 0, -1, "0s", math.nan, math.inf, True, 10**400, "9" * 39, "٣s"]
)
def test_no_durations(value: Any) -> None:
    with pytest.raises(JobError):
        parse_duration(value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": ...}, "version: missing; for example version: 1"),
        ({"version": 2}, "version: this autoq reads version 1, not 2"),
        ({"version": True}, "version: this autoq reads version 1, not True"),
        ({"name": ...}, "name: missing"),
        ({"name": "a/b"}, "name: .* no slash"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": "a\x07b"}, "name: must be printable"),
        ({"name": 12}, r"name: must be text \(12\)"),
        ({"model": "m.onnx"}, r"model: must be a mapping \('m.onnx'\); for example model: {path: model.onnx}"),
        ({"model": ..., "modle": {"path": "x"}}, "modle: unknown field; did you mean 'model'"),
        ({"model__path": "a\0b"}, "model.path: must be one line of text"),
        ({"model__path": "\ud800"}, "model.path: holds half of a character pair"),
        ({"batch": 3}, "batch: unknown field; it belongs under 'data'"),
        ({"zzz": 3}, "zzz: unknown field; known here: version, name, model"),
        ({"data__search": ...}, r"data.search: missing; for example search: {path: val.npz"),
        ({"data__search": {}}, "data.search: give either path .* or function"),
        ({"data__search": {"path": "a", "function": "f.py:g"}}, "data.search: give either path .* or function"),
        ({"data__search": {"path": "a", "slice": [0, 2], "limit": 2}}, "data.search: give either slice or limit"),
        ({"data__search__pth": 1}, "data.search.pth: unknown field; did you mean 'path'"),
        ({"data__search__slice": [0]}, "data.search.slice"),
        ({"data__search__slice": [0, 1, 2]}, "data.search.slice: has too many items"),
        ({"data__search__slice": [5, 5]}, r"data.search.slice: holds no rows; .*\(\[5, 5\]\)"),
        ({"data__search__slice": [-1, 5]}, r"data.search.slice\[0\]: must be greater than or equal to 0"),
        ({"data__search__slice": [0, 5.5]}, r"data.search.slice\[1\]: must be a whole number \(5.5\)"),
        ({"data__search__slice": "0:5"}, "data.search.slice: must be a list"),
        ({"data__search": {"function": "f:g"}}, "data.search.function: must read file.py:name"),
        ({"data__calibration__limit": 0}, "data.calibration.limit: must be greater than or equal to 1"),
        ({"data__inputs": {}}, "data.inputs: must not be empty"),
        ({"data__inputs": {1: {}}}, r"data.inputs\[1\]: must be text"),
        ({"data__inputs__input__form": "x"}, "data.inputs.input.form: unknown field; did you mean 'from'"),
        ({"data__inputs__input__layout": "NHWC"}, "data.inputs.input.layout: must read like NHWC->NCHW"),
        ({"data__inputs__input__layout": "NHWC->NCHX"}, "layout: must name the same axes"),
        ({"data__inputs__input__layout": "NHHC->NHHC"}, "layout: must name the same axes on both sides, each once"),
        ({"data__inputs__input__layout": "HWCN->NHWC"}, "layout: must leave the first axis"),
        ({"data__inputs__input__scale": 0}, "scale: x is divided by it"),
        ({"data__inputs__input__scale": math.nan}, r"scale: must be a finite number \(nan\)"),
        ({"data__inputs__input__scale": 10**400}, "scale: must be a number"),
        ({"data__inputs__input__std": [1, 0, 1]}, "std: x is divided by it"),
        ({"data__inputs__input__mean": []}, "mean: must not be empty"),
        ({"data__inputs__input__mean": ["a"]}, r"mean\[0\]: must be a number"),
        ({"data__inputs__input__dtype": "int46"}, "dtype: must be .*; did you mean 'int64'"),
        ({"data__group": 0}, "data.group: must be greater"),
        ({"data__target": ...}, "metric 'roc_auc' compares with labels: give data.target"),
        ({"metric": "accuracy"}, r"metric: must be a mapping \('accuracy'\); for example metric: {name: accuracy}"),
        ({"metric": {}}, "metric: give either name"),
        ({"metric": {"function": "m.py"}}, "metric.function: must read file.py:name"),
        ({"metric": {"function": "m.py:f", "kwargs": {"a": 1}}}, "metric: output, axis and kwargs go with name"),
        ({"metric__direction": "minimise"}, "metric.direction: must be .*; did you mean 'minimize'"),
        ({"metric__kwargs": {"a": {1, 2}}}, "metric.kwargs: may hold"),
        ({"metric__kwargs": {"a": math.inf}}, "metric.kwargs: may hold finite"),
        ({"metric__kwargs": {"a": 10**5000}}, "metric.kwargs: may hold finite"),
        ({"metric__kwargs": {"a": {1: 2}}}, "metric.kwargs: every key in it must be text"),
        ({"hardware": ["a", "a"]}, "hardware: names a profile twice"),
        ({"hardware": []}, "hardware"),
        ({"hardware": ...}, "hardware: missing; for example hardware: cpu-x86-onnxruntime"),
        ({"objectives": []}, "objectives: must not be empty"),
        ({"objectives": "metric"}, "objectives: must be a list"),
        ({"objectives": ["metric", "metric"]}, "objectives: names an objective twice"),
        ({"objectives": ["metric", "latancy"]}, r"objectives\[1\]: .*\('latancy'\); did you mean 'latency'"),
        ({"constraints__max_metric_dropp": 1}, "max_metric_dropp: unknown field; did you mean 'max_metric_drop'"),
        ({"constraints__max_metric_drop": -1}, "constraints.max_metric_drop: must be greater than or equal to 0"),
        ({"constraints__max_size_ratio": 0}, "constraints.max_size_ratio: must be greater than 0"),
        ({"budget__trials": 1.5}, "budget.trials: must be a whole number"),
        ({"budget__patience": -1}, "budget.patience: must be greater than or equal to 0"),
        ({"budget__until": {}}, "budget.until: names no bound; give one or more of max_metric_drop, "),
        ({"budget__until": {"max_size_ratio": 0}}, "budget.until.max_size_ratio: must be greater than 0"),
        ({"budget__until": {"max_size": 0.1}}, "budget.until.max_size: unknown field; did you mean 'max_size_ratio'"),
        ({"budget__time": "soon"}, "budget.time: 'soon' is no time"),
        ({"seed": -1}, "seed: must be greater than or equal to 0"),
        ({"seed": 10**5000}, "seed: must be less than 4294967296"),
        ({"latency__threads": 0}, "latency.threads: must be greater"),
        ({"tracking__url": "x"}, "tracking.url: unknown field; did you mean 'uri'"),
    ],
)
def test_wrong_fields(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        load_job(changed(**changes))
    assert all(line.startswith("job: ") for line in str(caught.value).splitlines())


def test_every_problem_is_listed_once_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        TEXT.replace("seed: 0", "seed: x").replace("target: y", "tarket: y").replace("group: 1", "group: 0")
    )
    with pytest.raises(JobError) as caught:
        load_job(path)
    assert str(caught.value).splitlines() == [
        f"{path}: data.group: must be greater than or equal to 1 (0)",
        f"{path}: data.tarket: unknown field; did you mean 'target'",
        f"{path}: seed: must be a whole number ('x')",
    ]


@pytest.mark.parametrize("source", [None, 3, b"job.yaml", ["job.yaml"]])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(JobError, match="a job is a path of a YAML file or a mapping"):
        load_job(source)


@pytest.mark.parametrize(
    ("search", "final", "said"),
    [
        (
            {"path": "v.npz", "slice": [0, 10]},
            {"path": "v.npz", "slice": [9, 20]},
            "rows 0 to 9 and final rows 9 to 19",
        ),
        ({"path": "v.npz", "slice": [0, 10]}, {"path": "./a/../v.npz"}, "rows 0 to 9 and final all rows"),
        (
            {"path": "v.npz", "limit": 5},
            {"path": "v.npz", "slice": [4, None]},
            "rows 0 to 4 and final rows 4 to the last",
        ),
        ({"function": "f.py:g"}, {"function": "./f.py:g", "limit": 3}, "all rows and final rows 0 to 2"),
        ({"path": "v.npz"}, {"path": "link.npz"}, "all rows and final all rows"),
        ({"path": "v.npz", "slice": [0, 10]}, {"path": "v.npz", "slice": [10, 20]}, None),
        ({"path": "v.npz", "slice": [10, None]}, {"path": "v.npz", "limit": 10}, None),
        ({"path": "v.npz"}, {"path": "w.npz"}, None),
        ({"function": "f.py:g"}, {"function": "f.py:h"}, None),
        ({"function": "v.npz.py:v"}, {"path": "v.npz.py:v"}, None),
    ],
)
def test_final_rows_are_unseen(tmp_path: Path, search: dict[str, Any], final: dict[str, Any], said: str | None) -> None:
    (tmp_path / "v.npz").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "link.npz").symlink_to("v.npz")
    values = changed(data__search=search, data__final=final)
    if said is None:
        load_job(values, tmp_path)
        return
    with pytest.raises(JobError, match=said):
        load_job(values, tmp_path)
    allowed = load_job(changed(data__search=search, data__final=final, data__overlap=True), tmp_path)
    assert load_job(allowed.to_dict(), tmp_path) == allowed


def test_the_bench_jobs(bench: Path) -> None:
    for folder, inputs in (("cifar10", 1), ("sts", 2)):
        values = changed(data__inputs={f"i{n}": {} for n in range(inputs)})
        assert load_job(values, bench / folder).base_dir == bench / folder


# --- whatever is fed to load_job, a Job or an AutoqError comes out

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
    | st.sampled_from([10**400, -(10**4200), "\ud800", "a\0", "v.npz", "f.py:g", "NHWC->NCHW", "1h", {1}, ...])
)  # fmt: skip
_FIELDS = sorted({"from", "zz", "", *FULL, *FULL["data"], *FULL["data"]["search"], *FULL["budget"], *FULL["metric"]})
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=4) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place below ``value``, as a path of keys and indices."""
    found = [path] if path else []
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _places(child, (*path, key))
    return found


_PLACES = _places(FULL)


def _mutate(values: Any, place: tuple[Any, ...], action: str, value: Any) -> None:
    *parents, last = place
    for parent in parents:
        try:
            values = values[parent]
        except (KeyError, IndexError, TypeError):
            return
    try:
        if action == "replace":
            values[last] = value
        elif action == "delete":
            del values[last]
        else:  # rename
            values[value if isinstance(value, str | int | None) else "x"] = values.pop(last)
    except (KeyError, IndexError, TypeError, AttributeError):  # an earlier mutation took the place away
        return


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from(_PLACES), st.sampled_from(["replace", "delete", "rename"]), _VALUES),
        min_size=1,
        max_size=3,
    )
)
def test_only_autoq_errors_come_out_of_mutated_mappings(mutations: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    values = copy.deepcopy(FULL)
    for place, action, value in mutations:
        _mutate(values, place, action, value)
    try:
        job = load_job(values, "/nowhere")
    except AutoqError as error:
        assert str(error)
    else:
        assert load_job(json.loads(json.dumps(job.to_dict(), allow_nan=False)), "/nowhere") == job


@settings(max_examples=100)
@given(_VALUES)
def test_only_autoq_errors_come_out_of_any_mapping(value: Any) -> None:
    with pytest.raises(AutoqError):
        load_job(value if isinstance(value, dict) else {"version": 1, "data": value})


@settings(max_examples=300)
@given(st.data())
def test_only_autoq_errors_come_out_of_mutated_text(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = TEXT.encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        length = data.draw(st.integers(0, 30))
        tokens = [
            b"&a",
            b"*a",
            b"<<: *a",
            b"!!int ",
            b"!!binary ",
            b"!!set ",
            b"{",
            b"}",
            b"[",
            b": ",
            b"\t",
            b"- ",
            b"%",
            b"? ",
        ]
        raw = raw[:start] + data.draw(st.binary(max_size=4) | st.sampled_from(tokens)) + raw[start + length :]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(raw)
    try:
        job = load_job(path)
    except AutoqError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(job, Job) and load_job(job.to_dict(), job.base_dir) == job
