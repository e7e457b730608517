"""PyTorch as a runtime, on the CPU: every scheme's candidate against the file as it is written."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from autoq.core.scheme import Scheme
from autoq.errors import ProfileError, TrialError
from autoq.model.torch_executed import executed_steps
from autoq.model.torch_runtime import TorchRuntime, TorchSession, device_problem
from autoq.runtime.base import load_runtime
from autoq.runtime.executed import LayerNames
from autoq.runtime.meter import Meter
from autoq.runtime.timing import TimingPlan
from tests.models import Lowered, Net, distance, lowered, run, run_unfused

EXACT = ["w8a8@minmax", "w8a8-s8@mse", "w8a8-tensor@minmax", "w8a8@dynamic", "w4a8-gptq@minmax", "w4a8-kmeans@mse"]
FLOATS = ["float32", "float16", "w8", "w4", "w4-kmeans", "fp16", "fp8"]
BLOCKS = ["w4-b32", "w4-b32-asym", "w8-b64"]
HAS_GPU = torch.version.cuda is not None and torch.cuda.device_count() > 0


def encoder() -> Lowered:
    """Attention without its mask: shapes that are computed, products of activations, a layer norm, three readers."""
    net = Net(7)
    x = net.input("n", "t", 64)
    shape = net.add("Concat", net.add("Shape", x, start=0, end=2), net.ints(4, 16), axis=0)
    heads = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        y = net.add("Add", net.add("MatMul", x, net.weight(64, 64)), net.weight(64))
        heads.append(net.add("Transpose", net.add("Reshape", y, shape), perm=order))
    weights = net.add("Softmax", net.add("Mul", net.add("MatMul", *heads[:2]), net.constant(np.float32(0.1))), axis=-1)
    mixed = net.add("Transpose", net.add("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    flat = net.add("Reshape", mixed, net.ints(0, 0, 64))
    normal = net.add("LayerNormalization", net.add("Add", flat, x), net.weight(64), net.weight(64))
    wide = net.add("Gelu", net.add("Add", net.add("MatMul", normal, net.weight(64, 128)), net.weight(128)))
    pooled = net.add("ReduceMean", wide, net.ints(1), keepdims=0)
    y = net.add("Gemm", pooled, net.weight(16, 128), net.weight(16), transB=1)
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 5, 64)).astype(np.float32)}
    subject = lowered(net.model(y), [*EXACT, *FLOATS, *BLOCKS, "bf16"], feeds)
    return dataclasses.replace(subject, lowering=dataclasses.replace(subject.lowering, accuracy_level=3))


@pytest.fixture(scope="module")
def subject() -> Lowered:
    return encoder()


@pytest.fixture(scope="module")
def runtime() -> TorchRuntime:
    return TorchRuntime(device="cpu")


def kernels(session: TorchSession) -> Counter[str]:
    """How often each kernel stands in the session's first plan."""
    return Counter(step.runs for step in next(iter(session.plans.values())).steps)


def outputs(runtime: TorchRuntime, model: bytes, subject: Lowered) -> tuple[np.ndarray, TorchSession]:
    session = runtime.open(model)
    (found,) = runtime.run(session, subject.feeds, 4).values()
    return found, session


@pytest.mark.parametrize("scheme", [*EXACT, *FLOATS])
def test_what_the_file_says_is_computed(runtime: TorchRuntime, subject: Lowered, scheme: str) -> None:
    model = subject.build(scheme)
    found, session = outputs(runtime, model, subject)
    (expected,) = run_unfused(model, subject.feeds).values()
    assert distance(found, expected) < (3e-3 if scheme in ("fp16", "fp8") else 1e-5)
    used = kernels(session)
    if scheme in EXACT:
        assert used["MatMulInteger" if scheme.endswith("dynamic") else "_int_mm"] == 5
    if scheme == "fp8":
        assert used["_scaled_mm"] == 5
    assert "Shape" not in used


