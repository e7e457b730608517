"""Where a named search space or hardware profile lies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autoq.errors import JobError
from autoq.spec.checking import nearest, show

Kind = Literal["search_spaces", "hardware_profiles"]
_WORDS: dict[Kind, str] = {"search_spaces": "search space", "hardware_profiles": "hardware profile"}


def find_named(kind: Kind, name: str | Path, base_dir: Path) -> Path:
    """The file of a name in the folder ``kind``, or of a path.

    A ``name`` that ends in .yaml or .yml, or that has a slash, is a path relative to ``base_dir``. Raises
    :class:`JobError` for an unknown name (listing the known ones) and for a path where there is no file.
    """
    text = str(name)
    if isinstance(name, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = base_dir / text
        try:
            found = path.is_file()
        except OSError:  # a name longer than the file system allows
            found = False
        if not found:
            raise JobError(f"{show(str(path), 300)}: no such {_WORDS[kind]}; known by name: {_listed(named(kind))}")
        return path
    known = named(kind)
    if text not in known:
        raise JobError(f"unknown {_WORDS[kind]} {show(text)}{nearest(text, known)}; known: {_listed(known)}")
    return known[text]


def named(kind: Kind) -> dict[str, Path]:
    """Name -> file of every search space or hardware profile that comes with autoq, sorted by name."""
    folder = _folder(kind)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _folder(kind: Kind) -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / "_data" / kind  # in a wheel
    return installed if installed.is_dir() else package.parent / kind  # in a checkout


def _listed(known: dict[str, Path]) -> str:
    return ", ".join(known) or "none"
