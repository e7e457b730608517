"""Proves an exported model: that it is the file that was scored, that it runs, scores the same, and runs as asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from autoq.core.identity import sha256_hex
from autoq.core.scheme import Scheme
from autoq.errors import AutoqError, RunError, TrialError
from autoq.model.target import Target
from autoq.model.tensorrt_check import tensorrt_problems
from autoq.record.export_form import TENSORRT
from autoq.record.manifest import ONNX_RUNTIME, activation_scales, read_manifest
from autoq.record.verify_weights import STORED
from autoq.runtime.data import load_split
from autoq.runtime.executed import Executed, LayerNames, executed_kernels
from autoq.runtime.litert_executed import executed_operators
from autoq.runtime.metric import resolve_metric
from autoq.runtime.openvino_executed import executed_layers
from autoq.spec.job import load_job

Status = Literal["ok", "failed", "skipped"]

_NAMES = {"onnxruntime": "stock ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}


def _executed_in_torch(runtime: Any, model: Path, layers: Sequence[LayerNames]) -> list[Executed]:
    """As :func:`autoq.model.torch_executed.executed_steps`; PyTorch takes seconds to import."""
    from autoq.model.torch_executed import executed_steps

    return executed_steps(runtime, model, layers)


ExecutedBy = Callable[[Any, Path, Sequence[LayerNames]], list[Executed]]

EXECUTED: Mapping[str, ExecutedBy] = {
    "onnxruntime": lambda runtime, model, layers: executed_kernels(model, layers),
    "openvino": executed_layers,
    "litert": executed_operators,
    "torch": _executed_in_torch,
}
"""Runtime -> what tells the kernel of each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked, and what was found, in a sentence."""

    name: str
    status: Status
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCheck:
    """How one layer was asked to run and how it runs."""

    layer: str
    asked: str
    executed: Executed
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks in the order in which they were made; ``layers`` in the model's."""

    checks: tuple[Check, ...]
    layers: tuple[LayerCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "failed" for check in self.checks)


def verify(folder: Path, *, job: str | None = None, metric: bool = True) -> Verification:
    """Verifies the exported model in ``folder``.

    ``job`` is a job file to take the data from, where the one recorded has moved. With ``metric=False`` the metric is
    not scored again, and the check is marked skipped. Raises :class:`autoq.errors.AutoqError` when the
    folder is no exported model, or the data cannot be read.
    """
    manifest = read_manifest(folder)
    path = folder / manifest["model"]["file"]
    try:
        model = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    checks = [_hash(model, manifest)]
    runtime = manifest.get("runtime", ONNX_RUNTIME)
    target = Target.load(runtime["name"], runtime["options"])
    explicit = TENSORRT in (runtime["name"], manifest["model"].get("form"))
    executed = None if explicit else EXECUTED.get(runtime["name"])
    checks += _also(folder, manifest)
    layers: tuple[LayerCheck, ...] = ()
    try:
        target.runtime.open(path)
        layers = _layers(path, model, manifest, target, executed) if executed else ()
    except TrialError as error:
        checks.append(Check(name="load", status="failed", found=str(error)))
        return Verification(checks=tuple(checks), layers=())
    checks.append(Check(name="load", status="ok", found=f"{_NAMES.get(runtime['name'], runtime['name'])} loads it"))
    if target.runs_onnx:
        checks.append(_scales(model, manifest))
    if explicit:
        checks.append(_explicit(model))
    else:
        checks.append(_precision(layers) if executed else _untold(runtime["name"]))
    if metric:
        checks += _metric(path, manifest, job, target)
        checks += [
            dataclasses.replace(check, name=f"{check.name}, {name}")
            for name in manifest.get("also", ())
            if name.endswith(".xml")
            for check in _metric(folder / name, manifest, job, target)
        ]
    else:
        checks.append(Check(name="metric", status="skipped", found="not asked for"))
    return Verification(checks=tuple(checks), layers=layers)


def _explicit(model: bytes) -> Check:
    """Whether a file keeps the rules of TensorRT's explicit quantization; what it runs in, TensorRT alone says."""
    problems = tensorrt_problems(onnx.ModelProto.FromString(model))
    if problems:
        found = f"{len(problems)} rules of TensorRT's are broken, for one {problems[0]}"
        return Check(name="explicit quantization", status="failed", found=found)
    return Check(name="explicit quantization", status="ok", found="the file keeps TensorRT's rules, by a static check")


def _untold(runtime: str) -> Check:
    return Check(name="precision", status="skipped", found=f"which kernels {runtime} runs is not asked")


def _precision(layers: tuple[LayerCheck, ...]) -> Check:
    wrong = [layer for layer in layers if layer.problem]
    found = f"{len(layers) - len(wrong)} of {len(layers)} layers run in the precision asked for"
    unseen = sum(not layer.executed.kernel for layer in layers)
    if unseen:
        found += f"; {unseen} could not be found in the graph that the runtime made"
    return Check(name="precision", status="failed" if wrong else "ok", found=found)


