"""What is recorded when a search begins: ``run.json``, and a run of the tracking server."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoq.model.forms import formed
from autoq.model.placement import Placer
from autoq.model.source import SourceModel
from autoq.pipeline.exchange import Events, TakenOver
from autoq.pipeline.scoring import looks
from autoq.record.manifest import layer_record
from autoq.record.run_folder import RunFolder
from autoq.record.tracking import Tracker
from autoq.runtime.machine import software_versions
from autoq.setting import Setting
from autoq.spec.job import Job

RUNS = Path("runs")
"""Where runs go by default, and with them MLflow's database."""


def run_record(folder: RunFolder, setting: Setting, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """``run.json``; what is ``recorded`` of a search that goes on must be of the same one."""
    job = setting.job
    identity = {
        "model": setting.model.identity,
        "search data": setting.search.fingerprint,
        "final data": setting.final.fingerprint,
        "calibration data": setting.calibration.fingerprint,
        "data.batch": job.data.batch,
        "metric": {name: value for name, value in setting.metric.spec.items() if name != "timeout"},
        "space": setting.space.to_dict(),
        "hardware": setting.profile.to_dict(),
        "objectives": list(job.objectives),
        "constraints": job.to_dict()["constraints"],
        "latency": job.to_dict()["latency"],
        "sampler": job.search.sampler,
        "seed": job.seed,
        "search.fidelity": "steps" if looks(setting) else "full",
        **({"forms": list(setting.forms)} if setting.forms else {}),
        **({"padding mask": setting.padding_mask} if setting.padding_mask else {}),
    }
    if recorded:
        # Runs from before it was part of the identity have it in their job alone.
        before = {"data.batch": recorded.get("job", {}).get("data", {}).get("batch"), "search.fidelity": "full"}
        folder.check_identity(before | recorded.get("identity", {}), identity)
    return {
        "name": job.name,
        "identity": identity,
        "job": job.to_dict(),
        "base_dir": str(job.base_dir),
        "model_sha256": setting.model.sha256,
        "layers": layer_records(setting.model, setting.forms, setting.profile.lowering.integer_products),
        "profile": setting.profile.name,
        "runtime": {"name": setting.profile.runtime.name, "options": setting.profile.runtime.arguments},
        "forms": recorded.get("forms") or [dataclasses.asdict(figure) for figure in setting.form_figures],
        "versions": software_versions(),
        "tracking": recorded.get("tracking", {}),
    }


def layer_records(model: SourceModel, forms: tuple[str, ...], integer_products: bool) -> list[dict[str, Any]]:
    """The layers, and the tensors that each one's result is in, as manifests have them."""
    graph = formed(model.graph, forms)
    placer = Placer(graph, model.layers, integer_products)
    return [
        layer_record(layer, tuple(dict.fromkeys([layer.output, placer.stored(graph.nodes[layer.node])])))
        for layer in model.layers
    ]


def tracking_uri_of(job: Job) -> str:
    """The job's MLflow server, or the default one."""
    uri = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        RUNS.mkdir(exist_ok=True)
        uri = f"sqlite:///{(RUNS / 'mlflow.db').absolute()}"
    return uri


def open_tracker(
    folder: RunFolder, record: dict[str, Any], setting: Setting, taken_over: TakenOver, events: Events
) -> Tracker:
    """The tracking server's run: that of ``record`` where it is gone on with, else a new one."""
    job = setting.job
    uri = tracking_uri_of(job)
    before = record["tracking"]
    versions = {f"autoq.version.{name}": version for name, version in software_versions().items() if version}
    tags = {"autoq.model_sha256": setting.model.sha256, "autoq.profile": setting.profile.name}
    tags |= {"autoq.machine_mismatch": setting.mismatch} if setting.mismatch else {}
    tags |= {"autoq.space": setting.space.name, "autoq.run_folder": str(folder.path.absolute())}
    if taken_over.parent_run is not None:
        tags["mlflow.parentRunId"] = taken_over.parent_run
    return Tracker.open(
        uri,
        experiment=job.tracking.experiment or job.name,
        run_name=folder.path.name,
        tags=tags | versions,
        params=job.to_dict(),
        resume_run_id=before.get("run_id") if before.get("uri") == uri else None,
        warn=events.warn,
    )
