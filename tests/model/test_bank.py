"""The weight bank: computed once, found again by content, and never the reason for a failure."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from autoq.core.scheme import Scheme, WeightSpec
from autoq.errors import ModelError
from autoq.model import bank as module
from autoq.model.bank import Bank, default_cache_dir
from autoq.model.calibrate import calibrate
from autoq.model.graph import Graph
from autoq.model.layers import read_layers
from autoq.numerics.affine import half
from autoq.numerics.product import ProductCodes
from autoq.numerics.weights import QuantizedWeight, quantize_weight
from tests.models import Net

SPECS = [
    Scheme.parse(text).weight
    for text in ("w8", "w4", "w4-gptq", "w2-tensor", "w8-tensor-gptq", "w4-kmeans", "w2-tensor-kmeans")
]


def graph_of(seed: int = 0) -> Graph:
    net = Net(seed)
    y = net.conv(net.input("rows", 4, 6, 6), 4, 6, group=2)
    return Graph(net.model(net.conv(y, 6, 3)))


def wanted_of(graph: Graph) -> list[tuple[Any, WeightSpec]]:
    return [(layer, spec) for layer in read_layers(graph) for spec in SPECS if spec is not None]


def moments_of(graph: Graph) -> dict[str, np.ndarray]:
    rng, moments = np.random.default_rng(0), {}
    for layer in read_layers(graph):
        k = int(np.prod(layer.weight_shape[1:]))
        rows = rng.standard_normal((layer.groups, 4 * k, k))
        moments[layer.name] = rows.transpose(0, 2, 1) @ rows
    return moments


def filled(graph: Graph, cache: Path | None, calibration: str = "data") -> tuple[Bank, int]:
    """A bank with everything in it, and how many entries had to be computed."""
    bank = Bank(graph, calibration_id=calibration, cache_dir=cache)
    missing = bank.read_cache(wanted_of(graph))
    bank.compute(missing, moments_of(graph), threads=2)
    return bank, len(missing)


def equal(left: QuantizedWeight, right: QuantizedWeight) -> bool:
    same = (left.axis, left.bits) == (right.axis, right.bits)
    same = same and np.array_equal(left.values, right.values) and np.array_equal(left.scale, right.scale)
    if left.codebook is None or right.codebook is None:
        return same and left.codebook is right.codebook
    return same and left.codebook.dtype == right.codebook.dtype and np.array_equal(left.codebook, right.codebook)


def test_entries_are_the_quantized_weights() -> None:
    graph = graph_of()
    bank, computed = filled(graph, None)
    assert computed == len(bank.entries) == 14
    moments = moments_of(graph)
    for layer in read_layers(graph):
        weight = graph.constant(layer.weight)
        assert weight is not None
        for spec in SPECS:
            assert spec is not None
            expected = quantize_weight(
                weight,
                bits=spec.bits,
                axis=0 if spec.granularity == "channel" else None,
                rounding=spec.rounding,
                hessian=None if spec.rounding == "nearest" else moments[layer.name],
                groups=layer.groups,
            )
            expected = dataclasses.replace(expected, scale=half(expected.scale))
            assert equal(bank.entries[layer.name, spec], expected)


def test_a_second_bank_computes_nothing(tmp_path: Path) -> None:
    first, computed = filled(graph_of(), tmp_path)
    second, again = filled(graph_of(), tmp_path)
    assert (computed, again) == (14, 0)
    assert all(equal(second.entries[key], entry) for key, entry in first.entries.items())
    assert second.read_cache(wanted_of(graph_of())) == []


@pytest.mark.parametrize(("change", "computed"), [("weights", 14), ("data", 8), ("version", 14)])
def test_addresses_follow_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, computed: int
) -> None:
    """Other data concern GPTQ and codebooks alone: four of the seven schemes, in both layers."""
    filled(graph_of(), tmp_path)
    if change == "version":
        monkeypatch.setattr(module, "BANK_VERSION", 999)
    _, found = filled(graph_of(seed=change == "weights"), tmp_path, "other" if change == "data" else "data")
    assert found == computed


def test_equal_weights_of_two_layers_share_what_saw_no_data(tmp_path: Path) -> None:
    """Only the entries of GPTQ and k-means are a layer's own: its inputs are others."""
    net = Net()
    values = net.rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    y = net.add("Conv", net.input("rows", 4, 9, 9), net.constant(values, "a.weight"))
    graph = Graph(net.model(net.add("Conv", y, net.constant(values, "b.weight"))))
    filled(graph, tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 3 + 2 * 4


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npz"))


def test_damaged_entries_are_computed_again(tmp_path: Path) -> None:
    first, _ = filled(graph_of(), tmp_path)
    choose = random.Random(0)
    damages = [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"no archive at all",
        lambda data: (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (), }" + b" " * 60 + b"\n\0\0\0\0"
        ),
        lambda data: data[:-30] + bytes(30),
    ]
    for _ in range(40):
        for path in entries(tmp_path):
            data = bytearray(path.read_bytes())
            if choose.random() < 0.3:
                path.write_bytes(choose.choice(damages)(bytes(data)))
            else:
                data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
                path.write_bytes(data)
        bank, _ = filled(graph_of(), tmp_path)
        for key, entry in first.entries.items():
            assert equal(bank.entries[key], entry)
    assert filled(graph_of(), tmp_path)[1] == 0, "what was computed again is stored again"


