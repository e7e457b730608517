"""Functions that a job names as ``file.py:name``: loading them, and calling them so that a failure reads well."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoq.errors import AutoqError


def load_function(reference: str, base_dir: Path, error: type[AutoqError], where: str) -> Callable[..., Any]:
    """The function ``name`` of ``file.py``, relative to ``base_dir``; the file is run anew at every call.

    Files beside it can be imported by it. Raises ``error``, its message led by ``where``, when the file is missing or
    cannot be run, or when it has no function of that name.
    """
    file, _, name = reference.rpartition(":")
    path = base_dir / file
    if not path.is_file():
        raise error(f"{where}: {path}: no such file")
    # A name of its own: two jobs may each have a metric.py. It must be in sys.modules while the file runs, where
    # dataclasses and pickle look it up.
    module_name = f"autoq_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise error(f"{where}: {path} is no Python file")
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    sys.modules[module_name] = module
    sys.path.insert(0, folder)
    try:
        call_user(lambda: loader.exec_module(module), path, error, f"{where}: running {path}")
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise error(f"{where}: {path} has no {name!r}; it has {', '.join(known) or 'no functions'}")
    if not callable(function):
        raise error(f"{where}: {name!r} in {path} is a {type(function).__name__}, not a function")
    return function


def call_user(call: Callable[[], Any], path: Path, error: type[AutoqError], what: str) -> Any:
    """``call()``; whatever it raises becomes ``error``: ``what`` failed, with type, message and line in ``path``.

    ``KeyboardInterrupt`` passes: it is the user's, not the function's.
    """
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except (Exception, SystemExit) as raised:  # a user's code may raise anything, and sys.exit() must not end a search
        text = " ".join(str(raised).split())[:300]
        said = f"{type(raised).__name__}: {text}" if text else type(raised).__name__
        raise error(f"{what} raised {said}{_line(raised, path)}") from raised


def _line(raised: BaseException, path: Path) -> str:
    if isinstance(raised, SyntaxError) and raised.filename == str(path):
        return f" ({path.name}, line {raised.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(raised.__traceback__) if frame.filename == str(path)]
    return f" ({path.name}, line {lines[-1]})" if lines else ""
