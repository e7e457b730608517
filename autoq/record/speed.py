"""How fast a model is, in words and as JSON: measured or estimated, and against what."""

from __future__ import annotations

import dataclasses
from typing import Any

from autoq.core.result import FLOAT32_NAME, Conditions, Estimate, Front, FrontPoint, Latency
from autoq.record.json_reader import Node

Speed = Latency | Estimate


def reference_of(front: Front) -> str:
    """What the latencies of a front are against: ``"float32"``, or the scheme of a uniform candidate."""
    latencies = [point.latency for point in (front.baseline, *front.points) if point.latency is not None]
    return latencies[-1].reference if latencies else FLOAT32_NAME


def estimator_of(front: Front) -> str:
    """Who estimates the latencies of a front; empty where they were measured."""
    latencies = [point.latency for point in front.points]
    return next((latency.by for latency in latencies if isinstance(latency, Estimate)), "")


def speed_text(latency: Speed) -> str:
    """``2.05x as fast``, and where it is so, against what else than float32 and that it is an estimate."""
    against = "" if latency.reference == FLOAT32_NAME else f" as {latency.reference}"
    return f"{1 / latency.ratio:.2f}x as fast{against}{' (estimated)' if isinstance(latency, Estimate) else ''}"


def speed_interval(latency: Speed | None) -> tuple[float, float] | None:
    """The 95 % interval of the speed (2 = twice as fast); ``None`` for an estimate."""
    if latency is None or latency.interval is None:
        return None
    low, high = latency.interval
    return 1 / high, 1 / low


def point_speed(point: FrontPoint) -> float | None:
    """The reference's time over the point's; ``None`` where it was not taken."""
    return None if point.latency is None else 1 / point.latency.ratio


def latency_document(latency: Speed) -> dict[str, Any]:
    """As ``front.json`` and ``manifest.json`` have it, without raw samples."""
    if isinstance(latency, Estimate):
        return {
            "estimated": True,
            "by": latency.by,
            "ms": latency.ms,
            "ratio": latency.ratio,
            "reference": latency.reference,
            "figures": dict(latency.figures),
        }
    against_float32 = latency.reference == FLOAT32_NAME
    return {
        "median_ms": latency.median_ms,
        "ratio_to_float32" if against_float32 else "ratio": latency.ratio,
        "ratio_ci95": list(latency.ratio_ci95),
        "batch": latency.batch,
        "threads": latency.threads,
        **({} if against_float32 else {"reference": latency.reference}),
        **({"by": latency.by} if latency.by else {}),
        **({} if latency.conditions is None else {"conditions": _told(latency.conditions)}),
    }


def _told(conditions: Conditions) -> dict[str, Any]:
    """What is known of them."""
    known = {name: value for name, value in dataclasses.asdict(conditions).items() if value is not None}
    return {**known, "cpus": list(conditions.cpus)}


def _conditions(node: Node) -> Conditions:
    given = dict(node.fields())
    numbers = {name: given[name].number() for name in ("foreign_load", "load_average", "mhz") if name in given}
    return Conditions(
        disturbed=node.get("disturbed").flag(),
        slowdown=node.get("slowdown").number(),
        governor=given["governor"].text() if "governor" in given else None,
        cpus=tuple(each.integer() for each in node.get("cpus").items()),
        sittings=node.get("sittings").integer(),
        left_out=node.get("left_out").integer(),
        **numbers,
    )


def read_latency(node: Node) -> Speed:
    """What :func:`latency_document` gave; raises :class:`autoq.errors.RunError`, which names the field."""
    given = dict(node.fields())
    reference = given["reference"].text() if "reference" in given else FLOAT32_NAME
    try:
        if "estimated" in given and given["estimated"].flag():
            return Estimate(
                ms=node.get("ms").number(),
                ratio=node.get("ratio").number(),
                reference=reference,
                by=node.get("by").text(),
                figures={name: value.number() for name, value in node.get("figures").fields()},
            )
        return Latency(
            median_ms=node.get("median_ms").number(),
            ratio=node.get("ratio_to_float32" if reference == FLOAT32_NAME else "ratio").number(),
            ratio_ci95=node.get("ratio_ci95").pair(),
            batch=node.get("batch").integer(),
            threads=node.get("threads").integer(),
            reference=reference,
            by=given["by"].text() if "by" in given else "",
            conditions=_conditions(given["conditions"]) if "conditions" in given else None,
        )
    except ValueError as error:
        node.fail(str(error))
