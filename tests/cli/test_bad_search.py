"""`autoq search` on bad input: one clear message, exit code 2, and nothing left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from autoq.record.front import read_front
from autoq.search.store import TrialLog
from tests.cli.calls import Done, assert_one_message, call
from tests.small_job import QUIET_SEARCH, ROWS, autoq, dump_job, own_store, small_data, small_model, write_job

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_job(folder, own_store(folder))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the job's files, which a test may spoil; also the current folder."""
    shutil.copytree(original, tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    return tmp_path / "job"


def search(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> Done:
    return call(capsys, "search", folder / "job.yaml", "--out", folder / "run", "--ray", "off", "--quiet", *more)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, message: str, *more: str) -> None:
    assert_one_message(search(capsys, folder, *more), message)
    # No search began: the name is free for the next attempt.
    assert not (folder / "run").exists()


def respell(folder: Path, change: Change) -> None:
    values = yaml.safe_load((folder / "job.yaml").read_text())
    change(values)
    dump_job(folder / "job.yaml", values)


# The job file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"job\.yaml: no such job file"),
        ("", r"job\.yaml.*is empty"),
        ("just words", r"job\.yaml"),
        ("- a\n- list\n", r"job\.yaml"),
        ("version: 1\nname: [\n", r"job\.yaml.*line"),
        ("version: 1\nversion: 1\n", r"job\.yaml.*version"),
        ("a: &a [*a, *a]\n", r"job\.yaml"),
        ("\x00\x01", r"job\.yaml"),
        ("!!python/object/apply:os.system ['true']", r"job\.yaml"),
    ],
)
def test_a_job_file_that_is_none(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    if text is None:
        (folder / "job.yaml").unlink()
    else:
        (folder / "job.yaml").write_text(text)
    refused(capsys, folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job.pop("model"), r"job\.yaml: model: missing; for example model: "),
        (lambda job: job.pop("data"), r"job\.yaml: data: missing; for example data: "),
        (lambda job: job.pop("metric"), r"job\.yaml: metric: missing; for example metric: "),
        (lambda job: job.pop("version"), r"job\.yaml: version: missing; for example version: "),
        (lambda job: job["data"].pop("final"), r"data\.final: missing"),
        (lambda job: job["data"].pop("target"), r"give data\.target"),
        (lambda job: job.update(modle={"path": "x"}), r"modle.*model"),
        (lambda job: job.update(version=2), r"version"),
        (lambda job: job.update(seed="three"), r"seed"),
        (lambda job: job.update(objectives=["speed"]), r"objectives"),
        (lambda job: job.update(objectives=[]), r"objectives"),
        (lambda job: job.update(constraints={"max_metric_drop": -1}), r"max_metric_drop"),
        (lambda job: job["budget"].update(trials=0), r"budget\.trials"),
        (lambda job: job["budget"].update(time="soon"), r"budget\.time"),
        (lambda job: job.update(name="a/b"), r"name"),
        (lambda job: job.update(hardware="cpu-x86-onnxruntim"), r"unknown hardware profile.*cpu-x86-onnxruntime"),
        (lambda job: job.update(space="defualt"), r"unknown search space.*default"),
        (lambda job: job.update(space="missing.yaml"), r"missing\.yaml.*no such search space"),
        (lambda job: job["metric"].update(name="acuracy"), r"acuracy.*accuracy"),
        (lambda job: job["metric"].update(timeout="1m"), r"timeout goes with function"),
        (
            lambda job: job.update(metric={"function": "m.py:f", "timeout": "soon"}),
            r"metric\.timeout: 'soon' is no time",
        ),
        (lambda job: job.update(metric={"function": "metric.py:f"}), r"metric\.py: no such file"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str) -> None:
    respell(folder, change)
    refused(capsys, folder, message)


# The model ------------------------------------------------------------------------------------------------------------


def _outside(path: Path) -> None:
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    path.write_bytes(model.SerializeToString())


def _external_missing(path: Path) -> None:
    model = small_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    path.write_bytes(model.SerializeToString())


def _old(path: Path) -> None:
    model = small_model()
    model.opset_import[0].version = 9
    path.write_bytes(model.SerializeToString())


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _no_weights(path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _unknown_operator(path: Path) -> None:
    model = small_model()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    node = model.graph.node[-1]
    node.op_type, node.domain = "Secret", "com.example"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"small\.onnx does not exist; check model\.path"),
        (lambda path: path.write_bytes(b""), r"small\.onnx is empty"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + os.urandom(500)), r"small\.onnx.*(no ONNX model|no ONNX graph)"),
        (lambda path: path.write_text("hello"), r"small\.onnx.*(no ONNX model|no ONNX graph)"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), r"small\.onnx.*(truncated|not a valid)"),
        (_folder, r"small\.onnx cannot be read: Is a directory"),
        (_outside, r"names external data outside the model's folder"),
        (_external_missing, r"needs the external file 'weights\.bin', which is missing"),
        (_old, r"has opset 9; autoq needs 13 or later"),
        (_no_weights, r"no layer|nothing to (quantize|search)"),
        (_unknown_operator, r"does not run.*Secret|Secret"),
    ],
)
def test_a_model_that_cannot_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder / "small.onnx")
    refused(capsys, folder, message)


