"""One job on several targets: what is shared, what is measured where, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import yaml

from autoq.core.targets import common_file
from autoq.errors import JobError, RunError
from autoq.pipeline import Events, read_setting
from autoq.record.targets import read_targets_record
from autoq.search.store import TrialLog
from autoq.spec.job import load_job
from autoq.targets import TargetsOutcome, run_targets
from tests.small_job import QUIET_SEARCH, autoq, dump_job, write_job

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET_SEARCH]


def write_targets_job(folder: Path) -> Path:
    """For two targets with the same arithmetic: one row at a time, and eight."""
    write_job(folder)
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    for name, batch in (("one", 1), ("eight", 8)):
        own = {**profile, "name": f"{name}-row", "latency": {"batch": batch, "samples": 2}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    values = yaml.safe_load((folder / "job.yaml").read_text())
    values |= {
        "hardware": ["one.yaml", "eight.yaml"],
        "objectives": ["metric", "latency", "size"],
        "constraints": {"max_metric_drop": 0.3},
        "budget": {"trials": 12},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    del values["latency"]
    return dump_job(folder / "job.yaml", values)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TargetsOutcome]:
    folder = tmp_path_factory.mktemp("targets")
    return folder, run_targets(write_targets_job(folder), out=folder / "out", ray="off")


def test_a_search_for_each_and_what_was_scored_is_not_scored_again(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    assert list(outcome.fronts) == ["one-row", "eight-row"]
    first, second = (TrialLog(folder / "out" / name / "trials.jsonl").read() for name in outcome.fronts)
    metrics = {trial.sha256: trial.metric for trial in first if trial.metric is not None}
    again = [trial for trial in second if trial.sha256 in metrics]
    assert again and all("metric" not in trial.seconds and trial.metric == metrics[trial.sha256] for trial in again)
    assert all("metric" in trial.seconds for trial in second if trial.sha256 not in metrics and trial.complete)
    origins = [trial.origin for trial in second[: 12 // 4]]
    assert origins and all(origin == "seed:front:one-row" for origin in origins)
    assert {trial.policy for trial in second[: 12 // 4]} <= {point.policy for point in outcome.fronts["one-row"].points}


def test_every_file_is_on_every_target(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    files = {point.sha256 for front in outcome.fronts.values() for point in front.points}
    for target in outcome.targets.targets:
        assert {point.sha256 for point in target.points} == files and not target.refused
        rows = {p.sha256: (-p.metric, p.latency_ratio, p.size_bytes) for p in target.points if not p.breaks}
        for point in target.points:
            own = rows.get(point.sha256)
            beaten = own is None or any(
                other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in rows.values()
            )
            assert point.on_front is not beaten or own in [rows[key] for key in rows if key != point.sha256]
            assert (folder / "out" / point.file).exists()
    one, eight = outcome.targets.targets
    assert {p.sha256: p.metric for p in one.points} == {
        p.sha256: p.metric for p in eight.points
    }  # the arithmetic is one
    assert (outcome.targets.common, outcome.targets.why_no_common) == common_file((one, eight), ("latency",))
    assert outcome.targets.common is not None and outcome.targets.common.cost >= 1


def test_what_is_written_reads_back(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    assert read_targets_record(folder / "out").targets == outcome.targets
    assert json.loads((folder / "out" / "targets.json").read_text())["version"] == 1
    html = (folder / "out" / "targets.html").read_text()
    assert all(point.id in html for target in outcome.targets.targets for point in target.points if point.on_front)
    done = autoq("front", folder / "out")
    assert done.returncode == 0 and "small on eight-row" in done.stdout and "One file" in done.stdout


def test_mlflow_shows_them_under_one_run(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    client = mlflow.MlflowClient(tracking_uri=outcome.tracking_uri)
    parent = read_targets_record(folder / "out").run_id
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.tags["autoq.profile"] for run in children} == {"one-row", "eight-row"}


def test_resume_goes_on_with_what_has_not_ended(tmp_path: Path) -> None:
    job = write_targets_job(tmp_path)

    def stop_in_the_second(text: str) -> None:
        if text.startswith("target eight-row"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_targets(job, out=tmp_path / "out", ray="off", events=Events(step=stop_in_the_second))
    assert read_targets_record(tmp_path / "out").targets is None
    before = (tmp_path / "out" / "one-row" / "front.json").read_bytes()
    with pytest.raises(RunError, match="continue it with --resume"):
        run_targets(job, out=tmp_path / "out", ray="off")
    outcome = run_targets(job, out=tmp_path / "out", ray="off", resume=True)
    assert (tmp_path / "out" / "one-row" / "front.json").read_bytes() == before  # it had ended: not touched again
    assert list(outcome.fronts) == ["one-row", "eight-row"]
    values = yaml.safe_load(job.read_text())
    dump_job(job, values | {"hardware": ["eight.yaml", "one.yaml"]})
    with pytest.raises(RunError, match=r"holds a search for one\.yaml, eight\.yaml, not for eight\.yaml, one\.yaml"):
        run_targets(job, out=tmp_path / "out", ray="off", resume=True)


def test_what_takes_one_profile_refuses_several(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the job names 2 \(one\.yaml, eight\.yaml\)"):
        read_setting(load_job(write_targets_job(tmp_path)))


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    job = write_targets_job(tmp_path)
    profile = yaml.safe_load((tmp_path / "one.yaml").read_text())
    (tmp_path / "eight.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(JobError, match=r"one\.yaml|eight\.yaml.*both called 'one-row'"):
        run_targets(job, out=tmp_path / "out", ray="off")
