"""The gauge of a command line, with real programs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from autoq.core.result import Latency
from autoq.errors import ProfileError, TrialError
from autoq.runtime.command import Command
from autoq.runtime.command_run import numbers_at, read_json
from autoq.runtime.gauge import load_gauge
from autoq.runtime.timing import TimingPlan
from tests.cli.calls import Done, ran
from tests.small_job import QUIET_SEARCH, ROOT, own_store, write_job

FEEDS = {"x": np.ones((1, 3, 8, 8), np.float32)}

# Takes as many milliseconds as the file has bytes, and notes that it was called.
PRETEND = """
import json, os, sys
model, log = sys.argv[1:3]
open(log, "a").write(os.path.basename(model) + " ")
size = os.path.getsize(model)
print("a line before")
print(json.dumps({"latency_ms": [size, size + 1, size - 1], "memory": 1000 * size}))
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The reference of 100 bytes, and a candidate of 50."""
    for name, size in (("reference", 100), ("candidate", 50)):
        (tmp_path / f"{name}.onnx").write_bytes(bytes(size))
    (tmp_path / "bench.py").write_text(PRETEND)
    return tmp_path / "reference.onnx", tmp_path / "candidate.onnx"


def program(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def pretend(folder: Path) -> list[str]:
    return [sys.executable, str(folder / "bench.py"), "{model}", str(folder / "log")]


def test_candidate_and_reference_take_turns(files, tmp_path):
    reference, candidate = files
    with Command(reference, FEEDS, run=pretend(tmp_path), rounds=4, peak_memory_bytes="memory", batch=8) as gauge:
        measured = gauge.measure(candidate)
    latency = measured.latency
    assert isinstance(latency, Latency)
    assert latency.ratio == pytest.approx(0.5) and latency.ratio_ci95[0] < 0.5 < latency.ratio_ci95[1]
    assert (latency.median_ms, latency.blocks_ms, latency.baseline_blocks_ms) == (50, (50,) * 4, (100,) * 4)
    assert (latency.batch, latency.reference, latency.by) == (8, "float32", f"the command {Path(sys.executable).name}")
    assert measured.peak_memory_bytes == 50_000
    one, two = "reference.onnx candidate.onnx", "candidate.onnx reference.onnx"
    assert (tmp_path / "log").read_text().split() == f"{one} {two} {one} {two}".split()


def test_many_share_the_reference(files, tmp_path):
    reference, candidate = files
    with Command(reference, FEEDS, run=pretend(tmp_path), final_rounds=2, reference_name="w8a8") as gauge:
        halves, ones = (each.latency for each in gauge.measure_many([candidate, reference]))
        assert gauge.glance([candidate], TimingPlan()) == ([pytest.approx(0.5)], False)
        assert gauge.measure_many([]) == []
    assert (halves.ratio, ones.ratio, halves.reference) == (pytest.approx(0.5), pytest.approx(1.0), "w8a8")
    assert len((tmp_path / "log").read_text().split()) == 2 * 3 + 2


def test_what_is_clearly_too_slow_is_run_once(files, tmp_path):
    reference, candidate = files
    with Command(reference, FEEDS, run=pretend(tmp_path)) as gauge:
        rough = gauge.measure(candidate, idle_above=0.1).latency
    assert len(rough.blocks_ms) == 1 and rough.ratio_ci95 == pytest.approx((0.5 / 1.1, 0.5 * 1.1))


def test_other_tools_json(files, tmp_path):
    """As trtexec's exported times: a list of objects in a file, and one run for both files in microseconds."""
    code = """
import json, sys
own, base, folder = sys.argv[1:]
times = lambda path: [{"computeMs": 1.0, "latencyMs": 1000 * len(open(path, "rb").read())}] * 3
json.dump({"own": times(own), "base": times(base)}, open(folder + "/times.json", "w"))
"""
    reference, candidate = files
    run = program(code, "{model}", "{reference}", "{folder}")
    paths = {"samples": "own.*.latencyMs", "reference_samples": "base.*.latencyMs"}
    with Command(reference, FEEDS, run=run, output="times.json", unit="us", **paths) as gauge:
        latency = gauge.measure(candidate).latency
    assert latency.ms == pytest.approx(50) and latency.ratio == pytest.approx(0.5)
    assert len(latency.blocks_ms) == 5