def _hash(model: bytes, manifest: dict[str, Any]) -> Check:
    actual, expected = sha256_hex(model), manifest["model"]["sha256"]
    if actual == expected:
        return Check(name="hash", status="ok", found=f"SHA-256 {actual[:12]}…, the file that was scored")
    found = f"SHA-256 is {actual[:12]}…, the scored file's is {expected[:12]}…: the model was changed"
    return Check(name="hash", status="failed", found=found)


def _scales(model: bytes, manifest: dict[str, Any]) -> Check:
    actual, expected = activation_scales(model), manifest["scales"]
    differing = [name for name in expected.keys() | actual.keys() if actual.get(name) != expected.get(name)]
    if differing:
        found = f"{len(differing)} activation scales differ from the manifest's, for one {min(differing)!r}"
        return Check(name="scales", status="failed", found=found)
    return Check(name="scales", status="ok", found=f"{len(actual)} activation scales are the manifest's")


def _also(folder: Path, manifest: dict[str, Any]) -> list[Check]:
    """The other forms of the model that lie beside it: whether they are those that were written."""
    checks = []
    for name, expected in manifest.get("also", {}).items():
        try:
            same = sha256_hex((folder / name).read_bytes()) == expected
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror or error}") from None
        found = "the file that was exported" if same else "the file was changed since it was exported"
        checks.append(Check(name=f"hash, {name}", status="ok" if same else "failed", found=found))
    return checks


def _layers(
    path: Path, model: bytes, manifest: dict[str, Any], target: Target, executed: ExecutedBy
) -> tuple[LayerCheck, ...]:
    records = manifest["layers"]
    names = [
        LayerNames(layer=r["layer"], node=r["node"], weight=r["weight"], outputs=tuple(r["outputs"])) for r in records
    ]
    weight_problem = STORED[target.suffix](model, names)
    schemes = [Scheme.parse(record["scheme"]) for record in records]
    wide = any(scheme.calibrated is not None and scheme.activation_bits == 16 for scheme in schemes)
    return tuple(
        LayerCheck(
            layer=record["layer"],
            asked=record["scheme"],
            executed=found,
            problem=_problem(scheme, found, wide=wide, kernels_for_blocks=target.runtime.name == "onnxruntime")
            or weight_problem(record),
        )
        for record, scheme, found in zip(records, schemes, executed(target.runtime, path, names), strict=True)
    )


def _problem(scheme: Scheme, executed: Executed, *, wide: bool = False, kernels_for_blocks: bool = True) -> str:
    """What is wrong with how a layer runs, or nothing.

    ``wide``: the policy has 16-bit activations somewhere. What writes those computes in 16 bits, and ONNX Runtime,
    which has no such kernels, in float32 between two roundings. Without ``kernels_for_blocks``, the runtime reads
    blocks in its other kernels, or folds them.
    """
    in_16 = wide and executed.precision in ("float32", "int16")
    if scheme.calibrated is not None and scheme.activation_bits == 16 and not in_16:
        return f"asked for 16-bit activations, runs in {executed.kernel or 'no kernel that could be found'}"
    if scheme.activation is not None and executed.precision != "int8" and not in_16:
        return f"asked for 8-bit activations, runs in {executed.kernel or 'no kernel that could be found'}"
    if scheme.floats is not None and executed.precision != scheme.floats:
        return f"asked for {scheme}, runs in {executed.precision or 'no kernel that could be found'}"
    blocks = scheme.weight is not None and scheme.weight.block is not None
    if blocks and executed.precision != "blocks" and kernels_for_blocks:
        return f"asked for weights in blocks, runs in {executed.kernel or 'no kernel that could be found'}"
    if not blocks and executed.precision == "blocks":
        return f"asked for {scheme}, runs in {executed.kernel}"
    if scheme.activation is None and executed.precision == "int8":
        return f"asked for float activations, runs in {executed.kernel}"
    if executed.runtime_conversion:
        return f"its weight passes through {executed.runtime_conversion} at every inference"
    return ""


def _metric(path: Path, manifest: dict[str, Any], job_file: str | None, target: Target) -> list[Check]:
    job = load_job(job_file) if job_file else load_job(manifest["job"], manifest["base_dir"])
    metric = resolve_metric(job)
    session = target.runtime.open(path)
    specs = target.runtime.inputs(session)
    checks = []
    for which in ("search", "final"):
        expected = manifest["metric"][which]
        if expected is None:
            continue
        try:
            split = load_split(job, which, specs)
        except AutoqError as error:
            raise type(error)(
                f"{error}. The metric cannot be scored again without the data: give a job file that finds it with "
                "--job, or leave the metric out with --no-metric"
            ) from None
        actual = metric(target.runtime.run(session, split.inputs, job.data.batch), split.targets)
        same = np.float64(actual) == np.float64(expected)
        found = f"{metric.name} {actual!r} on {split.rows} rows" + (
            "" if same else f", where the search scored {expected!r}"
        )
        checks.append(Check(name=f"metric, {which} split", status="ok" if same else "failed", found=found))
    return checks
