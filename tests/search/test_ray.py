"""Real Ray: one cluster of two nodes for the whole file, and one `--ray local` of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import autoq
from autoq.core.policy import Policy
from autoq.core.result import Failure
from autoq.errors import MetricError, RunError
from autoq.runtime.ort import open_session, run_batches
from autoq.search import fidelity, ray_executor
from autoq.search.evaluate import Dropped, Scored, Workload
from autoq.search.executor import LocalExecutor
from autoq.search.fidelity import Hurdle, plan_steps
from autoq.search.groundwork import lay_groundwork
from autoq.search.polish_point import PolishItem, PolishWork, polish_point
from autoq.search.ray_executor import RayExecutor
from autoq.setting import Setting, gauge_of, read_setting, workload_of
from autoq.spec.job import load_job
from tests.small_job import QUIET_SEARCH, environment, tracking_uri, write_job
from tests.small_job import autoq as run_autoq

# Ray's own, in this process: sockets and files that it leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    *QUIET_SEARCH,
)

METRIC = '''
"""Accuracy, and what a test wants to happen in a worker: a file of a name beside this one says so."""
import os, time
from pathlib import Path

HERE = Path(__file__).parent
DRIVER = int((HERE / "driver.pid").read_text()) if (HERE / "driver.pid").exists() else os.getpid()


def accuracy(outputs, targets):
    value = float((next(iter(outputs.values())).argmax(axis=1) == targets).mean())
    if os.getpid() != DRIVER:
        if (HERE / "slow").exists():
            time.sleep(0.3)
        if (HERE / "deadly").exists() and value < 0.5:
            os._exit(7)
        try:
            (HERE / "dies once").unlink()
        except FileNotFoundError:  # there is none, or another worker was quicker
            return value
        os._exit(7)
    return value
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    for name, value in ray_executor._QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray-job")
    (folder / "metric.py").write_text(METRIC)
    return write_job(
        folder,
        tracking_uri(tmp_path_factory),
        metric={"function": "metric.py:accuracy", "direction": "maximize"},
        budget={"trials": 10},
        # A front of few points: the last timing of each takes a second.
        constraints={"max_metric_drop": 0.03},
    )


@dataclasses.dataclass
class Bench:
    """A workload, the policies to score, and what they score in this process."""

    setting: Setting
    workload: Workload
    policies: list[Policy]
    expected: list[Scored | Dropped | Failure]
    folder: Path

    def executor(self, address: str, workers: int = 2) -> RayExecutor:
        return RayExecutor(
            self.workload, gauge_of(self.setting, self.setting.model.path), address=address, workers=workers
        )


@pytest.fixture(scope="module")
def bench(job: Path) -> Bench:
    (job.parent / "driver.pid").write_text(str(os.getpid()))
    setting = read_setting(load_job(job))
    lowering = lay_groundwork(setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=None)
    workload = workload_of(setting, lowering)
    schemes = [entry.schemes for entry in setting.candidates]
    names = [entry.layer.name for entry in setting.candidates]
    policies = [
        lowering.canonical(
            Policy.of({n: s[(i + k) % len(s)] for k, (n, s) in enumerate(zip(names, schemes, strict=True))})
        )
        for i in range(6)
    ]
    policies += [
        lowering.canonical(Policy.of({n: s[i] for n, s in zip(names, schemes, strict=True)})) for i in range(1, 5)
    ]
    local = LocalExecutor(workload, gauge_of(setting, setting.model.path))
    expected = [dataclasses.replace(found, seconds={}) for found in local.score(policies)]  # type: ignore[type-var]
    assert all(isinstance(found, Scored) for found in expected)
    local.close()
    return Bench(setting, workload, policies, expected, job.parent)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stepwise(bench: Bench) -> tuple[Bench, list[Hurdle]]:
    """The same in steps, with hurdles that some of the policies do not take."""
    setting = bench.setting
    float32 = run_batches(open_session(setting.model.path), setting.search.inputs, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "LEAST_UNITS", 16)
        steps = plan_steps(setting.metric, float32, setting.search.targets, group=1, chunk=8, seed=1)
    assert steps is not None
    hurdles = [Hurdle(rivals=((0, 0.01, "a"),)), Hurdle(max_drop=0.02), Hurdle()] * 10
    hurdles = hurdles[: len(bench.policies)]
    workload = dataclasses.replace(bench.workload, steps=steps)
    local = LocalExecutor(workload, gauge_of(setting, setting.model.path))
    expected = plain(list(local.score(bench.policies, hurdles)))
    local.close()
    return dataclasses.replace(bench, workload=workload, expected=expected), hurdles  # type: ignore[type-var]


@contextlib.contextmanager
def wish(folder: Path, name: str) -> Iterator[None]:
    (folder / name).touch()
    try:
        yield
    finally:
        (folder / name).unlink(missing_ok=True)


def plain(results: list[Scored | Dropped | Failure]) -> list[Scored | Dropped | Failure]:
    return [found if isinstance(found, Failure) else dataclasses.replace(found, seconds={}) for found in results]


def test_workers_drop_what_this_process_drops(cluster: Any, stepwise: tuple[Bench, list[Hurdle]]) -> None:
    bench, hurdles = stepwise
    assert {type(found) for found in bench.expected} == {Scored, Dropped}
    executor = bench.executor(cluster.address)
    try:
        assert plain(list(executor.score(bench.policies, hurdles))) == bench.expected
    finally:
        executor.close()


@pytest.fixture(scope="class")
def executor(cluster: Any, bench: Bench) -> Iterator[RayExecutor]:
    made = bench.executor(cluster.address)
    yield made
    made.close()


class TestTheSameWorkers:
    """Several tests of one executor: starting its workers takes seconds."""

    def test_two_nodes_score_the_same_bytes_and_metrics_in_order(self, executor: RayExecutor, bench: Bench) -> None:
        assert executor.description.endswith("2 workers")
        assert plain(list(executor.score(bench.policies))) == bench.expected
        # And a second batch, on the workers that are up.
        assert plain(list(executor.score(bench.policies[:3]))) == bench.expected[:3]
        assert list(executor.score([])) == []

    def test_polishes_on_workers_are_those_of_this_process(self, executor: RayExecutor, bench: Bench) -> None:
        work = PolishWork(kind="sequential", inputs=bench.setting.calibration.inputs, unit=1)
        items = [PolishItem(policy=policy, deadline=time.time() + 600) for policy in bench.policies[6:]]
        items.insert(0, PolishItem(policy=bench.policies[0], deadline=0.0))
        local = LocalExecutor(bench.workload, gauge_of(bench.setting, bench.setting.model.path))
        try:
            here, there = (dict(each.run(polish_point, work, items)) for each in (local, executor))
        finally:
            local.close()
        assert here[0] == there[0] == Failure(reason="timeout", message="the time for polishing ran out")
        assert sorted(there) == sorted(here) == list(range(len(items)))
        for position in range(1, len(items)):
            one, other = here[position], there[position]
            assert (one.held_out, one.layers, one.why) == (other.held_out, other.layers, other.why)
            assert (one.scored and one.scored.sha256) == (other.scored and other.scored.sha256)
        assert any(found.scored for found in list(here.values())[1:])

    def test_a_worker_that_is_killed_in_mid_trial_loses_nothing(self, executor: RayExecutor, bench: Bench) -> None:
        killed: list[int] = []

        def kill() -> None:
            time.sleep(0.4)  # in the middle of a trial: each sleeps for 0.3 s, and two run
            pid = executor._ray.get(next(iter(executor._actors)).__ray_call__.remote(lambda self: os.getpid()))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

        with wish(bench.folder, "slow"):
            results = executor.score(bench.policies)
            first = next(results)
            thread = threading.Thread(target=kill)
            thread.start()
            found = [first, *results]
            thread.join()
        assert killed
        assert plain(found) == bench.expected

    def test_a_worker_that_dies_once_gets_another_try(self, executor: RayExecutor, bench: Bench) -> None:
        with wish(bench.folder, "dies once"):
            assert plain(list(executor.score(bench.policies[:4]))) == bench.expected[:4]
            assert not (bench.folder / "dies once").exists()

    def test_a_candidate_that_kills_every_worker_fails_and_the_others_do_not(
        self, executor: RayExecutor, bench: Bench
    ) -> None:
        with wish(bench.folder, "deadly"):
            found = plain(list(executor.score(bench.policies)))
        assert plain(list(executor.score(bench.policies[:2]))) == bench.expected[:2]
        deadly = [expected.metric < 0.5 for expected in bench.expected]
        assert any(deadly) and not all(deadly)
        for result, expected, died in zip(found, bench.expected, deadly, strict=True):
            if died:
                assert isinstance(result, Failure) and result.reason == "worker_lost"
                assert result.message.startswith("its worker died twice: ")
            else:
                assert result == expected


def test_a_node_that_is_removed_loses_nothing_and_holds_nothing_up(cluster: Any, bench: Bench) -> None:
    node = cluster.add_node(num_cpus=1)
    executor = bench.executor(cluster.address, workers=3)
    try:
        assert executor.description.endswith("3 workers")
        list(executor.score(bench.policies[:3]))
        with wish(bench.folder, "slow"):
            results = executor.score(bench.policies)
            first = next(results)
            # Its worker's replacement will wait for a core that never comes.
            cluster.remove_node(node, allow_graceful=False)
            assert plain([first, *results]) == bench.expected
    finally:
        executor.close()


def test_a_cluster_without_a_free_core_is_an_error_after_a_while(
    cluster: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.executor(cluster.address)
    try:
        list(first.score(bench.policies[:2]))  # holds both cores from now on
        monkeypatch.setattr(ray_executor, "_PATIENCE_S", 3.0)
        second = bench.executor(cluster.address)
        second._owns = False
        try:
            with pytest.raises(RunError, match="no Ray worker has started within 3 s: the cluster has no free core"):
                list(second.score(bench.policies[:2]))
        finally:
            second.close()
    finally:
        first.close()


def test_workers_that_cannot_find_the_metric_say_so(cluster: Any, bench: Bench) -> None:
    work = dataclasses.replace(bench.workload, metric={"function": "elsewhere.py:accuracy", "direction": "maximize"})
    executor = RayExecutor(work, gauge_of(bench.setting, bench.setting.model.path), address=cluster.address, workers=1)
    try:
        with pytest.raises(RunError, match=r"a Ray worker cannot take up the work: .*elsewhere\.py: no such file"):
            list(executor.score(bench.policies))
    finally:
        executor.close()


def test_a_node_that_scores_otherwise_is_refused(cluster: Any, bench: Bench) -> None:
    executor = bench.executor(cluster.address)
    # The nodes are what they are: it is this machine that is taken for another one.
    executor._kind = dataclasses.replace(executor._kind, arch="riscv64")
    try:
        with pytest.raises(RunError, match=f"node {platform.node()} of the Ray cluster .*, not riscv64"):
            list(executor.score(bench.policies[:2]))
    finally:
        executor.close()


def test_an_address_where_no_ray_is(bench: Bench) -> None:
    with pytest.raises(RunError, match=r"Ray at 'nonsense' cannot be reached: .*`--ray off`"):
        bench.executor("nonsense")


# Whole searches -------------------------------------------------------------------------------------------------------


def trials_of(run: Path) -> list[tuple[Any, ...]]:
    """All that must not depend on who evaluates."""
    rows = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    return [
        tuple(row[name] for name in ("number", "id", "origin", "metric", "size_bytes", "sha256", "latency_modelled"))
        for row in rows
    ]


@pytest.fixture(scope="module")
def alone(job: Path) -> Path:
    """The run without Ray."""
    autoq.search(job, out=job.parent / "off", ray="off")
    return job.parent / "off"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cluster_proposes_and_scores_what_one_process_does(
    cluster: Any, job: Path, alone: Path, workers: int
) -> None:
    result = autoq.search(job, out=job.parent / f"cluster-{workers}", ray=cluster.address, workers=workers)
    assert len(result.trials) == 10
    assert trials_of(result.path) == trials_of(alone)
    assert f"{workers} worker" in (result.path / "report.html").read_text()


def marked(mark: str) -> list[str]:
    """Commands of the processes that were started under ``mark``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AUTOQ_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_local_ray_does_the_same_and_leaves_no_process_behind(job: Path, alone: Path) -> None:
    mark = uuid.uuid4().hex
    (job.parent / "driver.pid").unlink(missing_ok=True)
    done = run_autoq(
        "search", job, "--out", job.parent / "local", "--ray", "local", "--workers", "2",
        env=environment(AUTOQ_TEST_MARK=mark),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trials_of(job.parent / "local") == trials_of(alone)
    # Nothing but our own words: Ray's log lines are of no use to a reader.
    assert all(line.startswith("autoq: ") for line in done.stderr.splitlines() if line.strip()), done.stderr
    assert wait_for(lambda: marked(mark) == []), marked(mark)


def test_a_wrong_metric_without_ray_is_the_same_error(bench: Bench) -> None:
    work = dataclasses.replace(bench.workload, metric={"function": "elsewhere.py:accuracy", "direction": "maximize"})
    with pytest.raises(MetricError, match=r"elsewhere\.py: no such file"):
        LocalExecutor(work, gauge_of(bench.setting, bench.setting.model.path))
