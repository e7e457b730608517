"""Which trials of another target's search come first, by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from autoq.core.policy import Policy
from autoq.core.result import Trial
from autoq.core.scheme import Scheme
from autoq.search.other_hardware import likeliest
from autoq.search.problem import Problem
from tests.search.problems import make_problem, make_trial


def policy(a: str, b: str = "w8") -> Policy:
    return Policy.of({"a": Scheme.parse(a), "b": Scheme.parse(b)})


# Here: (metric, modelled latency, size). On the other hardware all of them took as long as float32.
HERE: Mapping[Policy, tuple[float, float, int]] = {
    policy("w8"): (0.89, 0.9, 500),
    policy("w4"): (0.88, 0.6, 300),
    policy("w8a8@minmax"): (0.87, 0.7, 500),  # behind w4, which is better in everything
    policy("w4a8@mse"): (0.86, 0.3, 300),
    policy("float32"): (0.90, 1.0, 750),
    policy("w4", "w4"): (0.70, 0.2, 250),  # loses 0.2
}


def problem(**changes: object) -> Problem:
    made = make_problem(("a", "b"), max_metric_drop=0.1)
    return dataclasses.replace(made, latency=lambda each: HERE[each][1], **changes)  # type: ignore[arg-type]


def trials() -> list[tuple[str, Trial]]:
    return [
        ("known:there", make_trial(number, each, metric, 1.0, size))
        for number, (each, (metric, _, size)) in enumerate(HERE.items())
    ]


def chosen(found: list[tuple[str, dict[str, Scheme]]]) -> list[str]:
    return [str(schemes["a"]) for _, schemes in found]


def test_the_front_here_comes_first_and_what_breaks_a_constraint_never() -> None:
    found = likeliest(problem(), trials(), 10)
    # Best metric first; what is dominated here stands behind the front.
    assert chosen(found) == ["float32", "w8", "w4", "w4a8@mse", "w8a8@minmax"]
    assert {name for name, _ in found} == {"known:there"}


def test_of_more_than_there_is_room_for_some_from_all_along_the_front() -> None:
    assert chosen(likeliest(problem(), trials(), 2)) == ["float32", "w4a8@mse"]
    assert chosen(likeliest(problem(), trials(), 3)) == ["float32", "w4", "w4a8@mse"]
    assert likeliest(problem(), trials(), 0) == []


def test_what_is_not_known_or_not_offered_is_left_out() -> None:
    found = trials()
    name, first = found[0]
    found[0] = name, dataclasses.replace(first, metric=None)
    narrow = make_problem(("a", "b"), own={"a": [Scheme.parse("w8"), Scheme.parse("w4")]})
    here = dataclasses.replace(narrow, latency=lambda each: HERE[each][1])
    assert chosen(likeliest(here, [*found, *found], 10)) == ["w4", "w4"]  # with w8 and with w4 as b