def test_bfloat16(runtime: TorchRuntime, subject: Lowered) -> None:
    """ONNX Runtime's CPU provider has no such product: against ONNX's reference."""
    model = subject.build("bf16")
    found, _ = outputs(runtime, model, subject)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(model)).run(None, subject.feeds)
    assert distance(found, np.asarray(expected, np.float32)) < 2e-2


@pytest.mark.parametrize("scheme", BLOCKS)
def test_weights_in_blocks(runtime: TorchRuntime, subject: Lowered, scheme: str) -> None:
    """The file says that they are multiplied in bfloat16; in float32 they are what ONNX Runtime computes."""
    model = subject.build(scheme)
    found, session = outputs(runtime, model, subject)
    parsed = onnx.load_from_string(model)
    for node in parsed.graph.node:
        for entry in node.attribute:
            if entry.name == "accuracy_level":
                assert entry.i == 3
                entry.i = 1
    exact, _ = outputs(runtime, parsed.SerializeToString(), subject)
    (expected,) = run(parsed, subject.feeds).values()
    assert distance(exact, expected) < 1e-5
    assert 1e-6 < distance(found, expected) < 3e-2
    assert kernels(session)["MatMulNBits"] == 5


@pytest.mark.parametrize(
    ("scheme", "precision"),
    [("w8a8@minmax", "int8"), ("w8a8@dynamic", "int8"), ("w4-b32", "blocks"), ("w4", "float32")]
    + [(name, name) for name in ("bf16", "fp16", "fp8", "float32")],
)
def test_what_each_layer_runs_in(runtime: TorchRuntime, subject: Lowered, scheme: str, precision: str) -> None:
    names = [LayerNames(layer=e.name, node=e.node, weight=e.weight, outputs=(e.output,)) for e in subject.layers]
    found = executed_steps(runtime, subject.build(scheme), names)
    assert [each.precision for each in found] == [precision] * 5
    assert all(each.kernel for each in found)


def test_batches_and_what_is_left_of_them(runtime: TorchRuntime, subject: Lowered) -> None:
    """Four rows in batches of three: two plans, which share the weights; the same outputs."""
    model = subject.build("w8a8@minmax")
    whole, _ = outputs(runtime, model, subject)
    session = runtime.open(model)
    (parts,) = runtime.run(session, subject.feeds, 3).values()
    assert distance(parts, whole) < 1e-5
    assert len(session.plans) == 2
    first, second = ([step.kernel for step in plan.steps] for plan in session.plans.values())
    shared = [one is other for one, other in zip(first, second, strict=True)]
    assert sum(shared) >= 5, "kernels over weights are built once"


