"""The roofline against what docs/roofline.md calculates by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.core.result import Estimate
from autoq.errors import ProfileError, TrialError
from autoq.model.operations import operations
from autoq.model.roofline import Chip, Roofline, costs
from autoq.runtime.gauge import load_gauge
from autoq.runtime.ort import open_session
from tests.models import Net

CHIP: dict[str, Any] = {
    "int8_gmacs_s": 100, "memory_gb_s": 1, "sram_kib": 4, "overhead_us": 1,
    "host_gmacs_s": 1, "host_gops_s": 1, "host_gb_s": 1, "host_overhead_us": 10,
}  # fmt: skip
FEEDS = {"x": np.zeros((1, 8, 16, 16), np.float32)}


def save(path: Path, *, integer: bool, kind: int = TensorProto.INT8, relu: bool = False) -> Path:
    """The convolution of the page, in float32 or between Q/DQ pairs."""
    weight = np.random.default_rng(0).integers(-2, 2, (16, 8, 3, 3))
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    zero = numpy_helper.from_array(np.uint8(128), "z")
    if not integer:
        constants = [numpy_helper.from_array(weight.astype(np.float32), "w")]
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4)]
    else:
        constants = [scale, zero, helper.make_tensor("wq", kind, weight.shape, weight.ravel().tolist())]
        last = "r" if relu else "c"
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "s"], ["w"]),
            helper.make_node("Conv", ["xd", "w"], ["c"], "conv", pads=[1] * 4),
            *([helper.make_node("Relu", ["c"], ["r"])] if relu else []),
            helper.make_node("QuantizeLinear", [last, "s", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 16, 16])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    open_session(path)
    return path


def gauge(reference: Path, **changes: Any) -> Roofline:
    return Roofline(reference, FEEDS, **(CHIP | changes))


@pytest.mark.parametrize(("sram_kib", "us"), [(4, 59.02), (16, 54.66912)])
@pytest.mark.parametrize("relu", [False, True])
def test_the_example_by_hand(tmp_path: Path, sram_kib: int, us: float, relu: bool) -> None:
    float32, int8 = save(tmp_path / "f.onnx", integer=False), save(tmp_path / "q.onnx", integer=True, relu=relu)
    with gauge(float32, sram_kib=sram_kib) as made:
        measured = made.measure(int8)
        assert isinstance(measured.latency, Estimate)
        assert measured.latency.ms == pytest.approx(1e-3 * us)
        assert measured.latency.ratio == pytest.approx(us / 304.912)
        assert measured.peak_memory_bytes == 4096 * 5
        assert measured.latency.figures["sram_bytes"] == 2048 + 4096
        assert measured.latency.figures["host_operators"] == 2
        assert measured.latency.figures["weights_bytes"] == 1152 + 4
        own = made.measure_many([float32])[0].latency
        assert (own.ms, own.ratio) == (pytest.approx(0.304912), 1.0)
        assert made.glance([int8, float32], None) == ([measured.latency.ratio, 1.0], False)  # type: ignore[arg-type]


def test_narrow_weights_save_traffic_and_use_their_own_units(tmp_path: Path) -> None:
    found = operations(save(tmp_path / "q4.onnx", integer=True, kind=TensorProto.INT4), FEEDS)
    conv = next(each for each in found if each.op_type == "Conv")
    assert (conv.integer, conv.weight_bits, conv.weight_bytes) == (True, 4, 1152 / 2 + 4)
    chip = Chip(**CHIP)
    (own,) = [each.seconds for each in costs(found, chip) if each.operation is conv]
    assert own == pytest.approx(1e-6 * (7.3 - 0.576 + 1))
    resident = costs([conv], replace(chip, sram_kib=16, int4_gmacs_s=200))
    assert resident[0].seconds == pytest.approx(1e-6 * (2.94912 / 2 + 1))


def test_a_batch_is_that_many_times_the_work(tmp_path: Path) -> None:
    path = save(tmp_path / "q.onnx", integer=True)
    one, four = (operations(path, {"x": np.zeros((batch, 8, 16, 16), np.float32)}) for batch in (1, 4))
    assert [4 * each.macs for each in one] == [each.macs for each in four]
    assert [4 * each.working_bytes for each in one] == [each.working_bytes for each in four]
    assert [each.weight_bytes for each in one] == [each.weight_bytes for each in four]


def test_shapes_that_do_not_follow_are_taken_from_a_run(tmp_path: Path) -> None:
    """As many rows as there are ones among the inputs: no inference of shapes can know."""
    net = Net()
    x = net.input("n", 4)
    positions = net.add("NonZero", net.add("Greater", x, net.constant(np.float32(0.5))))
    rows = net.add("Gather", net.constant(np.eye(4, 6, dtype=np.float32)), positions)
    net.outputs.append(net.add("MatMul", rows, net.weight(6, 5)))
    onnx.save(net.model(*net.outputs), tmp_path / "m.onnx")
    ones = np.zeros((3, 4), np.float32)
    ones.flat[:7] = 1
    found = operations(tmp_path / "m.onnx", {"x": ones})
    assert [each.macs for each in found if each.op_type == "MatMul"] == [2 * 7 * 6 * 5]
    assert not any(each.integer for each in found)


def test_sixteen_bits_without_units_for_them_run_on_the_host(tmp_path: Path) -> None:
    found = operations(save(tmp_path / "q.onnx", integer=True), FEEDS)
    wide = [replace(each, activation_bits=16) if each.macs else each for each in found]
    assert [each.on_host for each in costs(wide, Chip(**CHIP))] == [True, True, True]
    assert [each.on_host for each in costs(wide, Chip(**CHIP, int16_gmacs_s=50))] == [True, False, True]


def test_what_no_accelerator_runs_fails_without_a_host(tmp_path: Path) -> None:
    path = save(tmp_path / "f.onnx", integer=False)
    with pytest.raises(TrialError, match=r"conv \(Conv\) cannot run on this accelerator") as caught:
        gauge(path, host_gmacs_s=0).measure(path)
    assert caught.value.reason == "measure"
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(TrialError):
        gauge(path).measure(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**CHIP, "int8_gmac_s": 1}, "no 'int8_gmac_s'; did you mean 'int8_gmacs_s'"),
        ({**CHIP, "memory_gb_s": 0}, "memory_gb_s: must be above 0"),
        ({**CHIP, "sram_kib": "much"}, "sram_kib: must be a number of at least 0"),
        ({**CHIP, "host_gb_s": 0}, "host_gops_s and host_gb_s"),
        ({}, "measure.options of 'roofline': .*int8_gmacs_s"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        load_gauge("roofline", tmp_path / "f.onnx", FEEDS, options=options)


def test_an_unknown_gauge_has_a_nearest(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"measure\.by: unknown gauge 'rofline'; did you mean 'roofline'"):
        load_gauge("rofline", tmp_path / "f.onnx", FEEDS)
