"""One job on several targets: what is shared, what is measured where, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from autoq.core.targets import common_file
from autoq.errors import JobError, RunError
from autoq.record.targets import read_targets_record, write_targets
from autoq.search.store import TrialLog
from autoq.setting import read_setting
from autoq.spec.job import load_job
from autoq.targets import TargetsOutcome, run_targets
from tests.small_job import QUIET_SEARCH, autoq, dump_job, own_store, write_job

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET_SEARCH]


# Two chips that compute alike and take other times: estimates, so that nothing is timed here.
CHIPS = {
    name: {
        "int8_gmacs_s": rate,
        "vector_gops_s": 16,
        "memory_gb_s": bandwidth,
        "sram_kib": 64,
        "host_gmacs_s": 4,
        "host_gops_s": 1,
        "host_gb_s": 2,
    }
    for name, rate, bandwidth in (("quick", 512, 0.5), ("broad", 16, 8))
}


def write_targets_job(folder: Path) -> Path:
    write_job(folder)
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    for name, options in CHIPS.items():
        own = {**profile, "name": f"{name}-chip", "measure": {"by": "roofline", "options": options}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    values = yaml.safe_load((folder / "job.yaml").read_text())
    values |= {
        "hardware": ["quick.yaml", "broad.yaml"],
        "objectives": ["metric", "latency", "size"],
        "constraints": {"max_metric_drop": 0.3},
        "budget": {"trials": 12},
        "tracking": {"uri": own_store(folder)},
    }
    return dump_job(folder / "job.yaml", values)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TargetsOutcome]:
    folder = tmp_path_factory.mktemp("targets")
    return folder, run_targets(write_targets_job(folder), out=folder / "out", ray="off")


def test_a_search_for_each_and_what_was_scored_is_not_scored_again(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    assert list(outcome.fronts) == ["quick-chip", "broad-chip"]
    first, second = (TrialLog(folder / "out" / name / "trials.jsonl").read() for name in outcome.fronts)
    metrics = {trial.sha256: trial.metric for trial in first if trial.metric is not None}
    again = [trial for trial in second if trial.sha256 in metrics]
    assert again and all("metric" not in trial.seconds and trial.metric == metrics[trial.sha256] for trial in again)
    assert all("metric" in trial.seconds for trial in second if trial.sha256 not in metrics and trial.complete)
    origins = [trial.origin for trial in second[: 12 // 4]]
    assert origins and all(origin == "seed:front:quick-chip" for origin in origins)
    assert {trial.policy for trial in second[: 12 // 4]} <= {
        point.policy for point in outcome.fronts["quick-chip"].points
    }


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
    assert done.returncode == 0 and "small on broad-chip" in done.stdout and "One file" in done.stdout


def test_mlflow_shows_them_under_one_run(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    client = mlflow.MlflowClient(tracking_uri=outcome.tracking_uri)
    parent = read_targets_record(folder / "out").run_id
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.tags["autoq.profile"] for run in children} == {"quick-chip", "broad-chip"}


def test_resume_goes_on_with_what_has_not_ended(searched: tuple[Path, TargetsOutcome], tmp_path: Path) -> None:
    folder, outcome = searched
    job, out = folder / "job.yaml", tmp_path / "out"
    shutil.copytree(folder / "out", out)
    shutil.rmtree(out / "broad-chip")  # as if it had been ended in between
    record = read_targets_record(out)
    write_targets(out, dataclasses.replace(record, targets=None))
    before = (out / "quick-chip" / "front.json").stat().st_mtime_ns
    with pytest.raises(RunError, match="continue it with --resume"):
        run_targets(job, out=out, ray="off")
    again = run_targets(job, out=out, ray="off", resume=True)
    assert (out / "quick-chip" / "front.json").stat().st_mtime_ns == before  # it had ended: not searched again
    assert again.targets == outcome.targets  # the same inputs, the same results
    values = yaml.safe_load(job.read_text()) | {"hardware": ["broad.yaml", "quick.yaml"]}
    with pytest.raises(
        RunError, match=r"holds a search for quick\.yaml, broad\.yaml, not for broad\.yaml, quick\.yaml"
    ):
        run_targets(values, base_dir=folder, out=out, ray="off", resume=True)


def test_what_takes_one_profile_refuses_several(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the job names 2 \(quick\.yaml, broad\.yaml\)"):
        read_setting(load_job(write_targets_job(tmp_path)))


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    job = write_targets_job(tmp_path)
    profile = yaml.safe_load((tmp_path / "quick.yaml").read_text())
    (tmp_path / "broad.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(JobError, match=r"quick\.yaml|broad\.yaml.*both called 'quick-chip'"):
        run_targets(job, out=tmp_path / "out", ray="off")
