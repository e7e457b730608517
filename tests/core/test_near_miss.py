"""Which bounds bind, against brute force over all sets of bounds."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from autoq.core.near_miss import keeps, near_misses

NAMES = ("max_metric_drop", "max_latency_ratio", "max_size_ratio")
EXCESSES = st.fixed_dictionaries({name: st.none() | st.integers(-2, 2).map(float) for name in NAMES})


def test_one_bound_binds_by_itself() -> None:
    (miss,) = near_misses(
        [{"max_size_ratio": 0.3, "max_metric_drop": -1.0}, {"max_size_ratio": 0.1, "max_metric_drop": 1.0}]
    )
    assert (miss.bound, miss.nearest, miss.excess) == ("max_size_ratio", 1, 0.1)
    assert miss.text("--max-size-ratio", 0.2, "the nearest, ab,") == (
        "--max-size-ratio 0.2 (the nearest, ab, has the size ratio 0.3, 0.1 too much)"
    )


def test_two_of_three_bind_together_and_the_third_is_not_named() -> None:
    found = near_misses(
        [
            {"max_metric_drop": 0.2, "max_latency_ratio": -0.1, "max_size_ratio": -0.5},
            {"max_metric_drop": -0.1, "max_latency_ratio": 0.3, "max_size_ratio": -0.5},
            {"max_metric_drop": -0.1, "max_latency_ratio": 0.1, "max_size_ratio": 0.7},
        ]
    )
    assert [(miss.bound, miss.nearest, miss.excess) for miss in found] == [
        ("max_metric_drop", 0, 0.2),
        ("max_latency_ratio", 2, 0.1),
    ]


def test_what_was_not_measured_is_no_miss_but_keeps_nothing() -> None:
    (miss,) = near_misses([{"max_peak_memory_ratio": None}])
    assert (miss.nearest, miss.excess) == (None, None)
    assert miss.text("--max-memory-ratio", 0.5, "") == "--max-memory-ratio 0.5 (it was not measured)"
    assert near_misses([]) == []


@given(st.lists(EXCESSES, min_size=1, max_size=5))
def test_against_brute_force(entries: list[dict[str, float | None]]) -> None:
    found = near_misses(entries)
    if any(keeps(entry) for entry in entries):
        assert found == []
        return
    bound = {miss.bound for miss in found}

    def some_keeps(names: tuple[str, ...]) -> bool:
        return any(keeps({name: entry[name] for name in names}) for entry in entries)

    smallest = min(n for n in (1, 2, 3) if any(not some_keeps(names) for names in combinations(NAMES, n)))
    assert not some_keeps(tuple(bound))
    if smallest == 1:
        assert bound == {name for name in NAMES if not some_keeps((name,))}
    else:
        assert len(bound) == smallest
    for miss in found:
        if miss.nearest is not None:
            others = [name for name in bound if name != miss.bound] if smallest > 1 else []
            rivals = [e for e in entries if e[miss.bound] is not None and keeps({n: e[n] for n in others})]
            assert miss.excess == min(e[miss.bound] for e in rivals) > 0  # type: ignore[type-var]
