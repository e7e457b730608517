"""A profile whose hardware does not run float32: latencies are against a uniform candidate, from search to export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from autoq.core.result import Latency
from autoq.record.front import read_front
from autoq.record.verify import verify
from autoq.search.store import TrialLog
from tests.cli.calls import call
from tests.small_job import QUIET_SEARCH, own_store, write_job

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    path = write_job(
        folder,
        own_store(folder),
        objectives=["metric", "latency", "size"],
        constraints={"max_metric_drop": 0.5},
        budget={"trials": 6},
    )
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    profile |= {"kind": "npu", "reference": "w8a8@minmax"}
    profile["ops"] = {op: {"allow": ["w8a8*", "w4a8*"]} for op in profile["ops"]}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    return path


def test_search_front_export_and_verify(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    done = call(capsys, "search", job, "--out", run, "--ray", "off", "--quiet")
    assert (done.code, done.err) == (0, "")
    front = read_front(run / "front.json")
    assert (run / "reference.onnx").exists()
    # Float32 is what metrics are against, and has no place among latencies.
    assert front.baseline.latency is None and front.baseline.metric.final is not None
    assert front.points
    for point in front.points:
        assert isinstance(point.latency, Latency) and point.latency.reference == "w8a8@minmax"
        assert 0.3 < point.latency.ratio < 3
        assert all(scheme.activation is not None for _, scheme in point.policy.items_)
    text = json.loads((run / "front.json").read_text())["points"][0]["latency"]
    assert "ratio_to_float32" not in text and text["reference"] == "w8a8@minmax"
    assert all(
        trial.latency is None or trial.latency.reference == "w8a8@minmax"
        for trial in TrialLog(run / "trials.jsonl").read()
    )
    shown = call(capsys, "front", run)
    assert "speed of w8a8@minmax" in shown.out
    assert call(capsys, "export", run, "--select", "knee", "--out", tmp_path / "export").code == 0
    assert verify(tmp_path / "export").ok
    manifest = json.loads((tmp_path / "export" / "manifest.json").read_text())
    assert manifest["runtime"] == {"name": "onnxruntime", "options": {"provider": "CPUExecutionProvider"}}


def test_a_reference_that_is_no_scheme(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = yaml.safe_load((job.parent / "cpu.yaml").read_text()) | {"reference": "int8"}
    (job.parent / "bad.yaml").write_text(yaml.safe_dump(profile))
    values = yaml.safe_load(job.read_text()) | {"hardware": "bad.yaml"}
    (job.parent / "bad_job.yaml").write_text(yaml.safe_dump(values))
    done = call(capsys, "search", job.parent / "bad_job.yaml", "--out", tmp_path / "run", "--ray", "off", "--quiet")
    assert done.code == 2 and "reference: 'int8' is no scheme" in done.err
