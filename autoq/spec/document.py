"""Reading a YAML file as one mapping, strictly.

Beyond ``yaml.safe_load``: a key given twice is refused (safe_load silently keeps the last), and a document that
would grow without bound (nested aliases, long merges, a list that contains itself) is refused before it does.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

from autoq.errors import JobError

MAX_BYTES = 256 * 1024  # far above any sensible file, and still parsed in seconds
MAX_VALUES = 50_000  # after aliases are followed
MAX_DEPTH = 40
MAX_MERGES = 16  # mappings in one ``<<: [*a, *b, ...]``


def read_mapping(path: Path, what: str) -> dict[Any, Any]:
    """The mapping in the YAML file ``path``; ``what`` names its kind in errors (``"job file"``).

    Raises :class:`JobError` where the file is missing, unreadable, no text, too large, no YAML or no mapping.
    """
    text = _read_text(path, what)
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise JobError(f"{where}: not valid YAML: {said}") from None
    except yaml.YAMLError as error:
        raise JobError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise JobError(f"{path}: nested too deeply to be a {what}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        # What PyYAML's constructors raise for tagged or malformed scalars, such as ``!!bool maybe`` or 2001-99-99.
        detail = f"{type(error).__name__}: {error}"[:200]
        raise JobError(f"{path}: a value in it cannot be read as YAML says it should ({detail})") from None
    if value is None:
        raise JobError(f"{path}: the {what} is empty")
    if not isinstance(value, dict):
        raise JobError(f"{path}: a {what} is a mapping of fields (version: 1, ...), not a {type(value).__name__}")
    check_bounds(value, str(path))
    return value


def check_bounds(value: Any, where: str) -> None:
    """Raises :class:`JobError` where ``value`` nests or repeats (by aliases) beyond any sensible file."""
    seen = 0
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise JobError(f"{where}: values nested more than {MAX_DEPTH} deep (does an alias contain itself?)")
        if seen > MAX_VALUES:
            raise JobError(f"{where}: more than {MAX_VALUES} values once its aliases are followed")
        if isinstance(item, dict):
            pending += [(child, depth + 1) for child in item.values()]
        elif isinstance(item, list | tuple):
            pending += [(child, depth + 1) for child in item]


def _read_text(path: Path, what: str) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise JobError(f"{path} is a folder; give the {what} in it")
        if not stat.S_ISREG(mode):
            raise JobError(f"{path} is not a regular file; give a {what}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{path}: no such {what}") from None
    except OSError as error:
        raise JobError(f"{path}: the {what} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL or a lone surrogate in the path
        raise JobError(f"{str(path)!r} is no path of a {what}: {error}") from None
    if len(data) > MAX_BYTES:
        raise JobError(f"{path}: larger than {MAX_BYTES // 1024} KiB, so it is no {what}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}), so it is no {what}") from None
    if "\0" in text:
        raise JobError(f"{path}: a binary file, so it is no {what}")
    return text


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses keys given twice and merges of very many mappings."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Checked here, where keys are still as written: merging (``<<``) may repeat a key rightly, to override it.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value[:80]!r} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def flatten_mapping(self, node: Any) -> None:
        for key, merged in node.value:
            too_many = isinstance(merged, yaml.SequenceNode) and len(merged.value) > MAX_MERGES
            if key.tag == "tag:yaml.org,2002:merge" and too_many:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'<<' merges more than {MAX_MERGES} mappings", key.start_mark
                )
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping of more than {MAX_VALUES} keys", node.start_mark
            )
