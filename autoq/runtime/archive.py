"""Reading some rows of some arrays of an .npz file, with memory for those rows only.

:func:`numpy.load` decompresses whole arrays, and believes the sizes that a file declares. Here the declared sizes are
checked against each other first, rows that are not asked for are skipped, and no pickle is ever read.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from autoq.errors import DataError

# Beyond this, reading on to a member's checksum costs more than it is worth: only the rows that are used get read.
_CHECKED_BYTES = 1 << 30
_CHUNK = 1 << 20

# What zipfile and numpy.lib.format raise for a member that is cut off, encrypted, oddly compressed or no .npy.
_DAMAGE = (
    zlib.error, tokenize.TokenError, SyntaxError, EOFError, OSError, ValueError, TypeError, KeyError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What an .npy member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Archive:
    """An open .npz file. ``where`` leads every message. Use :func:`open_archive`."""

    def __init__(self, file: zipfile.ZipFile, where: str) -> None:
        self._file = file
        self._where = where
        self._members = {
            info.filename.removesuffix(".npy"): info for info in file.infolist() if info.filename.endswith(".npy")
        }

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self._members)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of an array; raises :class:`DataError` for pickles and for sizes that do not agree."""
        with self._reading(key) as member:
            return self._header(member, key).shape

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, C-contiguous; raises :class:`DataError` where they cannot be read."""
        with self._reading(key) as member:
            header = self._header(member, key)
            row = math.prod(header.shape[1:]) * header.dtype.itemsize
            first, last = (0, header.shape[0]) if header.fortran else (start, stop)
            need_memory((last - first) * row, f"{self._where}: array {key!r}")
            _skip(member, first * row)
            data = _exactly(member, (last - first) * row, f"{self._where}: array {key!r}")
            if self._members[key].file_size <= _CHECKED_BYTES:
                while member.read(_CHUNK):  # the checksum is checked at the end
                    pass
        array = np.frombuffer(data, dtype=header.dtype)
        array = array.astype(header.dtype.newbyteorder("="), copy=False)
        if header.fortran:
            return np.ascontiguousarray(array.reshape(header.shape[::-1]).T[start:stop])
        return array.reshape((stop - start, *header.shape[1:]))

    def _header(self, member: IO[bytes], key: str) -> _Header:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{self._where}: array {key!r} is of .npy version {version}, which holds no plain array")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype.hasobject:
            raise DataError(
                f"{self._where}: array {key!r} holds Python objects (a pickle), which could run code when read; save "
                "it as a plain array of numbers"
            )
        if dtype.names is not None or dtype.subdtype is not None or dtype.itemsize == 0:
            raise DataError(f"{self._where}: array {key!r} is of type {dtype}; save it as a plain array of numbers")
        declared, present = math.prod(shape) * dtype.itemsize, self._members[key].file_size - member.tell()
        if min(shape, default=0) < 0 or declared != present:
            raise DataError(
                f"{self._where}: array {key!r} is damaged: shape {list(shape)} of {dtype} is {declared} bytes, "
                f"and there are {present}"
            )
        return _Header(shape=shape, dtype=dtype, fortran=fortran)

    @contextmanager
    def _reading(self, key: str) -> Iterator[IO[bytes]]:
        with _damage_reported(f"{self._where}: array {key!r}"), self._file.open(self._members[key]) as member:
            yield member


@contextmanager
def open_archive(path: Path, where: str) -> Iterator[Archive]:
    """The .npz file at ``path``; raises :class:`DataError` where it is missing, unreadable or no zip archive."""
    if path.is_dir():
        raise DataError(f"{where}: {path} is a folder; give an .npz file in it")
    try:
        file = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise DataError(f"{where}: {path}: no such file") from None
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{where}: {path} is no .npz file, or a truncated one ({error}); write it with numpy.savez"
        ) from None
    except (OSError, NotImplementedError, ValueError) as error:
        raise DataError(f"{where}: {path} cannot be read: {error}") from None
    with file:
        yield Archive(file, f"{where}: {path}")


def need_memory(size: int, what: str) -> None:
    """Raises :class:`DataError` where ``size`` bytes are more than the memory that is available."""
    available = int(psutil.virtual_memory().available)
    if size > available:
        raise DataError(
            f"{what} needs {size / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are available; take fewer rows "
            "(limit or slice)"
        )


@contextmanager
def _damage_reported(what: str) -> Iterator[None]:
    try:
        yield
    except zipfile.BadZipFile as error:
        raise DataError(f"{what} is damaged: {error}") from None
    except _DAMAGE as error:
        raise DataError(f"{what} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _skip(member: IO[bytes], size: int) -> None:
    while size > 0:
        read = len(member.read(min(size, _CHUNK)))
        if read == 0:
            return
        size -= read


def _exactly(member: IO[bytes], size: int, what: str) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        read = member.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
        if not read:
            raise DataError(f"{what} is cut off after {filled} of {size} bytes")
        filled += read
    return data


def listed(keys: Sequence[str]) -> str:
    """The keys of a file as a message shows them."""
    return ", ".join(keys[:20]) + (", ..." if len(keys) > 20 else "") if keys else "nothing"
