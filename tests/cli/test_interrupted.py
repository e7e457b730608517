"""Searches that are stopped on the way, by Ctrl-C, a kill or a full disk, and go on with --resume."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import psutil
import pytest
import yaml

from autoq.core.identity import sha256_hex
from autoq.record.export import export_point
from autoq.record.front import read_front
from autoq.record.verify import verify
from autoq.search.store import TrialLog
from tests.cli.calls import Done, assert_one_message, call, ran
from tests.small_job import (
    QUIET_SEARCH,
    ROOT,
    autoq,
    dump_job,
    environment,
    job_values,
    own_store,
    small_data,
    small_disk,
    small_model,
    write_job,
)

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)

TRIALS = 20  # of three batches: a search that waits for more than the ninth trial never begins the third

# Whoever signals a search must find it at work, on the fastest machine and on the slowest: it waits for the signal.
METRIC = '''
"""Accuracy. HOLD=LOG:TRIALS waits, as soon as the log has that many trials, before anything else is scored."""
import os, time
from pathlib import Path


def accuracy(outputs, targets):
    log, _, most = os.environ.get("HOLD", "").rpartition(":")
    while log and Path(log).exists() and Path(log).read_bytes().count(b"\\n") >= int(most):
        time.sleep(0.05)
    return float((outputs["y"].argmax(axis=1) == targets).mean())
'''


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its 400 search rows are enough for candidates to be dropped on the way (``search.fidelity``)."""
    folder = tmp_path_factory.mktemp("interrupted")
    data = job_values()["data"] | {"search": {"path": "many.npz"}}
    (folder / "metric.py").write_text(METRIC)
    path = write_job(
        folder,
        own_store(folder),
        metric={"function": "metric.py:accuracy", "direction": "maximize"},
        budget={"trials": TRIALS},
        constraints={"max_metric_drop": 0.04},
        data=data,
        search={"fidelity": "steps"},
    )
    np.savez(folder / "many.npz", **small_data(small_model(), seed=5, rows=400))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def whole(job: Path) -> Path:
    """The run that nobody interrupted."""
    done = searched(job, "--out", job.parent / "whole")
    pruned = [trial for trial in TrialLog(job.parent / "whole" / "trials.jsonl").read() if trial.pruned is not None]
    assert pruned and "dropped on the way" in done.out
    return job.parent / "whole"


