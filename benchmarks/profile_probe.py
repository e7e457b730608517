"""What pays, layer by layer: `autoq profile probe` of ResNet-20 on several profiles.

    python benchmarks/profile_probe.py [--profiles NAME ...] [--space default] [--seconds 60] [--bench DIR]

Each profile is probed as the command does it, but with an empty cache, so that all is timed anew; what is measured
wants a machine that does nothing else. One table for each profile that can run here: a row for each shape of a layer, a
column for each form of a scheme, in it the time to the reference's between float neighbours, and behind a stroke
between integer ones where that was looked at (of TFLite files, there is that alone). What gains nothing over a gentler
scheme is marked ``x``. Behind a comma, where times are estimates, stands the size.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import machine, parser, resnet20_job, save

PROFILES = ("cpu-x86-onnxruntime", "cpu-x86-openvino", "cpu-litert", "npu-ethos-u55-256", "npu-generic-int8")


def probed(model: Path, profile: str, space: str, seconds: float) -> dict[str, Any]:
    """One profile's table, printed and as it is saved."""
    from autoq.probing import probe_model

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="autoq-probe-cache-") as cache:
        os.environ["AUTOQ_CACHE"] = cache
        found = probe_model(model, hardware=profile, space=space, seconds=seconds)
    spent, result = time.perf_counter() - start, found.result
    shapes = [(shape, {each.scheme: each for each in findings}) for shape, findings in result.shapes]
    forms = list(dict.fromkeys(name for _, by_form in shapes for name in by_form))
    how = "estimated by" if result.estimated else "measured on"
    references = sorted({each.reference for _, by_form in shapes for each in by_form.values()})
    by = result.by or found.profile.runtime.name
    print(f"\n{profile}, {how} {by}, against {', '.join(references)}; {spent:.0f} s\n")
    print(f"| layers | us | {' | '.join(forms)} |\n|{'---|' * (len(forms) + 2)}")
    for shape, by_form in shapes:
        first = next(iter(by_form.values()))
        cells = [cell(by_form[name], result.estimated) if name in by_form else "" for name in forms]
        weight = "x".join(map(str, shape.layer.weight_shape))
        print(f"| {shape.layers} {shape.layer.kind} {weight} | {1e3 * first.reference_ms:.0f} | {' | '.join(cells)} |")
    dropped = sum(bool(each.dropped) for _, by_form in shapes for each in by_form.values())
    of = sum(map(len, (by_form for _, by_form in shapes)))
    print(f"\n{dropped} of {of} dropped; {result.left} shapes left; {len(result.problems)} not probed")
    return {
        "profile": profile,
        "by": result.by,
        "estimated": result.estimated,
        "seconds": spent,
        "left": result.left,
        "problems": result.problems,
        "findings": [each.model_dump(mode="json") for _, by_form in shapes for each in by_form.values()],
    }


def cell(found: Any, estimated: bool) -> str:
    """One form's ratios."""
    ratios = [f"{ratio[0]:.2f}" for ratio in (found.beside_float, found.among_integers) if ratio is not None]
    return " / ".join(ratios) + (f", {found.size:.2f}" if estimated else "") + (" x" if found.dropped else "")


def main() -> None:
    """A table for each profile."""
    from autoq.errors import AutoqError

    arguments = parser(__doc__)
    arguments.add_argument("--profiles", nargs="+", default=PROFILES)
    arguments.add_argument("--space", default="default")
    arguments.add_argument("--seconds", type=float, default=60.0, help="about how long for each")
    given = arguments.parse_args()
    model, tables = Path(resnet20_job(given.bench)["model"]["path"]), []
    for profile in given.profiles:
        try:
            tables.append(probed(model, profile, given.space, given.seconds))
        except AutoqError as error:
            print(f"\n{profile}: {error}")
    save("profile_probe", {"machine": machine(), "space": given.space, "profiles": tables})


if __name__ == "__main__":
    main()
