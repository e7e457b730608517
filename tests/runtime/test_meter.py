"""The meter with its real process, on small generated models. Times are never asserted, only what must hold of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.errors import ProfileError, TrialError
from autoq.runtime.gauge import measure_each
from autoq.runtime.meter import Meter
from autoq.runtime.timing import TimingPlan
from autoq.runtime.turn import measuring_turn

QUICK = TimingPlan(block_s=0.002, max_rounds=2, min_sittings=2, limit_s=0.01)
X = np.ones((1, 64), np.float32)


def save(path: Path, nodes, initializers, batch: int | str = "n", **save_options) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 64])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, **save_options)
    return path


def two_layers(path: Path, hidden: int = 64, **more) -> Path:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    weights = {"a": rng.normal(size=(64, hidden)), "b": rng.normal(size=(hidden, 64))}
    return save(path, nodes, {name: w.astype(np.float32) for name, w in weights.items()}, **more)


def endless(path: Path) -> Path:
    """A model that runs for years."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Sin", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["many", "", "x"], ["y"], body=body)
    return save(path, [loop], {"many": np.array(2**62, np.int64)})


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return two_layers(tmp_path / "baseline.onnx")


@pytest.fixture
def meter(baseline: Path):
    with Meter(baseline, {"x": X}, plan=QUICK, final_plan=QUICK, timeout_s=60) as meter:
        yield meter


def server_of(meter: Meter) -> psutil.Process:
    process = meter._server._process
    assert process is not None
    return psutil.Process(process.pid)


def wait_until(condition, what: str) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never came: {what}")


def running_child(meter: Meter, old: int | None = None) -> psutil.Process:
    """The forked process that measures, once it computes; in another server than process ``old``."""
    found: list[psutil.Process] = []

    def busy() -> bool:
        try:
            server = server_of(meter)
            children = server.children() if server.pid != old else []
            found[:] = [child for child in children if child.cpu_times().user > 0.02]
        except (AssertionError, psutil.NoSuchProcess):
            pass
        return bool(found)

    wait_until(busy, "a process that measures")
    return found[0]


def gone(pids) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_a_model_against_itself(meter, baseline):
    measured = meter.measure(baseline)
    latency = measured.latency
    assert 0.5 < latency.ratio < 2
    assert latency.ratio_ci95[0] <= latency.ratio <= latency.ratio_ci95[1]
    assert len(latency.blocks_ms) == len(latency.baseline_blocks_ms)
    assert len(latency.blocks_ms) >= 2  # of one sitting of two rounds, which must do on a busy machine
    assert min(latency.blocks_ms) <= latency.median_ms <= max(latency.blocks_ms)
    assert (latency.batch, latency.threads) == (1, 1)
    assert measured.load_ms > 0 and 0 < measured.cpu_share <= 1
    conditions = latency.conditions
    assert conditions is not None and conditions.sittings >= 1 and conditions.slowdown >= 1
    assert len(conditions.cpus) == 1 or not hasattr(os, "sched_getaffinity")
    assert measured.disturbed is latency.disturbed is conditions.disturbed


def test_one_that_is_clearly_too_slow_is_timed_roughly(baseline):
    """A model is far slower than a tenth of itself: the first sitting tells, and the interval admits it."""
    plan = TimingPlan(block_s=0.002, max_rounds=2, min_sittings=4, max_sittings=4, limit_s=30)
    with Meter(baseline, {"x": X}, plan=plan) as meter:
        exact, rough = meter.measure(baseline, idle_above=10.0), meter.measure(baseline, idle_above=0.1)
    assert len(rough.latency.blocks_ms) == 2 and len(exact.latency.blocks_ms) >= 4  # a disturbed one may be left out
    low, high = rough.latency.ratio_ci95
    assert high / low >= 1.1**2 and low < rough.latency.ratio < high
    assert rough.peak_memory_bytes > 0


def test_more_arithmetic_takes_longer_and_more_weights_take_more_memory(meter, tmp_path, baseline):
    big = two_layers(tmp_path / "big.onnx", hidden=1 << 16)  # 32 MiB of weights, a thousand times the arithmetic
    small, large = meter.measure(baseline), meter.measure(big)
    assert large.latency.ratio > 5 * small.latency.ratio
    assert large.peak_memory_bytes > small.peak_memory_bytes + (32 << 20)
    assert small.peak_memory_bytes < 16 << 20


def test_memory_is_nearly_the_same_again(meter, tmp_path):
    path = two_layers(tmp_path / "big.onnx", hidden=1 << 15)
    one, two = (meter.measure(path).peak_memory_bytes for _ in range(2))
    assert abs(one - two) < 0.1 * one


