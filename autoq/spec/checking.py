"""What every YAML format shares: strict models, and one :class:`JobError` that lists all that is wrong.

A problem reads ``file: field.path: what is wrong (value); did you mean 'x'``, one line each.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from autoq.errors import JobError

M = TypeVar("M", bound=BaseModel)


class Fields(BaseModel):
    """Base of every checked mapping: frozen, no unknown fields, no silent conversions, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _path_to_text(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else value


def _number_to_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else _list_to_tuple(value)


def _usable_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character pair, which no file can hold") from None
    if "\0" in value or "\n" in value or "\r" in value:
        raise ValueError("must be one line of text")
    return value


# Strict pydantic refuses a list where a tuple is declared, and JSON and YAML have only lists.
AsTuple = BeforeValidator(_list_to_tuple)
Text = Annotated[str, BeforeValidator(_path_to_text), AfterValidator(_usable_text)]
"""One line of text, not empty; from Python a path will do."""
Numbers = Annotated[tuple[float, ...], BeforeValidator(_number_to_tuple), Field(min_length=1)]
"""One number or a list of them, kept as a tuple. (One type rather than a union: problems then name the field.)"""
Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0)]


def validate(model: type[M], value: Mapping[Any, Any], where: str, context: Mapping[str, Any] | None = None) -> M:
    """``value`` as ``model``; raises :class:`JobError` with every problem, each led by ``where``."""
    version = value.get("version")
    if version is not None and (type(version) is not int or version != 1):
        raise JobError(f"{where}: version: this autoq reads version 1, not {show(version)}")
    try:
        return model.model_validate(dict(value), context=dict(context or {}))
    except ValidationError as error:
        problems = dict.fromkeys(_problem(model, detail) for detail in error.errors())
        raise JobError("\n".join(f"{where}: {problem}" for problem in problems)) from None
    except RecursionError:
        raise JobError(f"{where}: nested too deeply") from None


def nearest(word: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'"`` for the known word nearest to ``word``, or an empty string."""
    if not isinstance(word, str):
        return ""
    lowered = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower()[:100], list(lowered), n=1, cutoff=0.6)
    return f"; did you mean {lowered[found[0]]!r}" if found else ""


def show(value: object, width: int = 80) -> str:
    """``value`` as a message shows it: its ``repr``, cut to ``width`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4,300 digits has no decimal text
        text = f"<{type(value).__name__}>"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def field_path(location: Sequence[int | str]) -> str:
    """``("data", "slice", 0)`` as ``data.slice[0]``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


_PLAIN = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "has too many items",
    "finite_number": "must be a finite number",
    "invalid_key": "every field's name must be text",
}


def _problem(model: type[BaseModel], detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    location = tuple(part for part in detail["loc"] if part != "[key]")  # pydantic's mark for a mapping's key
    path = field_path(location)
    lead = f"{path}: " if path else ""
    if kind == "extra_forbidden":
        known = _field_names(model, location[:-1])
        hint = nearest(location[-1], known) or _elsewhere(model, location[-1]) or f"; known here: {', '.join(known)}"
        return f"{lead}unknown field{hint}"
    if kind == "missing":
        return f"{lead}missing{_example(model, location)}"
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        known = re.findall(r"'([^']*)'", expected)
        return f"{lead}must be {expected} ({show(value)}){nearest(value, known)}"
    if kind in ("value_error", "assertion_error"):
        text = detail["msg"].removeprefix("Value error, ")
        return f"{lead}{text}" + ("" if isinstance(value, Mapping) else f" ({show(value)})")
    if kind in ("model_type", "dict_type"):
        return f"{lead}must be a mapping ({show(value)}){_example(model, location)}"
    text = _PLAIN.get(kind) or detail["msg"].replace("Input should", "must").replace("Tuple should", "must")
    return f"{lead}{text} ({show(value)})"


def _elsewhere(model: type[BaseModel], key: int | str) -> str:
    """``"; it belongs under 'data'"`` where ``key`` is a field one level down."""
    for name, field in model.model_fields.items():
        for each in _models_in(field.annotation):
            if key in (each.model_fields.keys() | {other.alias for other in each.model_fields.values()}):
                return f"; it belongs under {field.alias or name!r}"
    return ""


def _models_at(model: type[BaseModel], location: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that may stand at ``location``, found by walking the annotations."""
    found: list[Any] = [model]
    for part in location:
        below: list[Any] = []
        for annotation in found:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                below += [
                    field.annotation for name, field in annotation.model_fields.items() if part in (name, field.alias)
                ]
            else:  # a mapping's values or a list's items
                below += typing.get_args(annotation)[-1:] if isinstance(part, str) else typing.get_args(annotation)[:1]
        found = [member for annotation in below for member in _union_members(annotation)]
    return [each for each in found if isinstance(each, type) and issubclass(each, BaseModel)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    return [each for each in _union_members(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]


def _union_members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        return _union_members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for member in typing.get_args(annotation) for each in _union_members(member)]
    return [annotation]


def _field_names(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    return [field.alias or name for each in _models_at(model, location) for name, field in each.model_fields.items()]


def _example(model: type[BaseModel], location: Sequence[int | str]) -> str:
    for each in _models_at(model, location[:-1]):
        for name, field in each.model_fields.items():
            if location[-1] in (name, field.alias) and field.examples:
                return f"; for example {field.alias or name}: {field.examples[0]}"
    return ""
