"""What the plots show, as plain numbers: shared by the picture and the interactive page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoq.core.objectives import metric_drop
from autoq.core.result import FLOAT32_NAME, Front, FrontPoint, Trial
from autoq.record.figures import drop_of, uses_final
from autoq.record.speed import estimator_of, reference_of, speed_text
from autoq.record.summary import front_marks, metric_unit, policy_summary

BASELINE_COLOUR = "#222222"
TRIAL_COLOUR = "#9aa5b1"
POINT_COLOUR = "#1f6fb4"
KNEE_COLOUR = "#d9480f"
# Weight bits -> cell colour (the fewer bits, the darker) and the colour of text upon it.
BITS_COLOURS: dict[int, tuple[str, str]] = {
    32: ("#eef1f4", "#333333"),
    16: ("#cfe3d4", "#333333"),
    8: ("#9ecae1", "#123048"),
    6: ("#7fb8d8", "#123048"),
    5: ("#5fa4ce", "#ffffff"),
    4: ("#3f8fc4", "#ffffff"),
    3: ("#256fa7", "#ffffff"),
    2: ("#0b4f8a", "#ffffff"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One model in a panel: its place, its 95 % intervals (``None`` where there are none) and what to say of it."""

    id: str
    x: float
    y: float
    x_ci95: tuple[float, float] | None = None
    y_ci95: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Metric drop (y) against one objective (x); ``x_range`` and ``y_range`` hold the front, and may cut off trials.

    ``baseline`` is ``None`` where the hardware cannot run float32.
    """

    title: str
    x_label: str
    y_label: str
    baseline: Mark | None
    points: tuple[Mark, ...]
    trials: tuple[Mark, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def off_scale(self, mark: Mark) -> bool:
        """Whether a mark lies outside the ranges."""
        return not (self.x_range[0] <= mark.x <= self.x_range[1] and self.y_range[0] <= mark.y <= self.y_range[1])

    def at_edge(self, mark: Mark) -> tuple[float, float]:
        """The place of a mark, moved to the edge when it is off scale."""
        (left, right), (bottom, top) = self.x_range, self.y_range
        return min(max(mark.x, left), right), min(max(mark.y, bottom), top)


_AXES = {
    "latency": ("Speed", "latency"),
    "size": ("Size", "file size, KB"),
    "peak_memory": ("Memory", "peak memory, MB"),
}


def plot_panels(front: Front, trials: Sequence[Trial]) -> list[Panel]:
    """A panel for each objective of the front besides the metric (size when there is none).

    Failed trials are left out; so is, in a panel, what was not measured.
    """
    names = [name for name in front.objectives if name in _AXES] or ["size"]
    return [panel for name in names if (panel := _panel(front, trials, name)) is not None]


def _panel(front: Front, trials: Sequence[Trial], objective: str) -> Panel | None:
    marks = front_marks(front)
    baseline_x = _x(front.baseline, objective)
    factor, unit = metric_unit(front)
    points = [
        _point_mark(front, point, objective, x, factor, marks[point.id])
        for point in front.points
        if (x := _x(point, objective)) is not None
    ]
    clouds = []
    for trial in trials:
        x = _x(trial, objective)
        if trial.complete and trial.metric is not None and x is not None:
            drop = metric_drop(trial.metric, front.baseline.metric.search, front.metric_direction)
            who = f"trial {trial.number}, {trial.origin}"
            lines = (who, policy_summary(trial.policy), f"search split: {trial.metric:.5g}")
            clouds.append(Mark(id=trial.id, x=x, y=drop * factor, lines=lines))
    # Float32 has no place where the hardware cannot run it.
    baseline = None
    if baseline_x is not None:
        baseline = Mark(id=front.baseline.id, x=baseline_x, y=0.0, names=("float32",), lines=("the baseline",))
    if baseline is None and not points and not clouds:
        return None
    title, x_label = _AXES[objective]
    if objective == "latency":
        how = "estimated" if estimator_of(front) else "measured"
        x_label = f"latency, ratio to {reference_of(front)} ({how}; less is faster)"
    split = "final" if uses_final(front) else "search"
    shown = [*([baseline] if baseline else []), *points] or clouds
    return Panel(
        title=title,
        x_label=x_label,
        y_label=f"drop against float32, {unit} ({split} split)",
        baseline=baseline,
        points=tuple(points),
        trials=tuple(clouds),
        x_range=_range([v for mark in shown for v in (mark.x, *(mark.x_ci95 or ()))], [mark.x for mark in clouds]),
        y_range=_range([v for mark in shown for v in (mark.y, *(mark.y_ci95 or ()))], [mark.y for mark in clouds]),
    )


def _point_mark(
    front: Front, point: FrontPoint, objective: str, x: float, factor: float, names: tuple[str, ...]
) -> Mark:
    latency, metric = point.latency, point.metric
    interval = metric.drop_ci95 if uses_final(front) else None
    lines = [policy_summary(point.policy), f"search split: {metric.search:.5g}"]
    if metric.final is not None:
        lines.append(f"final split: {metric.final:.5g}")
    if latency is not None:
        against = " as float32" if latency.reference == FLOAT32_NAME else ""
        lines.append(f"{speed_text(latency)}{against}, {latency.ms:.4g} ms")
    lines.append(f"{point.size_bytes / 1e3:,.0f} KB, {point.weight_bits_mean:.2f} bits a weight")
    if point.peak_memory_bytes is not None:
        lines.append(f"peak memory {point.peak_memory_bytes / 1e6:,.1f} MB")
    return Mark(
        id=point.id,
        x=x,
        y=drop_of(front, point) * factor,
        x_ci95=latency.interval if latency and objective == "latency" else None,
        y_ci95=(interval[0] * factor, interval[1] * factor) if interval else None,
        names=names,
        lines=tuple(lines),
    )


def _x(model: FrontPoint | Trial, objective: str) -> float | None:
    if objective == "latency":
        return model.latency.ratio if model.latency else None
    if objective == "size":
        return None if model.size_bytes is None else model.size_bytes / 1e3
    return None if model.peak_memory_bytes is None else model.peak_memory_bytes / 1e6


def _range(shown: list[float], clouds: list[float]) -> tuple[float, float]:
    """A range that holds ``shown`` with a margin, and as many of ``clouds`` as fit in another 0.6 of its span."""
    low, high = min(shown), max(shown)
    span = (high - low) or max((abs(value - low) for value in clouds), default=0.0) or abs(high) or 1.0
    near = [value for value in clouds if low - 0.3 * span <= value <= high + 0.6 * span]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.08 * max(high - low, 0.1 * span)
    return low - margin, high + margin
