"""``front.json``: the front as a versioned file that others read.

Version 1::

    {"version": 1, "name": str, "objectives": [str], "metric": {"name": str, "direction": "maximize" | "minimize"},
     "final": bool, "stop_reason": str, "notes": [str], "trials": {"complete": int, "failed": int, "pruned": int},
     "wall_s": float,
     "baseline": POINT, "points": [POINT], "dropped": [{"point": POINT, "why": str}],
     "form": {"names": [str], "latency": LATENCY}, "why_empty": str}
    POINT = {"id": str, "policy": {layer: scheme},
             "metric": {"search", "final", "final_ci95", "drop_ci95", "gap_se": {id: float}},
             "latency": LATENCY | null,
             "size_bytes", "peak_memory_bytes", "weight_bits_mean", "model_path", "sha256", "origin",
             "load_ms": float, "zip_bytes": int,
             "polish": {"kind", "measure", "held_out": [before, after], "layers", "seconds", "before": POINT}}
    LATENCY = {"median_ms", "ratio_to_float32", "ratio_ci95", "batch", "threads", "conditions": CONDITIONS, "by"}
            | {"median_ms", "ratio", "reference", "ratio_ci95", "batch", "threads"}
            | {"estimated": true, "by", "ms", "ratio", "reference", "figures": {str: float}}
    CONDITIONS = {"disturbed": bool, "slowdown", "cpus": [int], "sittings", "left_out"}
               + what the system tells of {"foreign_load", "load_average", "mhz", "governor": str}

``form`` is there where the points have another form than the model, ``polish`` where a point was polished, ``gap_se``
(:class:`autoq.core.result.MetricPair`) from the second point of a final front on, ``why_empty`` where there are no
points, ``pruned`` where trials were, ``load_ms`` and ``zip_bytes`` (:class:`autoq.core.result.FrontPoint`) from the
final check on, where they were taken. ``ratio`` is against ``reference``, where the hardware cannot run float32; the
baseline then has no latency. ``conditions`` (:class:`autoq.core.result.Conditions`) are those a latency was
measured under, where they were noted, ``by`` is who measured, where that was not autoq itself. Raw timing samples
are left out. A reader ignores fields it does not know, and refuses a newer version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from autoq.core.objectives import OBJECTIVES
from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, FormGain, Front, FrontPoint, Latency, MetricPair, Polish, PolishKind
from autoq.errors import JobError, RunError
from autoq.record.files import write_atomically
from autoq.record.json_reader import Node
from autoq.record.run_folder import refuse_several
from autoq.record.speed import latency_document, read_latency

VERSION = 1


def write_front(front: Front, path: str | os.PathLike[str]) -> None:
    """Write ``front`` to ``path``, whole or not at all; :class:`~autoq.errors.RunError` when it cannot be written."""
    write_atomically(path, front_json(front))


def front_json(front: Front, points: Sequence[str] | None = None) -> str:
    """``front`` as the text of ``front.json``; :class:`~autoq.errors.RunError` when it holds a NaN or an infinity.

    ``points``, where they are known, are the texts (:func:`point_json`) of its points.
    """
    texts = [point_json(point) for point in front.points] if points is None else points
    document: dict[str, Any] = {
        "version": VERSION,
        "name": front.name,
        "objectives": list(front.objectives),
        "metric": {"name": front.metric_name, "direction": front.metric_direction},
        "final": front.final,
        "stop_reason": front.stop_reason,
        "notes": list(front.notes),
        "trials": {
            "complete": front.trials_complete,
            "failed": front.trials_failed,
            **({"pruned": front.trials_pruned} if front.trials_pruned else {}),
        },
        "wall_s": front.wall_s,
        "baseline": _point_document(front.baseline),
        "points": [],  # their texts are put in below
        "dropped": [{"point": _point_document(dropped.point), "why": dropped.why} for dropped in front.dropped],
        **({} if front.form is None else {"form": _form_document(front.form)}),
        **({"why_empty": front.why_empty} if front.why_empty else {}),
    }
    whole = _text(document, f"the front {front.name!r}")
    if texts:
        # No text can hold this: JSON writes a quotation mark within one as \\".
        whole = whole.replace('"points": []', '"points": [\n  ' + ",\n  ".join(texts) + "\n ]", 1)
    return whole + "\n"


def point_json(point: FrontPoint) -> str:
    """A point as it stands in ``front.json``; :class:`~autoq.errors.RunError` as :func:`front_json`."""
    return _text(_point_document(point), f"the point {point.id}").replace("\n", "\n  ")


def _text(document: dict[str, Any], what: str) -> str:
    try:
        return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise RunError(f"{what} holds a number that is not finite and cannot be written") from error


def read_front(path: str | os.PathLike[str]) -> Front:
    """The front that :func:`write_front` wrote, without raw timing samples.

    Raises :class:`~autoq.errors.RunError` when the file is missing, damaged, of a newer version or no front at all,
    naming the field.
    """
    file = Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        refuse_several(file.parent)
        raise RunError(f"{file} cannot be read: {error.strerror or error}; is this the folder of a search?") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise RunError(f"{file} is damaged: {error}") from error
    root = Node(document, str(file), "")
    version = root.get("version").integer() if isinstance(document, dict) and "version" in document else None
    if version is None:
        raise RunError(f"{file} is no front of autoq: it has no version field")
    if version > VERSION:
        raise RunError(f"{file} has version {version}; this autoq reads up to {VERSION}: use the autoq that wrote it")
    if version < 1:
        root.get("version").fail("must be 1 or more")
    return _read_version_1(root)


def _read_version_1(root: Node) -> Front:
    metric, trials = root.get("metric"), root.get("trials")
    objectives = tuple(item.one_of(OBJECTIVES) for item in root.get("objectives").items())
    direction: Any = metric.get("direction").one_of(("maximize", "minimize"))
    return Front(
        name=root.get("name").text(),
        objectives=objectives,
        metric_name=metric.get("name").text(),
        metric_direction=direction,
        baseline=_read_point(root.get("baseline"), ()),
        points=tuple(_read_point(item, objectives) for item in root.get("points").items()),
        dropped=tuple(
            DroppedPoint(point=_read_point(item.get("point"), objectives), why=item.get("why").text())
            for item in root.get("dropped").items()
        ),
        trials_complete=trials.get("complete").integer(),
        trials_failed=trials.get("failed").integer(),
        trials_pruned=trials.get("pruned").integer() if "pruned" in trials.value else 0,
        wall_s=root.get("wall_s").number(),
        final=root.get("final").flag(),
        stop_reason=root.get("stop_reason").text(),
        notes=tuple(item.text() for item in root.get("notes").items()),
        form=_read_form(root),
        why_empty=root.get("why_empty").text() if "why_empty" in root.value else "",
    )


def _read_form(root: Node) -> FormGain | None:
    if "form" not in dict(root.fields()):
        return None
    form = root.get("form")
    latency = read_latency(form.get("latency"))
    if not isinstance(latency, Latency):
        form.get("latency").fail("must be measured")
    return FormGain(names=tuple(item.text() for item in form.get("names").items()), latency=latency)


def _point_document(point: FrontPoint) -> dict[str, Any]:
    metric, latency = point.metric, point.latency
    return {
        "id": point.id,
        "policy": point.policy.to_text(),
        "metric": {
            "search": metric.search,
            "final": metric.final,
            "final_ci95": _pair(metric.final_ci95),
            "drop_ci95": _pair(metric.drop_ci95),
            **({"gap_se": dict(metric.gap_se)} if metric.gap_se else {}),
        },
        "latency": None if latency is None else latency_document(latency),
        "size_bytes": point.size_bytes,
        "peak_memory_bytes": point.peak_memory_bytes,
        "weight_bits_mean": point.weight_bits_mean,
        "model_path": point.model_path,
        "sha256": point.sha256,
        "origin": point.origin,
        **({} if point.load_ms is None else {"load_ms": point.load_ms}),
        **({} if point.zip_bytes is None else {"zip_bytes": point.zip_bytes}),
        **({} if point.polish is None else {"polish": _polish_document(point.polish)}),
    }


def _polish_document(polish: Polish) -> dict[str, Any]:
    return {
        "kind": polish.kind,
        "measure": polish.measure,
        "held_out": list(polish.held_out),
        "layers": polish.layers,
        "seconds": polish.seconds,
        "before": _point_document(polish.before),
    }


def _form_document(form: FormGain) -> dict[str, Any]:
    return {"names": list(form.names), "latency": latency_document(form.latency)}


def _read_point(node: Node, objectives: tuple[str, ...]) -> FrontPoint:
    metric, latency_node, memory = node.get("metric"), node.get("latency"), node.get("peak_memory_bytes")
    # The readers of a front may count on a value for every objective.
    if "latency" in objectives and latency_node.is_null:
        latency_node.fail("must be given: latency is an objective")
    if "peak_memory" in objectives and memory.is_null:
        memory.fail("must be given: peak_memory is an objective")
    texts = {layer: scheme.text() for layer, scheme in node.get("policy").fields()}
    try:
        policy = Policy.from_text(texts)
    except JobError as error:
        node.get("policy").fail(f"cannot be read: {error}")
    return FrontPoint(
        id=node.get("id").text(),
        policy=policy,
        metric=MetricPair(
            search=metric.get("search").number(),
            final=metric.get("final").number_or_none(),
            final_ci95=metric.get("final_ci95").pair_or_none(),
            drop_ci95=metric.get("drop_ci95").pair_or_none(),
            gap_se=_read_gaps(metric),
        ),
        latency=None if latency_node.is_null else read_latency(latency_node),
        size_bytes=node.get("size_bytes").integer(),
        peak_memory_bytes=None if memory.is_null else memory.integer(),
        weight_bits_mean=node.get("weight_bits_mean").number(),
        model_path=node.get("model_path").text(),
        sha256=node.get("sha256").text(),
        origin=node.get("origin").text(),
        polish=_read_polish(node, objectives),
        load_ms=node.get("load_ms").number() if "load_ms" in node.value else None,
        zip_bytes=node.get("zip_bytes").integer() if "zip_bytes" in node.value else None,
    )


def _read_gaps(metric: Node) -> tuple[tuple[str, float], ...]:
    if "gap_se" not in dict(metric.fields()):
        return ()
    return tuple((key, error.number()) for key, error in metric.get("gap_se").fields())


def _read_polish(point: Node, objectives: tuple[str, ...]) -> Polish | None:
    if "polish" not in point.value:
        return None
    node = point.get("polish")
    kind: Any = node.get("kind").one_of(get_args(PolishKind))
    held_out = node.get("held_out").items()
    if len(held_out) != 2:
        node.get("held_out").fail("must be a list of two numbers")
    return Polish(
        kind=kind,
        measure=node.get("measure").text(),
        held_out=(held_out[0].number(), held_out[1].number()),
        layers=node.get("layers").integer(),
        seconds=node.get("seconds").number(),
        before=_read_point(node.get("before"), objectives),
    )


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
