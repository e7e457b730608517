"""What is installed: the wheel's contents, the pins, and the targets of the Makefile."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DATA_FOLDERS = ("search_spaces", "hardware_profiles")


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built by the declared backend from a copy of the tree, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("autoq", *DATA_FOLDERS):
        shutil.copytree(repo_root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "constraints.txt", "LICENSE", "README.md"):
        shutil.copy(repo_root / name, tree)
    # An extra of each kind: a folder inside a data folder, and one that must not travel.
    (tree / "search_spaces" / "more").mkdir()
    (tree / "search_spaces" / "more" / "nested.yaml").write_text("version: 1\n")
    (tree / "mlflow").mkdir()
    (tree / "mlflow" / "stray.py").write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(tree)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_package_and_data(repo_root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(repo_root).as_posix()
        for path in (repo_root / "autoq").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    data = {
        f"autoq/_data/{path.relative_to(repo_root).as_posix()}"
        for folder in DATA_FOLDERS
        for path in (repo_root / folder).rglob("*.yaml")
    }
    assert data, "search_spaces/ and hardware_profiles/ are empty"
    assert names == modules | data | {"autoq/_data/search_spaces/more/nested.yaml"}


def test_installed_wheel_finds_its_data(repo_root: Path, wheel: Path, tmp_path: Path) -> None:
    """Unpacked far from the checkout, the package names the same spaces and profiles that the checkout has."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from autoq.spec.resources import named\n"
        "for kind in sys.argv[2:]:\n"
        "    for name, path in named(kind).items(): print(kind, name, path)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *DATA_FOLDERS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    expected = {(folder, path.stem) for folder in DATA_FOLDERS for path in (repo_root / folder).glob("*.yaml")}
    assert {(kind, name) for kind, name, _ in lines} == expected
    assert all(Path(path).is_relative_to(tmp_path / "autoq" / "_data") for _, _, path in lines)


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert "autoq = autoq.__main__:run" in info["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in info["METADATA"]
    assert "Requires-Python: <3.13,>=3.11" in info["METADATA"]
    assert info["top_level.txt"].split() == ["autoq"]


def pins(repo_root: Path) -> dict[str, Version]:
    """Package -> pinned version; fails on a line that is anything but a pin."""
    found: dict[str, Version] = {}
    for line in (repo_root / "constraints.txt").read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"constraints.txt: {line!r} is no plain pin (name==version, without tag, address or marker)"
        assert match[1] not in found, f"constraints.txt pins {match[1]} twice"
        found[match[1]] = Version(match[2])
    return found


def test_pins_cover_every_dependency(repo_root: Path) -> None:
    """Each requirement, and each of what it requires in turn on this machine, is pinned at a version it allows."""
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    pinned = pins(repo_root)
    queue = [*project["dependencies"], *(text for texts in project["optional-dependencies"].values() for text in texts)]
    seen: set[str] = set()
    while queue:
        requirement = Requirement(queue.pop())
        extras = ["", *requirement.extras]
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement} excludes {pinned[name]}"
        if name not in seen:
            seen.add(name)
            needs = importlib.metadata.requires(name) or []
            queue += [need for need in needs if "extra ==" not in need]
    assert sorted(set(pinned) - seen - {"setuptools"}) == [], "pinned, but nothing needs it"


def test_installed_versions_are_the_pinned_ones(repo_root: Path) -> None:
    wrong = {}
    for name, version in pins(repo_root).items():
        installed = Version(importlib.metadata.version(name)).public
        if installed != str(version):
            wrong[name] = (
                f"{installed} is installed, {version} is pinned: run make venv, or pin what the tests ran with"
            )
    assert wrong == {}


def test_makefile_targets(repo_root: Path) -> None:
    """`make` alone lists every target, and each of them can be planned."""
    make = shutil.which("make")
    assert make
    listed = subprocess.run([make], cwd=repo_root, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make (\w+)", listed, re.MULTILINE)
    assert {"venv", "demo", "test", "ui", "dashboard", "lint", "clean", "help"} <= set(targets)
    for target in targets:
        subprocess.run([make, "-n", target], cwd=repo_root, capture_output=True, check=True)


def test_ci_runs_make_test_alone(repo_root: Path) -> None:
    script = repo_root / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "it must be executable"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "exec make test"
