"""Writing a file so that a reader sees the old content or the new, never a half."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from autoq.errors import RunError


def write_atomically(path: str | os.PathLike[str], data: bytes | str, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` (text as UTF-8): a temporary file in the same folder, fsync, rename.

    Not ``durable`` leaves the fsync out: a kill does no harm then, a power failure may. The folder must exist.
    Raises :class:`~autoq.errors.RunError` when it cannot be written; ``path`` is then as before and the temporary file
    is gone.
    """
    target = Path(path)
    content = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        # mkstemp makes the file private; the result should be as readable as any other new file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror or error}; see that its folder exists, may be written and "
            "has room"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