# The data -------------------------------------------------------------------------------------------------------------


def _data(**changes: Any) -> Callable[[Path], None]:
    """Writes the data with these arrays in place of its own; ``None`` leaves one out."""

    def write(path: Path) -> None:
        arrays = {**small_data(small_model()), **changes}
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})

    return write


def _with_nan(path: Path) -> None:
    arrays = small_data(small_model())
    arrays["x"][100, 0, 3, 3] = np.nan
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _pickled(path: Path) -> None:
    arrays = small_data(small_model())
    np.savez(path, x=arrays["x"], y=np.array([{"a": 1}] * ROWS, dtype=object))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"data\.npz.*(no such file|does not exist)"),
        (lambda path: path.write_bytes(b""), r"data\.npz"),
        (lambda path: path.write_bytes(os.urandom(3000)), r"data\.npz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), r"data\.npz"),
        (_data(x=None), r"has no array 'x' \(for input 'x'\)"),
        (_data(y=None), r"has no array 'y' \(for target\)"),
        (_data(x=np.zeros((ROWS, 3, 8, 7), np.float32)), r"x.*8"),
        (_data(x=np.zeros((ROWS, 192), np.float32)), r"'x'"),
        (_data(x=np.full((ROWS, 3, 8, 8), "a")), r"'x'"),
        (_data(y=np.zeros(ROWS - 1, np.int64)), r"the arrays differ in rows"),
        (_data(x=np.zeros((50, 3, 8, 8), np.float32), y=np.zeros(50, np.int64)), r"goes beyond the 50 rows"),
        (_data(y=np.full(ROWS, np.nan)), r"target 'y', row 64: the value is not finite"),
        (_with_nan, r"data\.search: .*data\.npz: input 'x', row 100: the value is nan"),
        (_pickled, r"'y'.*(pickle|object)"),
    ],
)
def test_data_that_cannot_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder / "data.npz")
    refused(capsys, folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["search"].update(slice=[64, 65]), r"data\.search.*1 rows are too few"),
        (lambda data: data.update(group=7), r"cut a group"),
        (lambda data: data.update(inputs={"z": {}}), r"the model has no input 'z'"),
        (lambda data: data.update(inputs={"x": {"from": "y"}}), r"x"),
        (lambda data: data["search"].update(path="../gone.npz"), r"gone\.npz"),
        (lambda data: data.update(search={"function": "data.py:load"}), r"data\.py: no such file"),
    ],
)
def test_data_fields_that_do_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    respell(folder, lambda job: change(job["data"]))
    refused(capsys, folder, message)


