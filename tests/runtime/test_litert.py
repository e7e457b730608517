"""LiteRT as a runtime: data in ONNX's form, files that are none, and the errors of feeding it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from autoq.errors import ProfileError, TrialError
from tests.models import Net, lowered, run
from tests.small_job import environment

pytest.importorskip("ai_edge_litert", reason="the extra [npu] is not installed")

from autoq.model.tflite import to_tflite
from autoq.runtime.base import InputSpec, load_runtime
from autoq.runtime.executed import LayerNames
from autoq.runtime.litert import LiteRt, Port, Session
from autoq.runtime.litert_executed import executed_operators, layers_of


@pytest.fixture(scope="module")
def files() -> tuple[bytes, bytes, dict[str, np.ndarray]]:
    """A candidate, its TFLite file, and data."""
    net = Net()
    y = net.conv(net.input("N", 3, 6, 8), 3, 4)
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 3, 6, 8)).astype(np.float32)}
    candidate = lowered(net.model(y), ["w8a8@minmax"], feeds, integer_products=True).build("w8a8@minmax")
    return candidate, to_tflite(candidate), feeds


@pytest.fixture
def session(files: tuple[bytes, bytes, dict[str, np.ndarray]]) -> Session:
    return LiteRt().open(files[1])


def test_without_its_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ProfileError, match="'litert' cannot be imported"):
        load_runtime("litert")


def test_data_is_in_the_form_of_the_onnx_model(files: tuple[bytes, bytes, Any], session: Session) -> None:
    candidate, _, feeds = files
    assert LiteRt().inputs(session) == (InputSpec(name="x", dtype=np.dtype(np.float32), shape=(1, 3, 6, 8)),)
    found, expected = LiteRt().run(session, feeds, 64), run(candidate, feeds)
    assert found.keys() == expected.keys()
    (name,) = found
    assert found[name].shape == expected[name].shape
    assert np.abs(found[name] - expected[name]).max() <= 1.01 * session.outputs[0].scale


def test_a_file_can_be_read_from_its_path(files: tuple[bytes, bytes, Any], tmp_path: Any) -> None:
    (tmp_path / "model.tflite").write_bytes(files[1])
    assert LiteRt().open(tmp_path / "model.tflite").inputs == LiteRt().open(files[1]).inputs


def test_a_step_repeats_one_inference(files: tuple[bytes, bytes, Any], session: Session) -> None:
    step = LiteRt().step(session, {"x": files[2]["x"][:1]})
    first = session.interpreter.get_tensor(session.outputs[0].index).copy()
    step()
    assert np.array_equal(session.interpreter.get_tensor(session.outputs[0].index), first)


def test_rounding_of_inputs() -> None:
    """Half to even, as QuantizeLinear rounds; what lies outside saturates; axes stand as the file has them."""
    port = Port(name="x", index=0, dtype=np.dtype(np.int8), shape=(1, 2, 3), order=(0, 2, 1), scale=0.5, zero_point=-3)
    values = np.array([[[0.25, 0.75, 1.25], [-0.25, 99.0, -99.0]]], np.float32).transpose(0, 2, 1)
    assert port.stored(values).tolist() == [[[-3, -1, -1], [-3, 127, -128]]]
    assert port.real(np.array([[[-3, -2, 0], [1, 2, 3]]], np.int8))[0, 2].tolist() == [1.5, 3.0]


@pytest.mark.parametrize("data", [b"", b"garbage that is no model"])
def test_a_file_that_is_none(data: bytes) -> None:
    with pytest.raises(TrialError, match="LiteRT rejects the model") as caught:
        LiteRt().open(data)
    assert caught.value.reason == "load"


def test_feeds_that_do_not_fit(files: tuple[bytes, bytes, Any], session: Session) -> None:
    runtime = LiteRt()
    with pytest.raises(TrialError, match="'x' is not fed"):
        runtime.run(session, {"y": files[2]["x"]}, 1)
    with pytest.raises(TrialError, match="at least one"):
        runtime.run(session, {"x": files[2]["x"][:0]}, 1)
    with pytest.raises(TrialError, match="takes no such input 'x'"):
        runtime.run(session, {"x": files[2]["x"][:, :2]}, 1)


def test_nothing_is_printed(files: tuple[bytes, bytes, Any], tmp_path: Path) -> None:
    """LiteRT greets on stderr, in each process once; stderr is whole again behind it."""
    (tmp_path / "model.tflite").write_bytes(files[1])
    code = (
        "import sys; from pathlib import Path; from autoq.runtime.litert import LiteRt\n"
        "for _ in range(2): LiteRt().open(Path(sys.argv[1]))\n"
        "print('heard', file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.tflite")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert (done.stdout, done.stderr) == ("", "heard\n")


NAMES = LayerNames(layer="c", node="conv", weight="w", outputs=("y",))


def test_the_operator_of_a_layer_and_who_runs_it(files: tuple[bytes, bytes, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(files[1])
    weight = onnx.load_from_string(files[0]).graph.node
    name = next(node for node in weight if node.op_type == "Conv").input[1].removesuffix("::dq")
    names = LayerNames(layer="c", node="conv", weight=name, outputs=())
    other = LayerNames(layer="d", node="d", weight="none", outputs=())
    found = executed_operators(LiteRt(), path, [names, other])
    assert [(each.layer, each.precision) for each in found] == [("c", "int8"), ("d", "")]
    assert re.fullmatch(r"CONV_2D( \(XNNPACK\))?", found[0].kernel) and found[1].kernel == ""
    assert layers_of(files[1], [names])["c"].weights.dtype == np.int8
    # Without XNNPACK, nothing is said to run on it.
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    class Plain(LiteRt):
        def __init__(self) -> None:
            kind = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            self._interpreter = lambda **given: Interpreter(**given, experimental_op_resolver_type=kind)

    (plain,) = executed_operators(Plain(), path, [names])
    assert (plain.kernel, plain.precision) == ("CONV_2D", "int8")


def test_an_operator_that_computes_in_floats_says_so() -> None:
    """A file of another make: the very precision that no layer of ours has."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, made, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.buffers, graph.tensors = [schema.BufferT()], []
    for name, shape, data in (("x", [1, 4], None), ("w", [2, 4], np.ones((2, 4), np.float32)), ("y", [1, 2], None)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, schema.TensorType.FLOAT32, 0
        if data is not None:
            tensor.buffer = len(model.buffers)
            model.buffers.append(schema.BufferT())
            model.buffers[-1].data = np.frombuffer(data.tobytes(), np.uint8)
        graph.tensors.append(tensor)
    made.opcodeIndex, made.inputs, made.outputs = 0, [0, 1, -1], [2]
    graph.operators, graph.inputs, graph.outputs = [made], [0], [2]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    found = layers_of(bytes(builder.Output()), [NAMES])["c"]
    assert (found.code, found.precision, found.output) == ("FULLY_CONNECTED", "float32", "y")
    assert dataclasses.replace(found, types=("INT16", "INT8", "INT16")).precision == "int16"
    assert dataclasses.replace(found, types=("FLOAT32", "INT8", "FLOAT32")).precision == "float32 x int8 to float32"
