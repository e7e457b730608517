"""A choice in words: which point, by what, of how many; and what the measurements cannot tell from it."""

from __future__ import annotations

from collections.abc import Sequence

from autoq.core.result import Front, FrontPoint
from autoq.record.choice import Choice
from autoq.record.noise import COSTS, Z95, alike, cost_ratio, metric_gap, shown_better
from autoq.record.summary import front_marks, metric_unit

_MOST_ALIKE = 3

_COST_NAMES = {"latency": "latency", "size": "size", "peak_memory": "peak memory"}


def choice_text(choice: Choice) -> str:
    """Which point would be taken and why, in a sentence or two."""
    count = len(choice.kept.points)
    among = f"of {count} point{'s' if count != 1 else ''}"
    if choice.broken:
        among += f" that keep{'s' if count == 1 else ''} the bounds ({choice.broken} more do not)"
    text = f"Chosen: {choice.point.id}, {choice.rule}, {among}."
    over = choice.passed_over
    if over is not None:
        gains = _cheaper_in(choice.kept, choice.point, over)
        text = (
            f"Chosen: {choice.point.id}. {choice.rule[0].upper()}{choice.rule[1:]}, {among}, is {over.id}; the point "
            f"taken is within one standard error of its {choice.kept.metric_name}, with {gains}."
        )
    ties = _ties(choice.kept, choice.point, choice.alike)
    return f"{text} {ties}" if ties else text


def ties_text(front: Front) -> list[str]:
    """For each point that a rule takes, the cheaper ones whose metric cannot be told from its own; a sentence each."""
    if not front.points:
        return []
    points = {point.id: point for point in front.points}
    marked = [points[key] for key, marks in front_marks(front).items() if marks]
    return [text for point in marked if (text := _ties(front, point, alike(front, point)))]


def _ties(front: Front, point: FrontPoint, others: Sequence[FrontPoint]) -> str:
    if not others:
        return ""
    shown = sorted(others, key=lambda other: (_least_cost(front, other, point), other.id))[:_MOST_ALIKE]
    names = "; ".join(
        f"{other.id} ({_gap(front, other, point)}; {_cheaper_in(front, other, point)})" for other in shown
    )
    more = f", and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    return f"The {front.metric_name} of {point.id} cannot be told (95 %) from that of cheaper points: {names}{more}."


def _gap(front: Front, other: FrontPoint, point: FrontPoint) -> str:
    gap, error = metric_gap(front, other, point)
    factor, unit = metric_unit(front)
    form = ".1f" if factor == 100 else ".3g"
    return f"{gap * factor:{form}} ± {Z95 * error * factor:{form}} {unit} worse"


def _cheaper_in(front: Front, other: FrontPoint, point: FrontPoint) -> str:
    parts = []
    for objective in front.objectives:
        if objective in COSTS and shown_better(front, other, point, objective):
            ratio = cost_ratio(other, point, objective)
            parts.append(f"{ratio:.2f} of its {_COST_NAMES[objective]}")
    return ", ".join(parts)


def _least_cost(front: Front, other: FrontPoint, point: FrontPoint) -> float:
    ratios = [cost_ratio(other, point, objective) for objective in front.objectives if objective in COSTS]
    return min(ratio for ratio in ratios if ratio is not None)
