"""Every example of the pages on job files, search spaces and hardware profiles is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autoq.core.layer import LAYER_OPS
from autoq.runtime.data import InputSpec, load_split
from autoq.runtime.metric import resolve_metric
from autoq.spec.hardware import load_profile
from autoq.spec.job import load_job
from autoq.spec.resources import named
from autoq.spec.schemes import parse_schemes
from autoq.spec.space import load_space


def fences(repo_root: Path, page: str, language: str) -> list[str]:
    text = (repo_root / "docs" / page).read_text()
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def page_files(repo_root: Path, tmp_path: Path) -> Path:
    """A folder with the Python files that the page shows, each named in its first line."""
    for code in fences(repo_root, "job-files.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        if name:
            (tmp_path / name[1]).write_text(code)
    return tmp_path


def test_job_files(repo_root: Path, page_files: Path) -> None:
    (whole,) = fences(repo_root, "job-files.md", "yaml")
    (page_files / "job.yaml").write_text(whole)
    job = load_job(page_files / "job.yaml")
    fragments = [yaml.safe_load(text) for text in fences(repo_root, "job-files.md", "yaml fragment")]
    assert len(fragments) == 4
    jobs = [load_job(yaml.safe_load(whole) | fragment, page_files) for fragment in fragments]
    for each in (job, *jobs):
        assert load_job(each.to_dict(), each.base_dir) == each

    by_function = jobs[0]
    image = [InputSpec(name="x", dtype=np.dtype("uint8"), shape=(None, 28, 28, 1))]
    assert load_split(by_function, "search", image).rows == 1000
    assert load_split(by_function, "final", image).rows == 200

    top5, within_one = resolve_metric(jobs[2]), resolve_metric(jobs[3])
    logits = -np.abs(np.arange(7)[:, None] - np.arange(7)).astype(np.float32)  # class i, then its neighbours
    truth = np.array([0, 1, 2, 3, 4, 4, 0], np.uint8)
    assert top5({"other": truth, "logits": logits}, truth) == 6 / 7
    assert within_one({"logits": logits}, truth) == 6 / 7


def test_the_numpy_line(repo_root: Path, page_files: Path) -> None:
    (line,) = [code for code in fences(repo_root, "job-files.md", "python") if code.startswith("x = ")]
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    for split in ("train", "val", "test"):
        np.savez(page_files / f"{split}.npz", x=x, y=np.arange(4))
    (whole,) = fences(repo_root, "job-files.md", "yaml")
    values = yaml.safe_load(whole)
    values["data"]["search"] = {"path": "val.npz"}
    values["data"]["final"] = {"path": "test.npz"}
    how: dict[str, Any] = values["data"]["inputs"]["input"]
    made: dict[str, Any] = {"np": np, "x": x, **{name: how[name] for name in ("scale", "mean", "std")}}
    exec(line, made)
    spec = [InputSpec(name="input", dtype=np.dtype("float32"), shape=(None, 3, 5, 6))]
    split = load_split(load_job(values, page_files), "search", spec)
    assert split.inputs["input"].tobytes() == np.ascontiguousarray(made["x"]).tobytes()


def test_search_spaces(repo_root: Path, tmp_path: Path) -> None:
    page = (repo_root / "docs" / "search-spaces.md").read_text()
    (example,) = fences(repo_root, "search-spaces.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example)
    space = load_space("mine.yaml", tmp_path)
    assert len(space.rules) == 3 and len(space.seeds) == 2
    assert [str(scheme) for scheme in space.schemes_for("/net/classifier/fc", "Gemm")] == ["float32", "float16"]
    counts = {name: len(load_space(name, tmp_path).schemes) for name in named("search_spaces")}
    assert f"{counts['default']} schemes" in page and f"{counts['full']} schemes" in page
    for text in re.findall(r"`((?:w[2-8]|float)[^` ]*)`", page):
        parse_schemes([text], "docs")


def test_hardware_profiles(repo_root: Path, tmp_path: Path) -> None:
    (example,) = fences(repo_root, "hardware-profiles.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example)
    profile = load_profile("mine.yaml", tmp_path)
    (signed, unsigned) = parse_schemes(["w8a8-s8@mse", "w8a8@mse"], "here")
    assert profile.legal("Conv", signed) == "signed activations keep the Relus from fusing"
    assert (profile.cost("MatMul", signed), profile.cost("Conv", unsigned)) == (1.2, 0.5)
    page = (repo_root / "docs" / "hardware-profiles.md").read_text()
    assert all(f"`{name}`" in page for name in named("hardware_profiles"))
    assert ", ".join(LAYER_OPS) in page


def test_examples_load(repo_root: Path) -> None:
    for path in sorted((repo_root / "examples").glob("*/job.yaml")):
        job = load_job(path)
        load_space(job.space, job.base_dir)
        load_profile(job.hardware, job.base_dir)
