"""What is said of a search that has ended, besides its front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoq.core.proxy import ProxyTruth
from autoq.core.result import Front, FrontPoint, StopReason
from autoq.errors import TrialError
from autoq.model.health import ROWS as HEALTH_ROWS
from autoq.model.health import HealthCheck
from autoq.model.lower import Lowering
from autoq.pipeline.exchange import Events
from autoq.record.evidence_plots import rank_text
from autoq.record.health import Health, health_record
from autoq.record.run_folder import RunFolder
from autoq.runtime.base import fixed_batch
from autoq.runtime.machine import describe, software_versions
from autoq.search.executor import Executor
from autoq.search.loop import Limits, Search
from autoq.search.stopping import LEAST_GAIN
from autoq.setting import Setting


def stop_notes(limits: Limits, search: Search, reason: StopReason) -> list[str]:
    """What there is to say of a search that ended before its budget was spent."""
    if reason == "no gain":
        return [
            f"stopped after {len(search.trials)} trials: the last {limits.patience} have widened the front by less "
            f"than {LEAST_GAIN:.1%} of its hypervolume (budget.patience)"
        ]
    if reason == "target met":
        met = next(trial for trial in search.trials if search.problem.feasible(trial, limits.until))
        return [f"stopped at trial {met.number} ({met.id}): it keeps the bounds of budget.until on the search split"]
    return []


def why_empty(search: Search, points: Sequence[FrontPoint]) -> str:
    """Why a front has no ``points``; empty where it has some."""
    if points:
        return ""
    if search.front:
        return "the final check took off all that the search had found"
    return search.problem.nearest_miss(search.trials)


def notes_on(setting: Setting, search: Search, truths: Sequence[ProxyTruth]) -> tuple[str, ...]:
    """What reading the model, the uniform seeds and the proxies left to say."""
    notes = list(setting.model.notes)
    tried = {trial.policy for trial in search.trials}
    seeds = search.problem.uniform_seeds()
    untried = [name for name, chosen in seeds if search.problem.complete(chosen) not in tried]
    if untried:
        notes.append(
            f"the search ended before {len(untried)} of its {len(seeds)} uniform seeds were tried: "
            f"{', '.join(untried)}; a larger budget has them"
        )
    if truths:
        ranks = ", ".join(map(rank_text, truths))
        notes.append(f"the proxies ranked the truth with Spearman correlations of: {ranks}")
    return tuple(notes)


def health_of(setting: Setting, lowering: Lowering, front: Front, folder: RunFolder, events: Events) -> Health:
    """The health of the front's points; what cannot be taken is left out, with a warning: no search ends for it."""
    narrow = describe().adds_pairs_in_16_bits or bool(setting.profile.instead)
    batch = fixed_batch(setting.inputs) or HEALTH_ROWS
    calibration = {name: array[:batch] for name, array in setting.calibration.inputs.items()}
    rows = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in calibration.items()}
    found = {}
    try:
        check = HealthCheck(lowering, rows)
        for point in front.points:
            if setting.target.runs_onnx:
                model = (folder.path / point.model_path).read_bytes()
            else:  # the same numbers
                model = lowering.build(point.policy)
            layers = check.take(point.policy, model, banked=point.polish is None)
            found[point.id] = health_record(layers, narrow=narrow)
    except (TrialError, OSError) as error:
        events.warn(f"the numerical health of the front's models could not be taken: {error}")
    return found


def circumstances(setting: Setting, executor: Executor) -> dict[str, dict[str, object]]:
    """Machine, search and versions, as the report lists them."""
    machine = describe()
    return {
        "Machine": {
            "processor": machine.cpu_model,
            "cores": f"{machine.usable_cores} usable of {machine.logical_cores}",
            "memory, GiB": round(machine.memory_bytes / 2**30, 1),
            "system": machine.os,
        },
        "Search": {
            "hardware profile": setting.profile.name,
            "space": setting.space.name,
            "evaluated by": executor.description,
            "model SHA-256": setting.model.sha256,
            "rows": f"{setting.calibration.rows} calibration, {setting.search.rows} search, {setting.final.rows} final",
        },
        "Versions": dict(software_versions()),
    }
