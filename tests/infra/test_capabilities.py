"""The capability table is what the profiles say, and what they say holds where it can run."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from autoq.spec.hardware import Profile, load_profile
from autoq.spec.resources import named


@pytest.fixture(scope="module")
def made(repo_root: Path) -> ModuleType:
    """The generator, ``benchmarks/capability_table.py``."""
    spec = importlib.util.spec_from_file_location("capability_table", repo_root / "benchmarks" / "capability_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["capability_table"] = module
    spec.loader.exec_module(module)
    return module


def load(tmp_path: Path, base: str, **ops: Any) -> Profile:
    values = {"version": 1, "extends": base, "name": "mine", "ops": ops, "cost": {"w2a8": 0.5}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    return load_profile("p.yaml", tmp_path)


def test_the_page_is_what_the_profiles_say(made: ModuleType) -> None:
    assert made.PAGE.read_text() == made.page(), "python benchmarks/capability_table.py --write"


def test_a_sample_of_cells_holds(made: ModuleType) -> None:
    runnable = [profile for name in named("hardware_profiles") if made.checkable(profile := load_profile(name, "."))]
    cells = [(profile, cell) for profile in runnable for cell in made.claims(profile) if cell.claim != "refused"]
    for profile, cell in random.Random(0).sample(cells, min(8, len(cells))):
        assert made.check(profile, [cell]) == []


@pytest.mark.parametrize(
    ("op", "rules", "scheme", "found"),
    [
        ("ConvTranspose", {"native": ["w8"]}, "w8", "folded"),
        ("Conv", {"native": [], "folded": ["w8a8*"]}, "w8a8@minmax", "native"),
        ("MatMul", {"native": [], "folded": []}, "w4-b32", "native"),
        ("Gather", {"folded": ["w8"]}, "w8", "float"),
    ],
)
def test_a_claim_that_does_not_hold_is_found(
    made: ModuleType, tmp_path: Path, op: str, rules: dict[str, Any], scheme: str, found: str
) -> None:
    profile = load(tmp_path, "cpu-x86-onnxruntime", **{op: rules})
    cells = [cell for cell in made.claims(profile) if (cell.op, cell.scheme) == (op, scheme)]
    assert made.check(profile, cells) == [(cells[0], found)]


def test_a_scheme_that_its_runtime_cannot_load_is_found(made: ModuleType, tmp_path: Path) -> None:
    profile = load(tmp_path, "cpu-x86-openvino", Conv={"forbid": [], "allow": ["float32", "w*"]})
    if not made.checkable(profile):
        pytest.skip("needs a machine and a package for OpenVINO")
    cells = [cell for cell in made.claims(profile) if (cell.op, cell.scheme) == ("Conv", "w2a8@minmax")]
    ((_, found),) = made.check(profile, cells)
    assert found.startswith("load: ")
