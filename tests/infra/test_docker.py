"""The image and the cluster, as far as no engine is needed: linters, the files that are named, Compose's rules."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|KEY")


def tool(name: str) -> str:
    """A linter that came with the dev extra; the test is skipped on a machine for which there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} has no build for this machine")
    return found


def test_dockerfile_lints(repo_root: Path) -> None:
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "info", "docker/Dockerfile"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shell_scripts_lint(repo_root: Path) -> None:
    scripts = [
        ".ci/run",
        *(str(path) for folder in ("docker", "examples") for path in (repo_root / folder).rglob("*.sh")),
    ]
    command = [tool("shellcheck"), "--color=never", *scripts]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(scripts) >= 3


def sent_to_engine(name: str, rules: list[str]) -> bool:
    """Whether .dockerignore lets ``name`` (or something below it) through: the last rule that matches decides."""
    sent = True
    for rule in rules:
        pattern = rule.removeprefix("!")
        if pattern == "*" or fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/"):
            sent = rule.startswith("!")
    return sent


def test_image_is_built_from_files_that_are_there(repo_root: Path) -> None:
    rules = [line for line in (repo_root / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert not sent_to_engine(".venv/bin/python", rules)
    assert not sent_to_engine("runs/demo/front.json", rules)
    needed = ["autoq", "search_spaces", "hardware_profiles", "setup.py", "README.md", "LICENSE", "MANIFEST.in"]
    for line in (repo_root / "docker" / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not any(word.startswith("--from") for word in words):
            needed += [word for word in words[1:-1] if not word.startswith("--") and word != "."]
    assert {"pyproject.toml", "constraints.txt", "docker/entrypoint.sh"} <= set(needed)
    for name in needed:
        assert (repo_root / name).exists(), f"the Dockerfile needs {name}"
        assert sent_to_engine(name, rules), f".dockerignore keeps {name} from the engine"


def compose(repo_root: Path) -> dict[str, Any]:
    """compose.yaml, merge keys resolved, each ``${NAME:-default}`` filled in and ``${NAME:?…}`` given."""
    text = (repo_root / "docker" / "compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "given", text)
    assert "$" not in re.sub(r"#.*", "", text)
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_every_service_is_bounded_and_watched(repo_root: Path) -> None:
    services = compose(repo_root)["services"]
    assert set(services) == {"head", "worker", "mlflow", "cli"}
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0, name
        assert re.fullmatch(r"\d+[mg]", limits["memory"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if "profiles" in service:  # run by hand, and over when it is over
            assert service["restart"] == "no", name
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name


def test_ports_are_published_on_loopback_alone(repo_root: Path) -> None:
    ports = [port for service in compose(repo_root)["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_compose_names_what_is_there(repo_root: Path) -> None:
    config = compose(repo_root)
    roles = set(re.findall(r"^  (\w+)\)", (repo_root / "docker" / "entrypoint.sh").read_text(), re.MULTILINE))
    assert roles == {"head", "worker", "mlflow", "search", "join"}
    for name, service in config["services"].items():
        assert service["command"][0] in roles | {"autoq"}, name
        for needed, how in service.get("depends_on", {}).items():
            assert config["services"][needed]["healthcheck"].get("test"), f"{name} waits for {needed}'s health"
            assert how == {"condition": "service_healthy"}
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (repo_root / "docker" / source).is_dir() if "/" in source else source in config["volumes"]
            assert known, f"{name} mounts {source}"
        if build := service.get("build"):
            context = repo_root / "docker" / build["context"]
            assert context.resolve() == repo_root
            arguments = re.findall(r"^ARG (\w+)", (context / build["dockerfile"]).read_text(), re.MULTILINE)
            assert set(build["args"]) <= set(arguments)


def test_secrets_come_from_outside(repo_root: Path) -> None:
    text = (repo_root / "docker" / "compose.yaml").read_text()
    for key, value in re.findall(r"^\s+(\w+):\s*(\S+)", text, re.MULTILINE):
        if SECRET.search(key):
            assert re.match(r"\$\{\w+:\?", value), f"{key} must be given from outside, without a default"


def test_compose_itself_reads_the_file(repo_root: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker's compose plugin is not installed")
    command = [docker, "compose", "-f", "docker/compose.yaml", "--profile", "cli", "config", "--quiet"]
    environment = {"RAY_AUTH_TOKEN": "given", "PATH": str(Path(docker).parent), "HOME": "/nonexistent"}
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
