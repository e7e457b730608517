"""Which integer forms saturate on x86 without VNNI: ONNX Runtime itself, on an emulated CPU.

    python benchmarks/no_vnni.py --qemu qemu-x86_64-static [--bench DIR] [--rows 100] [--only forms|resnet20]

QEMU's user mode (7.2 or later, which knows AVX2) runs stock ONNX Runtime as on an Intel Haswell, and the same files run
here on the machine itself. First every form with weights all at their largest level and activations at 255, where a
saturated sum shows at once; then ResNet-20 in uniform W8A8, W7A8 and W4A8. The machine needs VNNI, or both sides
saturate. Prints a table and writes benchmarks/out/no_vnni.json.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from harness import parser, resnet20_job, rows, save
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.model.source import read_model
from autoq.numerics.scales import WEIGHT_LEVELS
from autoq.runtime.data import Split
from autoq.runtime.machine import describe
from autoq.runtime.ort import input_specs
from autoq.search.candidates import Candidates
from autoq.search.groundwork import lay_groundwork

CPU = "Haswell"  # AVX2, neither AVX-512 nor VNNI
K = 256
CHILD = """
import sys
from pathlib import Path
import numpy as np, onnxruntime as ort
folder, answer = Path(sys.argv[1]), sys.argv[2]
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
for path in sorted(folder.glob("*.onnx")):
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.load(path.with_suffix(".npy"))}
    np.save(path.with_suffix(f".{answer}.npy"), session.run(None, feeds)[0])
"""


def layer(op: str) -> tuple[onnx.ModelProto, tuple[int, ...], np.ndarray]:
    """A model with one layer of K inputs, the shape of its input, and that input, which is full of 1.0."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "MatMul": ((4, 8, K), (K, 32)),
        "Gemm": ((4, K), (K, 32)),
        "Conv": ((2, K, 6, 6), (32, K, 1, 1)),
        "depthwise Conv": ((2, 32, 9, 9), (32, 1, 3, 3)),
    }
    shape, weight = shapes[op]
    attributes = {"group": 32} if op == "depthwise Conv" else {}
    values = np.random.default_rng(0).uniform(0.98, 1.0, weight).astype(np.float32)
    values.reshape(-1)[0] = 1.0
    parameters = [numpy_helper.from_array(values, "w")]
    if op == "Gemm":
        parameters.append(numpy_helper.from_array(np.zeros(32, np.float32), "b"))
    node = helper.make_node(op.split()[-1], ["x", *(p.name for p in parameters)], ["y"], "layer", **attributes)
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    model = helper.make_model(
        helper.make_graph([node], "layer", infos, [output], parameters),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return model, shape, np.ones(shape, np.float32)


def candidate(model: onnx.ModelProto, x: np.ndarray, scheme: Scheme, folder: Path) -> bytes:
    """The file in which every layer has ``scheme``."""
    path = folder / "source"
    path.write_bytes(model.SerializeToString())
    source = read_model(path)
    found = [Candidates(layer=each, schemes=(scheme,)) for each in source.layers]
    split = Split(inputs={source.graph.inputs[0]: x}, targets=None)
    lowering = lay_groundwork(source, found, split, input_specs(path), cache_dir=None)
    return lowering.build(lowering.canonical(Policy.of({each.name: scheme for each in source.layers})))


def both(folder: Path, qemu: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each file in ``folder`` gives here and on the emulated CPU."""
    packages = os.pathsep.join([*site.getsitepackages(), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    python = os.path.realpath(sys.executable)
    for command, answer in (([python], "here"), ([qemu, "-cpu", CPU, python], "emulated")):
        done = subprocess.run(
            [*command, "-c", CHILD, str(folder), answer], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return {
        path.stem: (np.load(path.with_suffix(".here.npy")), np.load(path.with_suffix(".emulated.npy")))
        for path in sorted(folder.glob("*.onnx"))
    }


def forms(qemu: str) -> dict[str, Any]:
    """Form -> the largest difference between both CPUs, as a share of the largest value."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for op in ("MatMul", "Gemm", "Conv", "depthwise Conv"):
            model, _, x = layer(op)
            products = op in ("MatMul", "Gemm")
            for text in (
                *(f"w{bits}a8{sign}@minmax" for bits in WEIGHT_LEVELS for sign in ("", "-s8")),
                *((f"w{bits}a8@dynamic" for bits in WEIGHT_LEVELS) if products else ()),
                *(("w8-b32", "w4-b32", "w2-b32") if products else ()),
            ):
                path = folder / f"{op}, {text}.onnx"
                path.write_bytes(candidate(model, x, Scheme.parse(text), folder))
                np.save(path.with_suffix(".npy"), x)
        print(f"{'form':34} largest difference, of the largest value")
        for form, (here, emulated) in both(folder, qemu).items():
            off = found[form] = float(np.abs(here - emulated).max() / np.abs(here).max())
            print(f"{form:34} {off:8.1%}{'  saturates' if off > 0.02 else ''}", flush=True)
    return found


def resnet20(qemu: str, bench: Path, count: int) -> dict[str, Any]:
    """Scheme -> top-1 on both CPUs, and the largest difference of the logits."""
    found = {}
    job = resnet20_job(bench)
    x, y = (values[:count] for values in rows(job, "search"))
    calibration = rows(job, "calibration")[0][:64]
    model = onnx.load(job["model"]["path"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text in ("w8a8@minmax", "w7a8@minmax", "w4a8-gptq@minmax"):
            path = folder / f"{text}.onnx"
            path.write_bytes(candidate(model, calibration, Scheme.parse(text), folder))
            np.save(path.with_suffix(".npy"), x)
        print(f"\n{'ResNet-20, ' + str(count) + ' images':34} top-1 here  emulated  logits off")
        for form, (here, emulated) in both(folder, qemu).items():
            top = [float((logits.argmax(1) == y).mean()) for logits in (here, emulated)]
            off = float(np.abs(here - emulated).max() / np.abs(here).max())
            found[form] = {"here": top[0], "emulated": top[1], "off": off}
            print(f"{form:34} {top[0]:10.4f}  {top[1]:8.4f}  {off:9.1%}", flush=True)
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--qemu", default=shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64"))
    arguments.add_argument("--rows", type=int, default=100, help="images for ResNet-20")
    arguments.add_argument("--only", choices=("forms", "resnet20"), help="one part alone")
    given = arguments.parse_args()
    if not given.qemu:
        raise SystemExit("there is no qemu-x86_64-static; install qemu-user-static, or say with --qemu where it is")
    if describe().adds_pairs_in_16_bits:
        raise SystemExit("this machine has no VNNI itself: there is nothing to compare with")
    result: dict[str, Any] = {"cpu": CPU}
    if given.only != "resnet20":
        result["forms"] = forms(given.qemu)
    if given.only != "forms":
        result["resnet20"] = resnet20(given.qemu, given.bench, given.rows)
    save("no_vnni", result)


if __name__ == "__main__":
    main()
