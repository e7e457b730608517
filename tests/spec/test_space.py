"""Search spaces: the ones that come with autoq, and ones of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoq.core.scheme import Scheme
from autoq.errors import JobError
from autoq.spec.hardware import load_profile
from autoq.spec.resources import named
from autoq.spec.space import Space, load_space


def write(tmp_path: Path, body: str) -> str:
    (tmp_path / "my.yaml").write_text(f"version: 1\nname: my\n{body}")
    return "my.yaml"


def texts(schemes: tuple[Scheme, ...]) -> list[str]:
    return [str(scheme) for scheme in schemes]


def test_the_default_space(tmp_path: Path) -> None:
    space = load_space("default", tmp_path)
    assert texts(space.schemes) == [
        "float32", "float16", "w8", "w4-gptq", "w2-gptq",
        "w8a8@minmax", "w8a8@percentile99.99", "w8a8@entropy", "w8a8@mse",
        "w4a8-gptq@minmax", "w4a8-gptq@percentile99.99", "w4a8-gptq@mse", "w2a8-gptq@mse",
    ]  # fmt: skip
    assert set(space.seeds) == {*space.schemes, *(s for r in space.rules for s in r.schemes if "Gather" not in r.op)}
    assert space.schemes_for("/conv1/Conv", "Conv") == space.schemes
    own = {
        op: set(texts(space.schemes_for("/x", op))) - set(texts(space.schemes)) for op in ("MatMul", "Gemm", "Gather")
    }
    assert own["MatMul"] == {"w4-b128-gptq", "w8a8@dynamic", "w4a8-gptq@dynamic", "w2a8-gptq@dynamic"} == own["Gemm"]
    assert own["Gather"] == {"w4", "w4-b128", "w2"}


def test_every_space_that_comes_with_autoq_loads(tmp_path: Path) -> None:
    spaces = {name: load_space(name, tmp_path) for name in named("search_spaces")}
    assert set(spaces) >= {"default", "full", "int8"}
    assert all(space.name == name and space.description for name, space in spaces.items())
    full = spaces["full"]
    assert set(spaces["default"].schemes) | set(spaces["int8"].schemes) <= set(full.schemes)
    families = {scheme.family for scheme in full.schemes}
    assert families == {"float32", "float16", "w8", "w4", "w2", "w8a8", "w4a8", "w2a8"}
    assert len(full.seeds) < 20 < len(full.schemes)


def test_every_named_scheme_is_legal_somewhere(tmp_path: Path) -> None:
    names = ("cpu-x86-onnxruntime", "gpu-nvidia-torch", "npu-ethos-u55-256")
    profiles = [load_profile(name, tmp_path) for name in names]
    for name in named("search_spaces"):
        for scheme in load_space(name, tmp_path).schemes:
            assert any(profile.legal("Conv", scheme) is None for profile in profiles)


def test_the_first_rule_that_applies_replaces_the_list(tmp_path: Path) -> None:
    space = load_space(
        write(
            tmp_path,
            """
schemes: [float32, w8]
rules:
  - {match: "/head/*", schemes: [float32]}
  - {match: "*/conv[[]0]", op: [Conv], schemes: ["w8a8@{minmax,mse}"]}
  - {op: [Gemm, MatMul], schemes: [w4-gptq]}