# The metric -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('labels are wrong')", r"ValueError: labels are wrong.*metric\.py, line 2"),
        ("return float('nan')", r"nan"),
        ("return float('inf')", r"inf"),
        ("return 'good'", r"good|str"),
        ("return None", r"None"),
        ("import sys; sys.exit(0)", r"SystemExit"),
        ("return outputs['missing']", r"KeyError"),
        ("return [0.5]", r"list"),
    ],
)
def test_a_metric_that_fails_on_float32(
    folder: Path, capsys: pytest.CaptureFixture[str], body: str, message: str
) -> None:
    (folder / "metric.py").write_text(f"def score(outputs, targets):\n    {body}\n")
    respell(folder, lambda job: job.update(metric={"function": "metric.py:score"}))
    assert_one_message(search(capsys, folder), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def score(outputs, targets:\n", r"SyntaxError"),
        ("import nonexistent_module\n", r"nonexistent_module"),
        ("score = 3\n", r"'score' in .*metric\.py is a int, not a function"),
        ("def other(a, b): ...\n", r"metric\.py has no 'score'; it has other"),
    ],
)
def test_a_metric_file_that_cannot_be_used(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "metric.py").write_text(text)
    respell(folder, lambda job: job.update(metric={"function": "metric.py:score"}))
    refused(capsys, folder, message)


# Profile, machine, tracking, Ray --------------------------------------------------------------------------------------


def test_a_profile_that_no_layer_fits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    profile["ops"] = {"Conv": {"allow": ["float32"]}}
    profile["cost"] = {}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    refused(capsys, folder, r"leave every layer in float32: there is nothing to search\. For one: .*autoq layers MODEL")


def test_a_profile_of_another_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    profile["match"] = {"arch": ["riscv64"]}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    refused(capsys, folder, r"'any-cpu' does not describe this machine: .*riscv64.*--force")


def test_a_profile_with_a_runtime_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = yaml.safe_load((folder / "cpu.yaml").read_text())
    profile["runtime"] = {"name": "onnxruntime", "provider": "NoSuchExecutionProvider"}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    assert_one_message(search(capsys, folder), r"NoSuchExecutionProvider")


def test_a_tracking_server_that_is_down_is_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    refused(capsys, folder, rf"127\.0\.0\.1:{port} cannot be used", "--tracking-uri", f"http://127.0.0.1:{port}")
    assert time.monotonic() - began < 60  # far more than it takes; MLflow by itself would try for minutes


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense://server", r"nonsense"),
        ("sqlite:////proc/nowhere/mlflow.db", r"/proc/nowhere"),
    ],
)
def test_a_tracking_store_that_cannot_be(
    folder: Path, capsys: pytest.CaptureFixture[str], uri: str, message: str
) -> None:
    refused(capsys, folder, message, "--tracking-uri", uri)


def test_no_ray_at_that_address(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "search", folder / "job.yaml", "--out", folder / "run", "--ray", "nonsense", "--quiet")
    assert_one_message(done, r"Ray at 'nonsense' cannot be reached.*`ray start --head`")


