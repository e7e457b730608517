"""Which label-free measure of single layers ranks whole policies best.

    python benchmarks/proxies.py [--rows 64] [--policies 60] [--digits FOLDER] [--bench DIR]

Each layer is probed alone, in each scheme, on ROWS calibration rows, as before a search, and judged by

    noise       the relative noise power of the outputs
    KL          the Kullback-Leibler divergence of the class probabilities from float32's, nats a row
    TV          the total variation between the class probabilities, the mean over rows
    flips       the share of rows whose class is another
    flips+noise the sum of the two
    flips/4+noise   as a search has it (:func:`autoq.search.sensitivity.disturbance`)

A policy's prediction is the sum over its layers. It is compared with what the policy loses of the metric: of all
candidates of the tables in ``benchmarks/tabular`` (classes in groups of layers), and of POLICIES random policies over
the default space of ResNet-20, scored on 1,000 rows of the search split, of which a half have each layer's schemes
of 4 bits and more alone. ``additive`` is Spearman's correlation of the sum with the same measure of the whole policy.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import ROOT, machine, parser, resnet20_job, save

sys.path.insert(0, str(Path(__file__).resolve().parent / "tabular"))

MEASURES = ("noise", "KL", "TV", "flips", "flips+noise", "flips/4+noise")


def judged(outputs: Any, reference: Any) -> list[float]:
    """The measures of one model's outputs."""
    from autoq.numerics.distortion import kl_divergence, relative_noise

    (name,) = reference
    before, after = np.asarray(reference[name], np.float64), np.asarray(outputs[name], np.float64)
    noise = relative_noise(before, after)
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (before, after))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    flips = float((before.argmax(-1) != after.argmax(-1)).mean())
    variation = float(abs(p - q).sum(-1).mean() / 2)
    return [noise, kl_divergence(before, after), variation, flips, flips + noise, flips / 4 + noise]


def probed(setting: Any, rows: int) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """The lowering, what runs models on the calibration rows, and layer -> ``[schemes, measures]``."""
    from autoq.model.bank import default_cache_dir
    from autoq.model.suffix import Suffixes
    from autoq.search.groundwork import lay_groundwork
    from autoq.search.sensitivity import measure_by, probes, sensitivity

    lowering = lay_groundwork(
        setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=default_cache_dir()
    )
    found = probes(setting.candidates, lowering.canonical)
    runs = Suffixes(lowering, {name: array[:rows] for name, array in setting.calibration.inputs.items()}, rows)
    taken: list[list[float]] = []
    measure_by(
        found, runs, workers=1, judge=judged, keep=lambda _, value: taken.append(value or [np.inf] * len(MEASURES))
    )
    tables = [sensitivity(setting.candidates, found, column) for column in zip(*taken, strict=True)]
    costs = {
        entry.layer.name: np.array([[table.noise(entry.layer.name, s) for table in tables] for s in entry.schemes])
        for entry in setting.candidates
    }
    return lowering, runs, costs


def tabular(name: str, given: Any) -> dict[str, Any]:
    """All candidates of a table."""
    import make
    import table

    from autoq.numerics.bootstrap import spearman
    from autoq.setting import read_setting
    from autoq.spec.job import load_job

    known = table.load(name)
    rows = known.about["rows"][0] if known.about else 0
    given.rows, probe_rows = rows, given.rows
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(yaml.safe_dump({"version": 1, "name": name, "schemes": [*make.SPACES[name]]}))
        setting = read_setting(load_job(make.job_of(name, given) | {"space": str(space)}, ROOT), force=True)
    given.rows = probe_rows
    _, _, costs = probed(setting, probe_rows)
    order = {entry.layer.name: [entry.schemes.index(s) for s in known.schemes] for entry in setting.candidates}
    groups = np.array([sum(costs[layer][order[layer]] for layer in group.split()) for group in known.groups])
    codes = np.array(list(itertools.product(range(len(known.schemes)), repeat=len(groups))))
    sums = groups[np.arange(len(groups)), codes].sum(axis=1)
    good = known.losses[:, 0] <= known.reference[0]
    schemes = [[str(s) for s in known.schemes].index(text) for text in ("w8a8@mse", "w2-gptq")]
    return {
        "what": f"{name}: {len(codes)} candidates",
        "spearman": [spearman(sums[:, k], known.losses[:, 0]) for k in range(len(MEASURES))],
        "spearman_near_float32": [spearman(sums[good, k], known.losses[good, 0]) for k in range(len(MEASURES))],
        "near": int(good.sum()),
        "w2-gptq over w8a8@mse, first layers": (groups[0, schemes[-1]] / groups[0, schemes[0]]).tolist(),
    }