def test_an_image_network(runtime: TorchRuntime) -> None:
    """Carried operators on integers, a pool of integers, a Conv whose operands come from pairs."""
    net = Net(3)
    x = net.input("n", 4, 8, 8)
    a = net.add("Relu", net.conv(x, 4, 8))
    b = net.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    y = net.add("Gemm", net.add("Flatten", b), net.weight(128, 12), net.weight(12))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)}
    subject = lowered(net.model(y), ["w8a8@minmax", "fp16"], feeds)
    for scheme in ("w8a8@minmax", "fp16"):
        found, _ = outputs(runtime, subject.build(scheme), subject)
        (expected,) = run_unfused(subject.build(scheme), feeds).values()
        assert distance(found, expected) < (1e-5 if scheme != "fp16" else 2e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled(subject: Lowered) -> None:
    """The function that is timed under torch.compile computes what is scored."""
    runtime = TorchRuntime(device="cpu", mode="compile")
    session = runtime.open(subject.build("fp8"))
    (expected,) = runtime.run(session, subject.feeds, 4).values()
    (found,) = runtime.step(session, subject.feeds)()  # type: ignore[misc]
    assert distance(found.numpy(), expected) < 1e-4


def test_out_of_memory_is_a_failed_trial(runtime: TorchRuntime) -> None:
    net = Net()
    x = net.input("n", 4)
    huge = net.add("Expand", x, net.ints(1 << 45, 4))
    y = net.add("ReduceSum", net.add("Exp", huge), net.ints(1))
    session = runtime.open(net.model(y).SerializeToString())
    with pytest.raises(TrialError, match=r"cpu is out of memory: .*smaller batches") as caught:
        runtime.run(session, {"x": np.ones((1, 4), np.float32)}, 1)
    assert caught.value.reason == "metric"
    with pytest.raises(TrialError) as caught:
        runtime.step(session, {"x": np.ones((1, 4), np.float32)})
    assert caught.value.reason == "measure"
    (again,) = runtime.run(runtime.open(small()), {"x": np.ones((1, 4), np.float32)}, 1).values()
    assert again.shape == (1, 4), "the next candidate runs"


def small(op_type: str = "Relu") -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"], "only")], "g", value[:1], value[1:])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )


def test_what_cannot_be_run_is_told(runtime: TorchRuntime) -> None:
    with pytest.raises(TrialError, match="node 'only': operator Det is not known in PyTorch"):
        runtime.run(runtime.open(small("Det")), {"x": np.ones((1, 4), np.float32)}, 1)
    with pytest.raises(TrialError, match="PyTorch cannot run the model") as caught:
        runtime.open(b"no model")
    assert caught.value.reason == "load"
    with pytest.raises(TrialError, match="'x' is not fed"):
        runtime.run(runtime.open(small()), {"z": np.ones((1, 4), np.float32)}, 1)


def test_options_and_machines_that_do_not_fit() -> None:
    with pytest.raises(ProfileError, match="neither cuda nor cpu"):
        load_runtime("torch", device="tpu")
    with pytest.raises(ProfileError, match=r"'fast' is none of graph, compile, eager"):
        load_runtime("torch", device="cpu", mode="fast")
    if not HAS_GPU:
        with pytest.raises(ProfileError, match="NVIDIA GPU"):
            load_runtime("torch")
    assert device_problem("cpu") == ""


def test_the_meter_times_it(tmp_path: Path, subject: Lowered) -> None:
    """In a process of its own that forks for each measurement."""
    paths = [tmp_path / f"{name}.onnx" for name in ("float32", "w8")]
    for path, scheme in zip(paths, ("float32", "w8a8@minmax"), strict=True):
        path.write_bytes(subject.build(scheme))
    plan = TimingPlan(block_s=0.002, max_rounds=2, min_sittings=2, limit_s=0.01, warm_s=0.002)
    feeds = {"x": subject.feeds["x"][:1]}
    with Meter(paths[0], feeds, runtime="torch", runtime_options={"device": "cpu"}, plan=plan) as meter:
        found = meter.measure(paths[1])
    assert found.latency.ratio > 0
    assert found.peak_memory_bytes is not None


@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("mode", ["graph", "eager"])
@pytest.mark.parametrize("scheme", [*EXACT, *FLOATS, *BLOCKS, "bf16"])
def test_a_gpu_computes_the_same(runtime: TorchRuntime, subject: Lowered, scheme: str, mode: str) -> None:
    model = subject.build(scheme)
    expected, _ = outputs(runtime, model, subject)
    gpu = TorchRuntime(mode=mode)
    found, session = outputs(gpu, model, subject)
    assert distance(found, expected) < (3e-2 if Scheme.parse(scheme).floats or scheme in BLOCKS else 1e-4)
    assert float(gpu.step(session, subject.feeds)()) > 0  # type: ignore[arg-type]


def test_a_real_network(bench: Path, runtime: TorchRuntime) -> None:
    """The model as its user gave it, which latencies are against."""
    path = bench / "cifar10" / "resnet20.onnx"
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    (name,) = (spec.name for spec in runtime.inputs(runtime.open(path)))
    (expected,) = run(onnx.load(path), {name: x}).values()
    (found,) = runtime.run(runtime.open(path), {name: x}, 2).values()
    assert distance(found, expected) < 1e-4
