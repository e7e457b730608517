"""The final check on real files: which points stay, which fall off and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.objectives import Values
from autoq.core.policy import Policy
from autoq.core.result import Failure, FrontPoint, MetricPair, Trial
from autoq.core.scheme import FLOAT32, Scheme
from autoq.errors import TrialError
from autoq.model.target import Target
from autoq.runtime.data import Split
from autoq.runtime.gauge import Measurement
from autoq.runtime.metric import Metric
from autoq.runtime.shipped import zipped_bytes
from autoq.search.final import Checked, check_front
from autoq.search.polish import Polished
from autoq.search.polish_log import PolishRecord
from tests.search.problems import TableExecutor, make_latency, make_problem, make_trial

ROWS = 400


def write_model(path: Path, share_right: float) -> Path:
    """A model that gets this share of the rows right: ``y = x @ eye``, where the data's first rows are right."""
    weight = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    offset = numpy_helper.from_array(np.array([0, share_right], np.float32), "offset")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "offset"], ["y"])],
        "share",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight, offset],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return path


@pytest.fixture
def split() -> Split:
    # Row i is class 1 to a model whose offset exceeds i / ROWS, and class 1 is the truth.
    x = np.stack([np.arange(ROWS) / ROWS, np.zeros(ROWS)], axis=1).astype(np.float32)
    return Split(inputs={"x": x}, targets=np.ones(ROWS, np.int64))


class RatiosExecutor(TableExecutor):
    """Times files as told: by their names."""

    def __init__(self, ratios: Mapping[str, float]) -> None:
        super().__init__()
        self.ratios = ratios

    def measure_many(self, models: Sequence[Path]) -> list[Measurement | Failure]:
        """A ratio of 0: it cannot be timed."""
        ratios = [self.ratios[path.stem] for path in models]
        return [
            Measurement(latency=make_latency(ratio), load_ms=1.0 + i, reference_load_ms=7.0 + i)
            if ratio
            else Failure(reason="load", message="no room for it")
            for i, ratio in enumerate(ratios)
        ]


@pytest.fixture
def accuracy() -> Metric:
    return Metric.from_spec({"name": "accuracy", "direction": "maximize"}, Path())


def check(
    folder: Path,
    split: Split,
    metric: Metric,
    points: Mapping[str, tuple[float, float, float, int]],
    *,
    baseline: float = 0.9,
    **bounds: Any,
) -> Checked:
    """``points``: name -> metric on the search split, share right on the final one, ratio, size."""
    (folder / "models").mkdir()
    problem = dataclasses.replace(
        make_problem(("a", "b"), **bounds),
        baseline=Values(metric=0.9, latency_ratio=1.0, size_bytes=1000, peak_memory_bytes=5000),
    )
    trials, paths, names = [], [], iter(policies())
    for number, (name, (search, share, _, size)) in enumerate(points.items()):
        trials.append(make_trial(number, next(names), search, 0.5, size))
        paths.append(write_model(folder / "models" / f"{name}.onnx", share))
    float32 = FrontPoint(
        id="float32",
        policy=Policy.uniform(["a", "b"], FLOAT32),
        metric=MetricPair(search=0.9),
        latency=make_latency(1.0),
        size_bytes=1000,
        peak_memory_bytes=5000,
        weight_bits_mean=32.0,
        model_path="../float32.onnx",
        sha256="0" * 64,
    )
    return check_front(
        trials,
        paths,
        float32,
        write_model(folder / "float32.onnx", baseline),
        problem=problem,
        executor=RatiosExecutor({name: values[2] for name, values in points.items()}),
        target=Target.load("onnxruntime"),
        metric=metric,
        split=split,
        batch=64,
        seed=0,
        workers=2,
        run_folder=folder,
    )


def policies() -> Iterator[Policy]:
    for a in ("w8", "w4", "w2"):
        for b in ("w8", "w4", "w2"):
            yield Policy.of({"a": Scheme.parse(a), "b": Scheme.parse(b)})


def stem(point: FrontPoint) -> str:
    return Path(point.model_path).stem


