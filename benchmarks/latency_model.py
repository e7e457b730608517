"""How well the latency model that a search measures beforehand predicts files that it never saw.

    python benchmarks/latency_model.py [NETWORK ...] [--files 100] [--model MINILM.onnx] [--digits FOLDER] [--bench DIR]

NETWORK is resnet20, minilm or digits. The model is measured as a search does it, anew. Then FILES random policies of
the default space (each layer takes any of its schemes with equal chance) are built and timed in turn with float32, 8 to
16 rounds each, and held against what the model and the profile's costs said of them. A file's ratio is its quickest
block's over float32's quickest, as in ``benchmarks/tabular``: a busy machine only ever adds. How well the ratios from
the even rounds rank those from the odd ones says what no model can surpass; "medians" has the model against the medians
over rounds, which a trial reports. Weights are rounded to nearest throughout, and 32 rows calibrate: that changes
values and no kernel (a test holds the classes against the kernels that run), and saves minutes.

"check" are the model's own figures, each of its files predicted by a model of the others. Seconds are those of building
and timing the model's files.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import ROOT, machine, parser, resnet20_job, save, sts_job, verdict

from autoq.core.policy import Policy
from autoq.core.result import Latency
from autoq.core.scheme import Scheme
from autoq.model.parts import Parts
from autoq.numerics.bootstrap import spearman
from autoq.runtime.meter import Meter
from autoq.runtime.timing import TimingPlan
from autoq.search.latency import LIMIT_S, LatencyModel, measure_table
from autoq.search.problem import Problem
from autoq.setting import Setting, choose_forms, groundwork_of, inference_feeds, read_setting
from autoq.spec.job import load_job

TRUTH = TimingPlan(block_s=0.01, warm_s=0.01, min_sittings=4, max_sittings=8, limit_s=1.0)
NETWORKS = ("digits", "resnet20", "minilm")


def setting_of(name: str, given: Any) -> Setting:
    """The example's job, with every weight rounded to nearest."""
    if name == "resnet20":
        job = resnet20_job(given.bench)
    elif name == "minilm":
        job = sts_job(given.bench, given.model)
    else:
        job = yaml.safe_load((ROOT / "examples" / "digits" / "job.yaml").read_text())
        if not (given.digits / "digits.onnx").is_file():
            raise SystemExit(f"there is no {given.digits / 'digits.onnx'}: run examples/digits/train.py first")
        for part in (job["model"], *(job["data"][split] for split in ("calibration", "search", "final"))):
            part["path"] = str(given.digits.resolve() / part["path"])
    job["data"]["calibration"] |= {"limit": 32}
    setting = choose_forms(read_setting(load_job(job, ROOT)))
    found = tuple(
        dataclasses.replace(entry, schemes=tuple(map(to_nearest, entry.schemes))) for entry in setting.candidates
    )
    return dataclasses.replace(setting, candidates=found)


def to_nearest(scheme: Scheme) -> Scheme:
    """The scheme with weights rounded to nearest. Duplicates stay: chances are those of the default space."""
    if scheme.weight is None or scheme.weight.rounding == "nearest":
        return scheme
    return dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, rounding="nearest"))


