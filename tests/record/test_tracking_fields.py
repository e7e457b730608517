"""What goes to the tracking server, by hand and against the server's own validation."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autoq.core.policy import Policy
from autoq.core.result import Failure, Trial
from autoq.core.scheme import FLOAT32
from autoq.record.tracking_fields import (
    MAX_LAYER_PARAMS,
    clean_keys,
    flat_params,
    trial_key,
    trial_metrics,
    trial_params,
    trial_tags,
)


@given(
    names=st.lists(
        st.text(max_size=300) | st.sampled_from(["a//b", "/a", "..", "a/../b", "", "a[0]", "a(0)"]), unique=True
    )
)
def test_any_names_become_distinct_keys_that_the_server_takes(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_param

    keys = clean_keys(names)
    assert list(keys) == names
    assert len(set(keys.values())) == len(names)
    for key in keys.values():
        _validate_param(key, "value")


def test_plain_layer_names_stay_readable() -> None:
    assert clean_keys(["layer//conv1/Conv", "layer/fc", "layer/fc:1"]) == {
        "layer//conv1/Conv": "layer/conv1/Conv",
        "layer/fc": "layer/fc",
        "layer/fc:1": "layer/fc:1",
    }


def test_a_job_is_flattened() -> None:
    job = {"model": {"path": "m.onnx"}, "objectives": ["metric", "size"], "seed": 0, "time": None, "empty": {}}
    assert flat_params(job) == {
        "model.path": "m.onnx",
        "objectives": '["metric", "size"]',
        "seed": "0",
        "time": "none",
        "empty": "{}",
    }
    assert len(flat_params({"long": "x" * 10_000})["long"]) == 6000


def test_a_trial_shows_what_was_measured_and_nothing_else(trials: list[Trial]) -> None:
    trial = trials[0]
    assert trial.latency is not None
    params = trial_params(trial)
    assert params["policy"] == "20×w8a8" and params["layer/conv1/Conv"] == "w8a8@minmax" and len(params) == 21
    metrics = trial_metrics(trial)
    assert metrics["latency_ratio"] == trial.latency.ratio and metrics["seconds.build"] == 0.012
    assert metrics["latency_modelled"] == 0.6
    assert trial_metrics(replace(trial, latency=None, latency_modelled=None, metric=None)).keys() == {
        "size_bytes", "peak_memory_bytes", "weight_bits_mean",
        "seconds.build", "seconds.load", "seconds.metric", "seconds.measure",
    }  # fmt: skip


def test_a_failure_is_told_by_tags_and_makes_another_key(trials: list[Trial]) -> None:
    failed = Trial(
        number=7, policy=trials[0].policy, origin="x", failure=Failure(reason="worker_lost", message="m" * 9000)
    )
    tags = trial_tags(failed)
    assert tags["autoq.failure"] == "worker_lost" and len(tags["autoq.failure_message"]) == 8000
    # A trial that is tried again after its worker was lost is another run.
    assert trial_key(tags) != trial_key(trial_tags(replace(failed, failure=None)))
    assert trial_metrics(failed) == {}


def test_too_many_layers_are_left_to_an_artifact() -> None:
    policy = Policy.uniform([f"l{i}" for i in range(MAX_LAYER_PARAMS + 1)], FLOAT32)
    assert trial_params(Trial(number=0, policy=policy, origin="")) == {"policy": f"{MAX_LAYER_PARAMS + 1}×float32"}
