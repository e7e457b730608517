"""``polish.jsonl``: what came of each polish, one line each, on disk before the next is waited for.

A polish whose line and file are there is not done again by ``--resume``. Lines are only ever added; of several with one
key the last counts.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from autoq.core.identity import content_id, sha256_hex
from autoq.core.result import PolishKind
from autoq.search.store import append_line, disk_error

FORMAT_VERSION = 1

POLISH_VERSION = 1
"""Part of every key: raise it when polishing changes what it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishRecord:
    """One finished polish of the point ``id``. ``key`` says of what file, and how.

    ``why`` says why the old file stays, and then there is no new one: ``sha256`` and what follows it are ``None``.
    ``metric`` is the new file's on the search split.
    """

    key: str
    id: str
    kind: PolishKind
    measure: str
    held_out: tuple[float, float]
    layers: int
    seconds: float
    why: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    metric: float | None = None

    def __post_init__(self) -> None:
        if (self.sha256 is None) != bool(self.why) or not all(map(math.isfinite, self.held_out)):
            raise ValueError(f"the polish of {self.id} must have a file or a reason, and finite distances")


_ADAPTER = TypeAdapter(PolishRecord)


def polish_key(kind: PolishKind, policy_id: str, sha256: str) -> str:
    """The key of polishing a point whose file has that SHA-256; its run's calibration data stay the same."""
    return content_id({"version": POLISH_VERSION, "kind": kind, "id": policy_id, "file": sha256})


class PolishLog:
    """The finished polishes of one run folder, and their files in ``models``."""

    def __init__(self, path: Path, models: Path, suffix: str = ".onnx") -> None:
        self.path = path
        self._models, self._ending = models, f".polished{suffix}"

    def model_path(self, policy_id: str) -> Path:
        """Where a point's polished file lies."""
        return self._models / f"{policy_id}{self._ending}"

    def read(self) -> dict[str, PolishRecord]:
        """Finished polishes by key, less those that are damaged or whose file is: they are done again."""
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except OSError:
            return {}
        records = {}
        for line in lines:
            try:
                document = json.loads(line)
                if document.pop("version") != FORMAT_VERSION:
                    continue
                record = _ADAPTER.validate_python(document)
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                continue
            records[record.key] = record
        return {key: record for key, record in records.items() if record.sha256 is None or self._has_file(record)}

    def add(self, record: PolishRecord, model: bytes | None) -> None:
        """Keeps a finished polish: its file first. Raises :class:`autoq.errors.RunError` where it cannot be written."""
        if model is not None:
            self._write(self.model_path(record.id), model)
        document: dict[str, Any] = _ADAPTER.dump_python(record, mode="json")
        line = json.dumps({"version": FORMAT_VERSION, **document}, allow_nan=False, ensure_ascii=False)
        append_line(self.path, line.encode() + b"\n")

    def clear_files(self, kept: set[str]) -> None:
        """Removes the polished files of all points but ``kept``."""
        for path in self._models.glob(f"*{self._ending}"):
            if path.name.removesuffix(self._ending) not in kept:
                path.unlink(missing_ok=True)

    def _has_file(self, record: PolishRecord) -> bool:
        try:
            return sha256_hex(self.model_path(record.id).read_bytes()) == record.sha256
        except OSError:
            return False

    def _write(self, path: Path, model: bytes) -> None:
        temporary = None
        try:
            # Aside and renamed: a kill leaves the old file or the new one.
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
                temporary = Path(handle.name)
                handle.write(model)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            raise disk_error(path, error) from None
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