def test_weights_in_a_file_of_their_own(tmp_path):
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = two_layers(tmp_path / "external.onnx", **options)
    assert (tmp_path / "weights.bin").exists()
    with Meter(path, {"x": X}, plan=QUICK) as meter:
        assert 0.5 < meter.measure(path).latency.ratio < 2


def test_relative_paths(baseline, monkeypatch):
    monkeypatch.chdir(baseline.parent)
    with Meter(Path(baseline.name), {"x": X}, plan=QUICK) as meter:
        monkeypatch.chdir("/")
        assert meter.measure(baseline).latency.ratio > 0


def test_batch_and_threads_are_used_and_told(tmp_path):
    path = two_layers(tmp_path / "four.onnx", batch=4)
    with Meter(path, {"x": np.ones((4, 64), np.float32)}, batch=4, threads=2, plan=QUICK) as meter:
        measured = meter.measure(path)
    assert (measured.latency.batch, measured.latency.threads) == (4, 2)


def test_many_in_turn(meter, tmp_path, baseline):
    big = two_layers(tmp_path / "big.onnx", hidden=1 << 14)
    measured = meter.measure_many([big, baseline, big], at_once=2)
    latencies = [each.latency for each in measured]
    ratios = [latency.ratio for latency in latencies]
    assert ratios[0] > 3 * ratios[1] and ratios[2] > 3 * ratios[1]
    assert latencies[0].baseline_blocks_ms == latencies[1].baseline_blocks_ms != latencies[2].baseline_blocks_ms
    assert all(each.load_ms > 0 and each.peak_memory_bytes is None for each in measured)
    assert meter.measure_many([]) == []
    ratios, _ = meter.glance([big, baseline, big], TimingPlan(block_s=0.002, min_sittings=2, limit_s=0.01))
    assert len(ratios) == 3 and min(ratios) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_what_does_not_fit_together_is_timed_in_smaller_groups(tmp_path):
    """The real cause: the measuring process may have so much memory and no more."""
    import resource

    baseline = two_layers(tmp_path / "small.onnx")
    files = [two_layers(tmp_path / f"{number}.onnx", hidden=1 << 17) for number in range(4)]  # 64 MiB of weights each
    huge = two_layers(tmp_path / "huge.onnx", hidden=1 << 20)
    with Meter(baseline, {"x": X}, plan=QUICK, final_plan=QUICK) as meter:
        need = meter.measure(files[0]).peak_memory_bytes
        server = psutil.Process(meter._server._process.pid)
        limit = server.memory_info().vms + 2 * need  # one or two have room, not three
        resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
        asked = []
        ask = meter._server.ask
        meter._server.ask = lambda request, *rest: asked.append(len(request.get("models", ()))) or ask(request, *rest)
        assert all(each.latency.ratio > 10 for each in meter.measure_many(files))
        assert asked[0] == 5 and asked[-1] == 3  # the reference is one of them
        found = measure_each(meter, [files[0], huge, baseline])
        assert found[0].latency.ratio > 10 > found[2].latency.ratio
        assert isinstance(found[1], TrialError) and "huge.onnx" in str(found[1])
        with pytest.raises(TrialError, match=r"huge\.onnx"):
            meter.measure_many([huge])
        with pytest.raises(TrialError) as caught:  # a trial of it fails with its reason
            meter.measure(huge)
        assert caught.value.reason in ("load", "measure")
        assert meter.measure(baseline).latency.ratio > 0  # and the next one is measured


def test_what_a_process_opens_first_has_no_time_to_load(baseline):
    """The baseline is first in every other sitting: in the only one, its time would have the runtime's own in it."""
    for sittings in (1, 2):
        plan = TimingPlan(block_s=0.002, min_sittings=sittings, max_sittings=sittings, limit_s=60.0)
        with Meter(baseline, {"x": X}, plan=plan) as meter:
            one, other = meter.measure_many([baseline, baseline])
        assert one.reference_load_ms == other.reference_load_ms
        assert (one.reference_load_ms is None) == (sittings == 1)
        assert one.load_ms > 0 and other.load_ms > 0


@pytest.mark.parametrize("content", [None, b"no model", b""])
def test_a_file_that_does_not_load(meter, tmp_path, baseline, content):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrialError, match="ONNX Runtime rejects the model") as caught:
        meter.measure(path)
    assert caught.value.reason == "load"
    assert meter.measure(baseline).peak_memory_bytes >= 0  # and the next one is measured


def test_a_model_that_cannot_be_fed(meter, tmp_path):
    with pytest.raises(TrialError, match="Got invalid dimensions for input: x") as caught:
        meter.measure(two_layers(tmp_path / "four.onnx", batch=4))
    assert caught.value.reason == "measure"


