"""Reading model files that are missing, broken, hostile, or merely unusual."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autoq.errors import AutoqError, ModelError
from autoq.model import load
from autoq.model.source import read_model
from tests.models import Net, run


def small(opset: int = 21) -> onnx.ModelProto:
    net = Net()
    y = net.add("Relu", net.conv(net.input("rows", 3, 8, 8), 3, 4))
    y = net.add("Reshape", net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), net.ints(0, 64))
    return net.model(net.add("Gemm", y, net.weight(64, 5), net.weight(5)), opset=opset)


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as raised:
        read_model(path)
    message = str(raised.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, f"{message!r} does not say {word!r}"


def test_a_sound_model(tmp_path: Path) -> None:
    path = saved(small(), tmp_path)
    model = read_model(path)
    assert [layer.op_type for layer in model.layers] == ["Conv", "Gemm"]
    assert (model.sha256, model.size_bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert (model.opset, model.notes) == (21, ())


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "does not exist")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"PK\x03\x04zip", b"version: 1\nname: a job\n", os.urandom(0) + b"\xff" * 99]
)
def test_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    refused(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = small().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        refused(path)


def test_too_old(tmp_path: Path) -> None:
    net = Net()
    net.input(None, 4)
    model = net.model(net.add("MatMul", "x", net.weight(4, 4)))
    model.opset_import[0].version = 12
    refused(saved(model, tmp_path), "opset 12", "13")


def test_breaks_the_specification(tmp_path: Path) -> None:
    model = small()
    model.graph.node[0].input[0] = "nowhere"
    refused(saved(model, tmp_path), "not a valid ONNX model", "nowhere")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-4]), "damaged"),
        (lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-3]), "damaged"),
        (lambda tensor: tensor.dims.append(2), "damaged"),
        (lambda tensor: tensor.dims.__setitem__(0, -4), "damaged"),
        (lambda tensor: setattr(tensor, "data_type", 77), "damaged"),
    ],
)
def test_damaged_tensor(tmp_path: Path, change: Any, word: str) -> None:
    model = small()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".weight"))
    change(tensor)
    refused(saved(model, tmp_path), word, tensor.name)


def test_sparse_weights_are_refused_not_lost(tmp_path: Path) -> None:
    model = small()
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    refused(saved(model, tmp_path), "sparse")


def external(folder: Path, location: str = "weights.bin") -> Path:
    """The small model with its tensors in another file."""
    path = folder / "model.onnx"
    onnx.save_model(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    model, inside = read_model(path), read_model(saved(small(), tmp_path, "inside.onnx"))
    assert model.size_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    for found, expected in zip(run(model.graph.model, x).values(), run(inside.graph.model, x).values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    before = model.sha256
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert read_model(path).sha256 != before, "other weights are another model"


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    path = external(tmp_path, "data/weights.bin")
    (tmp_path / "data").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "data" / "weights.bin")
    assert len(read_model(path).layers) == 2


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", ""])
def test_external_data_outside(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(9999))
    refused(external(folder, location or " "), "external")


def test_external_data_behind_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "secret.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    refused(path, "outside")


def test_external_data_missing_or_cut_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    refused(path)
    (tmp_path / "weights.bin").unlink()
    refused(path, "missing", "weights.bin")


def test_external_data_with_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    refused(external(tmp_path, "w" * 5000), "'layer1.weight'", "broken external data", "File name too long")


def test_larger_than_one_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    monkeypatch.setattr(load, "LARGEST_BYTES", 1000)
    refused(path, "2 GiB")


# A subprocess reads the mutants: where native code crashed, its exit status would tell, and the last number which one.
FUZZER = """
import sys
from pathlib import Path
from autoq.errors import AutoqError
from autoq.model.placement import Placer
from autoq.model.source import read_model
from tests.model.test_load import mutant, seeds
path, sound = Path(sys.argv[1]), seeds()
counts = {"read": 0, "refused": 0}
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    print(number, flush=True)
    path.write_bytes(mutant(number, sound))
    try:
        model = read_model(path)
        Placer(model.graph, model.layers).tensors_to_calibrate()
        counts["read"] += 1
    except AutoqError as error:
        assert str(error) and "\\n" not in str(error) and "object at 0x" not in str(error), error
        counts["refused"] += 1
