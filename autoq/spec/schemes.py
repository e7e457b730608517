"""Scheme texts as YAML files write them: brace expansion, globs, and the nearest name for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice, product

from autoq.core.scheme import (
    BLOCKS,
    BY_BLOCK,
    CALIBRATION_METHODS,
    FLOATS,
    IN_BYTES,
    WEIGHT_BITS,
    WIDE_METHODS,
    Scheme,
)
from autoq.errors import JobError
from autoq.spec.checking import show

MAX_EXPANDED = 2000  # of one text, and of one list
_MAX_LENGTH = 300
_MAX_PROBLEMS = 10
_PERCENTILES = ("99", "99.5", "99.9", "99.95", "99.99", "99.995", "99.999", "99.9995", "99.9999")


def expand_braces(text: str) -> list[str]:
    """``"w{8,4}a8@{minmax,mse}"`` -> four texts, the last brace varying fastest; braces may nest.

    Raises :class:`JobError` for braces that do not pair, and for more than ``MAX_EXPANDED`` texts.
    """
    if len(text) > _MAX_LENGTH:
        raise JobError(f"{show(text)}: too long for a scheme")
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    if depth != 0:
        raise JobError(f"{show(text)}: '{{' and '}}' do not pair")
    found = list(islice(_expanded(text), MAX_EXPANDED + 1))
    if len(found) > MAX_EXPANDED:
        raise JobError(f"{show(text)}: stands for more than {MAX_EXPANDED} schemes")
    return found


def parse_schemes(texts: Iterable[str], where: str) -> tuple[Scheme, ...]:
    """The schemes that ``texts`` stand for, braces expanded, without repeats, in order.

    Raises :class:`JobError` with one line, led by ``where``, for each text that is no scheme.
    """
    schemes: dict[Scheme, None] = {}
    problems: list[str] = []
    count = 0
    for index, text in enumerate(texts):
        try:
            expanded = expand_braces(text)
        except JobError as error:
            problems.append(f"{where}[{index}]: {error}")
            continue
        count += len(expanded)
        if count > MAX_EXPANDED:
            problems.append(f"{where}: stands for more than {MAX_EXPANDED} schemes")
            break
        for each in expanded:
            try:
                schemes[Scheme.parse(each)] = None
            except JobError as error:
                problems.append(f"{where}[{index}]: {error}{nearest_scheme(each)}")
        if len(problems) > _MAX_PROBLEMS:
            problems[_MAX_PROBLEMS:] = [f"{where}: and more like these"]
            break
    if problems:
        raise JobError("\n".join(problems))
    return tuple(schemes)


@cache
def all_schemes() -> tuple[Scheme, ...]:
    """Every scheme of the grammar, with a few percentiles and one smoothing for the endless many."""
    return tuple(Scheme.parse(text) for text in _every_text())


@cache
def known_texts() -> tuple[tuple[str, str], ...]:
    """What globs are held against (:func:`globbed`) for every scheme, none of which is parsed: there are thousands."""
    return tuple((text, text.partition("@")[0]) for text in _every_text())


@cache
def costed_texts() -> frozenset[str]:
    """What a profile may name a cost by: ``w8a8-s8`` is no whole scheme, but of calibrations only one changes speed."""
    dynamic = [text for text, _ in known_texts() if text.endswith("@dynamic")]
    return frozenset([*(short for _, short in known_texts()), *dynamic])


def without_calibration(scheme: Scheme) -> str:
    """The scheme's text up to the ``@``: ``w8a8-s8``."""
    return str(scheme).partition("@")[0]


@cache
def by_family() -> Mapping[str, tuple[tuple[str, str], ...]]:
    """:func:`known_texts` of each family of schemes."""
    found: dict[str, list[tuple[str, str]]] = {}
    for names in known_texts():
        found.setdefault(names[1].partition("-")[0], []).append(names)
    return {family: tuple(listed) for family, listed in found.items()}


def globbed(scheme: Scheme) -> tuple[str, str]:
    """What globs are held against: the scheme's text, and that up to the ``@``."""
    text = str(scheme)
    return text, text.partition("@")[0]


def matches(glob: str, names: tuple[str, str]) -> bool:
    """Whether ``glob`` matches either of a scheme's :func:`globbed`."""
    return fnmatchcase(names[0], glob) or fnmatchcase(names[1], glob)


def glob_problem(glob: str) -> str:
    """Why ``glob`` can match no scheme, or an empty string."""
    if any(matches(glob, names) for names in known_texts()):
        return ""
    try:
        Scheme.parse(glob)  # a percentile that is not among the few in all_schemes
    except JobError:
        return f"{show(glob)} matches no scheme{nearest_scheme(glob)}"
    return ""


def nearest_scheme(text: str) -> str:
    """``"; did you mean 'w8a8@minmax'"`` for the scheme nearest to ``text``, or an empty string."""
    # Of the two corrections the common one: with the other in the list, it is the nearest to too much.
    names = (each for text, short in known_texts() for each in (short, text))
    known = dict.fromkeys(each for each in names if "-bca" not in each)
    found = difflib.get_close_matches(text[:100], known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]!r}" if found and found[0] != text else ""


def _expanded(text: str) -> Iterator[str]:
    start = text.find("{")
    if start < 0:
        yield text
        return
    end, alternatives = _alternatives(text, start)
    # Lazily, so that a text which stands for a billion costs only as many as are taken.
    for alternative in alternatives:
        for middle in _expanded(alternative):
            for rest in _expanded(text[end:]):
                yield text[:start] + middle + rest


def _alternatives(text: str, start: int) -> tuple[int, list[str]]:
    """Where the brace that opens at ``start`` has closed, and its comma-separated parts."""
    depth = 0
    parts = [""]
    for position in range(start, len(text)):
        character = text[position]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
        if depth == 0:
            return position + 1, parts
        if character == "," and depth == 1:
            parts.append("")
        elif position > start:
            parts[-1] += character
    raise AssertionError(f"braces of {text!r} were checked to pair")


def _every_text() -> Iterator[str]:
    yield from ("float32", "float16", *FLOATS)
    calibrations = [
        text
        for method in CALIBRATION_METHODS
        for text in ([f"percentile{p}" for p in _PERCENTILES] if method == "percentile" else [method])
    ]
    roundings = ("", "-gptq", "-adaround", *(f"-{name}" for name in BY_BLOCK))
    scales = [f"{tensor}{rounding}" for tensor in ("", "-tensor") for rounding in roundings]
    books = ["-kmeans", "-tensor-kmeans"]
    blocks = [f"-{block}{asym}{rounding}" for block in BLOCKS for asym in ("", "-asym") for rounding in ("", "-gptq")]
    for bits, corrected in product(WEIGHT_BITS, ("", "-bc", "-bca")):
        stored = [*scales, *(books if bits in (4, 2) else ())]
        alone = [*stored, *blocks, *(["-pq"] if bits in (4, 2) else ())]
        if bits not in IN_BYTES:
            yield from (f"w{bits}{options}{corrected}" for options in alone)
        for options, smooth, calibration in product(stored, ("", "-smooth0.5"), calibrations):
            yield f"w{bits}a8{options}{corrected}{smooth}@{calibration}"
            if calibration != "dynamic":
                yield f"w{bits}a8-s8{options}{corrected}{smooth}@{calibration}"
            if not smooth and calibration.startswith(WIDE_METHODS):
                yield f"w{bits}a16{options}{corrected}@{calibration}"
