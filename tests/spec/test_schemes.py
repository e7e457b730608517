"""Scheme texts of YAML files: braces, globs, typos."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.scheme import Scheme
from autoq.errors import JobError
from autoq.spec.schemes import all_schemes, expand_braces, glob_problem, globbed, matches, parse_schemes


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("w8", ["w8"]),
        ("w{8,4}", ["w8", "w4"]),
        ("w8a8@{minmax,percentile99.99}", ["w8a8@minmax", "w8a8@percentile99.99"]),
        ("w{8,4}{,-gptq}", ["w8", "w8-gptq", "w4", "w4-gptq"]),
        ("a{b,c{d,e}}f", ["abf", "acdf", "acef"]),
        ("{a}", ["a"]),
        ("", [""]),
    ],
)
def test_braces_expand_the_last_fastest(text: str, expanded: list[str]) -> None:
    assert expand_braces(text) == expanded


@given(st.lists(st.lists(st.text("wa8@-.", max_size=3), min_size=1, max_size=4), max_size=4))
def test_braces_are_the_product_of_their_parts(parts: list[list[str]]) -> None:
    text = "".join("{" + ",".join(part) + "}" for part in parts)
    assert expand_braces(text) == ["".join(choice) for choice in itertools.product(*parts)]


@given(st.text("{},w8a@-", max_size=60))
def test_any_braces_expand_or_are_refused(text: str) -> None:
    with contextlib.suppress(JobError):
        assert all("{" not in each and "}" not in each for each in expand_braces(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("w{8,4", "do not pair"),
        ("w8}", "do not pair"),
        ("}w8{", "do not pair"),
        ("{a,b}" * 40, "more than 2000 schemes"),
        ("{,}" * 60, "more than 2000 schemes"),
        ("w" * 301, "too long"),
    ],
)
def test_bad_braces(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        expand_braces(text)


def test_repeats_are_dropped_and_order_is_kept() -> None:
    schemes = parse_schemes(["w8", "float32", "w{4,8}", "w8a8@percentile99.90", "w8a8@percentile99.9"], "schemes")
    assert [str(scheme) for scheme in schemes] == ["w8", "float32", "w4", "w8a8@percentile99.9"]


def test_every_wrong_text_is_listed_with_its_nearest_scheme() -> None:
    with pytest.raises(JobError) as caught:
        parse_schemes(["w8a8@minmx", "float32", "w4-gptq-a8@mse", "flot16"], "here")
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["here[0]", "here[2]", "here[3]"]
    assert lines[0].endswith("did you mean 'w8a8@minmax'")
    assert "did you mean 'w4a8-gptq@mse'" in lines[1]
    assert lines[2].endswith("did you mean 'float16'")


def test_no_flood_of_problems() -> None:
    with pytest.raises(JobError) as caught:
        parse_schemes(["x{1,2,3,4,5}{1,2,3,4,5}{1,2,3,4,5}"], "here")
    assert len(str(caught.value).splitlines()) == 11


def test_all_schemes_have_one_name_each() -> None:
    schemes = all_schemes()
    assert len(set(schemes)) == len({str(scheme) for scheme in schemes}) == len(schemes)
    assert all(Scheme.parse(str(scheme)) == scheme for scheme in schemes)


@given(st.floats(50, 100, exclude_min=True, exclude_max=True))
def test_every_percentile_survives_its_text(percentile: float) -> None:
    scheme = Scheme.parse(f"w8a8@percentile{percentile!r}")
    assert Scheme.parse(str(scheme)) == scheme
    assert scheme.activation is not None and scheme.activation.calibration.percentile == percentile


@pytest.mark.parametrize(
    ("glob", "text", "matched"),
    [
        ("w8a8", "w8a8@minmax", True),  # the calibration may be left out
        ("w8a8", "w8a8-s8@minmax", False),
        ("w[842]a8*", "w2a8-s8-gptq@mse", True),
        ("w[842]", "w8a8@mse", False),
        ("w[842]-*", "w4-gptq", True),
        ("*@percentile*", "w8a8@percentile99.9", True),
        ("*-s8*", "w8a8@mse", False),
    ],
)
def test_globs(glob: str, text: str, matched: bool) -> None:
    assert matches(glob, globbed(Scheme.parse(text))) is matched


def test_a_glob_that_matches_nothing_is_a_typo() -> None:
    assert glob_problem("w[842]a8*") == ""
    assert glob_problem("w8a8@percentile99.1234") == ""
    assert glob_problem("w8a9") == "'w8a9' matches no scheme; did you mean 'w8a8'"
    assert "matches no scheme" in glob_problem("w1*") and glob_problem("w3*") == ""
