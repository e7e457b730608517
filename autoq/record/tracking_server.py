"""How autoq talks to MLflow's server: quietly, in few requests, and without long waits."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from autoq.errors import TrackingError
from autoq.record.tracking_fields import MAX_BATCH, MAX_TAG, cut
from autoq.record.tracking_store import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
def quiet(seconds: int = 5) -> Iterator[None]:
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


@contextlib.contextmanager
def as_default_server(uri: str) -> Iterator[None]:
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


def reason_of(error: Exception) -> str:
    """What the server or the client says, without secrets."""
    text = without_secrets(" ".join(str(error).split()))
    return cut(text, 300) if text else type(error).__name__


def experiment_of(client: MlflowClient, uri: str, name: str, artifact_root: str | None) -> str:
    """The id of the experiment ``name``, which is made where there is none; raises :class:`TrackingError`."""
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


def new_parent(client: MlflowClient, experiment_id: str, run_name: str) -> str:
    """The id of a run for a whole search."""
    tags = {"mlflow.source.name": "autoq"}
    return str(client.create_run(experiment_id, tags=tags, run_name=cut(run_name, MAX_TAG)).info.run_id)


def known_run(client: MlflowClient, run_id: str, experiment_id: str) -> str | None:
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


def log_values(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str], tags: Mapping[str, str]
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
            client.log_batch(run_id, metrics=first, params=all_params[part], tags=all_tags[part])