def test_files_are_sent_and_removed(files, tmp_path):
    reference, candidate = files
    board = tmp_path / "board"
    board.mkdir()
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
    options = {
        "send": program(copy, "{model}", f"{board}/{{model_name}}"),
        "run": [sys.executable, str(tmp_path / "bench.py"), f"{board}/{{model_name}}", str(tmp_path / "log")],
        "remove": program("import os, sys; os.remove(sys.argv[1])", f"{board}/{{model_name}}"),
    }
    with load_gauge("command", reference, FEEDS, options=options) as gauge:
        assert gauge.measure(candidate).latency.ratio == pytest.approx(0.5)
        assert [path.name for path in board.iterdir()] == ["reference.onnx"]


def test_one_failure_is_tried_again(files, tmp_path):
    reference, candidate = files
    code = f"""
import os, sys
if not os.path.exists("{tmp_path}/failed"):
    open("{tmp_path}/failed", "w")
    sys.exit("the board was asleep")
print('{{"latency_ms": 2}}')
"""
    with Command(reference, FEEDS, run=program(code, "{model}"), rounds=2) as gauge:
        assert gauge.measure(candidate).latency.ms == 2
    (tmp_path / "failed").unlink()
    with (
        Command(reference, FEEDS, run=program(code, "{model}"), retries=0) as gauge,
        pytest.raises(TrialError, match="ended with exit code 1; its last words: the board was asleep") as caught,
    ):
        gauge.measure(candidate)
    assert caught.value.reason == "measure"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('12 ms')", "no JSON document; its last line is '12 ms'"),
        ("pass", "no JSON document; it printed nothing"),
        ("""print('{"ms": [1]}')""", "nothing at 'latency_ms'"),
        ("""print('{"latency_ms": [1, -1]}')""", "-1 at 'latency_ms': times must be numbers above 0"),
        ("""print('{"latency_ms": ["fast"]}')""", '"fast" at'),
        ("""print('{"latency_ms": NaN}')""", "NaN at"),
        ("""print('{"latency_ms": []}')""", "nothing at"),
        ("import os; os.abort()", "was killed by SIGABRT; it printed nothing"),
        ("print('{' * 100_000)", "no JSON document"),
    ],
)
def test_nonsense_is_a_failed_trial(files, code, message):
    reference, candidate = files
    with (
        Command(reference, FEEDS, run=program(code, "{model}"), retries=0) as gauge,
        pytest.raises(TrialError, match=message) as caught,
    ):
        gauge.measure(candidate)
    assert caught.value.reason == "measure"


def test_a_program_that_is_missing(files):
    reference, candidate = files
    with (
        Command(reference, FEEDS, run=["no-such-program", "{model}"]) as gauge,
        pytest.raises(TrialError, match="no-such-program cannot be started: No such file or directory"),
    ):
        gauge.measure(candidate)