def trials_of(run: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    return [
        tuple(
            row[name]
            for name in ("number", "id", "origin", "metric", "pruned", "size_bytes", "sha256", "latency_modelled")
        )
        for row in rows
    ]


def searched(*arguments: str | os.PathLike[str]) -> Done:
    """``autoq search ARGUMENTS`` without Ray, to its good end."""
    done = ran("search", *arguments, "--ray", "off", "--quiet")
    assert (done.code, done.err) == (0, "")
    return done


@contextlib.contextmanager
def started(*arguments: str | os.PathLike[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    """``autoq search ARGUMENTS`` in a session of its own, as from a terminal; killed in the end if need be."""
    process = subprocess.Popen(
        [sys.executable, "-m", "autoq", "search", *map(os.fspath, arguments), "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**environ),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def holding(run: Path, trials: int) -> dict[str, str]:
    """The environment of a search that goes no further than a few trials beyond so many."""
    return {"HOLD": f"{run / 'trials.jsonl'}:{trials}"}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def trials_in(run: Path) -> int:
    path = run / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def assert_whole_folder(run: Path, finished: int) -> None:
    """What lies there is as good as if the search had ended: trials, front, the front's files."""
    trials = TrialLog(run / "trials.jsonl").read()
    assert len(trials) >= finished
    front = read_front(run / "front.json")
    assert not front.final
    assert front.trials_complete + front.trials_pruned + front.trials_failed in (len(trials), len(trials) - 1)
    for point in front.points:
        assert sha256_hex((run / point.model_path).read_bytes()) == point.sha256


def resume(job: Path, run: Path, whole: Path) -> None:
    """--resume ends with the very trials of the run that nobody interrupted."""
    before = trials_of(run)
    searched(job, "--out", run, "--resume")
    assert trials_of(run)[: len(before)] == before
    assert trials_of(run) == trials_of(whole)
    front, expected = read_front(run / "front.json"), read_front(whole / "front.json")
    assert front.final
    ids = {point.id for point in front.points} | {dropped.point.id for dropped in front.dropped}
    assert ids == {point.id for point in expected.points} | {dropped.point.id for dropped in expected.dropped}
    assert {path.stem for path in (run / "models").iterdir()} == ids
    # In the study and in MLflow each trial stands once, as well.
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{run}/study.db")
    assert sorted(trial.user_attrs["number"] for trial in study.trials) == list(range(TRIALS))
    record = json.loads((run / "run.json").read_text())["tracking"]
    client = mlflow.MlflowClient(record["uri"])
    parent = client.get_run(record["run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{record['run_id']}'", max_results=1000
    )
    assert len(children) == TRIALS


@pytest.mark.parametrize("after", [1, 9])
def test_ctrl_c_in_mid_search(job: Path, whole: Path, tmp_path: Path, after: int) -> None:
    run = tmp_path / "run"
    with started(job, "--out", run, "--ray", "off", **holding(run, after)) as process:
        wait_for(lambda: trials_in(run) >= after, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert_one_message(Done(process.returncode, out, err.lstrip()), r"interrupted; finished trials are kept", code=130)
    assert len(err.split("\n")) <= 3  # a new line behind the terminal's ^C, and the message
    assert trials_in(run) < TRIALS
    assert_whole_folder(run, after)
    record = json.loads((run / "run.json").read_text())["tracking"]
    assert mlflow.MlflowClient(record["uri"]).get_run(record["run_id"]).info.status == "KILLED"
    if after > 1:
        resume(job, run, whole)


def test_a_kill_while_points_are_polished(
    whole: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials stay, polishes that are done stay, the others follow; what is then exported is what was scored."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    log = run / "polish.jsonl"
    options = ("--out", run, "--resume", "--polish", "sequential")
    with started(job, *options, "--ray", "off") as process:
        wait_for(lambda: log.exists() and b"\n" in log.read_bytes(), process)
        process.kill()
        process.wait()
    done = log.read_text().splitlines()
    searched(job, *options)
    assert trials_of(run) == trials_of(whole)
    lines = log.read_text().splitlines()
    assert lines[: len(done)] == done
    assert len({json.loads(line)["key"] for line in lines}) == len(lines)
    front = read_front(run / "front.json")
    polished = [point for point in front.points if point.polish is not None]
    assert front.final and polished
    for point in polished:
        assert point.polish is not None and point.polish.held_out[1] < point.polish.held_out[0]
        assert sha256_hex((run / point.model_path).read_bytes()) == point.sha256 != point.polish.before.sha256
    point = export_point(run, polished[0].id, tmp_path / "export")
    assert point.model_path.endswith(".polished.onnx")
    assert verify(tmp_path / "export").ok
    assert json.loads((tmp_path / "export" / "manifest.json").read_text())["polish"]["kind"] == "sequential"
    assert f"{point.id} polished (sequential): accuracy" in call(capsys, "front", run).out


@pytest.mark.parametrize("ray", ["off", "local"])
def test_sigterm_ends_a_search_as_ctrl_c_does(job: Path, tmp_path: Path, ray: str) -> None:
    run, mark = tmp_path / "run", uuid.uuid4().hex
    with started(job, "--out", run, "--ray", ray, "--workers", "1", MARK=mark, **holding(run, 3)) as process:
        wait_for(lambda: trials_in(run) >= 3, process)
        process.terminate()  # the driver alone, as a scheduler does
        out, err = process.communicate(timeout=120)
        wait_for(lambda: marked(mark) == [], seconds=60)
    assert_one_message(Done(process.returncode, out, err.lstrip()), r"terminated; finished trials are kept", code=143)
    assert 3 <= trials_in(run) < TRIALS
    assert_whole_folder(run, 3)
    record = json.loads((run / "run.json").read_text())["tracking"]
    assert mlflow.MlflowClient(record["uri"]).get_run(record["run_id"]).info.status == "KILLED"


def test_sigterm_while_ray_starts(job: Path, tmp_path: Path) -> None:
    """Ray has a handler of its own meanwhile."""
    mark = uuid.uuid4().hex
    with started(job, "--out", tmp_path / "run", "--ray", "local", "--workers", "1", MARK=mark) as process:
        wait_for(lambda: any("gcs_server" in command for command in marked(mark)), process)
        process.terminate()
        out, err = process.communicate(timeout=120)
        wait_for(lambda: marked(mark) == [], seconds=60)
    assert_one_message(Done(process.returncode, out, err.lstrip()), r"terminated; finished trials are kept", code=143)


def test_ctrl_c_while_the_command_line_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = autoq("--help", env=environment(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "autoq: interrupted\n")
    # And nothing slow comes before that code: what Python shows then is not ours.
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]; import autoq; print([m for m in sys.argv[2:] if m in sys.modules])"
    )
    heavy = ("dataclasses", "typing", "pathlib", "inspect", "re", "numpy", "click")
    bare = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code, str(ROOT), *heavy], capture_output=True, text=True, check=False
    )
    assert bare.stdout == "[]\n", bare.stderr


def test_ctrl_c_with_ray_leaves_no_process_behind(job: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", uuid.uuid4().hex
    with started(job, "--out", run, "--ray", "local", "--workers", "1", MARK=mark, **holding(run, 3)) as process:
        wait_for(lambda: trials_in(run) >= 3, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert_one_message(
            Done(process.returncode, out, err.lstrip()), r"interrupted; finished trials are kept", code=130
        )
        assert len(err.split("\n")) <= 3  # a new line behind the terminal's ^C, and the message
        wait_for(lambda: marked(mark) == [], seconds=60)
    assert_whole_folder(run, 3)


def test_ctrl_c_while_ray_starts(job: Path, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with started(job, "--out", tmp_path / "run", "--ray", "local", "--workers", "1", MARK=mark) as process:
        wait_for(lambda: any("gcs_server" in command for command in marked(mark)), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert_one_message(
            Done(process.returncode, out, err.lstrip()), r"interrupted; finished trials are kept", code=130
        )
        wait_for(lambda: marked(mark) == [], seconds=60)


def test_ctrl_c_before_the_first_trial(job: Path, tmp_path: Path) -> None:
    with started(job, "--out", tmp_path / "run", "--ray", "off") as process:
        wait_for(lambda: (tmp_path / "run" / ".lock").exists(), process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert_one_message(Done(process.returncode, out, err.lstrip()), r"interrupted", code=130)


def test_a_driver_that_is_killed(job: Path, whole: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", uuid.uuid4().hex
    with started(job, "--out", run, "--ray", "local", "--workers", "2", MARK=mark, **holding(run, 3)) as process:
        wait_for(lambda: trials_in(run) >= 3, process)
        process.kill()
        process.wait(timeout=30)
        wait_for(lambda: marked(mark) == [], seconds=60)
    assert_whole_folder(run, 3)
    # And as if the machine had gone down with it: a half line, and a front file that was never written whole.
    with (run / "trials.jsonl").open("ab") as log:
        log.write(b'{"version": 1, "id": "half')
    models = sorted((run / "models").iterdir())
    models[0].write_bytes(b"")
    with (run / "trials.jsonl").open("rb") as log:
        lines = log.read().splitlines()
    (run / "trials.jsonl").write_bytes(b"\n".join(lines))
    # The half line is no trial; the rest goes on.
    half = trials_in(run)
    searched(job, "--out", run, "--resume")
    assert half < TRIALS
    assert trials_of(run) == trials_of(whole)
    for point in read_front(run / "front.json").points:
        assert sha256_hex((run / point.model_path).read_bytes()) == point.sha256


def test_a_full_disk(job: Path, whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=180) as disk:
        run = disk / "run"
        done = autoq("search", job, "--out", run, "--ray", "off", "--quiet")
        message = r"disk is full|No space left"
        assert_one_message(Done(done.returncode, done.stdout, done.stderr), message)
        finished = TrialLog(run / "trials.jsonl").read()
        assert 0 < len(finished) < TRIALS
        assert trials_of(run) == trials_of(whole)[: len(finished)]
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        resume(job, run, whole)


# Who may go on --------------------------------------------------------------------------------------------------------


def test_a_finished_search_may_be_resumed_with_more_trials(
    job: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    done = call(capsys, "search", job, "--out", run, "--ray", "off", "--quiet", "--resume", "--trials", str(TRIALS + 2))
    assert (done.code, done.err) == (0, "")
    assert trials_of(run)[:TRIALS] == trials_of(whole)
    assert trials_in(run) >= TRIALS + 2
    assert len({row[0] for row in trials_of(run)}) == len({row[1] for row in trials_of(run)}) == trials_in(run)


def test_a_run_is_not_overwritten(job: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "trials.jsonl").read_bytes()
    done = call(capsys, "search", job, "--out", whole, "--ray", "off", "--quiet")
    assert_one_message(done, "already holds a search; continue it with --resume, or give another --out")
    assert (whole / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job.update(seed=8), r"seed was 3, is 8\."),
        (lambda job: job.update(objectives=["metric"]), r'objectives was \["metric", "size"\], is \["metric"\]'),
        (lambda job: job.update(constraints={}), r"constraints.max_metric_drop was 0.04, is not given"),
        (lambda job: job["metric"].update(direction="minimize"), r"metric\.direction was maximize, is minimize"),
        (lambda job: job.update(space="int8"), r"space\.schemes was .*, is "),
        (lambda job: job.update(hardware="other.yaml"), r"hardware\..* was .*, is "),
        (lambda job: job["model"].update(path="other.onnx"), r"model was [0-9a-f]{12}, is [0-9a-f]{12}"),
        (lambda job: job["data"].update(batch=64), r"data\.batch was 100, is 64"),
        (lambda job: job["data"]["search"].update(slice=[64, 270]), r"search data was [0-9a-f]{12}, is [0-9a-f]{12}"),
    ],
)
def test_another_job_is_refused_by_what_differs(
    job: Path, whole: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    values = yaml.safe_load(job.read_text())
    change(values)
    folder = job.parent
    (folder / "other.onnx").write_bytes(small_model(seed=5).SerializeToString())
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    profile["cost"]["w8a8"] = 0.25
    (folder / "other.yaml").write_text(yaml.safe_dump(profile))
    before = (whole / "trials.jsonl").read_bytes()
    other = dump_job(folder / "other-job.yaml", values)
    done = call(capsys, "search", other, "--out", whole, "--ray", "off", "--quiet", "--resume")
    assert_one_message(done, rf"holds the search of another job and cannot be resumed with this one: .*{message}")
    assert (whole / "trials.jsonl").read_bytes() == before


def test_two_searches_in_one_folder(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with started(job, "--out", run, "--ray", "off", **holding(run, 1)) as process:
        wait_for(lambda: trials_in(run) >= 1, process)
        done = call(capsys, "search", job, "--out", run, "--ray", "off", "--quiet", "--resume")
        assert_one_message(done, "another search is running in")


def test_a_damaged_log_is_named(job: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trials.jsonl").write_bytes(b"".join([*lines[:2], b'{"version": 1}\n', *lines[2:]]))
    done = call(capsys, "search", job, "--out", run, "--ray", "off", "--quiet", "--resume")
    assert_one_message(done, r"trials\.jsonl, line 3 is damaged: ")
