"""``autoq sensitivity`` and ``autoq.sensitivity``: what they print and write, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autoq
from tests.cli.calls import assert_one_message, call
from tests.small_job import LAYERS, write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("sensitivity"))


def test_a_table_and_files(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "sensitivity", job, "--out", tmp_path / "out", "--rows", "60")
    assert done.code == 0, done.err
    assert all(layer in done.out for layer in LAYERS) and "w8a8@minmax" in done.out and "KL, nats" in done.out
    assert "changes the outputs most" in done.out and "On 60 rows" in done.out
    steps = [line.removeprefix("autoq: ") for line in done.err.splitlines()]
    assert steps[0] == "reading model and data" and steps[-1] == "24 of 24 models"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"sensitivity.{ending}" for ending in ("csv", "json", "png", "html")}
    # Again: all is cached, and the program's form holds the same figures.
    done = call(capsys, "sensitivity", job, "--out", tmp_path / "again", "--rows", "60", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((tmp_path / "out" / "sensitivity.json").read_text())


def test_filters(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("sensitivity", job, "--out", tmp_path / "out", "--rows", "20", "--quiet", "--json")
    done = call(capsys, *command, "--layers", "fc*", "--layers", "conv1", "--schemes", "w?a8@minmax", "--schemes", "w8")
    assert done.code == 0, done.err
    found = [(loss["layer"], loss["scheme"]) for loss in json.loads(done.out)["losses"]]
    assert found == [(layer, scheme) for layer in ("conv1", "fc1", "fc2") for scheme in ("w8", "w8a8@minmax")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "conv9"], r"--layers: no layer matches 'conv9'; did you mean 'conv[12]'; there are conv1, "),
        (["--schemes", "w9"], r"--schemes: no layer may have 'w9' here; .*there are w8, "),
        (["--out", "/proc/nowhere/x", "--layers", "fc2", "--rows", "8"], r"/proc/nowhere/x cannot be made"),
    ],
)
def test_errors(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    done = call(capsys, "sensitivity", job, "--out", tmp_path / "out", "--quiet", *options)
    assert_one_message(done, message)


def test_a_job_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_one_message(call(capsys, "sensitivity", tmp_path / "none.yaml"), "no such job file")


def test_ctrl_c_says_what_is_kept(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoq.layerwise.survey", interrupt)
    done = call(capsys, "sensitivity", job, "--out", tmp_path / "out", "--rows", "20", "--quiet")
    assert done.code == 130
    assert done.err.strip() == "autoq: interrupted; what was taken is cached, and the same command goes on"
    assert not (tmp_path / "out").exists()


def test_from_python(job: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = autoq.sensitivity(
        job, rows=24, layers=["fc*"], schemes=["w8", "w4-*"], out=tmp_path / "out", on_probe=lambda *at: seen.append(at)
    )
    assert seen[-1] == (4, 4)
    frame = result.to_frame()
    assert list(frame.index) == [(layer, scheme) for layer in ("fc1", "fc2") for scheme in ("w8", "w4-gptq")]
    assert (frame["noise"] > 0).all() and (tmp_path / "out" / "sensitivity.csv").exists()
    assert "changes the outputs most" in result.summary() and "<table" in result._repr_html_()
    assert len(result.plot().axes) == 3
    assert isinstance(result, autoq.SensitivityResult)
