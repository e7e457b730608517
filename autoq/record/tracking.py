"""Tracking in MLflow: a parent run for a search, a child run for a trial, the front and its models. MLflow's only home.

The run folder is the truth and tracking is a copy of it: once a search runs, nothing that goes wrong here ends it.
A trial that could not be logged waits, is tried again later, and is logged on ``--resume`` at the latest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoq.core.result import Estimate, Front, FrontPoint, Trial
from autoq.errors import TrackingError
from autoq.record.figures import drop_of
from autoq.record.front_files import collect_front_files, flat_table
from autoq.record.summary import policy_summary
from autoq.record.tracking_fields import (
    MAX_BATCH,
    MAX_LAYER_PARAMS,
    MAX_TAG,
    cut,
    flat_params,
    polish_metrics,
    trial_key,
    trial_metrics,
    trial_params,
    trial_tags,
)
from autoq.record.tracking_queue import PatientQueue
from autoq.record.tracking_store import check_store, default_artifact_root, without_secrets

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

_log = logging.getLogger("autoq.tracking")

# Answers that another attempt would get again: the trial is given up, the queue behind it goes on.
_LASTING_ERRORS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"})
_TABLE = "front_table.json"

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """One search in the tracking server. Made by :meth:`open`; used by one thread.

    ``problems`` has every error since, each once; ``pending`` counts the trials that wait for the server.
    """

    def __init__(
        self, client: MlflowClient, uri: str, experiment_id: str, run_id: str, warn: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.uri = uri
        self._shown = without_secrets(uri)  # as messages name it
        self.experiment_id = experiment_id
        self.run_id = run_id
        self._client = client
        self._warn = warn
        self._problems: dict[str, None] = {}
        self._queue = PatientQueue(
            self._write_trial,
            lasting=lambda error: getattr(error, "error_code", None) in _LASTING_ERRORS,
            failed=lambda trial, error: self._remember(f"trial {trial.number} could not be logged: {_reason(error)}"),
            clock=clock,
        )
        self._done: dict[tuple[str, str, str], str] = {}  # trial key -> child run id, complete
        self._begun: dict[tuple[str, str, str], str] = {}  # trial key -> child run id, half written
        self._child_of: dict[str, str] = {}  # policy id -> child run id

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        experiment: str,
        run_name: str,
        artifact_root: str | os.PathLike[str] | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        resume_run_id: str | None = None,
        warn: Callable[[str], None] = _log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> Tracker:
        """Connect to ``uri`` and begin a parent run, or go on with ``resume_run_id``.

        ``uri`` is as MLflow takes it: ``sqlite:////abs/mlflow.db``, ``http://host:5000``, …. A new experiment keeps its
        artifacts under the folder ``artifact_root``; without one that is ``mlartifacts`` beside an SQLite file, and the
        server's own choice elsewhere. ``params`` is the job, nested or flat. A run to resume that the server does not
        know is begun anew. ``warn`` is told the first problem after opening, once.
        Raises :class:`~autoq.errors.TrackingError`, within seconds, when the server cannot be reached or written.
        """
        check_store(uri)
        root = Path(artifact_root).absolute().as_uri() if artifact_root is not None else default_artifact_root(uri)
        try:
            with _quiet():
                from mlflow import MlflowClient

                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                experiment_id = _experiment_id(client, uri, experiment, root)
                run = _known_run(client, resume_run_id, experiment_id) if resume_run_id else None
                run_id = run or _new_parent(client, experiment_id, run_name)
                tracker = cls(client, uri, experiment_id, run_id, warn, clock)
                tracker._describe(dict(tags or {}), flat_params(params or {}))
                if run is not None:
                    tracker._recall()
        except TrackingError:
            raise
        except Exception as error:  # MLflow lets through whatever its database driver or HTTP library raises
            raise TrackingError(
                f"the tracking server {without_secrets(uri)} cannot be used: {_reason(error)}; see that it runs and "
                "may be written, or give another --tracking-uri"
            ) from error
        return tracker

    @property
    def problems(self) -> tuple[str, ...]:
        """Every error since opening, each once, the first first."""
        return tuple(self._problems)

    @property
    def pending(self) -> int:
        """How many trials wait to be logged."""
        return len(self._queue)

    @property
    def run_url(self) -> str | None:
        """Where a browser shows the parent run, for a server with a web address."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def log_trial(self, trial: Trial) -> None:
        """Log a trial as a child run, unless it is there already. Never raises: what fails waits for the next call."""
        with _quiet():
            self._queue.put(trial)

    def log_front(
        self, front: Front, trials: Sequence[Trial], run_dir: str | os.PathLike[str],
        extras: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:  # fmt: skip
        """Log the front to the parent run: a table, pictures, the interactive plot, the report and ``front.json``.

        Files of these names in ``run_dir`` are logged as they are; the others are made. The trials on the front get
        the metrics ``final_metric``, ``final_drop``, ``final_latency_ratio``, ``load_ms``, ``zip_bytes`` and the tag
        ``autoq.front``. Never raises.
        """
        with self._guard("the front could not be logged"), tempfile.TemporaryDirectory() as folder:
            collect_front_files(front, trials, Path(run_dir), Path(folder), extras or {})
            self._client.log_artifacts(self.run_id, folder)
            self._log_table(front)
            counts = {"trials_complete": front.trials_complete, "trials_failed": front.trials_failed}
            counts |= {"trials_pruned": front.trials_pruned, "front_points": len(front.points)}
            tags = {"autoq.final": str(front.final), "autoq.stop_reason": front.stop_reason}
            self._log_values(self.run_id, {**counts, "wall_s": front.wall_s}, {}, tags)
            for point in front.points:
                self._log_point(front, point, "yes")
            for dropped in front.dropped:
                self._log_point(front, dropped.point, "dropped", why=dropped.why)

    def log_model(
        self,
        point: FrontPoint,
        model: bytes | str | os.PathLike[str],
        *,
        input_example: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray] | np.ndarray,
        metadata: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Log a point's ONNX file as the MLflow model ``front-<id>``, with signature and input example.

        ``model`` is the file's bytes or its path; ``input_example`` has a few rows for each graph input, ``outputs``
        what the model gives for them. The model belongs to the trial's run and is an output of the parent run too.
        Returns its URI (``models:/...``), also when it was logged before; ``None`` when it could not be (never raises).
        """
        uri = None
        with self._guard(f"the model {point.id} could not be logged"):
            uri = self._write_model(point, model, input_example, outputs, metadata)
        return uri

    def log_model_file(self, point: FrontPoint, path: str | os.PathLike[str]) -> None:
        """Log a point's file, of a kind that MLflow has no flavor for, as an artifact of its trial. Never raises."""
        with self._guard(f"the model {point.id} could not be logged"):
            self._client.log_artifact(self._child_of.get(point.id, self.run_id), os.fspath(path), "model")

    def finish(self, status: Status = "FINISHED") -> None:
        """Log what waits, if the server will have it, and end the parent run. Never raises."""
        with _quiet():
            self._queue.flush()
        with self._guard("the run could not be ended"):
            self._client.set_terminated(self.run_id, status)
        if self._queue:
            waiting = f"{len(self._queue)} trials are in the run folder but not in {self._shown}"
            self._remember(f"{waiting}; --resume logs them")

    # Writing -------------------------------------------------------------------------------------------------------

    def _write_trial(self, trial: Trial) -> None:
        tags = trial_tags(trial)
        key = trial_key(tags)
        if key in self._done:
            return
        now = int(time.time() * 1000)
        run_id = self._begun.get(key)
        if run_id is None:
            name = cut(f"{trial.number} {policy_summary(trial.policy)}", MAX_TAG)
            tags |= {"mlflow.parentRunId": self.run_id, "mlflow.source.name": "autoq"}
            start = now - int(1000 * sum(trial.seconds.values()))
            run_id = self._client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name).info.run_id
            # Should a later request fail, the next attempt goes on with this run.
            self._begun[key] = run_id
        self._log_values(run_id, trial_metrics(trial), trial_params(trial), {})
        if len(trial.policy) > MAX_LAYER_PARAMS:
            self._client.log_dict(run_id, trial.policy.to_text(), "policy.json")
        self._client.set_terminated(run_id, "FAILED" if trial.failure else "FINISHED", end_time=now)
        self._done[key] = self._begun.pop(key)
        if trial.complete:
            self._child_of[trial.id] = run_id

    def _log_values(
        self, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """All of it in as few requests as the server's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        all_params = [Param(key, value) for key, value in params.items()]
        all_tags = [RunTag(key, cut(str(value), MAX_TAG)) for key, value in tags.items()]
        all_metrics = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
        # 1,000 values are a request's limit, and a model's metrics are far fewer: they go with the first one.
        for start in range(0, max(len(all_params), len(all_tags), 1), MAX_BATCH):
            part = slice(start, start + MAX_BATCH)
            first = all_metrics if start == 0 else []
            if first or all_params[part] or all_tags[part]:
                self._client.log_batch(run_id, metrics=first, params=all_params[part], tags=all_tags[part])

    def _describe(self, tags: dict[str, str], params: dict[str, str]) -> None:
        # A param cannot be changed once written: a resumed run keeps the job it began with.
        known = self._client.get_run(self.run_id).data.params
        new = {key: value for key, value in params.items() if key not in known}
        self._log_values(self.run_id, {}, new, tags | {"autoq.kind": "search"})

    def _recall(self) -> None:
        """Learn from the server which trials it has."""
        token = None
        while True:
            runs = self._client.search_runs(
                [self.experiment_id], f"tags.mlflow.parentRunId = '{self.run_id}'", page_token=token, max_results=500
            )
            for run in runs:
                key = trial_key(run.data.tags)
                half = run.info.status == "RUNNING"
                (self._begun if half else self._done)[key] = run.info.run_id
                if not half and run.info.status == "FINISHED":
                    self._child_of[key[1]] = run.info.run_id
            token = runs.token
            if not token:
                return

    def _log_table(self, front: Front) -> None:
        import pandas as pd

        frame = pd.DataFrame(flat_table(front))
        # log_table appends to a table that is there; a resumed search replaces it.
        if any(file.path == _TABLE for file in self._client.list_artifacts(self.run_id)):
            self._client.log_text(self.run_id, frame.to_json(orient="split", index=False), _TABLE)
        else:
            self._client.log_table(self.run_id, frame, _TABLE)

    def _log_point(self, front: Front, point: FrontPoint, on_front: str, why: str = "") -> None:
        run_id = self._child_of.get(point.id)
        if run_id is None:
            return
        metrics = {}
        if point.metric.final is not None:
            metrics = {"final_metric": point.metric.final, "final_drop": drop_of(front, point)}
        if front.final and point.latency is not None:
            estimated = isinstance(point.latency, Estimate)
            metrics["latency_estimated_ratio" if estimated else "final_latency_ratio"] = point.latency.ratio
        tags = {"autoq.front": on_front} | ({"autoq.dropped": why} if why else {})
        metrics |= {} if point.load_ms is None else {"load_ms": point.load_ms}
        metrics |= {} if point.zip_bytes is None else {"zip_bytes": float(point.zip_bytes)}
        if point.polish is not None:
            values, tags["autoq.polish"] = polish_metrics(point.polish), point.polish.kind
            metrics |= values
        self._log_values(run_id, metrics, {}, tags)

    def _write_model(
        self,
        point: FrontPoint,
        model: bytes | str | os.PathLike[str],
        input_example: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray] | np.ndarray,
        metadata: Mapping[str, Any] | None,
    ) -> str:
        import mlflow.onnx
        import onnx
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import infer_signature

        name = f"front-{point.id}"
        found = self._client.search_logged_models([self.experiment_id], f"name = '{name}'")
        run_id = self._child_of.get(point.id, self.run_id)
        for logged in found:
            same = logged.source_run_id == run_id and logged.tags.get("autoq.sha256") == point.sha256
            if same and str(logged.status) == "READY":
                return str(logged.model_uri)
        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(os.fspath(model))
        example = dict(input_example)
        entry = self._client.create_logged_model(
            self.experiment_id,
            name=name,
            source_run_id=run_id,
            model_type="onnx",
            params={"policy": policy_summary(point.policy)},
            tags={"autoq.policy": point.id, "autoq.sha256": point.sha256, "autoq.run": self.run_id},
        )
        with _as_default_server(self.uri):
            mlflow.onnx.log_model(
                proto,
                name=name,
                model_id=entry.model_id,
                run_id=run_id,
                signature=infer_signature(example, dict(outputs) if isinstance(outputs, Mapping) else outputs),
                input_example=example,
                # Given outright: to find them out MLflow would start a process and load the model in it.
                pip_requirements=_requirements(),
                onnx_execution_providers=["CPUExecutionProvider"],
                # One file, as it was scored.
                save_as_external_data=False,
                metadata={"autoq_policy": point.policy.to_text(), "sha256": point.sha256, **(metadata or {})},
            )
        if run_id != self.run_id:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(entry.model_id, step=0)])
        return f"models:/{entry.model_id}"

    # Problems ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            # A server may pass large files on to a slow store before it answers.
            with _quiet(seconds=60):
                yield
        except Exception as error:  # whatever the client raises: see open
            self._remember(f"{what}: {_reason(error)}")

    def _remember(self, problem: str) -> None:
        if not self._problems:
            self._warn(f"tracking in {self._shown} has a problem, and the search goes on: {problem}")
        self._problems[problem] = None


def _experiment_id(client: MlflowClient, uri: str, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # The user interface opens an experiment of this kind on its runs and not on its traces.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=artifact_root, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another search was quicker
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        where = without_secrets(uri)
        raise TrackingError(f"the experiment {name!r} in {where} is deleted; restore it or use another name")
    return str(experiment.experiment_id)


def _new_parent(client: MlflowClient, experiment_id: str, run_name: str) -> str:
    tags = {"mlflow.source.name": "autoq"}
    return str(client.create_run(experiment_id, tags=tags, run_name=cut(run_name, MAX_TAG)).info.run_id)


def _known_run(client: MlflowClient, run_id: str, experiment_id: str) -> str | None:
    """``run_id``, running again; ``None`` when this server or experiment has no such run."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    if run.info.experiment_id != experiment_id or run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{package}=={version(package)}" for package in ("mlflow", "numpy", "onnx", "onnxruntime")]


def _reason(error: Exception) -> str:
    text = without_secrets(" ".join(str(error).split()))
    return cut(text, 300) if text else type(error).__name__


@contextlib.contextmanager
def _as_default_server(uri: str) -> Iterator[None]:
    """MLflow's log_model knows only the process-wide server: set it, and put back the user's own."""
    import mlflow

    before, in_environment = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if in_environment is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = in_environment


# The user's own settings win. By default MLflow would retry a dead server for minutes.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextlib.contextmanager
def _quiet(seconds: int = 5) -> Iterator[None]:
    """Settings and log levels around a call of MLflow; both are put back. A request may take ``seconds``."""
    # Telemetry runs in a thread of its own, so these two hold for the whole process.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    settings = _SETTINGS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    import mlflow  # noqa: F401  (it sets its own log levels when first imported, before ours)

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "git", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