# What a candidate does ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(*QUIET_SEARCH)
def test_a_metric_that_never_returns_costs_its_trial_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here it hangs on every model that makes many mistakes: the search goes on with the others."""
    (folder / "own.py").write_text(
        "def score(outputs, targets):\n"
        "    found = (outputs['y'].argmax(1) == targets).mean()\n"
        "    while found < 0.9:\n"
        "        pass\n"
        "    return float(found)\n"
    )
    respell(
        folder,
        lambda job: job.update(
            metric={"function": "own.py:score", "timeout": "1s"}, objectives=["metric", "size"], budget={"trials": 4}
        ),
    )
    done = search(capsys, folder)
    assert (done.code, done.err) == (0, "")
    trials = TrialLog(folder / "run" / "trials.jsonl").read()
    failures = [trial.failure for trial in trials if trial.failure is not None]
    assert 0 < len(failures) < len(trials) == 4
    assert {failure.reason for failure in failures} == {"timeout"}
    assert "did not return within 1 s; metric.timeout allows it more" in failures[0].message


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_run_folder_in_the_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("mine")
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("mine")
    for out, message in [
        ("file", r"file cannot be written: (File exists|Not a directory); give another --out"),
        ("file/run", r"file/run cannot be written: Not a directory; give another --out"),
        ("other", r"other is a folder with other things in it"),
        ("/proc/run", r"/proc/run cannot be written"),
    ]:
        done = call(capsys, "search", folder / "job.yaml", "--out", folder / out, "--ray", "off", "--quiet")
        assert_one_message(done, message)
    assert (folder / "file").read_text() == (folder / "other" / "thesis.tex").read_text() == "mine"


def test_nothing_to_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, folder, r"run holds no search to resume; leave --resume out", "--resume")


def _no_privileges() -> None:
    """In the child: root loses the right to write where the permissions say no."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    for arguments, message in [
        (["--out", closed / "run"], r"run cannot be written: Permission denied; give another --out"),
        ([], r"runs.*(Permission denied|cannot be written)"),
    ]:
        done = autoq(
            "search", folder / "job.yaml", "--ray", "off", "--quiet", *arguments,
            cwd=closed, preexec_fn=_no_privileges,
        )  # fmt: skip
        assert_one_message(Done(done.returncode, done.stdout, done.stderr), message)
    assert list(closed.iterdir()) == []


def test_what_failed_before_its_first_trial_may_be_begun_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A metric that does not fit shows when float32 is scored: no reason to ask for another folder."""
    respell(folder, lambda job: job["metric"].update(output="z"))
    assert_one_message(search(capsys, folder), r"'z'.*y")
    respell(folder, lambda job: (job.update(objectives=["metric", "latency"]), job["metric"].update(name="nothing")))
    assert_one_message(search(capsys, folder), r"nothing")
    respell(folder, lambda job: job["metric"].update(name="accuracy", output="w"))
    assert_one_message(search(capsys, folder), r"'w'.*y")


def test_two_problems_of_a_job_are_told_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    respell(folder, lambda job: (job.pop("model"), job.update(objectives=["speed"])))
    done = search(capsys, folder)
    assert done.code == 2
    assert "model" in done.err and "objectives" in done.err


def test_the_model_is_valid_to_begin_with(original: Path) -> None:
    onnx.checker.check_model(onnx.load(original / "small.onnx"))


def test_a_file_that_fails_in_the_final_check_costs_its_point_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A board that has no room any more for the smallest file, once all trials are over."""
    (folder / "board.py").write_text("""
import os, sys
model, log = sys.argv[1:]
size = os.path.getsize(model)
with open(log, "a+") as file:
    file.seek(0)
    before = [line.split() for line in file]
    if "small" not in model:
        print(os.path.basename(model), size, file=file)
runs = sum(name == os.path.basename(model) for name, _ in before)
if runs >= 2 and size <= min(int(each) for _, each in before):
    sys.exit("no room left")
print('{"latency_ms": %d}' % size)
""")
    run = [sys.executable, "-I", "-S", str(folder / "board.py"), "{model}", str(folder / "log")]
    measure = {"by": "command", "options": {"run": run, "rounds": 2, "final_rounds": 2, "retries": 0}}
    profile = yaml.safe_load((folder / "cpu.yaml").read_text()) | {"measure": measure}
    (folder / "cpu.yaml").write_text(yaml.safe_dump(profile))
    done = search(capsys, folder, "--trials", "4")
    assert done.code == 0, done.err
    front = read_front(folder / "run" / "front.json")
    assert front.final and front.points
    failed = [each for each in front.dropped if "failed in the final check" in each.why]
    assert len(failed) == 1 and failed[0].why.endswith("no room left")
    assert failed[0].point.size_bytes < min(point.size_bytes for point in front.points)
    assert failed[0].point.metric.final is None and failed[0].point.latency is not None
    assert "no room left" in call(capsys, "front", folder / "run").out
    assert "no room left" in (folder / "run" / "report.html").read_text()
