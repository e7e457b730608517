"""What the hardware has room for: bounds that every candidate must keep, each with the unit in its name."""

from __future__ import annotations

from collections.abc import Mapping

from autoq.spec.checking import Count, Fields

_WORDS = {
    "file_bytes": "the file",
    "flash_bytes": "what the device stores",
    "weights_bytes": "the weights",
    "sram_bytes": "the activations on the chip",
    "memory_bytes": "the peak memory",
}


class Limits(Fields):
    """Bytes at most; ``None`` is no bound.

    ``flash_bytes`` bounds what the device stores, ``file_bytes`` the file itself; ``sram_bytes`` and ``memory_bytes``
    what an inference needs of its memory, ``weights_bytes`` the constants. Each is held against the gauge's figure of
    that name, or the size or peak memory that it gives.
    """

    file_bytes: Count | None = None
    flash_bytes: Count | None = None
    weights_bytes: Count | None = None
    sram_bytes: Count | None = None
    memory_bytes: Count | None = None


def limit_problem(
    limits: Limits, *, file_bytes: int, stored_bytes: int | None, memory_bytes: int | None, figures: Mapping[str, float]
) -> str:
    """Which limits a measured candidate goes over, in words, or an empty string.

    ``stored_bytes`` is what it takes on the device where that is not its file, ``memory_bytes`` its peak memory,
    ``figures`` what else the gauge says. What is unknown keeps every bound.
    """
    stored = file_bytes if stored_bytes is None else stored_bytes
    known: dict[str, float | None] = {
        "file_bytes": file_bytes,
        "flash_bytes": stored,
        "weights_bytes": stored,
        "sram_bytes": memory_bytes,
        "memory_bytes": memory_bytes,
        **figures,
    }
    over = []
    for name, bound in limits.model_dump(exclude_none=True).items():
        value = known.get(name)
        if value is not None and value > bound:
            over.append(f"{_WORDS[name]}: {value:,.0f} bytes, limits.{name} is {bound:,}")
    return f"goes over what the hardware has room for: {'; '.join(over)}" if over else ""