def random_policies(given: Any) -> dict[str, Any]:
    """Random policies over the default space of ResNet-20."""
    from autoq.core.policy import Policy
    from autoq.numerics.bootstrap import spearman
    from autoq.runtime.ort import open_session, run_batches
    from autoq.setting import read_setting
    from autoq.spec.job import load_job

    job = resnet20_job(given.bench)
    job["data"]["search"]["slice"] = [0, 1000]
    setting = read_setting(load_job(job), force=True)
    lowering, runs, costs = probed(setting, given.rows)
    rng = np.random.default_rng(0)
    split = setting.search
    float32 = setting.metric(run_batches(open_session(setting.model.path), split.inputs, 100), split.targets)
    sums, drops, wholes = [], [], []
    for number in range(given.policies):
        chosen = {}
        for entry in setting.candidates:
            usable = [i for i, s in enumerate(entry.schemes) if number % 2 or s.weight_bits >= 4]
            chosen[entry.layer.name] = int(rng.choice(usable))
        policy = lowering.canonical(
            Policy.of({entry.layer.name: entry.schemes[chosen[entry.layer.name]] for entry in setting.candidates})
        )
        session = open_session(lowering.build(policy))
        drops.append(float32 - setting.metric(run_batches(session, split.inputs, 100), split.targets))
        sums.append(np.sum([costs[layer][index] for layer, index in chosen.items()], axis=0))
        wholes.append(judged(runs.outputs(policy), runs.reference))
    summed, lost, whole = np.array(sums), np.array(drops), np.array(wholes)
    good = lost <= 0.1 * float32
    every = range(len(MEASURES))
    return {
        "what": f"ResNet-20, default space: {given.policies} random policies",
        "spearman": [spearman(summed[:, k], lost) for k in every],
        "spearman_near_float32": [spearman(summed[good, k], lost[good]) for k in every],
        "near": int(good.sum()),
        "additive": [spearman(summed[:, k], whole[:, k]) for k in every],
        "sum_over_whole": [float(np.median(summed[:, k] / np.maximum(whole[:, k], 1e-9))) for k in every],
        "whole_policy_spearman": [spearman(whole[:, k], lost) for k in every],
    }


def main() -> None:
    """A block for each set of policies."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=64)
    arguments.add_argument("--policies", type=int, default=60)
    arguments.add_argument("--digits", type=Path, default=ROOT / "examples" / "digits")
    arguments.add_argument("--only", nargs="+", default=["digits", "resnet20", "random"])
    given = arguments.parse_args()
    found = []
    for name in given.only:
        row = random_policies(given) if name == "random" else tabular(name, given)
        found.append(row)
        print(row["what"])
        for key in [key for key in row if isinstance(row[key], list)]:
            figures = "  ".join(
                f"{what} {value if value is None else round(value, 3)}"
                for what, value in zip(MEASURES, row[key], strict=True)
            )
            more = f" ({row['near']} within a tenth of the metric)" if "near_float32" in key else ""
            print(f"    {key.replace('_', ' '):32s} {figures}{more}", flush=True)
    save("proxies", {"machine": machine(), "rows": given.rows, "found": found})


if __name__ == "__main__":
    main()
