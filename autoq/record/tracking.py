"""Tracking in MLflow: a parent run for a search, a child run for a trial, the front and its models.

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
from autoq.record.tracking_model import log_onnx
from autoq.record.tracking_queue import PatientQueue
from autoq.record.tracking_server import experiment_of, known_run, log_values, new_parent, quiet, reason_of
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
            failed=lambda trial, error: self._remember(f"trial {trial.number} could not be logged: {reason_of(error)}"),
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
            with quiet():
                from mlflow import MlflowClient

                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                experiment_id = experiment_of(client, uri, experiment, root)
                run = known_run(client, resume_run_id, experiment_id) if resume_run_id else None
                run_id = run or new_parent(client, experiment_id, run_name)
                tracker = cls(client, uri, experiment_id, run_id, warn, clock)
                tracker._describe(dict(tags or {}), flat_params(params or {}))
                if run is not None:
                    tracker._recall()
        except TrackingError:
            raise
        except Exception as error:  # MLflow lets through whatever its database driver or HTTP library raises
            raise TrackingError(
                f"the tracking server {without_secrets(uri)} cannot be used: {reason_of(error)}; see that it runs and "
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
        with quiet():
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
            log_values(self._client, self.run_id, {**counts, "wall_s": front.wall_s}, {}, tags)
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
            uri = log_onnx(
                self._client,
                self.uri,
                self.experiment_id,
                self.run_id,
                self._child_of.get(point.id, self.run_id),
                point,
                model,
                input_example=input_example,
                outputs=outputs,
                metadata=metadata,
            )
        return uri

    def log_model_file(self, point: FrontPoint, path: str | os.PathLike[str]) -> None:
        """Log a point's file, of a kind that MLflow has no flavor for, as an artifact of its trial. Never raises."""
        with self._guard(f"the model {point.id} could not be logged"):
            self._client.log_artifact(self._child_of.get(point.id, self.run_id), os.fspath(path), "model")

    def finish(self, status: Status = "FINISHED") -> None:
        """Log what waits, if the server will have it, and end the parent run. Never raises."""
        with quiet():
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
        log_values(self._client, run_id, trial_metrics(trial), trial_params(trial), {})
        if len(trial.policy) > MAX_LAYER_PARAMS:
            self._client.log_dict(run_id, trial.policy.to_text(), "policy.json")
        self._client.set_terminated(run_id, "FAILED" if trial.failure else "FINISHED", end_time=now)
        self._done[key] = self._begun.pop(key)
        if trial.complete:
            self._child_of[trial.id] = run_id

    def _describe(self, tags: dict[str, str], params: dict[str, str]) -> None:
        # A param cannot be changed once written: a resumed run keeps the job it began with.
        known = self._client.get_run(self.run_id).data.params
        new = {key: value for key, value in params.items() if key not in known}
        log_values(self._client, self.run_id, {}, new, tags | {"autoq.kind": "search"})

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
        log_values(self._client, run_id, metrics, {}, tags)

    # Problems ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            # A server may pass large files on to a slow store before it answers.
            with quiet(seconds=60):
                yield
        except Exception as error:  # whatever the client raises: see open
            self._remember(f"{what}: {reason_of(error)}")

    def _remember(self, problem: str) -> None:
        if not self._problems:
            self._warn(f"tracking in {self._shown} has a problem, and the search goes on: {problem}")
        self._problems[problem] = None