print(counts)
assert min(counts.values()) > 50, counts
"""


def test_fuzz(tmp_path: Path, repo_root: Path) -> None:
    """Mutated files are read or refused with a message; nothing else comes out, and nothing crashes."""
    command = [sys.executable, "-c", FUZZER, str(tmp_path / "mutant.onnx"), "0", "400"]
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stdout.split()
    assert done.returncode == 0, f"mutant {lines[-1] if lines else '?'}: {done.stderr[-2000:]}"


def seeds() -> list[bytes]:
    """Sound models of many kinds to start from."""
    from tests.model.test_placement import CARRIED, COMPUTED, _between

    models = [small(13), small(21)]
    for table, names in ((CARRIED, ("MaxPool", "Pad", "Resize", "Reshape")), (COMPUTED, ("Add", "Mul"))):
        models += [_between(next(iter(table[name].values())))[0] for name in names]
    net = Net()
    y = net.add("ConvTranspose", net.input("rows", 4, 5, 5), net.weight(4, 2, 2, 2), strides=[2, 2], group=2)
    y = net.add("BatchNormalization", y, *(net.constant(np.ones(4, np.float32)) for _ in range(4)))
    table = net.add("Gather", net.weight(9, 7), net.input("rows", 3, name="ids", kind=TensorProto.INT64))
    models.append(net.model(net.add("ReduceMean", y, axes=[2, 3]), table, opset=13, ir_version=8))
    return [model.SerializeToString() for model in models]


def mutant(number: int, sound: list[bytes]) -> bytes:
    """A sound model with a few bytes changed, cut short, or with fields of it changed: the same for the same number."""
    choose = random.Random(number)
    data = choose.choice(sound)
    kind = choose.random()
    if kind < 0.1:
        return data[: choose.randrange(len(data))]
    if kind < 0.25:
        changed = bytearray(data)
        for _ in range(choose.choice([1, 2, 4])):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        return bytes(changed)
    model = onnx.load_from_string(data)
    for _ in range(choose.choice([1, 1, 2, 3])):
        _change_field(choose, model)
    return model.SerializeToString()


def _change_field(choose: random.Random, message: Any) -> None:
    fields = message.ListFields()
    if not fields:
        return
    field, value = choose.choice(fields)
    repeated = not isinstance(value, (int, float, str, bytes)) and hasattr(value, "__len__")
    if repeated and choose.random() < 0.2:
        if choose.random() < 0.7:
            del value[choose.randrange(len(value))]
        elif field.message_type:
            value.add().CopyFrom(value[choose.randrange(len(value))])
    elif repeated:
        index = choose.randrange(len(value))
        if field.message_type:
            _change_field(choose, value[index])
        else:
            value[index] = _changed(choose, value[index])
    elif choose.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type:
        _change_field(choose, value)
    else:
        try:
            setattr(message, field.name, _changed(choose, value))
        except ValueError:  # too large for the field's type
            message.ClearField(field.name)


def _changed(choose: random.Random, value: Any) -> Any:
    if isinstance(value, int):
        return choose.choice([0, 1, -1, 2, 3, 7, 21, 255, 2**31 - 1, -(2**31), value + 1, value - 1])
    if isinstance(value, float):
        return choose.choice([0.0, float("nan"), float("inf"), -1.0, 1e30])
    if isinstance(value, str):
        return choose.choice(["", "x", "t1", "Conv", "Relu", "MatMul", "Nope", "ai.onnx.ml", value + "_"])
    cut = choose.randrange(len(value) + 1)
    return choose.choice(
        [value[:cut], value + b"\0\0", value[:cut] + bytes([choose.randrange(256)]) + value[cut + 1 :]]
    )


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    for poison in (np.nan, np.inf):
        model = small()
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0, 0, 0] = poison
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        with pytest.raises(AutoqError, match="NaN or infinity"):
            read_model(saved(model, tmp_path))