def test_points_that_keep_their_place_are_sorted_best_metric_first(
    tmp_path: Path, split: Split, accuracy: Metric
) -> None:
    found = check(tmp_path, split, accuracy, {"small": (0.80, 0.80, 0.6, 100), "good": (0.89, 0.885, 0.8, 500)})
    assert [stem(point) for point in found.points] == ["good", "small"]
    assert found.dropped == ()
    good = found.points[0]
    # The file's metric on the final split, by hand: the rows below the offset.
    assert good.metric.search == 0.89
    assert good.metric.final == np.ceil(0.885 * ROWS) / ROWS
    assert found.baseline.metric.final == 0.9
    low, high = good.metric.final_ci95 or (0, 0)
    assert low < 0.885 < high and high - low < 0.1
    # The two differ on 8.5 % of the rows: the paired error of a difference of shares, up to the bootstrap's own.
    ((before, error),) = found.points[1].metric.gap_se
    assert (before, found.points[0].metric.gap_se) == (good.id, ())
    assert error == pytest.approx(np.sqrt(0.085 * 0.915 / ROWS), rel=0.1)
    # Paired with float32: both are right on the same rows but for 1.5 % of them.
    assert good.metric.drop_ci95 is not None
    low, high = good.metric.drop_ci95
    assert 0.0 <= low <= 0.015 <= high < 0.035
    assert good.latency is not None and good.latency.ratio == 0.8
    # "small" was timed first, "good" second; float32 in both their processes.
    assert [point.load_ms for point in found.points] == [2.0, 1.0]
    assert found.baseline.load_ms == 7.5
    assert good.zip_bytes == zipped_bytes(tmp_path / good.model_path)
    assert found.baseline.zip_bytes == zipped_bytes(tmp_path / "float32.onnx")


