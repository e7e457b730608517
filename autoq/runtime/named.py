"""Runtimes and gauges by the names that profiles call them by."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from autoq.errors import ProfileError
from autoq.runtime.extras import missing_extra
from autoq.spec.checking import nearest


def made_by_name(
    table: Mapping[str, str],
    kind: str,
    name: str,
    arguments: Sequence[Any] = (),
    *,
    field: str,
    options: Mapping[str, Any],
    occasion: Mapping[str, Any] | None = None,
) -> Any:
    """What ``table`` (name -> ``"module:class"``) has under ``name``, made with ``arguments`` and ``options``.

    ``occasion`` is what any of them may need to know of the search: each is told what its constructor names.
    ``field`` is where the profile has the options. Raises :class:`ProfileError` for an unknown name, a package that is
    not installed, and options that the constructor does not take, or lacks.
    """
    if name not in table:
        raise ProfileError(f"unknown {kind} {name!r}{nearest(name, table)}; known: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)
        return made(*arguments, **_checked(made, name, arguments, field, options, occasion or {}))
    except ImportError as error:
        how = missing_extra(name) or "install its package"
        raise ProfileError(f"the {kind} {name!r} cannot be imported ({error}): {how}") from error


def _checked(
    made: Any,
    name: str,
    arguments: Sequence[Any],
    field: str,
    options: Mapping[str, Any],
    occasion: Mapping[str, Any],
) -> dict[str, Any]:
    signature = inspect.signature(made)
    named = [each.name for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    known = [each for each in named[len(arguments) :] if each not in occasion]
    judges_itself = len(named) < len(signature.parameters)  # a constructor with **options
    wrong = [each for each in options if each in occasion or not (each in known or judges_itself)]
    if wrong:
        takes = ", ".join(known) or "none"
        raise ProfileError(f"{field} of {name!r}: there is no {wrong[0]!r}{nearest(wrong[0], known)}; known: {takes}")
    given = {**{each: value for each, value in occasion.items() if each in named}, **options}
    try:
        signature.bind(*arguments, **given)
    except TypeError as error:
        raise ProfileError(f"{field} of {name!r}: {error}") from None
    return given
