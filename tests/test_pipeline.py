"""A whole search, looked at from all sides: the run folder, the study, MLflow. One run for the file."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import optuna
import pytest
import yaml

import autoq
from autoq.core.identity import sha256_hex
from autoq.core.objectives import constraint_violations, point_values
from autoq.core.result import Estimate, Trial
from autoq.errors import AutoqError, ProfileError, RunError
from autoq.pipeline import Events, run_search
from autoq.record.front import read_front
from autoq.record.noise import nothing_ranked
from autoq.record.verify import verify
from autoq.runtime.base import InputSpec
from autoq.search.evaluate import Evaluator, Scored
from autoq.search.groundwork import lay_groundwork
from autoq.search.store import TrialLog
from autoq.setting import _padding_mask, read_setting, workload_of
from autoq.spec.job import load_job
from tests.small_job import (
    LAYERS,
    QUIET_SEARCH,
    dump_job,
    job_values,
    one_policy_space,
    own_store,
    shared_run,
    small_data,
    small_model,
    tracking_uri,
    write_job,
)

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="module")
def run(shared: Path) -> Path:
    return shared / "run"


@pytest.fixture(scope="module")
def trials(run: Path) -> list[Trial]:
    return TrialLog(run / "trials.jsonl").read()


def test_the_run_folder_holds_what_it_should(run: Path, trials: list[Trial]) -> None:
    assert {path.name for path in run.iterdir()} == {
        ".lock", "front.html", "front.json", "front.png", "health.json", "importances.png", "models", "proxies.png",
        "report.html", "run.json", "study.db", "trials.jsonl",
    }  # fmt: skip
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(trials) == 10
    assert all(trial.failure is None for trial in trials)
    record = json.loads((run / "run.json").read_text())
    assert record["version"] == 1
    assert [layer["layer"] for layer in record["layers"]] == list(LAYERS)
    assert set(record["identity"]) >= {"model", "search data", "final data", "metric", "space", "hardware", "seed"}


def test_the_front_is_of_trials_and_their_files(run: Path, trials: list[Trial]) -> None:
    front = read_front(run / "front.json")
    by_id = {trial.id: trial for trial in trials}
    assert front.final and front.points
    assert front.stop_reason == "trials"
    assert (front.trials_complete, front.trials_failed) == (10, 0)
    every = [*front.points, *(dropped.point for dropped in front.dropped)]
    assert {path.stem for path in (run / "models").iterdir()} == {point.id for point in every}
    for point in every:
        data = (run / point.model_path).read_bytes()
        trial = by_id[point.id]
        assert sha256_hex(data) == point.sha256 == trial.sha256
        assert len(data) == point.size_bytes == trial.size_bytes
        assert point.metric.search == trial.metric
        onnx.checker.check_model(onnx.ModelProto.FromString(data))


def test_final_metrics_are_those_of_the_files_on_unseen_rows(shared: Path, run: Path) -> None:
    """By hand: the file in stock ONNX Runtime, rows 272 to 480, arg-max, mean."""
    front = read_front(run / "front.json")
    with np.load(shared / "data.npz") as data:
        x, y = data["x"][272:480], data["y"][272:480]
    for point in front.points:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(run / point.model_path, options, providers=["CPUExecutionProvider"])
        (out,) = session.run(None, {"x": x})
        assert point.metric.final == pytest.approx((out.argmax(axis=1) == y).mean(), abs=1e-12)
        low, high = point.metric.final_ci95 or (1, 0)
        assert low <= point.metric.final <= high
    assert front.baseline.metric.final == 1.0


def test_the_front_tells_time_to_load_and_size_after_zip(run: Path) -> None:
    front = read_front(run / "front.json")
    for point in (front.baseline, *front.points, *(dropped.point for dropped in front.dropped)):
        assert point.load_ms is not None and 0 < point.load_ms < 10_000
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        assert point.zip_bytes == len(packer.compress((run / point.model_path).read_bytes()) + packer.flush())


def test_the_front_keeps_its_constraints_on_the_final_split(shared: Path, run: Path) -> None:
    front = read_front(run / "front.json")
    baseline = point_values(front.baseline, use_final=True)
    constraints = load_job(shared / "job.yaml").constraints
    assert constraints.max_metric_drop == 0.3
    for point in front.points:
        assert not constraint_violations(point_values(point, use_final=True), constraints, baseline, "maximize")
    sizes = [point.size_bytes for point in front.points]
    metrics = [point.metric.final for point in front.points]
    assert sizes == sorted(sizes, reverse=True)
    assert metrics == sorted(metrics, reverse=True)  # type: ignore[type-var]


def test_raw_samples_are_kept(trials: list[Trial]) -> None:
    for trial in trials:
        assert trial.latency is not None
        # Two were asked for; sittings have two or more, and one that was disturbed is made again.
        assert len(trial.latency.blocks_ms) == len(trial.latency.baseline_blocks_ms) >= 2
        assert {"build", "load", "metric", "measure"} <= trial.seconds.keys()
        assert trial.peak_memory_bytes is not None and trial.peak_memory_bytes > 0


def test_the_study_opens_in_optuna(run: Path, trials: list[Trial]) -> None:
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{run}/study.db")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["metric", "size"]
    assert len(study.trials) == len(trials)
    for stored, trial in zip(sorted(study.trials, key=lambda t: t.user_attrs["number"]), trials, strict=True):
        assert stored.params == trial.policy.to_text()
        assert stored.values == [trial.metric, trial.size_bytes]
        assert stored.user_attrs["origin"] == trial.origin


# MLflow ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(run: Path) -> tuple[mlflow.MlflowClient, Any, list[Any]]:
    """The client, the parent run, its children."""
    record = json.loads((run / "run.json").read_text())["tracking"]
    client = mlflow.MlflowClient(record["uri"])
    parent = client.get_run(record["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", max_results=1000
    )
    return client, parent, children


def test_the_parent_run_says_what_was_searched(run: Path, tracked: Any) -> None:
    client, parent, _ = tracked
    assert parent.info.status == "FINISHED"
    assert client.get_experiment(parent.info.experiment_id).name == "small"
    assert parent.data.params["metric.name"] == "accuracy"
    assert parent.data.tags["autoq.profile"] == "any-cpu"
    assert parent.data.tags["autoq.run_folder"] == str(run)
    assert parent.data.metrics["trials_complete"] == 10
    front = read_front(run / "front.json")
    assert parent.data.metrics["front_points"] == len(front.points)


def test_a_child_run_a_trial(trials: list[Trial], tracked: Any) -> None:
    _, _, children = tracked
    assert len(children) == len(trials)
    by_id = {child.data.tags["autoq.policy"]: child for child in children}
    for trial in trials:
        child = by_id[trial.id]
        assert child.info.status == "FINISHED"
        assert child.data.metrics["metric"] == trial.metric
        assert child.data.metrics["size_bytes"] == trial.size_bytes
        assert trial.latency is not None
        assert child.data.metrics["latency_ratio"] == trial.latency.ratio
        texts = {str(value) for value in child.data.params.values()}
        assert {str(scheme) for _, scheme in trial.policy.items_} <= texts


def test_the_front_lies_with_the_parent_run(run: Path, tracked: Any, tmp_path: Path) -> None:
    client, parent, _ = tracked
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"front.json", "front.png", "front.html", "report.html", "front_table.json"} <= names
    for name in ("front.json", "front.png"):
        path = client.download_artifacts(parent.info.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (run / name).read_bytes()
    table = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "front_table.json", str(tmp_path))).read_text()
    )
    front = read_front(run / "front.json")
    assert len(table["data"]) == len(front.points) + 1  # float32 first


def test_front_models_load_back_and_compute_the_same(shared: Path, run: Path, tracked: Any) -> None:
    client, parent, _ = tracked
    front = read_front(run / "front.json")
    models = {model.name: model for model in client.search_logged_models([parent.info.experiment_id])}
    assert set(models) == {f"front-{point.id}" for point in front.points}
    with np.load(shared / "data.npz") as data:
        x = data["x"][:5]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(json.loads((run / "run.json").read_text())["tracking"]["uri"])
    try:
        for point in front.points:
            loaded = mlflow.pyfunc.load_model(models[f"front-{point.id}"].model_uri)
            assert [column["name"] for column in loaded.metadata.signature.inputs.to_dict()] == ["x"]
            assert loaded.metadata.saved_input_example_info is not None
            session = onnxruntime.InferenceSession(run / point.model_path, providers=["CPUExecutionProvider"])
            np.testing.assert_array_equal(loaded.predict({"x": x})["y"], session.run(None, {"x": x})[0])
    finally:
        mlflow.set_tracking_uri(before)


# Forms of the graph ---------------------------------------------------------------------------------------------------


def test_a_search_in_forms_keeps_them_and_says_what_they_give(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job = write_job(tmp_path, tracking_uri(tmp_path_factory), budget={"trials": 1})
    profile, space = tmp_path / "cpu.yaml", tmp_path / "space.yaml"
    profile.write_text(profile.read_text().replace("forms: none", "forms: [wide-input]"))
    space.write_text(yaml.safe_dump(one_policy_space(dict.fromkeys(LAYERS, "w8a8@minmax"))))
    result = autoq.search(job, out=tmp_path / "run", ray="off")
    form = result.front.form
    assert form is not None and form.names == ("wide-input",)
    assert "All points have the form wide-input; float32 itself, written like that, runs at " in result.summary()
    (point,) = result.front.points
    model = onnx.load(tmp_path / "run" / point.model_path)
    assert [node.op_type for node in model.graph.node].count("Pad") == 2  # of the image, and of the weight
    # A search that goes on keeps the forms that it began with, and what is exported is what was scored.
    # It began on a machine that is not this one, though: that is refused, or else said.
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["machines"][0]["cpu_model"] = "CPU A"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run was searched on another machine\. Here: CPU .*, not CPU A\."):
        autoq.search(job, out=tmp_path / "run", ray="off", resume=True)
    told: list[str] = []
    again = autoq.search(job, out=tmp_path / "run", ray="off", resume=True, force=True, on_warning=told.append)
    mark = "searched on 2 machines, whose figures are ranked together; after the first one: CPU "
    assert told[0].startswith(mark) and again.front.notes[0].startswith(mark)
    assert again.front.form is not None and again.front.points[0].sha256 == point.sha256
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["identity"]["forms"] == ["wide-input"]
    assert [machine["cpu_model"] == "CPU A" for machine in record["machines"]] == [True, False]
    found = verify(again.export("fastest", tmp_path / "exported"))
    assert all(check.status == "ok" for check in found.checks), found


# Odd ways to end ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("odd"), tracking_uri(tmp_path_factory), timed=False)


def changed(job: Path, tracking: str, **changes: Any) -> Path:
    return dump_job(job.parent / "changed.yaml", job_values(tracking, **changes))


@pytest.fixture
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking_uri(tmp_path_factory)


def test_no_time_at_all_ends_with_an_empty_front_that_says_so(job: Path, uri: str, tmp_path: Path) -> None:
    result = autoq.search(changed(job, uri, budget={"trials": 5, "time": 0.001}), out=tmp_path / "run", ray="off")
    assert result.trials == () and result.front.points == ()
    assert result.front.stop_reason == "time"
    assert result.front.why_empty == "no trial was completed"
    assert result.summary()
    assert read_front(tmp_path / "run" / "front.json").final
    with pytest.raises(AutoqError, match="the front of 'small' is empty"):
        result.export("knee", tmp_path / "x")
    # And goes on when there is time.
    again = autoq.search(changed(job, uri, budget={"trials": 1}), out=tmp_path / "run", ray="off", resume=True)
    assert len(again.trials) == 1


def test_a_budget_below_the_seeds_says_which_were_left_out(job: Path, uri: str, tmp_path: Path) -> None:
    result = autoq.search(changed(job, uri, budget={"trials": 2}), out=tmp_path / "run", ray="off")
    assert len(result.trials) == 2 and result.front.points and result.front.stop_reason == "trials"
    (note,) = [note for note in result.front.notes if "seeds" in note]
    tried = [trial.origin.removeprefix("seed:") for trial in result.trials]
    assert note.startswith("the search ended before ") and "a larger budget has them" in note
    listed = note.split("were tried: ")[1].split(";")[0].split(", ")
    assert listed and not set(listed) & set(tried)
    assert f"{len(listed)} of its {len(listed) + len(tried)} uniform seeds" in note


def test_a_space_of_one_point_ends_with_a_front_of_one(job: Path, uri: str, tmp_path: Path) -> None:
    space = one_policy_space(dict.fromkeys(LAYERS, "w8"))
    (job.parent / "one.yaml").write_text(yaml.safe_dump(space))
    result = autoq.search(changed(job, uri, space="one.yaml"), out=tmp_path / "run", ray="off")
    assert result.front.stop_reason == "space exhausted"
    assert [trial.id for trial in result.trials] == [point.id for point in result.front.points]
    for how in ("knee", "best", "smallest"):
        assert result.select(how) is result.front.points[0]
    assert result.select(weights={"metric": 1}) is result.front.points[0]
    assert not [note for note in result.front.notes if "seeds" in note or "Spearman" in note]


def test_a_metric_that_is_noise_ranks_nothing_and_says_so(job: Path, uri: str, tmp_path: Path) -> None:
    (job.parent / "noise.py").write_text(
        "import zlib\nimport numpy as np\n"
        "def score(outputs, targets):\n"
        "    return float(np.random.default_rng([4, zlib.crc32(outputs['y'].tobytes())]).normal())\n"
    )
    values = changed(job, uri, budget={"trials": 6}, metric={"function": "noise.py:score"})
    result = autoq.search(values, out=tmp_path / "run", ray="off")
    points = result.front.points
    if len(points) < 2:
        pytest.skip("on this machine the noise left one point on the front")
    pairs = [pair for point in points for pair in point.metric.gap_se]
    assert len(pairs) == len(points) * (len(points) - 1) // 2
    # Independent figures of variance 1 differ by their root of two.
    assert np.mean([error for _, error in pairs]) == pytest.approx(2**0.5, rel=0.15)
    assert ("tells no two of these" in result.summary()) is nothing_ranked(result.front)
    assert ("tells no two of these" in (tmp_path / "run" / "report.html").read_text()) is nothing_ranked(result.front)


def test_bounds_that_nothing_keeps_name_the_nearest_miss(job: Path, uri: str, tmp_path: Path) -> None:
    values = changed(job, uri, budget={"trials": 4}, constraints={"max_size_ratio": 0.01})
    result = autoq.search(values, out=tmp_path / "run", ray="off")
    assert result.front.points == ()
    assert len(result.trials) == 4
    assert result.front.why_empty.startswith("max_size_ratio binds: no trial keeps max_size_ratio 0.01 (the nearest, ")
    assert read_front(tmp_path / "run" / "front.json").why_empty == result.front.why_empty
    assert list((tmp_path / "run" / "models").iterdir()) == []


def test_a_metric_that_fails_on_candidates_fails_those_trials(
    job: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job.parent / "picky.py").write_text(
        "def score(outputs, targets):\n"
        "    value = float((outputs['y'].argmax(axis=1) == targets).mean())\n"
        "    if value < 0.6: raise ValueError('too bad to be true')\n"
        "    return float('nan') if value < 0.9 else value\n"
    )
    values = changed(job, uri, budget={"trials": 6}, metric={"function": "picky.py:score"})
    steps: list[str] = []
    seen: list[int] = []
    events = Events(step=steps.append, trial=lambda trial, search: seen.append(trial.number))
    monkeypatch.setenv("AUTOQ_CACHE", "/proc/nowhere")  # a cache that cannot be written costs time and nothing else
    result = run_search(load_job(values), out=tmp_path / "run", ray="off", events=events)
    reasons = [trial.failure.message for trial in result.trials if trial.failure]
    assert any("too bad to be true" in message for message in reasons)
    assert any("nan" in message for message in reasons)
    assert {trial.failure.reason for trial in result.trials if trial.failure} == {"metric"}
    assert result.front.points
    assert (result.front.trials_complete, result.front.trials_failed) == (6 - len(reasons), len(reasons))
    assert seen == list(range(6))
    for words in ("reading", "measuring float32", "searching", "final split", "report"):
        assert any(words in step for step in steps), steps
    assert result.tracking_problems == ()


def test_a_profile_of_another_machine_needs_force(job: Path, uri: str) -> None:
    text = (job.parent / "cpu.yaml").read_text() + "\nmatch: {any_cpu_flags: [no_such_flag]}\n"
    (job.parent / "other-cpu.yaml").write_text(text)
    found = load_job(changed(job, uri, hardware="other-cpu.yaml"))
    with pytest.raises(ProfileError, match=r"no_such_flag.*--force"):
        read_setting(found)
    warnings: list[str] = []
    read_setting(found, force=True, warn=warnings.append)
    assert len(warnings) == 1 and "does not describe" in warnings[0]


def test_an_estimated_search_with_limits_on_a_machine_that_does_not_match(job: Path, uri: str, tmp_path: Path) -> None:
    """``npu-generic-int8`` from end to end: what is over a limit fails with its reason, and all is marked."""
    profile = {
        "version": 1,
        "extends": "npu-generic-int8",
        "name": "board",
        "match": {"arch": ["riscv64"]},
        "limits": {"file_bytes": 40_000},
    }
    (job.parent / "board.yaml").write_text(yaml.safe_dump(profile))
    values = changed(job, uri, hardware="board.yaml", budget={"trials": 8}, objectives=["metric", "latency"])
    result = run_search(load_job(values), out=tmp_path / "run", ray="off", force=True)
    failed = [trial.failure for trial in result.trials if trial.failure is not None]
    assert failed and {failure.reason for failure in failed} == {"limit"}
    assert all("limits.file_bytes is 40,000" in failure.message for failure in failed)
    estimates = [trial.latency for trial in result.trials if trial.complete]
    assert estimates and all(isinstance(each, Estimate) and each.reference == "w8a8@minmax" for each in estimates)
    front = read_front(tmp_path / "run" / "front.json")
    assert "does not describe" in front.notes[0] and "riscv64" in front.notes[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "does not describe" in page and "estimate" in page
    (tracked,) = mlflow.MlflowClient(uri).search_runs(
        [mlflow.MlflowClient(uri).get_experiment_by_name(front.name).experiment_id],
        "tags.`autoq.profile` = 'board' and attributes.status = 'FINISHED'",
    )
    assert "riscv64" in tracked.data.tags["autoq.machine_mismatch"]


def test_the_input_that_marks_padding(tmp_path: Path) -> None:
    """``attention_mask`` where there is one, the input that the job names, or none; a wrong name is an error."""
    write_job(tmp_path)
    values = job_values()

    def masked(name: str | None, *names: str) -> str | None:
        data = values["data"] | ({} if name is None else {"padding_mask": name})
        job = load_job(values | {"data": data}, tmp_path)
        specs = [InputSpec(name=each, dtype=np.dtype("int64"), shape=(None, None)) for each in names]
        return _padding_mask(job, [*specs, InputSpec(name="image", dtype=np.dtype("f4"), shape=(None, 3, 8, 8))])

    assert masked(None, "input_ids", "attention_mask") == "attention_mask"
    assert masked("none", "input_ids", "attention_mask") is None
    assert masked("mask", "input_ids", "mask") == "mask"
    assert masked(None, "input_ids", "mask") is None
    with pytest.raises(AutoqError, match=r"data\.padding_mask: 'image' is no input.*such are: input_ids"):
        masked("image", "input_ids")


def test_why_a_search_ended_early_is_told_everywhere(job: Path, uri: str, tmp_path: Path) -> None:
    budget = {"trials": 20, "until": {"max_size_ratio": 0.6}}
    result = autoq.search(changed(job, uri, budget=budget), out=tmp_path / "run", ray="off")
    assert result.front.stop_reason == "target met" and len(result.trials) < 20
    last = result.trials[-1]
    (note,) = [note for note in result.front.notes if note.startswith("stopped at")]
    assert f"trial {last.number} ({last.id}): it keeps the bounds of budget.until" in note
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["stop_reason"] == "target met"
    assert "ended by: target met." in (tmp_path / "run" / "report.html").read_text()
    parent = mlflow.MlflowClient(uri).get_run(record["tracking"]["run_id"])
    assert parent.data.tags["autoq.stop_reason"] == "target met"
    # Patience that is at its end ends it as well, the same with --resume.
    options = {"out": tmp_path / "run", "ray": "off", "resume": True}
    values = changed(job, uri, budget={"trials": 60, "patience": 8})
    again = autoq.search(values, **options)  # type: ignore[arg-type]
    assert again.front.stop_reason == "no gain" and len(again.trials) < 60
    assert any(note.startswith(f"stopped after {len(again.trials)} trials: the last 8") for note in again.front.notes)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stop_reason"] == "no gain"


# Fidelity steps -------------------------------------------------------------------------------------------------------


def steps_values(uri: str, fidelity: str = "steps") -> dict[str, Any]:
    """The small job with a search split of 800 rows, in steps of 100, 200 and 400, and room for bad candidates."""
    values = job_values(uri, budget={"trials": 16}, constraints={"max_metric_drop": 0.05})
    values["search"] = {"fidelity": fidelity}
    values["data"] |= {"search": {"path": "many.npz"}, "batch": 50}
    return values


@pytest.fixture(scope="module")
def steps_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    write_job(folder, timed=False)
    np.savez(folder / "many.npz", **small_data(small_model(), seed=5, rows=800))  # type: ignore[arg-type]
    return dump_job(folder / "steps.yaml", steps_values(own_store(folder)))


@pytest.fixture(scope="module")
def steps_run(steps_job: Path) -> Path:
    autoq.search(steps_job, out=steps_job.parent / "run", ray="off")
    return steps_job.parent / "run"


def test_hopeless_candidates_are_dropped_and_told_as_such(steps_job: Path, steps_run: Path) -> None:
    trials = TrialLog(steps_run / "trials.jsonl").read()
    front = read_front(steps_run / "front.json")
    pruned = {trial.id: trial.pruned for trial in trials if trial.pruned is not None}
    assert pruned and any(each.rows < each.of == 800 for each in pruned.values())
    assert (front.trials_complete, front.trials_pruned) == (len(trials) - len(pruned), len(pruned))
    on_front = {point.id for point in front.points} | {dropped.point.id for dropped in front.dropped}
    assert not on_front & pruned.keys()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{steps_run}/study.db")
    states = {each.user_attrs["policy_id"]: each for each in study.trials}
    for key, own in pruned.items():
        assert states[key].state == optuna.trial.TrialState.PRUNED
        assert states[key].user_attrs["pruned.rows"] == own.rows and states[key].user_attrs["pruned.why"] == own.why
    record = json.loads((steps_run / "run.json").read_text())["tracking"]
    client = mlflow.MlflowClient(record["uri"])
    parent = client.get_run(record["run_id"])
    assert parent.data.metrics["trials_pruned"] == len(pruned)
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{record['run_id']}'")
    tagged = {run.data.tags["autoq.policy"]: run for run in children if "autoq.pruned" in run.data.tags}
    assert tagged.keys() == pruned.keys()
    assert all(run.data.metrics["pruned.rows"] == pruned[key].rows for key, run in tagged.items())
    report = (steps_run / "report.html").read_text()
    assert "<h2>Dropped on the way</h2>" in report and f"{len(pruned)} dropped on the way" in report


def test_what_was_dropped_was_dropped_rightly(steps_job: Path, steps_run: Path) -> None:
    """The same policies scored on all rows: each dropped one is dominated or breaks the constraint there, too."""
    trials = TrialLog(steps_run / "trials.jsonl").read()
    setting = read_setting(load_job(steps_job))
    lowering = lay_groundwork(setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=None)
    evaluator = Evaluator(workload_of(setting, lowering))
    float32 = 1.0  # the targets are the model's own answers
    true: dict[str, Scored] = {}
    for trial in trials:
        found = evaluator.evaluate(trial.policy)
        assert isinstance(found, Scored) and found.sha256 == trial.sha256
        assert trial.metric in (found.metric, None) and (trial.metric is not None or trial.pruned is not None)
        true[trial.id] = found
    for trial in trials:
        if trial.pruned is not None:
            own = true[trial.id]
            rivals = [
                true[other.id].metric
                for other in trials
                if other.number < trial.number and other.complete and (other.size_bytes or 0) <= own.size_bytes
            ]
            assert own.metric < float32 - 0.05 or own.metric <= max(rivals)
            assert abs(own.metric - trial.pruned.metric) < 0.15


def test_full_fidelity_scores_everything_and_may_not_continue_steps(
    steps_job: Path, steps_run: Path, uri: str, tmp_path: Path
) -> None:
    full = dump_job(steps_job.parent / "full.yaml", steps_values(uri, "full"))
    with pytest.raises(AutoqError, match=r"search\.fidelity was steps, is full"):
        autoq.search(full, out=steps_run, ray="off", resume=True)
    result = autoq.search(full, out=tmp_path / "run", ray="off", trials=4)
    assert all(trial.complete for trial in result.trials)
    # The uniform policies come first in both: what both scored, they scored the same.
    before = {trial.id: trial for trial in TrialLog(steps_run / "trials.jsonl").read() if trial.complete}
    both = [trial for trial in result.trials if trial.id in before]
    assert both and all(trial.metric == before[trial.id].metric for trial in both)
