"""Looking at a tracking URI before MLflow does, which would try a dead database for minutes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from autoq.errors import TrackingError

_SQLITE_HEADER = b"SQLite format 3\x00"
_SECONDS = 5


def check_store(uri: str) -> None:
    """Raise :class:`~autoq.errors.TrackingError` when ``uri`` is a database that cannot be used.

    The folder of an SQLite file is made. Web servers are left to the first request.
    """
    scheme = uri.split(":", 1)[0].split("+", 1)[0] if "://" in uri else ""
    if not uri.strip():
        raise TrackingError("the tracking URI is empty; give sqlite:///mlflow.db or http://host:5000, for example")
    if scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in ("postgresql", "mysql", "mssql"):
        _check_database(uri, scheme)


def sqlite_path(uri: str) -> Path | None:
    """The file of an ``sqlite:///`` URI; ``None`` for other URIs and for a database in memory."""
    if not uri.startswith("sqlite:"):
        return None
    path = uri.split(":///", 1)[1].split("?", 1)[0] if ":///" in uri else ""
    return Path(path) if path and path != ":memory:" else None


def without_secrets(text: str) -> str:
    """``text`` with the user and password of every URI in it replaced by ``***``."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def default_artifact_root(uri: str) -> str | None:
    """The folder ``mlartifacts`` beside an SQLite file, as a URI; ``None`` where the server decides."""
    path = sqlite_path(uri)
    return None if path is None else (path.absolute().parent / "mlartifacts").as_uri()


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None:
        raise TrackingError(f"the tracking URI {uri} names no file; write sqlite:///folder/mlflow.db")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("r+b") as file:
                head = file.read(len(_SQLITE_HEADER))
            if head and head != _SQLITE_HEADER:
                raise TrackingError(f"{path} is no SQLite database; give another --tracking-uri")
        elif not os.access(path.parent, os.W_OK):
            raise TrackingError(f"the folder {path.parent} cannot be written; give another --tracking-uri")
    except OSError as error:
        raise TrackingError(
            f"the tracking database {path} cannot be opened: {error.strerror or error}; give another --tracking-uri"
        ) from error


def _check_database(uri: str, scheme: str) -> None:
    import sqlalchemy

    # The two drivers in common use take this; another one keeps its own limit.
    limits = {"connect_timeout": _SECONDS} if scheme in ("postgresql", "mysql") else {}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=limits)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except Exception as error:  # a driver that is missing, refuses or cannot connect raises what it likes
        reason = without_secrets(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise TrackingError(
            f"the tracking database {without_secrets(uri)} cannot be used: {reason}; see that it runs and that its "
            "Python driver is installed"
        ) from error
