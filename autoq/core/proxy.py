"""What was predicted of the trials before they were measured, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTruth:
    """One objective's proxy and truth, a pair for each complete trial that has both.

    ``predicted`` is in the proxy's own unit: for ``metric`` summed disturbance of the outputs (noise power, and changed
    answers: :func:`autoq.search.sensitivity.disturbance`), the modelled ratio for ``latency``, bytes of weights and
    scales for ``size`` and ``peak_memory``. ``measured`` is the metric's drop against float32 on the search split
    (positive is worse), the ratio to float32, bytes. ``spearman`` is their rank correlation, ``None`` where it is
    undefined.
    """

    objective: str
    ids: tuple[str, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    spearman: float | None
