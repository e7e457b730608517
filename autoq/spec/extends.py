"""A profile that builds on another: the mapping that a file and those that it extends come to together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoq.errors import JobError
from autoq.spec.checking import show
from autoq.spec.document import read_mapping
from autoq.spec.resources import find_named

_DEEPEST = 5
# Where another one is chosen, its options are not the first one's.
_CHOICES = {"runtime": "name", "measure": "by"}
_OWN = ("probed",)


def read_extended(path: Path, depth: int = 0) -> dict[Any, Any]:
    """The mapping in the file at ``path``, on top of the one that its ``extends`` names, if it has that.

    Mappings are merged, to any depth; everything else replaces. Raises :class:`JobError`.
    """
    values = dict(read_mapping(path, "hardware profile"))
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if not isinstance(base, str) or not base.strip():
        raise JobError(f"{path}: extends: must be the name of a profile, or a path ({show(base)})")
    if depth == _DEEPEST:
        raise JobError(f"{path}: extends: profiles build on each other more than {_DEEPEST} deep, or in a circle")
    try:
        below = read_extended(find_named("hardware_profiles", base, path.parent), depth + 1)
    except JobError as error:
        raise error if depth else JobError(f"{path}: extends: {error}") from None
    return _merged({key: value for key, value in below.items() if key not in _OWN}, values)


def _merged(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        if isinstance(lower, Mapping) and isinstance(value, Mapping) and not _another(key, lower, value):
            value = _merged(lower, value)
        merged[key] = value
    return merged


def _another(key: Any, lower: Mapping[Any, Any], value: Mapping[Any, Any]) -> bool:
    """Whether ``value`` chooses another runtime or gauge than ``lower``."""
    choice = _CHOICES.get(key) if isinstance(key, str) else None
    return choice is not None and choice in value and value[choice] != lower.get(choice)