def judge(name: str, given: Any) -> dict[str, Any]:
    """The figures of one network."""
    setting = setting_of(name, given)
    lowering = groundwork_of(setting)
    profile, latency = setting.profile, setting.profile.latency_with(setting.job.latency)
    problem = Problem(
        candidates=setting.candidates,
        canonical=lowering.canonical,
        seed_schemes=(),
        objectives=setting.job.objectives,
        direction="maximize",
        constraints=setting.job.constraints,
        baseline=None,  # type: ignore[arg-type]  # nothing here asks for it
        profile=profile,
    )
    rng = np.random.default_rng(given.seed)
    policies: dict[str, Policy] = {}
    while len(policies) < given.files:
        chosen = {e.layer.name: e.schemes[int(rng.integers(len(e.schemes)))] for e in setting.candidates}
        policy = problem.complete(chosen)
        policies.setdefault(policy.id, policy)
    with Meter(
        setting.model.path,
        inference_feeds(setting),
        threads=latency.threads,
        runtime_options=profile.runtime.arguments,
        final_plan=TRUTH,
    ) as meter:
        table = measure_table(
            setting.candidates, lowering, problem.complete, profile, meter, limit_s=LIMIT_S, clock=time.monotonic
        )
        if table is None:
            raise SystemExit(f"{name}: no model was measured within {LIMIT_S:g} s")
        model = LatencyModel(table=table, parts=Parts(lowering.formed, lowering.layers, lowering.placer))
        predicted = [model.ratio(policy) for policy in policies.values()]
        believed = [problem.modelled_latency(policy) for policy in policies.values()]
        measured = measure(list(policies.values()), lowering.build, meter)
    truth, even, odd = (quickest(measured, rounds) for rounds in (slice(None), slice(0, None, 2), slice(1, None, 2)))
    medians = np.array([each.ratio for each in measured])
    return {
        "layers": len(setting.candidates),
        "check": dataclasses.asdict(table.check),
        "spearman": spearman(predicted, truth),
        "median_error": float(np.median(np.abs(np.array(predicted) / truth - 1))),
        "profile_spearman": spearman(believed, truth),
        "spread": float(truth.std() / truth.mean()),
        "even_odd_spearman": spearman(even, odd),
        "even_odd_error": float(np.median(np.abs(even / odd - 1))),
        "medians_spearman": spearman(predicted, medians),
        "medians_error": float(np.median(np.abs(np.array(predicted) / medians - 1))),
        "load_average": round(os.getloadavg()[0], 2),
        "predicted": predicted,
        "measured": truth.tolist(),
    }


def quickest(measured: list[Latency], rounds: slice) -> np.ndarray:
    """Ratios from the quickest blocks of some rounds."""
    return np.array([min(each.blocks_ms[rounds]) / min(each.baseline_blocks_ms[rounds]) for each in measured])


def measure(policies: list[Policy], build: Callable[[Policy], bytes], meter: Meter) -> list[Latency]:
    """Latencies of the policies' files, eight at a time in turn."""
    found: list[Latency] = []
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(policies), 8):
            paths = []
            for number, policy in enumerate(policies[start : start + 8]):
                paths.append(Path(folder) / f"{number}.onnx")
                paths[-1].write_bytes(build(policy))
            found += [each.latency for each in meter.measure_many(paths)]
    return found


def main() -> None:
    """Measures, prints, saves."""
    arguments = parser(__doc__)
    arguments.add_argument("networks", nargs="*", default=[], metavar="NETWORK")
    arguments.add_argument("--files", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--model", type=Path, default=ROOT / "examples" / "minilm-sts" / "minilm.onnx")
    arguments.add_argument("--digits", type=Path, default=ROOT / "examples" / "digits")
    given = arguments.parse_args()
    results = {}
    for name in given.networks or NETWORKS:
        found = results[name] = judge(name, given)
        check = found["check"]
        print(
            f"{name}: {found['layers']} layers, model from {check['files']} files in {check['seconds']:.0f} s "
            f"({check['disturbed']} disturbed; check: Spearman {check['spearman']:.3f}, median error "
            f"{100 * check['median_error']:.1f} %)\n"
            f"  {given.files} random policies, spread {100 * found['spread']:.1f} %, load average "
            f"{found['load_average']}; even against odd rounds: Spearman {found['even_odd_spearman']:.3f}, "
            f"{100 * found['even_odd_error']:.1f} %\n"
            f"  Spearman {found['spearman']:.3f}, goal 0.95: {verdict(found['spearman'] >= 0.95)}; the profile's costs "
            f"{found['profile_spearman']:.3f}; against medians {found['medians_spearman']:.3f}\n"
            f"  median error {100 * found['median_error']:.1f} %, goal 5 %: {verdict(found['median_error'] <= 0.05)}; "
            f"against medians {100 * found['medians_error']:.1f} %",
            flush=True,
        )
    save("latency_model", {"machine": machine(), "files": given.files, "networks": results})


if __name__ == "__main__":
    main()
