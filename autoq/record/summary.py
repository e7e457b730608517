"""A front in words and as a table: plain data that the command line, the report and the tracking server share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from autoq.core.policy import Policy
from autoq.core.result import FormGain, Front, FrontPoint, Latency
from autoq.record.choice import select
from autoq.record.figures import drop_of, metric_of, uses_final
from autoq.record.noise import nothing_ranked
from autoq.record.speed import estimator_of, point_speed, speed_interval, speed_text


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRow:
    """One row of the front's table; ``None`` is what was not measured.

    ``metric`` is the final split's where ``on_final``, ``drop`` its loss against float32 (positive is worse).
    ``speedup`` is the time of the latencies' reference, float32 unless the hardware cannot run it, over this one's (2 =
    twice as fast); with no interval it is an estimate. ``size_ratio`` is against float32, ``size_kb``
    (``zip_kb`` after zip) and ``peak_memory_mb`` are thousands and millions of bytes. ``marks`` has what the point is
    chosen for, and ``disturbed`` where it was timed beside other work.
    """

    id: str
    marks: tuple[str, ...]
    on_final: bool
    metric: float
    metric_ci95: tuple[float, float] | None
    drop: float
    drop_ci95: tuple[float, float] | None
    speedup: float | None
    speedup_ci95: tuple[float, float] | None
    latency_ms: float | None
    size_ratio: float
    size_kb: float
    zip_kb: float | None
    peak_memory_mb: float | None
    load_ms: float | None
    weight_bits_mean: float
    policy: str


def policy_summary(policy: Policy) -> str:
    """How many layers have which kind of scheme, the most frequent first: ``12×w4a8 7×w8a8 1×float32``."""
    counts = Counter(scheme.family for _, scheme in policy.items_)
    return " ".join(f"{count}×{family}" for family, count in counts.most_common())


def front_marks(front: Front) -> dict[str, tuple[str, ...]]:
    """Point id -> which of knee, best, fastest and smallest it is. Speed only where every point was timed."""
    if not front.points:
        return {}
    chosen = {"knee": select(front, "knee").id, "best": select(front, "best").id}
    if all(point.latency for point in front.points):
        chosen["fastest"] = select(front, "fastest").id
    chosen["smallest"] = select(front, "smallest").id
    return {point.id: tuple(m for m, key in chosen.items() if key == point.id) for point in front.points}


def front_table(front: Front) -> list[FrontRow]:
    """The rows of the front's table: float32 first (marked ``"float32"``), then the points in the front's order."""
    marks = front_marks(front)
    rows = [_row(front, front.baseline, ("float32",))]
    rows += [_row(front, point, marks[point.id]) for point in front.points]
    return rows


def describe_gain(front: Front) -> str:
    """A few sentences that say what the knee, the fastest and the smallest point gain over float32, and lose.

    A point is called faster only when its whole interval is; when no point is faster, or none is smaller, that is said.
    """
    baseline = front.baseline
    points = [point for point in front.points if point.policy != baseline.policy]
    if not points:
        why = f" Why: {front.why_empty}." if front.why_empty else ""
        return f"Nothing was gained: no quantized model is on the front.{why}"
    marks = {key: [m for m in names if m != "best"] for key, names in front_marks(front).items()}
    timed = [point.latency for point in points if point.latency]
    faster = [latency for latency in timed if (latency.interval or (latency.ratio, latency.ratio))[1] < 1]
    smaller = [point for point in points if point.size_bytes < baseline.size_bytes]
    sentences = []
    if timed and not faster:
        best = min(timed, key=lambda latency: latency.ratio)
        span = speed_interval(best)
        how = "estimated" if span is None else f"95 % interval {span[0]:.2f} to {span[1]:.2f}"
        where = "" if span is None else " on this machine"
        sentences.append(
            f"No point is faster than {best.reference}{where} (the fastest runs at {1 / best.ratio:.2f}x, {how})."
        )
    if not smaller:
        sentences.append("No point is smaller than float32.")
    if faster or smaller:
        for point in points:
            names = marks[point.id]
            # Where nothing is faster, the "fastest" is no gain worth a sentence.
            names = [name for name in names if not (name == "fastest" and not faster)]
            if names:
                title = " and ".join(names)
                sentences.append(f"{title[0].upper()}{title[1:]} ({point.id}): {_gain(front, point)}.")
    if estimator_of(front):
        sentences.append(f"Speeds are estimates by {estimator_of(front)}: nothing was timed.")
    if nothing_ranked(front):
        sentences.append(
            f"The final split tells no two of these {len(front.points)} points apart in {front.metric_name} (95 %): "
            "only what they cost ranks them; give it more rows."
        )
    if front.form is not None:
        sentences.append(form_text(front.form))
    return " ".join(sentences)


def form_text(form: FormGain) -> str:
    """What of the points' speed is the form of their graph, and not their precision, in a sentence."""
    low, high = form.latency.ratio_ci95
    return (
        f"All points have the form {', '.join(form.names)}; float32 itself, written like that, runs at "
        f"{1 / form.latency.ratio:.2f}x (95 % interval {1 / high:.2f} to {1 / low:.2f})."
    )


