"""A point's model written anew for a runtime that is not the one that scored it, and scored again.

The arithmetic of another form need not be the same to the last bit, so the figures of the search are not its own:
the metric is scored again, on the CPU; latency, memory, time to load and size after zip are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoq.core.identity import sha256_hex
from autoq.errors import RunError, TrialError
from autoq.model.tensorrt import to_tensorrt
from autoq.record.manifest import ONNX_RUNTIME, activation_scales
from autoq.runtime.data import load_split
from autoq.runtime.metric import resolve_metric
from autoq.runtime.ort import input_specs, open_session, run_batches
from autoq.spec.checking import nearest
from autoq.spec.job import load_job

TENSORRT = "tensorrt"

FORMS: Mapping[str, Callable[[bytes], bytes]] = {TENSORRT: to_tensorrt}
"""Name of a form -> from a candidate's bytes to the file's."""

SCORED_ON = "ONNX Runtime on the CPU, with every node as it is written"
"""What scores another form: nothing is fused, so that no kernel of the CPU's decides what it is worth elsewhere."""


def in_form(form: str, model: bytes, manifest: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The file in ``form`` of the point that ``manifest`` describes, and its own manifest.

    Raises :class:`RunError` for a form that is none, or that cannot hold the point, and
    :class:`autoq.errors.AutoqError` where the job's data cannot be read.
    """
    if form not in FORMS:
        raise RunError(f"no form is called {form!r}{nearest(form, FORMS)}; known: {', '.join(FORMS)}")
    try:
        made = FORMS[form](model)
    except TrialError as error:
        raise RunError(f"point {manifest['id']} has no form {form}: {error}") from None
    old = manifest["metric"]
    metric = {**old, **_scores(made, manifest), "scored_on": SCORED_ON, "final_ci95": None, "drop_ci95": None}
    return made, {
        **manifest,
        "model": {
            **manifest["model"],
            "sha256": sha256_hex(made),
            "size_bytes": len(made),
            "zip_bytes": None,
            "form": form,
            "made_from": manifest["model"]["sha256"],
        },
        "scales": activation_scales(made),
        "metric": metric,
        "latency": None,
        "peak_memory_bytes": None,
        "load_ms": None,
        "runtime": {"name": ONNX_RUNTIME["name"], "options": {"optimized": False}},
    }


def _scores(model: bytes, manifest: Mapping[str, Any]) -> dict[str, float]:
    job = load_job(manifest["job"], manifest["base_dir"])
    metric = resolve_metric(job)
    session = open_session(model, optimized=False)
    specs = input_specs(session)
    scores = {}
    for which in ("search", "final"):
        if manifest["metric"][which] is not None:
            split = load_split(job, which, specs)
            scores[which] = metric(run_batches(session, split.inputs, job.data.batch), split.targets)
    return scores
