"""The files that show a front: as the run folder has them, or made afresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from autoq.core.result import Front, Trial
from autoq.record.front import front_json
from autoq.record.interactive import front_html
from autoq.record.plots import plot_front, png, policy_heatmap
from autoq.record.report import report_html
from autoq.record.summary import front_table


def collect_front_files(
    front: Front, trials: Sequence[Trial], run_dir: Path, folder: Path, extras: Mapping[str, Mapping[str, object]]
) -> None:
    """Put ``front.json``, the pictures, the interactive plot and the report into ``folder``.

    Those that ``run_dir`` has are copied, so that there is one of each; the others are made, but for the pictures of
    proxies and importances, which not every search has. Raises ``OSError``.
    """
    makers: dict[str, Callable[[], bytes]] = {
        "front.json": lambda: front_json(front).encode(),
        "front.png": lambda: png(plot_front(front, trials)),
        "policies.png": lambda: png(policy_heatmap(front)),
        "front.html": lambda: front_html(front, trials).encode(),
        "report.html": lambda: report_html(front, trials, extras).encode(),
    }
    for name, make in makers.items():
        there = run_dir / name
        (folder / name).write_bytes(there.read_bytes() if there.is_file() else make())
    for name in ("proxies.png", "importances.png"):
        if (run_dir / name).is_file():
            (folder / name).write_bytes((run_dir / name).read_bytes())


def flat_table(front: Front) -> list[dict[str, object]]:
    """The front's table with one plain value a cell: an interval is two columns, ``..._low`` and ``..._high``."""
    rows = []
    for row in front_table(front):
        flat: dict[str, object] = {}
        for name, value in asdict(row).items():
            if name.endswith("_ci95"):
                flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
            else:
                flat[name] = ", ".join(value) if name == "marks" else value
        rows.append(flat)
    return rows
