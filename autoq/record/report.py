"""The report: one HTML page that needs nothing else, not even a network.

Every text from outside (layer names, messages, job names) is escaped where it enters the page.
"""

from __future__ import annotations

import html
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from autoq.core.proxy import ProxyTruth
from autoq.core.result import Conditions, Estimate, Front, Latency, Trial
from autoq.record.choice_summary import ties_text
from autoq.record.evidence_plots import most_important, proxies_div, rank_text
from autoq.record.figures import uses_final
from autoq.record.health import Health, health_html
from autoq.record.importance import importances
from autoq.record.interactive import front_div, plotting_script
from autoq.record.plot_data import BITS_COLOURS
from autoq.record.polish_summary import polish_table
from autoq.record.speed import estimator_of, reference_of
from autoq.record.summary import FrontRow, describe_gain, front_marks, front_table, metric_unit, policy_summary

_MOST_MESSAGES = 10
_LONGEST_MESSAGE = 400


def report_html(
    front: Front,
    trials: Sequence[Trial],
    extras: Mapping[str, Mapping[str, object]],
    health: Health | None = None,
    proxies: Sequence[ProxyTruth] = (),
) -> str:
    """The report of a search as the text of one HTML page.

    ``health`` is that of the front's points. ``extras`` are further tables, title -> name -> value, shown in their
    order at the end: how it was measured, the machine, software versions. ``proxies`` are what was predicted.
    """
    name = html.escape(front.name)
    body = [
        f"<h1>{name}</h1>",
        f'<p class="gain">{html.escape(describe_gain(front))}</p>',
        *(f"<p>{html.escape(text)}</p>" for text in ties_text(front)),
        f"<p>{html.escape(_facts(front))}</p>",
        *(f'<p class="note">{html.escape(note)}</p>' for note in front.notes),
        "<h2>The front</h2>",
        _front_table(front),
        plotting_script(),
        front_div(front, trials),
        "<h2>Which layer has which scheme</h2>",
        _heat_map(front),
        _importances(front, trials),
        _proxies(front, proxies),
        _polish(front),
        health_html(front, health) if health else "",
        _dropped(front),
        _pruned(trials),
        _failures(trials),
        "<h2>How it was measured</h2>",
        _measurement(front),
        *(f"<h2>{html.escape(title)}</h2>{_pairs(table)}" for title, table in extras.items()),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _facts(front: Front) -> str:
    pruned = f"{front.trials_pruned} dropped on the way, " if front.trials_pruned else ""
    text = f"{front.trials_complete} trials complete, {pruned}{front.trials_failed} failed, {front.wall_s:,.0f} s"
    text += f"; ended by: {front.stop_reason}." if front.stop_reason else "."
    return text if front.final else text + " This front is a running one: the final check has not been made."


def _front_table(front: Front) -> str:
    factor, unit = metric_unit(front)
    head = [
        "model", front.metric_name, f"drop, {unit}", _speed_head(front), "ms", "size, KB", "of float32",
        "zipped, KB", "peak memory, MB", "load, ms", "bits a weight", "schemes",
    ]  # fmt: skip
    rows = "".join(_front_row(row, factor) for row in front_table(front))
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    table = f'<table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _speed_head(front: Front) -> str:
    return f"speed, x {reference_of(front)}" + (", estimated" if estimator_of(front) else "")


def _front_row(row: FrontRow, factor: float) -> str:
    marks = "".join(f' <b class="mark">{html.escape(mark)}</b>' for mark in row.marks)
    drop_ci95 = None if row.drop_ci95 is None else (row.drop_ci95[0] * factor, row.drop_ci95[1] * factor)
    cells = [
        f"<code>{html.escape(row.id)}</code>{marks}",
        _with_interval(row.metric, row.metric_ci95, ".4f"),
        _with_interval(row.drop * factor, drop_ci95, ".2f" if factor != 1 else ".4g"),
        _with_interval(row.speedup, row.speedup_ci95, ".2f"),
        _number(row.latency_ms, ".3f"),
        _number(row.size_kb, ",.0f"),
        _number(row.size_ratio, ".3f"),
        _number(row.zip_kb, ",.0f"),
        _number(row.peak_memory_mb, ",.1f"),
        _number(row.load_ms, ",.1f"),
        _number(row.weight_bits_mean, ".2f"),
        html.escape(row.policy),
    ]
    kind = ' class="knee"' if "knee" in row.marks else ""
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _with_interval(value: float | None, interval: tuple[float, float] | None, form: str) -> str:
    text = _number(value, form)
    if interval is None:
        return text
    return f'{text} <span class="ci">[{interval[0]:{form}}, {interval[1]:{form}}]</span>'


def _heat_map(front: Front) -> str:
    points = front.points
    if not points:
        return "<p>No point is on the front.</p>"
    marks = front_marks(front)
    heads = "".join(
        f"<th><code>{html.escape(p.id[:6])}</code><br>{html.escape(', '.join(marks[p.id]))}</th>" for p in points
    )
    columns = [dict(point.policy.items_) for point in points]
    rows = []
    for layer in points[0].policy:
        cells = []
        for column in columns:
            scheme = column.get(layer)
            if scheme is None:
                cells.append("<td></td>")
                continue
            fill, ink = BITS_COLOURS[scheme.weight_bits]
            cells.append(
                f'<td style="background:{fill};color:{ink}" title="{html.escape(str(scheme))}">'
                f"{html.escape(scheme.family)}</td>"
            )
        rows.append(f"<tr><th>{html.escape(layer)}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="heat"><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'


def _importances(front: Front, trials: Sequence[Trial]) -> str:
    layers, found = importances(front, trials)
    if not found:
        return ""
    shown = most_important(layers, found)
    heads = "".join(f"<th>{html.escape(entry.objective)}<br>{entry.explained:.0%} explained</th>" for entry in found)
    largest = max(max(entry.shares) for entry in found)
    rows = []
    for place in shown:
        cells = "".join(
            f'<td style="background:rgba(31,111,180,{0.8 * entry.shares[place] / largest:.3f})">'
            f"{entry.shares[place]:.1%}</td>"
            for entry in found
        )
        rows.append(f"<tr><th>{html.escape(layers[place])}</th>{cells}</tr>")
    more = f" The {len(shown)} of {len(layers)} layers with the largest shares." if len(shown) < len(layers) else ""
    return (
        "<h2>Which layers it hangs on</h2><p>How much of the variance of each objective over the complete trials the "
        "scheme of a layer explains. The shares of a column add up to what all layers together explain of trials "
        f"left out; where that is little, there are too few trials to tell.{more}</p>"
        f'<div class="wide"><table class="heat"><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'
    )


def _proxies(front: Front, proxies: Sequence[ProxyTruth]) -> str:
    if not proxies:
        return ""
    ranks = ", ".join(rank_text(proxy) for proxy in proxies)
    return (
        "<h2>How well the proxies ranked the truth</h2><p>What was predicted of each trial before it was measured, "
        f"beside what was measured. Spearman's rank correlation: {html.escape(ranks)}.</p>{proxies_div(front, proxies)}"
    )


def _polish(front: Front) -> str:
    rows = polish_table(front)
    if not rows:
        return ""
    split = "final" if rows[0].on_final else "search"
    head = [
        "model", "kind", f"{front.metric_name}, {split} split", "to float32 on rows held out", _speed_head(front),
        "size, KB", "layers changed", "s",
    ]  # fmt: skip
    body = []
    for row in rows:
        old, new = (_number(value, ".2f") for value in row.speedup)
        cells = [
            f"<code>{html.escape(row.id)}</code>",
            row.kind,
            f"{row.metric[0]:.4f} → {row.metric[1]:.4f}",
            f"{html.escape(row.measure)} {row.held_out[0]:.4g} → {row.held_out[1]:.4g}",
            f"{old} → {new}",
            f"{row.size_bytes[0] / 1e3:,.0f} → {row.size_bytes[1] / 1e3:,.0f}",
            str(row.layers),
            f"{row.seconds:.0f}",
        ]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    return (
        "<h2>Polished</h2><p>New numbers in the same form, fitted to float32's outputs on calibration rows without "
        "labels. Rows held out of these decided; the figures of the file before are for the record.</p>"
        f'<div class="wide"><table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody>'
        "</table></div>"
    )


def _dropped(front: Front) -> str:
    if not front.dropped:
        return ""
    rows = "".join(
        f"<tr><td><code>{html.escape(dropped.point.id)}</code></td><td>{html.escape(dropped.why)}</td>"
        f"<td>{html.escape(policy_summary(dropped.point.policy))}</td></tr>"
        for dropped in front.dropped
    )
    head = "<tr><th>model</th><th>why</th><th>schemes</th></tr>"
    return f"<h2>Taken off by the final check</h2><table>{head}{rows}</table>"


def _pruned(trials: Sequence[Trial]) -> str:
    pruned = [(trial, trial.pruned) for trial in trials if trial.pruned is not None]
    if not pruned:
        return ""
    rows = "".join(
        f"<tr><td>{trial.number}</td><td><code>{html.escape(trial.id)}</code></td><td>{own.rows:,} of {own.of:,}</td>"
        f"<td>{html.escape(own.why)}</td><td>{html.escape(policy_summary(trial.policy))}</td></tr>"
        for trial, own in pruned
    )
    head = "<tr><th>trial</th><th>model</th><th>rows</th><th>why</th><th>schemes</th></tr>"
    return f'<h2>Dropped on the way</h2><div class="wide"><table>{head}{rows}</table></div>'


def _failures(trials: Sequence[Trial]) -> str:
    by_reason: dict[str, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        if trial.failure is not None:
            by_reason[trial.failure.reason][trial.failure.message[:_LONGEST_MESSAGE]] += 1
    if not by_reason:
        return ""
    parts = ["<h2>Failed trials</h2>"]
    for reason, messages in sorted(by_reason.items(), key=lambda item: -item[1].total()):
        shown = messages.most_common(_MOST_MESSAGES)
        items = "".join(f"<li>{count} of: {html.escape(message)}</li>" for message, count in shown)
        more = len(messages) - len(shown)
        items += f"<li>and {more} other messages</li>" if more else ""
        parts.append(f"<h3>{html.escape(reason)}: {messages.total()}</h3><ul>{items}</ul>")
    return "".join(parts)


def _measurement(front: Front) -> str:
    facts: dict[str, object] = {"objectives": ", ".join(front.objectives)}
    split = "the final split, which the search never saw" if uses_final(front) else "the search split"
    facts["metric"] = f"{front.metric_name} ({front.metric_direction}d), of the very file, on {split}"
    timed = [point.latency for point in (front.baseline, *front.points) if point.latency is not None]
    latency = timed[0] if timed else None
    if isinstance(latency, Estimate):
        facts["speed"] = (
            f"estimated by {latency.by}, which models the hardware; nothing was timed. The time of {latency.reference} "
            "over the model's"
        )
    elif latency is not None and latency.by:
        facts["speed"] = (
            f"the time of {latency.reference} over the model's, measured by {latency.by}, which ran both in turn, with "
            "its 95 % interval"
        )
        facts["batch"], facts["threads"] = latency.batch, latency.threads
    elif latency is not None:
        facts["speed"] = (
            f"the time of {latency.reference} over the model's, measured alone in warm blocks in turn with it, in "
            "several sittings, each in a fresh process, with its 95 % interval; disturbed: other work ran beside it"
        )
        facts["batch"], facts["threads"] = latency.batch, latency.threads
        facts |= _conditions([each.conditions for each in timed if isinstance(each, Latency) and each.conditions])
    facts["drop"] = "what the metric loses against float32 on the same rows; positive is worse; 95 % bootstrap interval"
    facts["size"] = "of the file; KB and MB are thousands and millions of bytes; zipped: deflated at level 9"
    if front.baseline.load_ms is not None:
        facts["load"] = "opening a session on the file, which the system has read before; the median of the sittings"
    return _pairs(facts)


def _conditions(found: Sequence[Conditions]) -> dict[str, object]:
    """What the machine was like while the front was timed."""
    if not found:
        return {}
    facts: dict[str, object] = {"cores": ", ".join(map(str, found[-1].cpus)) or "any"}
    loads = [each.load_average for each in found if each.load_average is not None]
    foreign = [each.foreign_load for each in found if each.foreign_load is not None]
    clocks = [each.mhz for each in found if each.mhz is not None]
    if loads:
        facts["load average"] = f"{min(loads):.2f} to {max(loads):.2f}"
    if foreign:
        facts["other cores at other work"] = f"{min(foreign):.0%} to {max(foreign):.0%}"
    if clocks:
        governor = f", governor {found[-1].governor}" if found[-1].governor else ""
        facts["clock"] = f"{min(clocks):,.0f} to {max(clocks):,.0f} MHz{governor}"
    return facts


def _pairs(table: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in table.items()
    )
    return f'<table class="pairs">{rows}</table>'


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em; }
h1 { margin-bottom: 0.2em; } h2 { margin-top: 1.6em; }
.gain { font-size: 1.15em; } .note { color: #555; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 4px 9px; border-bottom: 1px solid #e3e6e9; text-align: left; vertical-align: top; }
table.numbers td, table.heat td { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.knee td { background: #fff4ec; }
b.mark { font-size: 11px; color: #d9480f; } .ci { color: #777; font-size: 11px; }
table.heat td { border: 1px solid #fff; text-align: center; font-size: 11px; padding: 2px 6px; }
details { margin: 0.4em 0; } summary { cursor: pointer; } .warning { color: #a33; }
table.heat th { font-weight: normal; font-size: 12px; white-space: nowrap; }
"""