def test_a_baseline_that_does_not_run_is_named(tmp_path, baseline):
    with (
        Meter(tmp_path / "absent.onnx", {"x": X}, plan=QUICK) as meter,
        pytest.raises(TrialError, match=r"the float32 baseline absent\.onnx does not run: .*doesn't exist") as caught,
    ):
        meter.measure(baseline)
    assert caught.value.reason == "measure"


def test_nothing_to_measure_with(baseline):
    with pytest.raises(ProfileError, match="at least 1 thread, not 0"):
        Meter(baseline, {"x": X}, threads=0)
    with pytest.raises(ProfileError, match="no 'NoSuchProvider'"):
        Meter(baseline, {"x": X}, runtime_options={"provider": "NoSuchProvider"}).__enter__()


def test_an_endless_model_is_stopped(tmp_path, baseline):
    with Meter(baseline, {"x": X}, plan=QUICK, timeout_s=1.0) as meter:
        with pytest.raises(TrialError, match="longer than 1 s") as caught:
            meter.measure(endless(tmp_path / "endless.onnx"))
        assert caught.value.reason == "timeout"
        assert server_of(meter).children() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_names_its_signal_and_spoils_nothing(meter, tmp_path, baseline, number):
    killer = threading.Thread(target=lambda: running_child(meter).send_signal(number))
    killer.start()
    with pytest.raises(TrialError, match=f"was killed by {number.name}") as caught:
        meter.measure(endless(tmp_path / "endless.onnx"))
    killer.join()
    assert caught.value.reason == "measure"
    server = server_of(meter).pid
    assert meter.measure(baseline).latency.ratio > 0
    assert server_of(meter).pid == server


def test_the_server_is_started_again(meter, baseline):
    server_of(meter).kill()
    assert meter.measure(baseline).latency.ratio > 0


def test_a_server_that_dies_twice_in_one_measurement(meter, tmp_path):
    children: list[int] = []

    def kill_both() -> None:
        old = None
        for _ in range(2):
            child = running_child(meter, old)
            children.append(child.pid)
            old = server_of(meter).pid
            psutil.Process(old).kill()

    killer = threading.Thread(target=kill_both)
    killer.start()
    with pytest.raises(TrialError, match="the measuring process died twice") as caught:
        meter.measure(endless(tmp_path / "endless.onnx"))
    killer.join()
    assert caught.value.reason == "measure"
    wait_until(lambda: gone(children), "the end of the measuring children")


def test_close_leaves_nothing(baseline):
    before = set(Path(tempfile.gettempdir()).glob("autoq-meter-*"))
    meter = Meter(baseline, {"x": X}, plan=QUICK).__enter__()
    pid = server_of(meter).pid
    folders = set(Path(tempfile.gettempdir()).glob("autoq-meter-*")) - before
    meter.close()
    meter.close()
    assert folders
    assert gone([pid])
    assert not meter._server._folder.exists()


SCRIPT = """
    import sys
    from pathlib import Path
    import numpy as np
    from autoq.runtime.meter import Meter

    meter = Meter(Path(sys.argv[1]), {"x": np.ones((1, 64), np.float32)})
    meter.__enter__()
    print(meter._server._process.pid, meter._server._folder, flush=True)
    try:
        meter.measure(Path(sys.argv[2]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_the_search_ends_the_measuring(tmp_path, baseline, number):
    """A script without a __main__ guard, as users write them, ended in the middle of a measurement."""
    script = tmp_path / "search.py"
    script.write_text(textwrap.dedent(SCRIPT))
    slow = endless(tmp_path / "endless.onnx")
    process = subprocess.Popen(
        [sys.executable, str(script), str(baseline), str(slow)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        pid, folder = process.stdout.readline().split()
        server = psutil.Process(int(pid))
        wait_until(lambda: any(child.cpu_times().user > 0.02 for child in server.children()), "the measurement")
        pids = [server.pid, *(child.pid for child in server.children())]
        os.killpg(process.pid, number)  # as the terminal does on Ctrl-C
        said, complained = process.communicate(timeout=30)
    finally:
        process.kill()
    assert said == ("interrupted\n" if number == signal.SIGINT else "")
    assert complained == ""
    wait_until(lambda: gone(pids), "the end of the measuring process")
    wait_until(lambda: not Path(folder).exists(), "the end of its folder")


def test_one_measures_at_a_time(baseline):
    with measuring_turn() as mine:
        assert mine
        with measuring_turn(wait_s=0.1) as also:
            assert not also
    with measuring_turn(wait_s=0) as again:
        assert again


def test_python_options_of_the_folder_do_not_reach_the_process(meter, baseline, tmp_path, monkeypatch):
    """The process does not import from the current folder, where a numpy.py may lie."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with Meter(baseline, {"x": X}, plan=QUICK) as other:
        assert other.measure(baseline).latency.ratio > 0
