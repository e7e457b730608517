"""The image's roles, started for real on the loopback by the script that the image runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

START_SECONDS = 90  # far more than any role takes; only a test that fails waits so long


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short path: Ray puts sockets in it, and a socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="aq"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def role(
    script: Path, arguments: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The script in a session of its own, and at the end a SIGTERM, as from ``docker stop``, to it alone."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", str(script), *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=45)
            finally:
                if session_members(process.pid):
                    os.killpg(process.pid, signal.SIGKILL)


def session_members(session: int) -> list[str]:
    """Commands of the processes that live in a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def wait_until(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll; fail with the role's log when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert process.poll() is None, f"{what}: the role ended\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS} s\n{log.read_text()}"
        time.sleep(0.2)


def base_environment(scratch: Path) -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "HOME": str(scratch)}


COUNT_NODES = """
import os, time, ray
ray.init(address=os.environ["RAY_HEAD"], log_to_driver=False)
for _ in range(100):
    cpus = sorted(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    if len(cpus) == 3: break
    time.sleep(0.2)
answer = ray.get(ray.remote(lambda: 6 * 7).remote())
print("RESULT", cpus, answer)
"""


def test_head_worker_and_a_driver_make_a_cluster(repo_root: Path, scratch: Path) -> None:
    script = repo_root / "docker" / "entrypoint.sh"
    environment = base_environment(scratch) | {
        "RAY_HEAD": f"127.0.0.1:{free_port()}",
        "RAY_TMPDIR": str(scratch),  # Ray's note of "the latest cluster" lands there, out of other programs' sight
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "AUTOQ_OBJECT_STORE_MB": "80",
    }
    environment.pop("RAY_ADDRESS", None)
    head_log, worker_log = scratch / "head.log", scratch / "worker.log"
    with role(script, ["head"], environment, head_log) as head:
        wait_until(lambda: "runtime started" in head_log.read_text(), "head", head, head_log)
        # The healthcheck of compose.yaml.
        check = ["ray", "health-check", "--address", environment["RAY_HEAD"]]
        assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
        with role(script, ["worker"], environment | {"AUTOQ_CPUS": "1"}, worker_log) as worker:
            wait_until(lambda: "runtime started" in worker_log.read_text(), "worker", worker, worker_log)
            command = ["bash", str(script), "join", sys.executable, "-c", COUNT_NODES]
            joined = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
            # Head and driver lend no core; the one task ran on the worker.
            assert "RESULT [0, 0, 1.0] 42" in joined.stdout, joined.stdout + joined.stderr
            assert joined.returncode == 0
    # Each node ended on its SIGTERM, and took its own processes along.
    assert session_members(worker.pid) == []
    assert session_members(head.pid) == []


def test_mlflow_role_serves_its_own_names_alone(repo_root: Path, scratch: Path) -> None:
    port = free_port()
    environment = base_environment(scratch) | {
        "MLFLOW_HOME": str(scratch),
        "MLFLOW_PORT": str(port),
        "MLFLOW_BIND": "127.0.0.1",
        "MLFLOW_WORKERS": "1",
    }

    def ask(path: str, host: str, body: dict[str, str] | None = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Host": host, "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, b""
        except OSError:
            return 0, b""

    log = scratch / "mlflow.log"
    with role(repo_root / "docker" / "entrypoint.sh", ["mlflow"], environment, log) as server:
        wait_until(lambda: ask("/health", f"127.0.0.1:{port}")[0] == 200, "mlflow", server, log)
        create = "/api/2.0/mlflow/experiments/create"
        status, answer = ask(create, "mlflow:5000", {"name": "from-the-cluster"})
        assert status == 200, log.read_text()
        experiment = json.loads(answer)["experiment_id"]
        status, answer = ask(f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}", "mlflow:5000")
        # Workers need no file system in common with the server: artifacts go through it.
        assert json.loads(answer)["experiment"]["artifact_location"].startswith("mlflow-artifacts:/")
        assert (scratch / "mlflow.db").is_file()
        assert ask(create, "elsewhere.example", {"name": "from-a-web-page"})[0] == 403
    assert session_members(server.pid) == []


def test_any_other_command_is_run_as_it_is(repo_root: Path, scratch: Path) -> None:
    command = [
        "bash",
        str(repo_root / "docker" / "entrypoint.sh"),
        sys.executable,
        "-c",
        "print(1); raise SystemExit(3)",
    ]
    done = subprocess.run(command, env=base_environment(scratch), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "1\n")