@pytest.mark.parametrize(
    "arrays",
    [
        {"values": np.zeros((6, 2, 3, 3), np.int8)},
        {"values": np.zeros((6, 2, 3, 3), np.int8), "scale": np.ones(5, np.float32)},
        {"values": np.zeros((6, 2, 3, 3), np.int8), "scale": np.full(6, np.nan, np.float32)},
        {"values": np.zeros((6, 2, 3, 3), np.int8), "scale": np.ones(6)},
        {"values": np.zeros((6, 2, 3), np.int8), "scale": np.ones(6, np.float32)},
        {"values": np.zeros((6, 2, 3, 3), np.int32), "scale": np.ones(6, np.float32)},
        {"values": np.array([{}], object), "scale": np.ones(6, np.float32)},
    ],
)
def test_entries_of_another_form_are_computed_again(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    graph = graph_of()
    layer = read_layers(graph)[0]
    wanted = [(layer, WeightSpec(bits=8))]
    bank = Bank(graph, calibration_id="", cache_dir=tmp_path)
    bank.compute(wanted, {})
    (path,) = entries(tmp_path)
    with path.open("wb") as handle:
        np.savez(handle, **arrays)
    assert Bank(graph, calibration_id="", cache_dir=tmp_path).read_cache(wanted) == wanted


@pytest.mark.parametrize(
    "book", [None, np.arange(15, dtype=np.int8), np.arange(16), np.arange(16, dtype=np.int8)[::-1]]
)
def test_codebooks_of_another_form_are_computed_again(tmp_path: Path, book: np.ndarray | None) -> None:
    graph = graph_of()
    layer = read_layers(graph)[0]
    wanted = [(layer, WeightSpec(bits=4, rounding="kmeans"))]
    bank = Bank(graph, calibration_id="", cache_dir=tmp_path)
    bank.compute(wanted, moments_of(graph))
    (path,) = entries(tmp_path)
    assert not Bank(graph, calibration_id="", cache_dir=tmp_path).read_cache(wanted)
    (entry,) = bank.entries.values()
    arrays = {"values": entry.values, "scale": entry.scale} | ({} if book is None else {"codebook": book})
    with path.open("wb") as handle:
        np.savez(handle, **arrays)
    assert Bank(graph, calibration_id="", cache_dir=tmp_path).read_cache(wanted) == wanted


def table_graph() -> Graph:
    net = Net()
    ids = net.input("rows", name="ids", kind=TensorProto.INT64)
    return Graph(net.model(net.add("Gather", net.weight(300, 6, name="embed.weight"), ids)))


@pytest.mark.parametrize("bits", [4, 2])
def test_codes_come_back(tmp_path: Path, bits: int) -> None:
    graph = table_graph()
    wanted = [(read_layers(graph)[0], WeightSpec(bits=bits, rounding="pq"))]  # type: ignore[arg-type]
    first, second = (Bank(graph, calibration_id=name, cache_dir=tmp_path) for name in ("one", "another"))
    first.compute(wanted, {})
    assert second.read_cache(wanted) == [], "no data is looked at"
    (written,), (found,) = first.entries.values(), second.entries.values()
    assert isinstance(written, ProductCodes) and isinstance(found, ProductCodes)
    np.testing.assert_array_equal(found.dequantize(), written.dequantize())


@pytest.mark.parametrize(
    "change",
    [
        {"codes": np.zeros((300, 4), np.uint8)},
        {"codes": np.zeros((300, 3), np.int8)},
        {"codes": np.full((300, 3), 9, np.uint8), "centroids": np.zeros((3, 9, 2), np.int8)},
        {"centroids": np.zeros((3, 256, 4), np.int8)},
        {"centroids": np.zeros((3, 512), np.int8)},
        {"centroids": np.zeros((3, 0, 2), np.int8)},
        {"scale": np.full(300, np.nan, np.float32)},
        {"scale": np.full(300, -1, np.float32)},
        {"scale": np.ones(299, np.float32)},
    ],
)
def test_codes_of_another_form_are_computed_again(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    graph = table_graph()
    wanted = [(read_layers(graph)[0], WeightSpec(bits=4, rounding="pq"))]
    Bank(graph, calibration_id="", cache_dir=tmp_path).compute(wanted, {})
    (path,) = entries(tmp_path)
    with np.load(path) as stored:
        arrays = dict(stored) | change
    with path.open("wb") as handle:
        np.savez(handle, **arrays)
    assert Bank(graph, calibration_id="", cache_dir=tmp_path).read_cache(wanted) == wanted


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    bank, computed = filled(graph_of(), file)
    assert computed == len(bank.entries) == 14
    assert filled(graph_of(), file)[1] == 14
    assert file.read_text() == "no folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert filled(graph_of(), tmp_path)[1] == 14
    finally:
        tmp_path.chmod(0o700)


PROCESS = """
import sys
from pathlib import Path
from tests.model.test_bank import filled, graph_of
for seed in range(6):
    bank, computed = filled(graph_of(seed), Path(sys.argv[1]))
    assert len(bank.entries) == 14
"""


def test_two_processes_write_one_cache(tmp_path: Path, repo_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=repo_root, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    assert not list(tmp_path.rglob("*.tmp"))
    for seed in range(6):
        bank, computed = filled(graph_of(seed), tmp_path)
        fresh, _ = filled(graph_of(seed), None)
        assert computed == 0
        assert all(equal(bank.entries[key], entry) for key, entry in fresh.entries.items())


def test_layers_with_one_input_share_its_moments_and_have_entries_of_their_own() -> None:
    """An attention's queries, keys and values: each entry is what it would be alone, on one thread or two."""
    net = Net()
    x = net.input("rows", 5, 12)
    graph = Graph(net.model(*(net.add("MatMul", x, net.weight(12, width)) for width in (4, 6, 4))))
    layers = read_layers(graph)
    batches = [{"x": np.random.default_rng(1).standard_normal((40, 5, 12)).astype(np.float32)}]
    moments = calibrate(graph, batches, tensors=(), moment_layers=layers).moments
    assert len({id(matrix) for matrix in moments.values()}) == 1
    specs = [Scheme.parse(text).weight for text in ("w4-gptq", "w2-gptq", "w4-b32-asym-gptq", "w8", "w4-kmeans")]
    wanted = [(layer, spec) for layer in layers for spec in specs if spec is not None]
    banks = [Bank(graph, calibration_id="") for _ in range(2)]
    for threads, bank in enumerate(banks, start=1):
        bank.compute(wanted, moments, threads=threads)
    for layer, spec in wanted:
        alone = Bank(graph, calibration_id="")
        alone.compute([(layer, spec)], {layer.name: moments[layer.name].copy()})
        for bank in banks:
            assert equal(bank.entries[layer.name, spec], alone.entries[layer.name, spec]), (layer.name, spec)


def test_a_layer_that_cannot_be_quantized_is_named() -> None:
    graph = graph_of()
    layer = read_layers(graph)[1]
    wrong = {layer.name: np.full((1, 54, 54), np.nan)}
    with pytest.raises(ModelError, match=f"{layer.name}.*finite"):
        Bank(graph, calibration_id="").compute([(layer, WeightSpec(bits=4, rounding="gptq"))], wrong)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOQ_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("AUTOQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "autoq"
