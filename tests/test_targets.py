"""One job on several targets: what is shared, what is measured where, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from autoq import load
from autoq.core.result import Estimate
from autoq.core.targets import TargetResult, common_file
from autoq.errors import JobError, ProfileError, RunError
from autoq.pipeline import Events
from autoq.record.targets import read_targets_record, write_targets
from autoq.search.store import TrialLog
from autoq.setting import Setting, gauge_of, read_setting
from autoq.spec.job import load_job
from autoq.targets import TargetsOutcome, run_targets
from autoq.targets.files import files_of, on_target
from tests.small_job import QUIET_SEARCH, autoq, dump_job, own_store, write_job, write_npu_job

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
    job, steps = load_job(write_targets_job(folder)), []
    outcome = run_targets(job, out=folder / "out", ray="off", events=Events(step=steps.append))
    (folder / "steps.json").write_text(json.dumps(steps))
    return folder, outcome


def test_a_search_for_each_and_what_was_scored_is_not_scored_again(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    assert list(outcome.fronts) == ["quick-chip", "broad-chip"]
    first, second = (TrialLog(folder / "out" / name / "trials.jsonl").read() for name in outcome.fronts)
    metrics = {trial.sha256: trial.metric for trial in first if trial.metric is not None}
    again = [trial for trial in second if trial.sha256 in metrics]
    assert again and all("metric" not in trial.seconds and trial.metric == metrics[trial.sha256] for trial in again)
    assert all("metric" in trial.seconds for trial in second if trial.sha256 not in metrics and trial.complete)
    begun = second[: 12 // 2]  # half of the budget are files whose metric was known
    assert [trial.origin for trial in begun] == ["seed:known:quick-chip"] * len(begun)
    assert {trial.sha256 for trial in begun} <= metrics.keys()


def test_what_does_not_depend_on_the_target_is_done_once(searched: tuple[Path, TargetsOutcome]) -> None:
    steps: list[str] = json.loads((searched[0] / "steps.json").read_text())
    for once in ("reading model and data", "calibrating"):
        assert sum(step.startswith(once) for step in steps) == 1, steps
    assert sum(step.startswith("quantizing weights") for step in steps) <= 1  # or the bank has them of other tests
    assert sum(step.startswith("target ") for step in steps) == 2


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


def test_one_point_is_of_one_target(searched: tuple[Path, TargetsOutcome], tmp_path: Path) -> None:
    out = searched[0] / "out"
    for words in (("front", out, "--select", "knee"), ("export", out, "--out", tmp_path / "export")):
        done = autoq(*words)
        assert done.returncode == 2 and f"run folder of its own: {out}/broad-chip, {out}/quick-chip" in done.stderr
    with pytest.raises(RunError, match="search for several targets"):
        load(out)


def test_mlflow_shows_them_under_one_run(searched: tuple[Path, TargetsOutcome]) -> None:
    folder, outcome = searched
    client = mlflow.MlflowClient(tracking_uri=outcome.tracking_uri)
    parent = read_targets_record(folder / "out").run_id
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.tags["autoq.profile"] for run in children} == {"quick-chip", "broad-chip"}


def test_resume_goes_on_with_what_has_not_ended(searched: tuple[Path, TargetsOutcome], tmp_path: Path) -> None:
    folder, outcome = searched
    source, out = folder / "job.yaml", tmp_path / "out"
    job = load_job(source)
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
    values = yaml.safe_load(source.read_text()) | {"hardware": ["cpu.yaml", "cpu-arm-onnxruntime"]}
    with pytest.raises(RunError, match=r"a search for quick\.yaml, broad\.yaml, and none for cpu\.yaml, cpu-arm"):
        run_targets(load_job(values, folder), out=out, ray="off", resume=True)


def test_resume_takes_targets_that_came_later(searched: tuple[Path, TargetsOutcome], tmp_path: Path) -> None:
    folder, outcome = searched
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    third = yaml.safe_load((folder / "quick.yaml").read_text()) | {"name": "third-chip"}
    (folder / "third.yaml").write_text(yaml.safe_dump(third))
    values = yaml.safe_load((folder / "job.yaml").read_text())
    values["hardware"] = ["quick.yaml", "third.yaml", "broad.yaml"]
    grown = run_targets(load_job(values, folder), out=out, ray="off", resume=True)
    assert list(grown.fronts) == ["quick-chip", "third-chip", "broad-chip"]
    assert grown.fronts["quick-chip"] == outcome.fronts["quick-chip"]
    assert read_targets_record(out).hardware == ("quick.yaml", "third.yaml", "broad.yaml")
    # The third chip is the first: what its search tried was known, but for what it came to by itself.
    trials = TrialLog(out / "third-chip" / "trials.jsonl").read()
    assert sum("metric" not in trial.seconds for trial in trials) >= len(trials) // 2


def on_explicit_provider(searched: tuple[Path, TargetsOutcome], **changes: Any) -> tuple[TargetResult, Setting]:
    """All files on the second chip as if its runtime computed otherwise: what the first one's search scored is scored
    again, though the numbers are the same."""
    folder, outcome = searched
    jobs = {f"{name}-chip": load_job(folder / "job.yaml").on(f"{name}.yaml") for name in CHIPS}
    settings = {name: read_setting(job) for name, job in jobs.items()}
    broad = settings["broad-chip"]
    runtime = broad.profile.runtime.model_copy(update={"provider": "CPUExecutionProvider"})
    settings["broad-chip"] = broad = dataclasses.replace(
        broad, profile=dataclasses.replace(broad.profile, runtime=runtime, **changes)
    )
    files = files_of(folder / "out", settings, outcome.fronts, broad)
    with gauge_of(broad, broad.model.path) as gauge:
        return on_target(folder / "out", broad, outcome.fronts["broad-chip"], files, gauge), broad


def test_a_file_scored_on_another_target_has_the_intervals_of_its_own_search(
    searched: tuple[Path, TargetsOutcome],
) -> None:
    found, _ = on_explicit_provider(searched)
    fronts = searched[1].fronts
    own = {point.sha256: point.metric for name in ("quick-chip", "broad-chip") for point in fronts[name].points}
    foreign = [point for point in found.points if point.found_for == "quick-chip"]
    assert foreign and not found.refused
    for point in found.points:
        expected = own[point.sha256]
        assert (point.metric, point.metric_ci95, point.drop_ci95) == (
            expected.final,
            expected.final_ci95,
            expected.drop_ci95,
        )
        assert point.metric_ci95 is not None and point.latency_ci95 is None and point.estimated


def test_what_goes_over_the_limits_of_a_target_is_refused_there(searched: tuple[Path, TargetsOutcome]) -> None:
    whole, setting = on_explicit_provider(searched)
    sizes = {point.sha256: point.size_bytes for point in whole.points if point.found_for == "quick-chip"}
    bound = max(sizes.values()) - 1
    found, _ = on_explicit_provider(searched, limits=setting.profile.limits.model_copy(update={"file_bytes": bound}))
    kept = {point.sha256 for point in found.points if point.found_for == "quick-chip"}
    assert kept == {digest for digest, size in sizes.items() if size <= bound} != set(sizes)
    assert len(found.refused) == len(sizes) - len(kept)
    assert all(f"limits.file_bytes is {bound:,}" in why for _, why in found.refused)


def test_each_ethos_u_has_sizes_of_its_own(tmp_path: Path) -> None:
    """What lies in flash is packed by Vela for one accelerator: a file has another size on another one."""
    pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")
    pytest.importorskip("ethosu", reason="the extra [npu] is not installed")
    hardware = ["npu-ethos-u55-256", "npu-ethos-u85-256"]
    objectives = ["metric", "latency", "size", "peak_memory"]
    job = write_npu_job(tmp_path, own_store(tmp_path), hardware=hardware, objectives=objectives,
                        budget={"trials": 3})  # fmt: skip
    outcome = run_targets(load_job(job), out=tmp_path / "out", ray="off")
    for target, name in zip(outcome.targets.targets, hardware, strict=True):
        setting = read_setting(load_job(job).on(name))
        assert not target.refused
        with gauge_of(setting, tmp_path / "out" / name / "reference.tflite") as gauge:
            for point in target.points:
                measured = gauge.measure(tmp_path / "out" / point.file)
                assert isinstance(measured.latency, Estimate)
                assert point.size_bytes == measured.latency.figures["flash_bytes"]
                assert point.peak_memory_bytes == measured.peak_memory_bytes
    sizes = [{point.sha256: point.size_bytes for point in target.points} for target in outcome.targets.targets]
    assert sizes[0].keys() == sizes[1].keys() and sizes[0] != sizes[1]


def test_a_target_that_cannot_be_searched_is_told_before_the_first_search(tmp_path: Path) -> None:
    job = write_targets_job(tmp_path)
    profile = yaml.safe_load((tmp_path / "broad.yaml").read_text()) | {"match": {"any_cpu_flags": ["no_such_flag"]}}
    (tmp_path / "broad.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match="no_such_flag"):
        run_targets(load_job(job), out=tmp_path / "out", ray="off")
    assert not (tmp_path / "out" / "quick-chip").exists()
    del profile["match"], profile["measure"]["options"]["int8_gmacs_s"]
    (tmp_path / "broad.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match="int8_gmacs_s is missing"):
        run_targets(load_job(job), out=tmp_path / "out", ray="off")
    assert not (tmp_path / "out").exists()


def test_what_takes_one_profile_refuses_several(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the job names 2 \(quick\.yaml, broad\.yaml\)"):
        read_setting(load_job(write_targets_job(tmp_path)))


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    job = write_targets_job(tmp_path)
    profile = yaml.safe_load((tmp_path / "quick.yaml").read_text())
    (tmp_path / "broad.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(JobError, match=r"quick\.yaml|broad\.yaml.*both called 'quick-chip'"):
        run_targets(load_job(job), out=tmp_path / "out", ray="off")
