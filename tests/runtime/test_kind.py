"""Machines of one kind, and of another."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from autoq.runtime.kind import Kind, kind_of
from autoq.runtime.machine import describe, parse_cpuinfo

VERSIONS = {"autoq": "0.1.0", "onnxruntime": "1.31.1"}


def of(flags: str, *, cores: int = 8, model: str = "CPU A", arch: str = "x86_64", **versions: str) -> Kind:
    return Kind(
        arch=arch, cpu_model=model, flags=tuple(sorted(flags.split())), cores=cores, versions=VERSIONS | versions
    )


def test_this_machine_is_of_its_own_kind() -> None:
    own = kind_of(describe(), "onnxruntime")
    assert own.versions["onnxruntime"] and own.versions["autoq"]
    again = pickle.loads(pickle.dumps(own))
    assert own.timed_otherwise(again) == own.scored_otherwise(again) == ""
    assert kind_of(describe(), "no such runtime").versions["no such runtime"] is None


def test_flags_that_choose_no_kernel_do_not_count() -> None:
    machine = describe()
    flags = parse_cpuinfo("flags : fpu avx2 avx512_vnni some_mitigation")[1]
    one, other = (dataclasses.replace(machine, flags=each) for each in (flags, flags - {"some_mitigation"}))
    assert kind_of(one, "onnxruntime") == kind_of(other, "onnxruntime")
    assert kind_of(one, "onnxruntime").flags == ("avx2", "avx512_vnni")


VNNI = of("avx2 avx512_vnni")


@pytest.mark.parametrize(
    ("other", "timed", "scored"),
    [
        (of("avx2 avx512_vnni", model="CPU B"), "CPU CPU B, not CPU A", ""),
        (of("avx2 avx512_vnni", cores=2), "2 cores, not 8", ""),
        (of("avx2 avx512_vnni amx_int8"), "amx_int8 besides", ""),
        (of("avx2"), "no avx512_vnni", "it has no VNNI, without which its integer kernels add in 16 bits and saturate"),
        (
            of("asimd", arch="aarch64"),
            "aarch64, not x86_64; no avx2, avx512_vnni; asimd besides",
            "aarch64, not x86_64",
        ),
        (
            of("avx2 avx512_vnni", onnxruntime="1.30.0"),
            "onnxruntime 1.30.0, not 1.31.1",
            "onnxruntime 1.30.0, not 1.31.1",
        ),
    ],
)
def test_what_differs_is_named(other: Kind, timed: str, scored: str) -> None:
    assert (VNNI.timed_otherwise(other), VNNI.scored_otherwise(other)) == (timed, scored)
    # Whatever differs one way round differs the other way round.
    assert bool(other.timed_otherwise(VNNI)) and bool(other.scored_otherwise(VNNI)) == bool(scored)


def test_vnni_where_this_machine_has_none() -> None:
    told = of("avx2").scored_otherwise(VNNI)
    assert told == "it has VNNI, without which those here add in 16 bits and saturate"
