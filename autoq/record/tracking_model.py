"""A point's ONNX file as a model of MLflow's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoq.core.result import FrontPoint
from autoq.record.summary import policy_summary
from autoq.record.tracking_server import as_default_server

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient


def log_onnx(
    client: MlflowClient,
    uri: str,
    experiment_id: str,
    parent: str,
    run_id: str,
    point: FrontPoint,
    model: bytes | str | os.PathLike[str],
    *,
    input_example: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray] | np.ndarray,
    metadata: Mapping[str, Any] | None,
) -> str:
    """Logs the model of the trial's run ``run_id``, also as an output of ``parent``, unless it is there; its URI."""
    import mlflow.onnx
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import infer_signature

    name = f"front-{point.id}"
    found = client.search_logged_models([experiment_id], f"name = '{name}'")
    for logged in found:
        same = logged.source_run_id == run_id and logged.tags.get("autoq.sha256") == point.sha256
        if same and str(logged.status) == "READY":
            return str(logged.model_uri)
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(os.fspath(model))
    example = dict(input_example)
    entry = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        model_type="onnx",
        params={"policy": policy_summary(point.policy)},
        tags={"autoq.policy": point.id, "autoq.sha256": point.sha256, "autoq.run": parent},
    )
    with as_default_server(uri):
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
    if run_id != parent:
        client.log_outputs(parent, [LoggedModelOutput(entry.model_id, step=0)])
    return f"models:/{entry.model_id}"


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{package}=={version(package)}" for package in ("mlflow", "numpy", "onnx", "onnxruntime")]
