"""Identity is content: SHA-256 of canonical JSON or of bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, no NaN or infinity (``ValueError``)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_id(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of ``value``."""
    return sha256_hex(canonical_json(value).encode())


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of ``data``, in hex."""
    return hashlib.sha256(data).hexdigest()
