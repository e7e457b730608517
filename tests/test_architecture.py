"""Who may import whom, read from the source: also imports inside functions and those for type checking only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# From the top down. A part imports from lower rows only; parts of one row do not import each other.
# "autoq" is the package's own __init__.py, the Python API.
ORDER: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "__main__",
        "cli",
        "autoq",
        "result layerwise probing targets",
        "pipeline",
        "setting",
        "search record",
        "model",
        "runtime",
        "numerics spec",
        "core",
        "errors",
    )
)

# A heavy library has one home, so that one file changes with it and `autoq --help` need not wait for it.
HOMES = {
    "ai_edge_litert": {"model/tflite_file.py", "runtime/litert.py", "runtime/vela_compile.py"},
    "optuna": {"search/history.py", "search/proposer.py", "search/sampler.py", "search/study_record.py"},
    "ray": {"search/ray_executor.py"},
    "mlflow": {"record/tracking.py", "record/tracking_model.py", "record/tracking_server.py"},
    "torch": {
        "model/load.py",
        "model/reconstruct.py",
        "model/torch_door.py",
        "model/torch_executed.py",
        "model/torch_fused.py",
        "model/torch_graph.py",
        "model/torch_layout.py",
        "model/torch_ops.py",
        "model/torch_plan.py",
        "model/torch_products.py",
        "model/torch_quantized.py",
        "model/torch_runtime.py",
        "model/torch_spatial.py",
    },
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: ``module`` is as precise as the statement is (``from a import b`` gives ``a.b``)."""

    module: str
    line: int


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import in ``source``, a module that lies in ``package`` (dotted; relative imports count from it)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, node.lineno)


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def rank_of(part: str) -> int | None:
    """The row of ORDER that holds ``part``; larger is lower."""
    return next((row for row, parts in enumerate(ORDER) if part in parts), None)


def violations(package_dir: Path) -> list[str]:
    """What breaks the rules in the package at ``package_dir``, one line each: ``file:line says …``."""
    parts = {path.stem if path.is_file() else path.name for path in package_dir.iterdir() if path.suffix in {"", ".py"}}
    found: list[str] = []
    for path in sorted(package_dir.rglob("*.py")):
        relative = path.relative_to(package_dir)
        part = "autoq" if relative == Path("__init__.py") else relative.parts[0].removesuffix(".py")
        rank = rank_of(part)
        if rank is None:
            found.append(f"{relative}: {part!r} has no place in the order of imports; give it one in this test")
            continue
        package = ".".join(("autoq", *relative.parent.parts))
        for item in imports_of(path.read_text(encoding="utf-8"), package):
            head, *rest = item.module.split(".")
            where = f"{relative.as_posix()}:{item.line}"
            if head in HOMES and relative.as_posix() not in HOMES[head]:
                found.append(f"{where} imports {head}, whose home is {' or '.join(sorted(HOMES[head]))}")
            if head != "autoq":
                continue
            target = rest[0] if rest and rest[0] in parts else "autoq"
            target_rank = rank_of(target)
            if target != part and (target_rank is None or target_rank <= rank):
                found.append(f"{where} ({part}) imports {item.module} ({target}), which is not below it")
    return found


def test_imports_run_downward(repo_root: Path) -> None:
    assert violations(repo_root / "autoq") == []


def test_every_part_is_there(repo_root: Path) -> None:
    """The order names no part that has gone: a rule about nothing looks like a rule."""
    package = repo_root / "autoq"
    present = {path.stem for path in package.iterdir()} | {"autoq", "__main__"}
    assert sorted(frozenset.union(*ORDER) - present) == []


MADE_UP = {
    "errors.py": "import json\n",
    "core/value.py": "from autoq.errors import AutoqError\n",
    "spec/job.py": "from autoq.core.value import X\nfrom autoq import errors\n",
    "numerics/affine.py": "import numpy\n",
    "search/loop.py": "from autoq.spec.job import Job\nfrom .other import y\n",
    "search/proposer.py": "def f():\n    import optuna\n",
    "record/report.py": "from autoq.core import value\n",
    "pipeline/__init__.py": "from autoq.pipeline.run import run\n",
    "pipeline/run.py": "from autoq.search import loop\nfrom autoq.record.report import z\n",
    "__init__.py": "def search():\n    from autoq.pipeline import run\n",
    "cli.py": "import autoq\nfrom autoq.pipeline import run\n",
}


def made_up_tree(folder: Path, **changes: str) -> Path:
    """A package that breaks no rule, with some files replaced (``core__value`` for ``core/value.py``)."""
    files = MADE_UP | {name.replace("__", "/") + ".py": text for name, text in changes.items()}
    for name, text in files.items():
        path = folder / "autoq" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "autoq"


