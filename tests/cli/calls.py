"""The real command line, in this process."""

from __future__ import annotations

import contextlib
import io
import os
import re
from dataclasses import dataclass

import pytest

from autoq.cli import main

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: str | os.PathLike[str]) -> Done:
    """``autoq ARGUMENTS``."""
    capsys.readouterr()
    code = main([os.fspath(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return Done(code, _STYLE.sub("", out), _STYLE.sub("", err))


def ran(*arguments: str | os.PathLike[str]) -> Done:
    """``autoq ARGUMENTS`` where there is no ``capsys``; quicker than a process, which imports for seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([os.fspath(argument) for argument in arguments])
    return Done(code, _STYLE.sub("", out.getvalue()), _STYLE.sub("", err.getvalue()))


def assert_one_message(done: Done, message: str, *, code: int = 2) -> None:
    """It failed with this code and one message that matches, and nothing of Python's shows."""
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err + done.out
    assert "internal error" not in done.err
    assert re.search(message, done.err), done.err
    assert done.err.count("autoq: ") == 1, done.err
    assert done.err.startswith("autoq: "), done.err
    assert done.out == ""