""",
        ),
        tmp_path,
    )
    assert texts(space.schemes_for("/head/fc/Gemm", "Gemm")) == ["float32"]
    assert texts(space.schemes_for("/a/conv[0]", "Conv")) == ["w8a8@minmax", "w8a8@mse"]
    assert texts(space.schemes_for("/a/conv[0]", "ConvTranspose")) == ["float32", "w8"]
    assert texts(space.schemes_for("/x", "MatMul")) == ["w4-gptq"]
    assert texts(space.schemes_for("/x", "Conv")) == ["float32", "w8"]
    assert space.unmatched([("/head/fc", "Gemm"), ("/conv", "Conv")]) == ["*/conv[[]0] (Conv)"]
    assert space.unmatched([("/fc", "Gemm"), ("/conv", "Conv")])[0] == "/head/*"


def test_an_own_space_by_path_and_its_seeds(tmp_path: Path) -> None:
    name = write(tmp_path, "schemes: [float32, w8, w8a8@mse]\nseeds: [w8a8@mse]\n")
    by_relative, by_absolute = load_space(name, tmp_path), load_space(tmp_path / name, "/")
    assert by_relative == by_absolute
    assert texts(by_relative.seeds) == ["w8a8@mse"]
    assert by_relative.to_dict()["seeds"] == ["w8a8@mse"]


def test_equalization_is_part_of_the_identity_where_there_is_one(tmp_path: Path) -> None:
    plain = load_space(write(tmp_path, "schemes: [float32, w8]\nequalization: none\n"), tmp_path)
    equalized = load_space(write(tmp_path, "schemes: [float32, w8]\nequalization: cross-layer\n"), tmp_path)
    assert (plain.equalization, equalized.equalization) == ("none", "cross-layer")
    assert "equalization" not in plain.to_dict(), "runs from before it go on"
    assert equalized.to_dict() == plain.to_dict() | {"equalization": "cross-layer"}
    with pytest.raises(JobError, match="equalization"):
        load_space(write(tmp_path, "schemes: [w8]\nequalization: cross\n"), tmp_path)


def test_float32_is_not_added_by_itself(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, "schemes: [w8]\n"), tmp_path)
    assert texts(space.schemes) == texts(space.seeds) == ["w8"]


def identity(space: Space) -> object:
    return space.to_dict()


def test_the_description_is_no_part_of_the_identity(tmp_path: Path) -> None:
    first = load_space(write(tmp_path, "schemes: [w8]\n"), tmp_path)
    second = load_space(write(tmp_path, "schemes: ['w{8,8}']\ndescription: another\n"), tmp_path)
    assert identity(first) == identity(second)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "schemes: missing"),
        ("schemes: []", "schemes: must not be empty"),
        ("schemes: w8", "schemes: must be a list"),
        ("schemes: [8]", r"schemes\[0\]: must be text"),
        ("schemas: [w8]", "schemas: unknown field; did you mean 'schemes'"),
        ("schemes: [w8a8]", "does not say how activations are calibrated"),
        ("schemes: [w8, w8a8@minmaxx]", r"schemes\[1\]: .*did you mean 'w8a8@minmax'"),
        ("schemes: [w8]\nseeds: [w8a8@mse]", "seeds: w8a8@mse is in no list of schemes"),
        ("schemes: [w8]\nrules: [{op: [Cnv], schemes: [w8]}]", r"rules\[0\].op: .*'Cnv'; did you mean 'Conv'"),
        ("schemes: [w8]\nrules: [{mach: x, schemes: [w8]}]", r"rules\[0\].mach: unknown field; did you mean 'match'"),
        ("schemes: [w8]\nrules: [{match: x, schemes: [w9]}]", r"rules\[0\].schemes\[0\]: 'w9' is no scheme"),
    ],
)
def test_wrong_spaces(tmp_path: Path, body: str, said: str) -> None:
    name = write(tmp_path, body)
    with pytest.raises(JobError, match=said) as caught:
        load_space(name, tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_all_problems_of_a_space_are_listed(tmp_path: Path) -> None:
    name = write(tmp_path, "schemes: [w9]\nseeds: [w7]\nrules: [{op: [X], schemes: [w6]}]")
    with pytest.raises(JobError) as caught:
        load_space(name, tmp_path)
    assert len(str(caught.value).splitlines()) == 4


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"unknown search space 'defalt'; did you mean 'default'; known: default, full"):
        load_space("defalt", tmp_path)
    for name in ("../pyproject", "none.yaml", "a/b", "x" * 300 + ".yaml", "a\0/b"):
        with pytest.raises(JobError, match="no such search space"):
            load_space(name, tmp_path)
    for name in ("", ".", "..", "*", "a\0b"):
        with pytest.raises(JobError, match="unknown search space"):
            load_space(name, tmp_path)


def test_a_wrong_version_says_so_alone(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("version: 2\nwhatever: 1\n")
    with pytest.raises(JobError) as caught:
        load_space("my.yaml", tmp_path)
    assert str(caught.value).endswith("version: this autoq reads version 1, not 2")
