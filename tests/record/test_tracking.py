"""Tracking in real stores: an SQLite file, and a server process on loopback that is also killed in mid-search."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest

from autoq.core.policy import Policy
from autoq.core.result import Front, Trial
from autoq.core.scheme import FLOAT32
from autoq.errors import TrackingError
from autoq.record.front import read_front
from autoq.record.tracking import Tracker
from tests.small_job import own_store

# MLflow and the libraries under it warn about themselves; those warnings are not ours to fix.
pytestmark = pytest.mark.filterwarnings(
    "ignore:::mlflow", "ignore:::alembic", "ignore:::pydantic", "ignore:::sqlalchemy"
)


class Server:
    """An MLflow server process with its own store; it can be ended and started again on the same port."""

    def __init__(self, folder: Path, root: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with the project's own settings, but for the port and the store; return when it answers."""
        store = {
            "MLFLOW_PORT": str(self.port),
            "MLFLOW_BACKEND_STORE_URI": own_store(self._folder),
            "MLFLOW_ARTIFACTS_DESTINATION": str(self._folder / "served"),
        }
        command = [sys.executable, "-m", "mlflow", "--env-file", str(self._root / "mlflow/server.env"), "server"]
        with (self._folder / "log").open("wb") as log:
            # A session of its own, so that the server's children end with it.
            self._process = subprocess.Popen(
                command, env=os.environ | store, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
            if self._process.poll() is not None:
                break
        raise AssertionError((self._folder / "log").read_text())

    def end(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), repo_root)
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'a folder' / 'mlflow.db'}"