def test_what_a_device_stores_is_another_file_than_the_one_that_zip_is_told_of(
    tmp_path: Path, split: Split, accuracy: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_many(self: RatiosExecutor, models: Sequence[Path]) -> list[Measurement]:
        return [Measurement(latency=make_latency(0.5), size_bytes=300) for _ in models]

    monkeypatch.setattr(RatiosExecutor, "measure_many", measure_many)
    (point,) = check(tmp_path, split, accuracy, {"compiled": (0.89, 0.89, 0.5, 300)}).points
    assert (point.size_bytes, point.zip_bytes, point.load_ms) == (300, None, None)


def test_a_point_that_the_search_split_flattered_falls_off(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(tmp_path, split, accuracy, {"flattered": (0.89, 0.70, 0.6, 500), "honest": (0.85, 0.85, 0.5, 400)})
    assert [stem(point) for point in found.points] == ["honest"]
    (dropped,) = found.dropped
    assert stem(dropped.point) == "flattered"
    assert dropped.why == f"on the final split, {found.points[0].id} is at least as good in everything"


def test_a_point_that_float32_beats_falls_off(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(tmp_path, split, accuracy, {"slow": (0.91, 0.89, 1.05, 1001)})
    assert found.points == ()
    assert "float32 is at least as good in everything" in found.dropped[0].why


def test_a_constraint_that_is_broken_on_the_final_split(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(
        tmp_path,
        split,
        accuracy,
        {"worse": (0.89, 0.80, 0.5, 400), "kept": (0.88, 0.86, 0.6, 500)},
        max_metric_drop=0.05,
    )
    assert [stem(point) for point in found.points] == ["kept"]
    assert found.dropped[0].why == "on the final split, the metric drop 0.1 is above max_metric_drop 0.05"


def test_a_latency_bound_is_checked_on_the_last_timing(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(tmp_path, split, accuracy, {"slow": (0.89, 0.89, 0.95, 400)}, max_latency_ratio=0.9)
    assert found.points == ()
    assert "the latency ratio to float32 0.95 is above max_latency_ratio 0.9" in found.dropped[0].why


def test_of_two_equal_points_one_stays(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(tmp_path, split, accuracy, {"one": (0.89, 0.89, 0.5, 400), "two": (0.88, 0.89, 0.5, 400)})
    assert len(found.points) == len(found.dropped) == 1
    assert found.points[0].id in found.dropped[0].why


def test_an_empty_front_checks_the_baseline(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    found = check(tmp_path, split, accuracy, {})
    assert found.points == found.dropped == ()
    assert found.baseline.metric.final == 0.9


def test_a_file_that_cannot_be_scored_or_timed_falls_off_alone(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    points = {"good": (0.89, 0.885, 0.8, 500), "large": (0.88, 0.88, 0.0, 400), "small": (0.80, 0.80, 0.6, 100)}
    found = check(tmp_path, split, accuracy, points)
    assert [stem(point) for point in found.points] == ["good", "small"]
    assert [point.latency.ratio for point in found.points if point.latency] == [0.8, 0.6]
    (dropped,) = found.dropped
    assert dropped.why == "its file failed in the final check: timing it: no room for it"
    # What the search had found of it stays on record.
    assert stem(dropped.point) == "large" and dropped.point.metric == MetricPair(search=0.88)
    assert dropped.point.latency is not None and dropped.point.latency.ratio == 0.5


def gone(tmp_path: Path, split: Split, accuracy: Metric, baseline: Path) -> Checked:
    trial = make_trial(0, next(policies()), 0.8, 0.5, 100)
    return check_front(
        [trial],
        [tmp_path / "gone.onnx"],
        _baseline_point(trial),
        baseline,
        problem=make_problem(("a", "b")),
        executor=TableExecutor(),
        target=Target.load("onnxruntime"),
        metric=accuracy,
        split=split,
        batch=64,
        seed=0,
        workers=1,
        run_folder=tmp_path,
    )


def test_a_file_that_has_gone_falls_off_and_a_float32_that_has_is_an_error(
    tmp_path: Path, split: Split, accuracy: Metric
) -> None:
    found = gone(tmp_path, split, accuracy, write_model(tmp_path / "float32.onnx", 0.9))
    assert found.points == () and "final check: scoring it: ONNX Runtime rejects the model" in found.dropped[0].why
    with pytest.raises(TrialError, match="rejects the model"):
        gone(tmp_path, split, accuracy, tmp_path / "nowhere.onnx")


def _baseline_point(trial: Trial) -> FrontPoint:
    return FrontPoint(
        id="float32",
        policy=trial.policy,
        metric=MetricPair(search=0.9),
        latency=make_latency(1.0),
        size_bytes=1000,
        peak_memory_bytes=5000,
        weight_bits_mean=32.0,
        model_path="float32.onnx",
        sha256="0" * 64,
    )


def test_a_latency_within_the_noise_keeps_no_point_on_the_front(tmp_path: Path, split: Split, accuracy: Metric) -> None:
    points = {
        "better": (0.89, 0.89, 0.500, 100),
        "by noise": (0.88, 0.88, 0.4995, 200),
        "faster": (0.88, 0.88, 0.45, 200),
    }
    found = check(tmp_path, split, accuracy, points)
    assert [stem(point) for point in found.points] == ["better", "faster"]
    assert [stem(dropped.point) for dropped in found.dropped] == ["by noise"]


@pytest.mark.parametrize("ratio", [0.49, 0.0])
def test_a_polished_point_stands_for_itself_and_keeps_what_it_was(
    tmp_path: Path, split: Split, accuracy: Metric, ratio: float
) -> None:
    """Both files are scored and timed; the polished one is on the front, also where the final split likes it less."""
    (tmp_path / "models").mkdir()
    trials = [make_trial(number, policy, 0.85, 0.5, 100) for number, policy in zip(range(2), policies(), strict=False)]
    paths = [
        write_model(tmp_path / "models" / f"{trial.id}.onnx", share)
        for trial, share in zip(trials, (0.8, 0.85), strict=True)
    ]
    new = write_model(tmp_path / "models" / f"{trials[1].id}.polished.onnx", 0.82)
    record = PolishRecord(
        key="k",
        id=trials[1].id,
        kind="sequential",
        measure="KL divergence",
        held_out=(0.2, 0.1),
        layers=2,
        seconds=3.0,
        sha256="f" * 64,
        size_bytes=99,
        metric=0.87,
    )
    found = check_front(
        trials,
        paths,
        _baseline_point(trials[0]),
        write_model(tmp_path / "float32.onnx", 0.9),
        problem=make_problem(("a", "b")),
        executor=RatiosExecutor({paths[0].stem: 0.5, paths[1].stem: 0.48, new.stem: ratio}),
        target=Target.load("onnxruntime"),
        metric=accuracy,
        split=split,
        batch=64,
        seed=0,
        workers=1,
        run_folder=tmp_path,
        polished={trials[1].id: Polished(new, record, 98, 777)},
    )
    (point,) = found.points  # the other one is dominated
    assert point.id == trials[1].id
    if not ratio:  # the polished file cannot be timed
        assert point.polish is None and point.model_path == f"models/{paths[1].name}"
        why = "its polished file failed in the final check: timing it: no room for it"
        assert found.notes == (f"{point.id} stays as it was before polishing, since {why}",)
        return
    assert (point.model_path, point.sha256) == (f"models/{new.name}", "f" * 64)
    assert (point.size_bytes, point.peak_memory_bytes) == (98, 777)
    assert point.metric.search == 0.87
    assert point.metric.final == np.ceil(0.82 * ROWS) / ROWS
    assert point.latency is not None and point.latency.ratio == 0.49
    assert point.polish is not None and point.polish.held_out == (0.2, 0.1)
    before = point.polish.before
    assert before.polish is None and before.model_path == f"models/{paths[1].name}"
    assert before.metric.search == 0.85 and before.metric.final == 0.85
    assert before.latency is not None and before.latency.ratio == 0.48
    assert (point.load_ms, before.load_ms) == (3.0, 2.0)
    assert (point.zip_bytes, before.zip_bytes) == (zipped_bytes(new), zipped_bytes(paths[1]))
