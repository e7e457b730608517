"""Going on with a search on another machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autoq.errors import RunError
from autoq.record.machines import MACHINES, machine_document, machines_note, machines_of
from autoq.runtime.kind import Kind, kind_of
from autoq.runtime.machine import describe

RUN = Path("runs/r")
FIRST = Kind(
    arch="x86_64",
    cpu_model="CPU A",
    flags=("avx2", "avx512_vnni"),
    cores=8,
    versions={"autoq": "0.1.0", "onnxruntime": "1.31.1"},
)
OTHER = dataclasses.replace(FIRST, cpu_model="CPU B")


def record(*machines: Kind) -> dict[str, object]:
    """``run.json`` as it is read back."""
    found: dict[str, object] = json.loads(json.dumps({MACHINES: [machine_document(each) for each in machines]}))
    return found


def test_a_new_run_and_one_of_an_earlier_version_are_of_this_machine() -> None:
    own = kind_of(describe(), "onnxruntime")
    for recorded in ({}, {"name": "old"}):
        (found,) = machines_of(RUN, recorded, own, timed=True, force=False)
        assert not found.timed_otherwise(own) or "autoq" not in found.versions
        assert machines_note((found,), timed=True) == ""
        # And on it goes on the same one.
        assert machines_of(RUN, record(found), own, timed=True, force=False) == (found,)


def test_another_autoq_measures_alike() -> None:
    newer = dataclasses.replace(FIRST, versions={**FIRST.versions, "autoq": "0.2.0"})
    first = machines_of(RUN, {}, FIRST, timed=True, force=False)
    assert machines_of(RUN, record(*first), newer, timed=True, force=False) == first


def test_another_machine_is_refused_unless_forced_and_is_then_known() -> None:
    first = machines_of(RUN, {}, FIRST, timed=True, force=False)
    with pytest.raises(
        RunError, match=r"runs/r was searched on another machine. Here: CPU CPU B, not CPU A. .*--force"
    ):
        machines_of(RUN, record(*first), OTHER, timed=True, force=False)
    both = machines_of(RUN, record(*first), OTHER, timed=True, force=True)
    assert [each.cpu_model for each in both] == ["CPU A", "CPU B"]
    assert machines_note(both, timed=True) == (
        "searched on 2 machines, whose figures are ranked together; after the first one: CPU CPU B, not CPU A"
    )
    # Who forced it once is not asked again, on either.
    for own in (FIRST, OTHER):
        assert machines_of(RUN, record(*both), own, timed=True, force=False) == both


def test_where_nothing_is_timed_here_only_scores_count() -> None:
    first = machines_of(RUN, {}, FIRST, timed=False, force=False)
    assert machines_of(RUN, record(*first), OTHER, timed=False, force=False) == first
    weak = dataclasses.replace(FIRST, flags=("avx2",))
    with pytest.raises(RunError, match="has no VNNI"):
        machines_of(RUN, record(*first), weak, timed=False, force=False)


def test_a_damaged_record_names_the_field() -> None:
    damaged = {MACHINES: [{**machine_document(FIRST), "cores": "many"}]}
    with pytest.raises(RunError, match=r"machines\[0\]\.cores"):
        machines_of(RUN, damaged, FIRST, timed=True, force=False)
