from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.archive import Archive
from autoq.numerics.pareto import non_dominated


@given(
    rows=st.lists(st.tuples(*[st.integers(-3, 3)] * 3), max_size=30),
    floor=st.none() | st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_one_by_one_is_all_at_once(rows: list[tuple[int, ...]], floor: tuple[int, ...] | None) -> None:
    archive: Archive[int] = Archive(floor)
    there: set[int] = set()
    for index, row in enumerate(rows):
        out = archive.add(row, index)
        there = (there | {index}) - set(out)
        assert there == set(archive.items)
        assert len(archive) == len(there)
    above = [] if floor is None else [floor]
    kept = non_dominated([*above, *rows])[len(above) :] if rows else []
    expected = sorted((row, index) for index, (row, keep) in enumerate(zip(rows, kept, strict=True)) if keep)
    assert archive.items == [index for _, index in expected]
    assert archive.losses == [row for row, _ in expected]


def test_zero_has_no_sign() -> None:
    archive: Archive[str] = Archive()
    assert archive.add([0.0, 1.0], "first") == []
    assert archive.add([-0.0, 1.0], "its equal") == ["its equal"]
    assert archive.add([-0.0, 0.5], "better") == ["first"]
    assert archive.items == ["better"]


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(loss: float) -> None:
    archive: Archive[str] = Archive()
    with pytest.raises(ValueError, match="not all finite"):
        archive.add([1.0, loss], "x")
