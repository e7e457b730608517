"""What polishing changed on a front, before and after: plain data for the command line, the report and tracking."""

from __future__ import annotations

from dataclasses import dataclass

from autoq.core.result import Front
from autoq.record.figures import metric_of, uses_final
from autoq.record.speed import point_speed


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishRow:
    """One polished point; pairs are before and after. ``speedup`` is float32's time over the model's."""

    id: str
    kind: str
    measure: str
    held_out: tuple[float, float]
    on_final: bool
    metric: tuple[float, float]
    speedup: tuple[float | None, float | None]
    size_bytes: tuple[int, int]
    layers: int
    seconds: float


def polish_table(front: Front) -> list[PolishRow]:
    """The polished points in the front's order."""
    final = uses_final(front)
    rows = []
    for point in front.points:
        polish = point.polish
        if polish is None:
            continue
        before = polish.before
        old = before.metric.final if final and before.metric.final is not None else before.metric.search
        rows.append(
            PolishRow(
                id=point.id,
                kind=polish.kind,
                measure=polish.measure,
                held_out=polish.held_out,
                on_final=final,
                metric=(old, metric_of(front, point)),
                speedup=(point_speed(before), point_speed(point)),
                size_bytes=(before.size_bytes, point.size_bytes),
                layers=polish.layers,
                seconds=polish.seconds,
            )
        )
    return rows


def polish_text(front: Front, row: PolishRow) -> str:
    """A row in words: ``3f2a polished (sequential): accuracy 0.8440 -> 0.8790 on the final split; …``."""
    split = "final" if row.on_final else "search"
    name = front.metric_name.rsplit(":", 1)[-1]
    old, new = row.speedup
    speed = "" if old is None or new is None else f"; speed {old:.2f}x -> {new:.2f}x"
    return (
        f"{row.id} polished ({row.kind}): {name} {row.metric[0]:.4f} -> {row.metric[1]:.4f} on the {split} split; "
        f"{row.measure} to float32 on calibration rows held out {row.held_out[0]:.4g} -> {row.held_out[1]:.4g}{speed}; "
        f"{row.layers} layers in {row.seconds:.0f} s"
    )
