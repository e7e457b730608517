"""What a trial looks like in the tracking server: pure functions from values to params, metrics and tags."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from autoq.core.result import Estimate, Polish, Trial
from autoq.record.summary import policy_summary

# Limits of the tracking server's data model (MLflow 3: mlflow/utils/validation.py).
MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
MAX_BATCH = 100
# With more layers than this a run would need several requests; the policy is then one artifact.
MAX_LAYER_PARAMS = 3 * MAX_BATCH

_FORBIDDEN = re.compile(r"[^/\w.\- :]")


def clean_keys(names: Iterable[str]) -> dict[str, str]:
    """Name -> a key that the server accepts, unique among them.

    A key has letters, digits and ``_ - . space : /`` only, is a relative path without empty, ``.`` or ``..`` parts,
    and has 250 characters at most (a longer one ends in a digest of the whole).
    """
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        parts = [part for part in _FORBIDDEN.sub("_", name).split("/") if part not in ("", ".", "..")]
        key = "/".join(parts) or "unnamed"
        if len(key) > MAX_KEY:
            key = _with_digest(key[: MAX_KEY - 9], name)
        if key in taken:
            key = _with_digest(key[: MAX_KEY - 9], name)
        taken.add(key)
        keys[name] = key
    return keys


def flat_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings as ``outer.inner`` -> text; lists as JSON; long values are cut."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        else:
            flat[prefix] = cut(_text(value), MAX_PARAM)

    walk("", values)
    keys = clean_keys(flat)
    return {keys[name]: text for name, text in flat.items()}


def trial_params(trial: Trial) -> dict[str, str]:
    """The policy in a readable form: ``policy`` (how many layers of which kind) and one ``layer/NAME`` for each layer.

    The layers are left out where there are more than :data:`MAX_LAYER_PARAMS`.
    """
    params = {"policy": cut(policy_summary(trial.policy), MAX_PARAM)}
    if len(trial.policy) <= MAX_LAYER_PARAMS:
        schemes = {f"layer/{layer}": text for layer, text in trial.policy.to_text().items()}
        keys = clean_keys(schemes)
        params.update({keys[layer]: text for layer, text in schemes.items()})
    return params


def trial_metrics(trial: Trial) -> dict[str, float]:
    """What was measured, by name; what was not measured has no entry.

    ``latency_modelled``, ``latency_estimated_ratio`` with what else a model of the hardware says
    (``estimated.cycles``) and, of a pruned trial, ``pruned.metric`` and ``pruned.bound`` are estimates.
    """
    latency = trial.latency
    interval = latency.interval if latency else None
    kind = "latency_estimated_" if isinstance(latency, Estimate) else "latency_"
    values = {
        "metric": trial.metric,
        f"{kind}ratio": latency.ratio if latency else None,
        f"{kind}ratio_low": interval[0] if interval else None,
        f"{kind}ratio_high": interval[1] if interval else None,
        f"{kind}ms": latency.ms if latency else None,
        "latency_modelled": trial.latency_modelled,
        "size_bytes": trial.size_bytes,
        "peak_memory_bytes": trial.peak_memory_bytes,
        "weight_bits_mean": trial.weight_bits_mean,
    }
    if trial.pruned is not None:
        values |= {"pruned.rows": trial.pruned.rows, "pruned.metric": trial.pruned.metric}
        values |= {"pruned.bound": trial.pruned.bound}
    if isinstance(latency, Estimate):
        values |= {f"estimated.{name}": value for name, value in latency.figures.items()}
    values |= {f"seconds.{step}": seconds for step, seconds in trial.seconds.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def polish_metrics(polish: Polish) -> dict[str, float]:
    """What a polished point was before, and the distances to float32 that decided."""
    before = polish.before
    values = {
        "polish.before.metric": before.metric.search,
        "polish.before.final_metric": before.metric.final,
        "polish.before.final_latency_ratio": before.latency.ratio if before.latency else None,
        "polish.held_out_before": polish.held_out[0],
        "polish.held_out_after": polish.held_out[1],
        "seconds.polish": polish.seconds,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def trial_tags(trial: Trial) -> dict[str, str]:
    """Who proposed it, which policy it is, and why it failed."""
    tags = {
        "autoq.kind": "trial",
        "autoq.trial": str(trial.number),
        "autoq.policy": trial.id,
        "autoq.origin": cut(trial.origin, MAX_TAG),
    }
    if trial.sha256 is not None:
        tags["autoq.sha256"] = trial.sha256
    if trial.failure is not None:
        tags["autoq.failure"] = trial.failure.reason
        tags["autoq.failure_message"] = cut(trial.failure.message, MAX_TAG)
    if trial.pruned is not None:
        tags["autoq.pruned"] = cut(trial.pruned.why, MAX_TAG)
    return tags


def trial_key(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """What makes a logged trial the same one: its number, its policy and how it ended."""
    return tags.get("autoq.trial", ""), tags.get("autoq.policy", ""), tags.get("autoq.failure", "")


def cut(text: str, length: int) -> str:
    """``text``, ending in ``…`` when it had more than ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _with_digest(key: str, name: str) -> str:
    return f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