def test_checker_passes_a_tree_in_order(tmp_path: Path) -> None:
    assert violations(made_up_tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("core__value", "from autoq.spec.job import Job\n", "core/value.py:1 (core) imports autoq.spec.job.Job (spec)"),
        ("core__value", "def f():\n    import autoq.model.load\n", "core/value.py:2 (core) imports autoq.model.load"),
        (
            "core__value",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from autoq.search import loop\n",
            "core/value.py:3 (core) imports autoq.search.loop (search)",
        ),
        ("core__value", "from ..spec import job\n", "core/value.py:1 (core) imports autoq.spec.job (spec)"),
        ("core__value", "from ..spec.job import J\n", "core/value.py:1 (core) imports autoq.spec.job.J (spec)"),
        ("core__value", "from .. import spec\n", "core/value.py:1 (core) imports autoq.spec (spec)"),
        ("core__value", "from autoq import spec\n", "core/value.py:1 (core) imports autoq.spec (spec)"),
        ("core__value", "from autoq import __version__\n", "core/value.py:1 (core) imports autoq.__version__ (autoq)"),
        ("search__loop", "from autoq.record.report import z\n", "search/loop.py:1 (search) imports autoq.record"),
        ("record__report", "import autoq.search.loop as s\n", "record/report.py:1 (record) imports autoq.search.loop"),
        ("numerics__affine", "from autoq.spec import job\n", "numerics/affine.py:1 (numerics) imports autoq.spec.job"),
        ("spec__job", "from autoq.numerics import affine\n", "spec/job.py:1 (spec) imports autoq.numerics.affine"),
        ("pipeline__run", "import autoq.cli\n", "pipeline/run.py:1 (pipeline) imports autoq.cli (cli)"),
        ("setting", "import importlib\nimportlib.import_module('autoq.cli')\n", "setting.py:2 (setting) imports"),
        ("search__loop", "def f():\n    from optuna.trial import Trial\n", "search/loop.py:2 imports optuna, whose"),
        ("cli", "def doctor():\n    import ray\n", "cli.py:2 imports ray, whose home is search/ray_executor.py"),
        ("core__value", "import torch.nn as nn\n", "core/value.py:1 imports torch, whose home is model/load.py or"),
        ("plugins__x", "import json\n", "plugins/x.py: 'plugins' has no place in the order of imports"),
    ],
)
def test_checker_finds_a_violation(tmp_path: Path, file: str, text: str, expected: str) -> None:
    made_up_tree(tmp_path, spec__job="", model__load="", numerics__affine="")
    found = violations(made_up_tree(tmp_path, **{file: text}))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_top_level_folders_are_no_packages(repo_root: Path) -> None:
    """With an ``__init__.py`` in it, ``mlflow/`` or ``docker/`` would hide the installed package of that name."""
    assert [str(path) for name in ("mlflow", "docker") for path in (repo_root / name).rglob("__init__.py")] == []


@pytest.mark.parametrize("name", ["mlflow", "docker"])
def test_import_from_the_root_finds_the_installed_package(repo_root: Path, name: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    origin = Path(done.stdout.strip())
    assert origin.name == "__init__.py"
    assert "site-packages" in origin.parts


def test_help_waits_for_no_heavy_library(repo_root: Path) -> None:
    """The command line loads none of them before a command needs it."""
    heavy = [*HOMES, "onnxruntime", "matplotlib", "sklearn", "scipy", "pandas", "plotly"]
    code = f"import sys, autoq.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def files_of(root: Path) -> list[Path]:
    """Every file that git tracks below ``root`` or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so what belongs to the project cannot be told from what does not")
    paths = [root / name.decode() for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


# Written apart, so that this file does not betray one itself.
MACHINE_PATH = re.compile(rb"(?<![\w.])/(?:" + b"|".join((b"wo" + b"rk", b"ro" + b"ot")) + rb")/")


def test_no_file_names_a_path_of_one_machine(repo_root: Path) -> None:
    found = [
        f"{path.relative_to(repo_root)}: {match.group().decode()}…"
        for path in files_of(repo_root)
        for match in [MACHINE_PATH.search(path.read_bytes())]
        if match
    ]
    assert found == []


def test_machine_path_pattern() -> None:
    for text in (b"see /ro" + b"ot/.cache", b"file:///wo" + b"rk/main", b'"/wo' + b'rk/x"', b"=/ro" + b"ot/a"):
        assert MACHINE_PATH.search(text), text
    for text in (b"../wo" + b"rk/x", b"net" + b"wo" + b"rk/layer", b"a/wo" + b"rk/x", b"/ro" + b"ot", b"/ro" + b"ots/"):
        assert not MACHINE_PATH.search(text), text
