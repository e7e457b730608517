"""OpenVINO as a runtime, against ONNX Runtime and against what OpenVINO does when nobody watches it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from autoq.core.policy import Policy
from autoq.errors import ProfileError, TrialError
from autoq.model.lower import Lowering
from autoq.pipeline.start import layer_records
from autoq.runtime.base import load_runtime
from autoq.runtime.executed import LayerNames
from autoq.runtime.meter import Meter
from autoq.runtime.openvino import OpenVino, check_model
from autoq.runtime.openvino_executed import executed_layers
from autoq.runtime.ort import OnnxRuntime
from autoq.runtime.timing import TimingPlan
from autoq.search.groundwork import lay_groundwork
from autoq.setting import read_setting
from autoq.spec.job import load_job
from tests.small_job import LAYERS, environment, small_data, small_model, write_job

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs autoq[openvino]")

# Importing OpenVINO plainly looks up a server for its usage statistics and writes their id to the home directory.
WATCHED = """
import os, sys, time
import numpy as np, onnxruntime
count_threads = lambda: len(os.listdir("/proc/self/task"))
seen, before = [], (count_threads(), set(os.listdir(os.environ["HOME"])))
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(("socket.", "urllib.")) else None)
from autoq.runtime.openvino import OpenVino
runtime = OpenVino()
after = count_threads()
session = runtime.open(open(sys.argv[1], "rb").read())
runtime.run(session, {"x": np.zeros((2, 3, 8, 8), np.float32)}, 2)
time.sleep(0.2)
telemetry = [name for name in sys.modules if name.startswith("openvino_telemetry")]
print(after - before[0], seen, set(os.listdir(os.environ["HOME"])) - before[1], telemetry)
"""


def test_nothing_is_sent_and_no_thread_starts_before_a_model_is_opened(tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    (tmp_path / "small.onnx").write_bytes(small_model().SerializeToString())
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "small.onnx")]
    environ = {name: value for name, value in environment(HOME=str(home)).items() if name != "CI"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 [] set() []"


def product(kind: int, *, scale: float, zero_point: int, constant_node: bool = False) -> bytes:
    """``x`` [n, 8], through a pair of QuantizeLinear and DequantizeLinear, times a matrix."""
    zero = helper.make_tensor("z", kind, [], [zero_point])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(np.array(scale, np.float32), "s")]
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    initializers.append(numpy_helper.from_array(weight, "w"))
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["z"], value=zero))
    else:
        initializers.append(zero)
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "g", shape[:1], shape[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def outputs(runtime: OpenVino | OnnxRuntime, model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runtime.run(runtime.open(model), inputs, 16)


# Both clip x at 0.5, as the pair does that stands for a Relu6 or that a calibration method made narrow.
@pytest.mark.parametrize(
    ("kind", "scale", "zero_point"),
    [(TensorProto.INT16, 0.5 / 32767, 0), (TensorProto.UINT16, 1 / 65535, 32768)],
    ids=["int16", "uint16"],
)
@pytest.mark.parametrize("constant_node", [False, True])
def test_pairs_of_16_bits_which_openvino_gets_wrong_are_refused(kind, scale, zero_point, constant_node):
    model = product(kind, scale=scale, zero_point=zero_point, constant_node=constant_node)
    x = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    (truth,) = outputs(OnnxRuntime(), model, {"x": x}).values()
    runtime = OpenVino()
    compiled = runtime._core.compile_model(runtime._core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled([x])[0] - truth).max() > 1  # as if there were no pair
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.testing.assert_allclose(compiled([x])[0], x @ weight, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrialError, match=r"'quantize' quantizes to u?int16: OpenVINO drops 16-bit pairs") as caught:
        runtime.open(model)
    assert caught.value.reason == "load"


@pytest.mark.parametrize(("kind", "zero_point"), [(TensorProto.UINT8, 50), (TensorProto.INT8, 0)])
def test_pairs_of_8_bits_are_kept(kind, zero_point):
    model = product(kind, scale=0.01, zero_point=zero_point)
    check_model(model)
    inputs = {"x": np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)}
    (truth,), (found,) = outputs(OnnxRuntime(), model, inputs).values(), outputs(OpenVino(), model, inputs).values()
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", ["N", 4])
def test_every_row_is_scored_once_and_in_order(batch):
    model = small_model(batch=batch)
    runtime = OpenVino()
    session = runtime.open(model.SerializeToString())
    (spec,) = runtime.inputs(session)
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.float32, (None if batch == "N" else 4, 3, 8, 8))
    x = small_data(small_model(), rows=11)["x"]
    truth = outputs(OnnxRuntime(), model.SerializeToString(), {"x": x})
    found = runtime.run(session, {"x": x, "unused": x}, 4)
    assert found.keys() == truth.keys() == {"y"}
    np.testing.assert_allclose(found["y"], truth["y"], rtol=1e-4, atol=1e-4)


def test_a_file_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(small_model().SerializeToString())
    x = {"x": small_data(small_model(), rows=8)["x"]}
    runtime = OpenVino()
    of_file, of_bytes = (runtime.run(runtime.open(each), x, 8)["y"] for each in (path, path.read_bytes()))
    np.testing.assert_array_equal(of_file, of_bytes)


@pytest.mark.parametrize(
    ("model", "says"), [(b"nonsense", "OpenVINO rejects the model"), (Path("no-such.onnx"), "No such file")]
)
def test_what_is_no_model_is_refused(model, says):
    with pytest.raises(TrialError, match=says) as caught:
        OpenVino().open(model)
    assert caught.value.reason == "load"


def test_an_operator_that_openvino_does_not_know_is_refused() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("NoSuchOp", ["x"], ["y"], domain="made.up")], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("made.up", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    with pytest.raises(TrialError, match=r"OpenVINO rejects the model: .*NoSuchOp"):
        OpenVino().open(model)


def test_what_cannot_be_fed_is_refused() -> None:
    runtime = OpenVino()
    session = runtime.open(small_model().SerializeToString())
    wrong = {"x": np.zeros((2, 5, 8, 8), np.float32)}
    assert session.request.infer(wrong)[0].shape == (0, 10)  # OpenVINO itself says nothing
    says = r"input 'x' is \[2, 5, 8, 8\] where the model takes \[any, 3, 8, 8\]"
    with pytest.raises(TrialError, match=says) as caught:
        runtime.run(session, wrong, 2)
    assert caught.value.reason == "metric"
    with pytest.raises(TrialError, match=says) as caught:
        runtime.step(session, wrong)
    assert caught.value.reason == "measure"


def test_a_step_has_fixed_shapes_and_the_session_lives_on() -> None:
    runtime = OpenVino()
    session = runtime.open(small_model().SerializeToString())
    x = small_data(small_model(), rows=8)["x"]
    before = runtime.run(session, {"x": x}, 8)["y"]
    step = runtime.step(session, {"x": x[:1]})
    np.testing.assert_allclose(step()[0], before[:1], rtol=1e-4, atol=1e-4)  # type: ignore[index]
    np.testing.assert_array_equal(runtime.run(session, {"x": x}, 8)["y"], before)


def test_unknown_precision() -> None:
    with pytest.raises(ProfileError, match=r"runtime\.options\.precision: 'fp4' is none of f32, bf16"):
        load_runtime("openvino", precision="fp4")


def test_without_its_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProfileError, match=r"pip install 'autoq\[openvino\]'"):
        load_runtime("openvino")


def test_the_meter_measures_on_it(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(small_model().SerializeToString())
    plan = TimingPlan(max_rounds=2, min_sittings=2, max_sittings=2)
    with Meter(path, {"x": np.zeros((1, 3, 8, 8), np.float32)}, runtime="openvino", plan=plan) as meter:
        found = meter.measure(path)
    assert 0.3 < found.latency.ratio < 3
    assert found.peak_memory_bytes > 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lowering, list[LayerNames]]:
    folder = tmp_path_factory.mktemp("openvino")
    job = write_job(folder)
    schemes = "float32 float16 w8 w8-tensor w4-gptq w2-gptq w8a8@minmax w8a8-s8@mse w8a8-tensor@minmax w4a8-gptq@mse"
    space = {"version": 1, "name": "tried", "schemes": schemes.split()}
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    setting = read_setting(load_job(job))
    lowering = lay_groundwork(setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=None)
    names = [
        LayerNames(layer=r["layer"], node=r["node"], weight=r["weight"], outputs=tuple(r["outputs"]))
        for r in layer_records(setting.model, (), False)
    ]
    return lowering, names


INTEGER, FLOAT, WEIGHTS = ["int8"] * 4, ["float32"] * 4, ["float32", "float32", "weights", "weights"]


@pytest.mark.parametrize(
    ("scheme", "precisions", "tolerance"),
    [
        ("float32", FLOAT, 1e-4),
        ("float16", FLOAT, 1e-4),
        ("w8", WEIGHTS, 0.05),
        ("w8-tensor", WEIGHTS, 0.05),
        ("w4-gptq", WEIGHTS, 0.05),
        ("w8a8@minmax", INTEGER, 0.1),
        ("w8a8-s8@mse", INTEGER, 0.1),
        ("w8a8-tensor@minmax", INTEGER, 0.1),
        ("w4a8-gptq@mse", INTEGER, 0.1),
    ],
)
def test_what_a_scheme_runs_as_and_that_its_outputs_are_onnx_runtimes(built, scheme, precisions, tolerance):
    """Weight-only products are rounded to 8 bits in groups of 32 activations; integers round ties in other ways."""
    lowering, names = built
    model = lowering.build(lowering.canonical(Policy.from_text(dict.fromkeys(LAYERS, scheme))))
    runtime = OpenVino()
    assert [found.precision for found in executed_layers(runtime, model, names)] == precisions
    x = small_data(small_model(), rows=64)["x"]
    truth, found = (outputs(each, model, {"x": x})["y"] for each in (OnnxRuntime(), runtime))
    assert np.abs(found - truth).max() < tolerance * np.abs(truth).max()
    assert np.mean(found.argmax(1) == truth.argmax(1)) > (0.999 if tolerance < 0.01 else 0.9)


def test_every_layer_of_a_mixed_policy_is_told_apart(built) -> None:
    lowering, names = built
    for integer in LAYERS:
        policy = {layer: "w8a8@minmax" if layer == integer else "float32" for layer in LAYERS}
        model = lowering.build(lowering.canonical(Policy.from_text(policy)))
        found = executed_layers(OpenVino(), model, names)
        assert [each.layer for each in found if each.precision == "int8"] == [integer]


def test_two_bit_integers_are_refused_with_a_reason(built) -> None:
    lowering, _ = built
    model = lowering.build(lowering.canonical(Policy.from_text(dict.fromkeys(LAYERS, "w2-gptq"))))
    with pytest.raises(TrialError, match="Unsupported data type INT2"):
        OpenVino().open(model)


@pytest.mark.skipif("avx512_bf16" not in Path("/proc/cpuinfo").read_text(), reason="needs a CPU with bf16")
def test_bf16() -> None:
    model = small_model().SerializeToString()
    x = {"x": small_data(small_model(), rows=16)["x"]}
    truth, rounded = (outputs(OpenVino(precision), model, x)["y"] for precision in ("f32", "bf16"))
    assert 1e-4 < np.abs(rounded - truth).max() < 0.1


@pytest.mark.skipif("avx512_bf16" not in Path("/proc/cpuinfo").read_text(), reason="needs a CPU with bf16")
def test_blocks_of_two_bits_which_bf16_gets_wrong_are_refused() -> None:
    rng = np.random.default_rng(0)
    packed, scales = rng.integers(0, 256, (10, 2, 8)).astype(np.uint8), np.full((10, 2), 0.01, np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "p", domain="com.microsoft", K=64, N=10, bits=2, block_size=32
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 64), ("y", 10))
    ]
    graph = helper.make_graph(
        [node],
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    x = {"x": rng.normal(size=(16, 64)).astype(np.float32)}
    truth, found = (outputs(runtime, model, x)["y"] for runtime in (OnnxRuntime(), OpenVino()))
    assert np.abs(found - truth).max() < 0.02 * np.abs(truth).max()
    with pytest.raises(TrialError, match="'p' has 2-bit weights in blocks"):
        OpenVino("bf16").open(model)