def test_one_that_hangs_is_stopped_with_all_it_started(files, tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("{tmp_path}/child", "w").write(str(child.pid))
print("waiting for the board", flush=True)
time.sleep(600)
"""
    reference, candidate = files
    start = time.monotonic()
    with (
        Command(reference, FEEDS, run=program(code, "{model}"), timeout_s=2.0) as gauge,
        pytest.raises(TrialError, match=r"longer than 2 s and was stopped; its last words: waiting") as caught,
    ):
        gauge.measure(candidate)
    assert caught.value.reason == "timeout" and time.monotonic() - start < 20
    pid = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("its child lives on")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "ssh board {model}"}, "must be a list of arguments"),
        ({"run": []}, "at least one argument"),
        ({"run": ["bench"]}, "neither run nor send names {model}"),
        ({"run": ["bench", "{modle}"]}, "{modle}, which means nothing; known: {model}"),
        ({"run": ["bench", "{model}", "{reference}"]}, "reference_samples"),
        ({"run": ["bench", "{model}"], "unit": "minutes"}, "one of ns, us, ms, s, not 'minutes'"),
        ({"run": ["bench", "{model}"], "rounds": 1}, "rounds: must be a whole number, 2 or more, not 1"),
        ({"run": ["bench", "{model}"], "timeout_s": 0}, "seconds above 0"),
        ({"run": ["bench", "{model}"], "speed": 1}, "speed"),
        ({}, "run"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ProfileError, match=message):
        load_gauge("command", tmp_path / "model.onnx", FEEDS, options=options)


def test_paths_into_json():
    document = {"a": [{"t": 1}, {"t": 2.5}], "b": {"x": 3, "y": 4}, "c": 5}
    assert numbers_at(document, "a.*.t") == [1, 2.5]
    assert numbers_at(document, "a.1.t") == [2.5]
    assert numbers_at(document, "b.*") == [3, 4]
    assert numbers_at(document, "c") == [5]
    assert numbers_at([1, 2], "") == [1, 2]
    assert numbers_at({"latency (ms)": "0.48"}, "latency (ms)") == [0.48]  # as benchmark_app has it
    assert read_json('noise\n{"c": 5}\nmore noise') == {"c": 5}
    assert read_json(json.dumps(document, indent=1)) == document


EXAMPLE = yaml.safe_load((ROOT / "examples" / "command" / "profile.yaml").read_text())


def search(folder: Path, command: list[str]) -> Done:
    """A short search with the example's profile and another command."""
    options = {"run": command, "rounds": 2, "final_rounds": 2}
    profile = EXAMPLE | {"forms": "none", "measure": {"by": "command", "options": options}}
    job = write_job(folder, hardware="profile.yaml", budget={"trials": 3}, objectives=["metric", "latency"])
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
    return ran("search", job, "--out", folder / "run", "--ray", "off", "--quiet", "--tracking-uri", own_store(folder))


@pytest.mark.filterwarnings(*QUIET_SEARCH)
def test_the_example_searches_and_a_candidate_that_fails_is_a_failed_trial(tmp_path, monkeypatch):
    """The first candidate that is run never works: it is lost, and no other."""
    monkeypatch.chdir(ROOT)
    code = f"""
import os, runpy, sys
name, bad = os.path.basename(sys.argv[1]), "{tmp_path}/bad"
if name != "small.onnx" and not os.path.exists(bad):
    open(bad, "w").write(name)
if os.path.exists(bad) and open(bad).read() == name:
    sys.exit("the board rejects it")
sys.argv = ["time_model.py", *sys.argv[1:]]
runpy.run_path("examples/command/time_model.py", run_name="__main__")
"""
    done = search(tmp_path, program(code, *EXAMPLE["measure"]["options"]["run"][2:], "--runs", "5"))
    assert done.code == 0, done.err
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    by = {point["latency"]["by"] for point in [front["baseline"], *front["points"]]}
    assert by == {f"the command {Path(sys.executable).name}"}
    assert "measured by the command" in (tmp_path / "run" / "report.html").read_text()
    trials = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    failures = [trial["failure"] for trial in trials if trial["failure"]]
    assert len(failures) == 1 and failures[0]["reason"] == "measure"
    assert "ended with exit code 1; its last words: the board rejects it" in failures[0]["message"]


def test_a_reference_that_fails_ends_the_search(tmp_path):
    done = search(tmp_path, program("import sys; sys.exit('no board')", "{model}"))
    assert done.code == 2 and "Traceback" not in done.err
    assert "float32 model cannot be scored or measured" in done.err and "no board" in done.err
