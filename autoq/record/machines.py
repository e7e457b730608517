"""On which kinds of machine the trials of a run were measured: ``--resume`` may be on another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoq.errors import RunError
from autoq.record.json_reader import Node
from autoq.runtime.kind import Kind

MACHINES = "machines"
"""What ``run.json`` calls the kinds of machine that a search ran on, the first first; earlier runs have none."""


def machines_of(run: Path, recorded: Mapping[str, Any], own: Kind, *, timed: bool, force: bool) -> tuple[Kind, ...]:
    """The kinds that ``recorded`` (``run.json``; empty for a new run) has, and ``own``, this machine's.

    Raises :class:`RunError` where this machine's figures cannot stand beside those of the first one (its metrics; its
    times too, where they are ``timed`` here), unless ``force`` says so, or said so before.
    """
    own, root = _without_autoq(own), Node(dict(recorded), "run.json", "")
    before = tuple(_kind(node) for node in root.get(MACHINES).items()) if MACHINES in recorded else ()
    why = _otherwise(before[0], own, timed) if before and own not in before else ""
    if why and not force:
        raise RunError(
            f"{run} was searched on another machine. Here: {why}. The figures of both cannot be ranked together: go on "
            "there, or search here with another --out; --force goes on all the same, and notes it"
        )
    return (*before, own) if why or not before else before


def machines_note(machines: Sequence[Kind], *, timed: bool) -> str:
    """What a run is marked with that was searched on machines of several kinds; empty where there was one."""
    first, *others = machines
    if not others:
        return ""
    found = " / ".join(_otherwise(first, other, timed) for other in others)
    return f"searched on {len(machines)} machines, whose figures are ranked together; after the first one: {found}"


def machine_document(kind: Kind) -> dict[str, Any]:
    """As ``run.json`` has it."""
    return {
        "arch": kind.arch,
        "cpu_model": kind.cpu_model,
        "flags": list(kind.flags),
        "cores": kind.cores,
        "versions": dict(kind.versions),
    }


def _without_autoq(kind: Kind) -> Kind:
    """Another autoq proposes other candidates; what is measured of one is the same."""
    return dataclasses.replace(kind, versions={name: own for name, own in kind.versions.items() if name != "autoq"})


def _kind(node: Node) -> Kind:
    versions = {name: None if value.is_null else value.text() for name, value in node.get("versions").fields()}
    return Kind(
        arch=node.get("arch").text(),
        cpu_model=node.get("cpu_model").text(),
        flags=tuple(flag.text() for flag in node.get("flags").items()),
        cores=node.get("cores").integer(),
        versions=versions,
    )


def _otherwise(first: Kind, own: Kind, timed: bool) -> str:
    return first.timed_otherwise(own) if timed else first.scored_otherwise(own)