def shipping_text(front: Front, point: FrontPoint) -> str:
    """What the point takes to send and to open, beside float32, in a sentence; empty where neither was taken."""
    base, parts = front.baseline, []
    if point.zip_bytes is not None:
        beside = "" if base.zip_bytes is None else f" (float32 {base.zip_bytes / 1e3:,.0f})"
        parts.append(f"{point.zip_bytes / 1e3:,.0f} KB zipped{beside}")
    if point.load_ms is not None:
        beside = "" if base.load_ms is None else f" (float32 {base.load_ms:,.1f})"
        parts.append(f"loads in {point.load_ms:,.1f} ms{beside}")
    return f"{point.id}: {', '.join(parts)}." if parts else ""


def metric_unit(front: Front) -> tuple[float, str]:
    """A factor and the name of the unit that metric drops are shown in: ``(100, "points of accuracy")``.

    A point is 0.01; it is used for a maximised metric whose float32 value is at most 1, as accuracy's.
    Other metrics keep their own unit.
    """
    return unit_of(front.metric_name, front.metric_direction, metric_of(front, front.baseline))


def unit_of(metric_name: str, direction: str, baseline: float) -> tuple[float, str]:
    """As :func:`metric_unit`, of a metric with this value for float32."""
    name = metric_name.rsplit(":", 1)[-1]
    if direction == "maximize" and abs(baseline) <= 1:
        return 100.0, f"points of {name}"
    return 1.0, name


def loss_text(front: Front, point: FrontPoint) -> str:
    """What the point's metric loses, in words: ``0.3 points of accuracy lost (95 % interval 0.0 to 0.8)``."""
    factor, unit = metric_unit(front)
    drop = drop_of(front, point) * factor
    interval = point.metric.drop_ci95 if uses_final(front) else None
    # The words carry the sign of the drop, and the interval is turned with it; what rounds to nothing is no gain.
    gained = round(drop, 1) < 0 if factor == 100 else drop < 0
    if factor == 100:
        text = f"{abs(drop):.1f} {unit} {'gained' if gained else 'lost'}"
    else:
        text = f"{unit} {abs(drop):.3g} {'better' if gained else 'worse'}"
    if interval is not None:
        low, high = (-interval[1], -interval[0]) if gained else interval
        form = ".1f" if factor == 100 else ".3g"
        text += f" (95 % interval {_plain(low * factor, form)} to {_plain(high * factor, form)})"
    return text


def _gain(front: Front, point: FrontPoint) -> str:
    speed = f"{speed_text(point.latency)} and " if point.latency else ""
    size = f"{point.size_bytes / front.baseline.size_bytes:.2f} of the size of float32"
    return f"{speed}{size} at {loss_text(front, point)}"


def _plain(value: float, form: str) -> str:
    text = format(value, form)
    return text[1:] if text.startswith("-") and not any(digit in text for digit in "123456789") else text


def _row(front: Front, point: FrontPoint, marks: tuple[str, ...]) -> FrontRow:
    latency = point.latency
    final = uses_final(front)
    return FrontRow(
        id=point.id,
        marks=(*marks, *(["disturbed"] if isinstance(latency, Latency) and latency.disturbed else [])),
        on_final=final,
        metric=metric_of(front, point),
        metric_ci95=point.metric.final_ci95 if final else None,
        drop=drop_of(front, point),
        drop_ci95=point.metric.drop_ci95 if final else None,
        speedup=point_speed(point),
        speedup_ci95=speed_interval(latency),
        latency_ms=latency.ms if latency else None,
        size_ratio=point.size_bytes / front.baseline.size_bytes if front.baseline.size_bytes else 1.0,
        size_kb=point.size_bytes / 1e3,
        zip_kb=None if point.zip_bytes is None else point.zip_bytes / 1e3,
        peak_memory_mb=None if point.peak_memory_bytes is None else point.peak_memory_bytes / 1e6,
        load_ms=point.load_ms,
        weight_bits_mean=point.weight_bits_mean,
        policy=policy_summary(point.policy),
    )
