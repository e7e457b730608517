"""Times as people write them: ``90s``, ``10m``, ``1h30m``, or a number of seconds."""

from __future__ import annotations

import math
import re

from autoq.errors import JobError
from autoq.spec.checking import show

_PATTERN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)
_LONGEST_S = 366 * 24 * 3600.0


def parse_duration(value: str | float) -> float:
    """Seconds in ``"1h30m"``, ``"10m"``, ``"90s"``, ``"90"`` or ``90``; raises :class:`JobError` for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise JobError(f"a time is a text such as 10m or a number of seconds, not {show(value)}")
    if isinstance(value, str):
        text = value.replace(" ", "")
        match = _PATTERN.fullmatch(text) if 0 < len(text) <= 40 else None
        if match is None:
            raise JobError(f"{show(value)} is no time; write 90s, 10m, 1h30m or a number of seconds")
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
    else:
        # A whole number may be too large for a float; every such number is too long a time anyway.
        total = float(value) if -_LONGEST_S <= value <= _LONGEST_S else math.inf
    if not 0 < total <= _LONGEST_S:
        raise JobError(f"{show(value)} is no usable time; it must be above 0 and at most a year")
    return total
