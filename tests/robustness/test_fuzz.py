"""Spoiled job files and models: exit code 0 or 2, one message, never a traceback. Seeded: the same each time."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.calls import call
from tests.robustness.mutations import spoiled_job, spoiled_model
from tests.small_job import QUIET_SEARCH, environment, job_values, small_model, write_job

pytestmark = pytest.mark.filterwarnings(*QUIET_SEARCH)

JOBS = int(os.environ.get("AUTOQ_FUZZ_JOBS", "300"))
MODELS = int(os.environ.get("AUTOQ_FUZZ_MODELS", "400"))
SEED = int(os.environ.get("AUTOQ_FUZZ_SEED", "0"))


def test_spoiled_job_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.py").write_text("def f(outputs, targets): return 0.5\n")
    # A store that cannot be: a job that is good all the same ends there, before it becomes a search.
    values = job_values("nonsense://store", metric={"name": "accuracy", "kwargs": {"normalize": True}})
    values["data"]["inputs"] = {"x": {"from": "x", "scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}}
    rng = random.Random(SEED)
    reached = 0
    for number in range(JOBS):
        text = spoiled_job(values, rng)
        (tmp_path / "job.yaml").write_bytes(text)
        done = call(capsys, "search", "job.yaml", "--out", "run", "--ray", "off", "--quiet", "--tracking-uri", "no://x")
        problem = (
            done.code != 2
            or "Traceback" in done.err
            or "internal error" in done.err
            or not done.err.strip()
            or (tmp_path / "run").exists()
        )
        assert not problem, f"job {number} of seed {SEED}: {done.code}\n{done.err}\n{text!r}"
        reached += "no://" in done.err
    # The fuzzer is worth something only if jobs fail in many places, and some do not fail at all.
    assert 0 < reached < JOBS / 2


def test_spoiled_models(tmp_path: Path) -> None:
    base = Path(tempfile.mkdtemp(prefix="autoq-fuzz-", dir=tmp_path))
    write_job(base / "job")
    folder = base / "models"
    folder.mkdir()
    rng = random.Random(SEED)
    model = small_model()
    for number in range(MODELS):
        (folder / f"{number:05d}.onnx").write_bytes(spoiled_model(model, rng))
    command = [sys.executable, "-m", "tests.robustness.layers_batch", str(folder), str(base / "job" / "cpu.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=240)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    results = [line for line in lines if "code" in line]
    last = lines[-1].get("start") or lines[-1].get("name") if lines else "none"
    assert done.returncode == 0, f"seed {SEED}: the process died ({done.returncode}) at {last}: {done.stderr[-2000:]}"
    assert len(results) == MODELS
    bad = [
        f"{line['name']} -> {line['code']}: {line['err'][:600]}"
        for line in results
        if line["code"] not in (0, 2)
        or "Traceback" in line["err"]
        or (line["code"] == 2 and line["err"].count("autoq: ") != 1)
        or (line["code"] == 0 and line["err"])
    ]
    if bad and os.environ.get("AUTOQ_FUZZ_KEEP"):
        shutil.copytree(folder, os.environ["AUTOQ_FUZZ_KEEP"], dirs_exist_ok=True)
    assert not bad, f"seed {SEED}: {len(bad)} of {MODELS}\n" + "\n".join(bad[:20])
    codes = {code: sum(line["code"] == code for line in results) for code in (0, 2)}
    assert min(codes.values()) > MODELS / 20, codes