@pytest.fixture(scope="module", params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    """Both kinds of store."""
    if request.param == "sqlite":
        found: str = request.getfixturevalue("sqlite_uri")
        return found
    server: Server = request.getfixturevalue("server")
    return server.uri


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def children(tracker: Tracker) -> dict[str, Any]:
    """Trial number -> child run, as the store has it."""
    runs = client_of(tracker.uri).search_runs(
        [tracker.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'", max_results=1000
    )
    found = {run.data.tags["autoq.trial"]: run for run in runs}
    assert len(found) == len(runs), "a trial was logged twice"
    return found


def table_of(path: Path) -> dict[str, list[Any]]:
    """Column name -> values of a table as MLflow keeps it."""
    table = json.loads(path.read_text())
    return dict(zip(table["columns"], map(list, zip(*table["data"], strict=True)), strict=True))


def matmul_model(weight: np.ndarray) -> bytes:
    node = oh.make_node("MatMul", ["x", "w"], ["y"])
    graph = oh.make_graph(
        [node],
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def test_a_search_is_in_the_store_as_it_was(
    uri: str, front: Front, trials: list[Trial], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.open(
        uri, experiment="searches", run_name="resnet20", tags={"model.sha256": "ab" * 32, "profile": "cpu"},
        params={"budget": {"trials": 60}, "objectives": ["metric", "latency"]},
    )  # fmt: skip
    on_front = {point.id for point in front.points}
    some = [trial for trial in trials if trial.id in on_front or trial.number in (8, 20)]
    for trial in some:
        tracker.log_trial(trial)
    tracker.log_front(front, trials, tmp_path, {"Versions": {"autoq": "0"}})
    tracker.finish()
    assert tracker.problems == () and tracker.pending == 0
    # Neither MLflow nor its database migrations said a word.
    assert capfd.readouterr() == ("", "")

    client = client_of(uri)
    parent = client.get_run(tracker.run_id)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "resnet20")
    assert parent.data.params == {"budget.trials": "60", "objectives": '["metric", "latency"]'}
    assert parent.data.tags["model.sha256"] == "ab" * 32 and parent.data.tags["autoq.kind"] == "search"
    assert parent.data.metrics["trials_complete"] == 57 and parent.data.metrics["front_points"] == len(front.points)

    runs = children(tracker)
    assert len(runs) == len(some)
    run, trial = runs["8"], trials[8]
    assert trial.latency is not None
    assert run.info.status == "FINISHED"
    assert run.data.params["layer/conv1/Conv"] == str(trial.policy["/conv1/Conv"]) and len(run.data.params) == 21
    assert run.data.metrics["metric"] == trial.metric
    assert run.data.metrics["latency_ratio"] == trial.latency.ratio
    assert run.data.metrics["size_bytes"] == trial.size_bytes and run.data.metrics["seconds.metric"] == 0.9
    assert run.data.tags["autoq.policy"] == trial.id and run.data.tags["autoq.origin"] == trial.origin
    failed = runs["20"]
    assert failed.info.status == "FAILED" and failed.data.tags["autoq.failure"] == "load" and not failed.data.metrics
    marked = [run for run in runs.values() if run.data.tags.get("autoq.front") == "yes"]
    finals = {run.data.tags["autoq.policy"]: run.data.metrics["final_metric"] for run in marked}
    assert finals == {point.id: point.metric.final for point in front.points}
    shipped = {
        run.data.tags["autoq.policy"]: (run.data.metrics["load_ms"], run.data.metrics["zip_bytes"]) for run in marked
    }
    assert shipped == {point.id: (point.load_ms, point.zip_bytes) for point in front.points}

    names = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert names == {"front.html", "front.json", "front.png", "front_table.json", "policies.png", "report.html"}
    folder = Path(client.download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert [point.id for point in read_front(folder / "front.json").points] == [point.id for point in front.points]
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG") and "</html>" in (
        folder / "report.html"
    ).read_text()
    table = table_of(folder / "front_table.json")
    assert "front_table.json" in parent.data.tags["mlflow.loggedArtifacts"]
    assert table["id"] == [front.baseline.id, *(point.id for point in front.points)]
    assert table["policy"][0] == "20×float32" and table["speedup"][0] == 1.0
    assert table["load_ms"][0] == front.baseline.load_ms and table["zip_kb"][0] == front.baseline.zip_bytes / 1e3


def test_files_of_the_run_folder_are_logged_as_they_are(
    sqlite_uri: str, front: Front, trials: list[Trial], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("the report of the run folder")
    tracker = Tracker.open(sqlite_uri, experiment="files", run_name="r")
    tracker.log_front(front, trials[:3], tmp_path)
    logged = client_of(sqlite_uri).download_artifacts(tracker.run_id, "report.html", str(tmp_path / ".."))
    assert Path(logged).read_text() == "the report of the run folder"
    tracker.finish()
    assert tracker.problems == ()


def test_a_front_model_loads_back_and_predicts(uri: str, front: Front, trials: list[Trial]) -> None:
    import mlflow

    point = front.points[0]
    tracker = Tracker.open(uri, experiment="models", run_name="r")
    tracker.log_trial(next(trial for trial in trials if trial.id == point.id))
    model = matmul_model(np.arange(6, dtype=np.float32).reshape(3, 2))
    x = np.ones((4, 3), dtype=np.float32)
    y = x @ np.arange(6, dtype=np.float32).reshape(3, 2)
    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    model_uri = tracker.log_model(point, model, input_example={"x": x}, outputs={"y": y}, metadata={"profile": "cpu"})
    assert tracker.problems == () and model_uri is not None
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
    # Logged before: the same one.
    assert tracker.log_model(point, model, input_example={"x": x}, outputs={"y": y}) == model_uri

    client = client_of(uri)
    (logged,) = client.search_logged_models([tracker.experiment_id])
    assert logged.name == f"front-{point.id}" and logged.tags["autoq.sha256"] == point.sha256
    # The trial's metrics are the model's, and the model is an output of the search.
    assert {metric.key: metric.value for metric in logged.metrics}["size_bytes"] == point.size_bytes
    assert [output.model_id for output in client.get_run(tracker.run_id).outputs.model_outputs] == [logged.model_id]
    mlflow.set_tracking_uri(uri)
    try:
        back = mlflow.onnx.load_model(model_uri)
        session = ort.InferenceSession(back.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], y)
        assert back.SerializeToString() == model
        served = mlflow.pyfunc.load_model(model_uri)
        np.testing.assert_array_equal(served.predict({"x": x})["y"], y)
        signature = served.metadata.signature
        assert [(s.name, s.type.name, s.shape) for s in signature.inputs] == [("x", "float32", (-1, 3))]
        assert [(s.name, s.type.name, s.shape) for s in signature.outputs] == [("y", "float32", (-1, 2))]
        np.testing.assert_array_equal(served.input_example["x"], x)
        requirements = Path(
            mlflow.artifacts.download_artifacts(f"{logged.artifact_location}/requirements.txt")
        ).read_text()
        assert {line.split("==")[0] for line in requirements.split()} == {"mlflow", "numpy", "onnx", "onnxruntime"}
    finally:
        mlflow.set_tracking_uri(before[0])
        if before[1] is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
    tracker.finish()


def test_a_resumed_search_goes_on_in_its_run_and_logs_nothing_twice(
    sqlite_uri: str, front: Front, trials: list[Trial], tmp_path: Path
) -> None:
    first = Tracker.open(sqlite_uri, experiment="resumed", run_name="r", params={"budget": {"trials": 20}})
    trials = trials[:32]
    for trial in trials[:25]:
        first.log_trial(trial)
    first.log_front(front, trials, tmp_path)
    first.finish("KILLED")
    assert client_of(sqlite_uri).get_run(first.run_id).info.status == "KILLED"

    second = Tracker.open(
        sqlite_uri, experiment="resumed", run_name="other", params={"budget": {"trials": 60}, "seed": 1},
        resume_run_id=first.run_id,
    )  # fmt: skip
    assert second.run_id == first.run_id
    assert client_of(sqlite_uri).get_run(first.run_id).info.status == "RUNNING"
    # Trial 20 had lost its worker, or the like, and is tried again: that is another result.
    again = replace(trials[21], number=20)
    for trial in [*trials[:20], again, *trials[21:]]:
        second.log_trial(trial)
    second.log_front(front, trials, tmp_path)
    second.finish()
    assert second.problems == ()
    runs = client_of(sqlite_uri).search_runs(
        [second.experiment_id], f"tags.mlflow.parentRunId = '{first.run_id}'", max_results=1000
    )
    assert len(runs) == len(trials) + 1
    parent = client_of(sqlite_uri).get_run(first.run_id)
    # What a run began with cannot be changed.
    assert parent.data.params == {"budget.trials": "20", "seed": "1"} and parent.info.status == "FINISHED"
    path = client_of(sqlite_uri).download_artifacts(first.run_id, "front_table.json", str(tmp_path))
    table = table_of(Path(path))
    assert len(table["id"]) == 1 + len(front.points)


def test_a_run_the_store_does_not_know_is_begun_anew(sqlite_uri: str, trials: list[Trial]) -> None:
    tracker = Tracker.open(sqlite_uri, experiment="anew", run_name="r", resume_run_id="0" * 32)
    assert tracker.run_id != "0" * 32
    tracker.log_trial(trials[0])
    tracker.finish()
    assert len(children(tracker)) == 1 and tracker.problems == ()


def test_a_half_written_trial_is_completed_on_resume(sqlite_uri: str, trials: list[Trial]) -> None:
    from autoq.record.tracking_fields import trial_tags

    first = Tracker.open(sqlite_uri, experiment="half", run_name="r")
    tags = trial_tags(trials[0]) | {"mlflow.parentRunId": first.run_id}
    half = client_of(sqlite_uri).create_run(first.experiment_id, tags=tags).info.run_id
    second = Tracker.open(sqlite_uri, experiment="half", run_name="r", resume_run_id=first.run_id)
    second.log_trial(trials[0])
    second.finish()
    (run,) = children(second).values()
    assert run.info.run_id == half and run.info.status == "FINISHED" and run.data.metrics["metric"] == trials[0].metric


def test_many_layers_with_strange_names_are_logged(sqlite_uri: str) -> None:
    tracker = Tracker.open(sqlite_uri, experiment="layers", run_name="r" * 9000)
    names = [f"/block[{i}]/Conv (1)" for i in range(250)]
    tracker.log_trial(Trial(number=0, policy=Policy.uniform(names, FLOAT32), origin="x", metric=0.5))
    many = Policy.uniform([f"l{i}" for i in range(1000)], FLOAT32)
    tracker.log_trial(Trial(number=1, policy=many, origin="x", metric=0.5))
    tracker.finish()
    assert tracker.problems == ()
    runs = children(tracker)
    assert len(runs["0"].data.params) == 251 and runs["0"].data.params["layer/block_7_/Conv _1_"] == "float32"
    path = client_of(sqlite_uri).download_artifacts(runs["1"].info.run_id, "policy.json")
    assert json.loads(Path(path).read_text()) == many.to_text()


def test_an_artifact_folder_with_a_space_is_used(sqlite_uri: str, trials: list[Trial], tmp_path: Path) -> None:
    tracker = Tracker.open(sqlite_uri, experiment="placed", run_name="r", artifact_root=tmp_path / "my artifacts")
    tracker.log_trial(Trial(number=0, policy=Policy.uniform([f"l{i}" for i in range(999)], FLOAT32), origin=""))
    tracker.finish()
    assert tracker.problems == () and list((tmp_path / "my artifacts").rglob("policy.json"))


def test_a_server_that_dies_in_mid_search_loses_no_trial(
    server: Server, front: Front, trials: list[Trial], tmp_path: Path
) -> None:
    now = [0.0]
    warnings: list[str] = []
    tracker = Tracker.open(server.uri, experiment="dying", run_name="r", warn=warnings.append, clock=lambda: now[0])
    assert tracker.run_url == f"{server.uri}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"
    for trial in trials[:5]:
        tracker.log_trial(trial)
    server.end()
    for trial in trials[5:10]:
        tracker.log_trial(trial)
    assert tracker.pending == 5 and len(tracker.problems) == 1
    tracker.log_front(front, trials, tmp_path)
    assert tracker.log_model(front.points[0], b"", input_example={}, outputs={}) is None
    tracker.finish("FAILED")
    assert tracker.pending == 5
    assert "5 trials are in the run folder but not in http" in tracker.problems[-1]
    assert len(warnings) == 1 and "the search goes on: trial 5 could not be logged" in warnings[0]

    server.start()
    # While the pause lasts the server is left alone; after it, all that waited is logged.
    tracker.log_trial(trials[10])
    assert tracker.pending == 6
    now[0] += 3600
    tracker.log_trial(trials[11])
    assert tracker.pending == 0
    tracker.finish()
    assert sorted(map(int, children(tracker))) == list(range(12))
    assert client_of(server.uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_trial_that_the_store_refuses_for_good_does_not_hold_up_the_others(
    sqlite_uri: str, trials: list[Trial]
) -> None:
    warnings: list[str] = []
    tracker = Tracker.open(sqlite_uri, experiment="refused", run_name="r", warn=warnings.append)
    tracker.log_trial(replace(trials[0], seconds={"bad\nname": 1.0}))
    tracker.log_trial(trials[1])
    tracker.finish()
    assert tracker.pending == 0 and len(warnings) == 1 and "trial 0 could not be logged" in warnings[0]
    assert children(tracker)["1"].info.status == "FINISHED"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "", "is empty"),
        (lambda folder: "sqlite://", "names no file"),
        (lambda folder: f"sqlite:///{folder}/text.db", "is no SQLite database"),
        (lambda folder: f"sqlite:///{folder}/text.db/mlflow.db", "cannot be opened"),
        (lambda folder: "http://127.0.0.1:9", "http://127.0.0.1:9 cannot be used"),
        (lambda folder: "nothing://x", "nothing://x cannot be used"),
        (lambda folder: "postgresql://me:secret@127.0.0.1:9/db", r"postgresql://\*\*\*@127\.0\.0\.1:9/db cannot be"),
        (lambda folder: "http://me:secret@127.0.0.1:9", r"http://\*\*\*@127\.0\.0\.1:9 cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_at_once(
    make: Callable[[Path], str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("no database at all")
    with pytest.raises(TrackingError, match=message) as caught:
        Tracker.open(make(tmp_path), experiment="e", run_name="r")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_web_server_that_is_no_mlflow_is_refused(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        try:
            for _ in range(100):
                with socket.socket() as knock:
                    if knock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            with pytest.raises(TrackingError, match=f"http://127.0.0.1:{port} cannot be used"):
                Tracker.open(f"http://127.0.0.1:{port}", experiment="e", run_name="r")
        finally:
            other.terminate()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # The user's own limit, in seconds, goes before ours.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="cannot be used"):
            Tracker.open(f"http://127.0.0.1:{silent.getsockname()[1]}", experiment="e", run_name="r")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1" and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_deleted_experiment_is_named(sqlite_uri: str) -> None:
    tracker = Tracker.open(sqlite_uri, experiment="gone", run_name="r")
    client_of(sqlite_uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match=r"the experiment 'gone' in sqlite:.* is deleted"):
        Tracker.open(sqlite_uri, experiment="gone", run_name="r")


def test_the_project_file_launches_a_search(repo_root: Path, tmp_path: Path) -> None:
    from mlflow.projects._project_spec import load_project

    job = tmp_path / "my job.yaml"
    job.touch()
    project = load_project(str(repo_root / "mlflow"))
    values = {"job": str(job), "out": "runs/x", "trials": "7", "tracking_uri": "sqlite:////x.db"}
    command = project.get_entry_point("search").compute_command(values, None)
    assert command == f"autoq search '{job}' --out runs/x --trials 7 --tracking-uri sqlite:////x.db"
    assert (repo_root / "mlflow" / "python_env.yaml").is_file() and project.env_type == "python_env"


def test_the_folder_of_settings_does_not_hide_mlflow(repo_root: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import mlflow; print(mlflow.__file__)"], cwd=repo_root, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert "site-packages" in found
