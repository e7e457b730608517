"""Hardware profiles: what is legal, what it costs, which machine it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoq.core.layer import LAYER_OPS, Layer
from autoq.core.scheme import FLOAT32, IN_BYTES, WEIGHT_BITS, Scheme
from autoq.errors import JobError
from autoq.spec.hardware import Profile, fitting_profiles, load_profile
from autoq.spec.job import LatencyChoice
from autoq.spec.resources import named
from autoq.spec.schemes import all_schemes, without_calibration

SMALL: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "kind": "cpu",
    "runtime": {"name": "onnxruntime"},
    "ops": {
        "Conv": {
            "allow": ["float32", "w[84]", "w8a8*"],
            "forbid": [{"schemes": "*-s8*", "why": "signed activations do not fuse"}],
        },
        "MatMul": {"allow": ["float32", "w8a8*"]},
    },
    "cost": {"w8": 1.5, "w4": 2, "w8a8": 0.5, "MatMul": {"w8a8": 0.3, "w8a8-tensor": 0.25, "w8a8-s8": 0.9}},
}


def load(tmp_path: Path, **changes: Any) -> Profile:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(SMALL | changes))
    return load_profile("p.yaml", tmp_path)


def scheme(text: str) -> Scheme:
    return Scheme.parse(text)


def test_legal_or_why_not(tmp_path: Path) -> None:
    profile = load(tmp_path)
    assert profile.legal("Conv", FLOAT32) is None
    assert profile.legal("Conv", scheme("w8a8@mse")) is None
    assert profile.legal("Conv", scheme("w8a8-s8@mse")) == "signed activations do not fuse"
    assert profile.legal("Conv", scheme("w4-gptq")) == "the profile small allows Conv only float32, w[84], w8a8*"
    assert profile.legal("MatMul", scheme("w8a8-s8@mse")) is None
    assert profile.legal("Gemm", FLOAT32) is None  # an op that the profile does not know stays float
    assert profile.legal("Gemm", scheme("w8")) == "the profile small says nothing of Gemm: it stays float32"


def test_cost_takes_the_most_specific_figure(tmp_path: Path) -> None:
    profile = load(tmp_path)
    expected = {
        ("Conv", "float32"): 1.0,
        ("Conv", "w8"): 1.5,
        ("Conv", "w8a8@mse"): 0.5,
        ("Conv", "w8a8-tensor-gptq@mse"): 0.5,
        ("MatMul", "w8a8@mse"): 0.3,
        ("MatMul", "w8a8-gptq@mse"): 0.3,
        ("MatMul", "w8a8-tensor-gptq@mse"): 0.25,
        ("MatMul", "w8a8-s8-tensor@mse"): 0.9,
        ("MatMul", "w7a8-tensor@mse"): 0.25,
        ("MatMul", "w7a8@dynamic"): 0.3,
        ("MatMul", "w6a8-tensor@mse"): 0.25,
        ("Conv", "w3a8@mse"): 0.5,
    }
    assert {key: profile.cost(key[0], scheme(key[1])) for key in expected} == expected


def test_cost_by_the_rows_of_a_sample(tmp_path: Path) -> None:
    products = {"w8a8": {64: 0.25, 1: 0.5, 8: 0.375}, "w4-b32": 0.75, "w4-b32-asym": {1: 0.5}, "w4": 1.0, "w8": 1.0}
    profile = load(tmp_path, cost={"float16": 1, "w8": 1, "w4": 1, "Conv": {"w8a8": 0.5}, "MatMul": products})
    at = {uses: profile.cost("MatMul", scheme("w8a8@mse"), uses) for uses in (1, 2, 8, 64, 1000)}
    assert at == pytest.approx({1: 0.5, 2: 0.5 - 0.125 / 3, 8: 0.375, 64: 0.25, 1000: 0.25})
    blocks = [profile.cost("MatMul", scheme(f"w4-{text}"), 64) for text in ("b32-gptq", "b32-asym-gptq", "b64-asym")]
    assert blocks == [0.75, 0.5, 1.0]


def test_which_machine(tmp_path: Path) -> None:
    match = {"arch": ["x86_64", "AMD64"], "any_cpu_flags": ["avx512_vnni", "avx_vnni"], "all_cpu_flags": ["avx2"]}
    profile = load(tmp_path, match=match)
    assert profile.match_problems("x86_64", {"avx2", "avx_vnni"}) == []
    assert profile.match_problems("amd64", ["AVX2", "avx512_vnni"]) == []
    assert profile.match_problems("aarch64", []) == [
        "the machine's architecture is aarch64, not x86_64 or AMD64",
        "the CPU has none of avx512_vnni, avx_vnni",
        "the CPU lacks avx2",
    ]
    assert load(tmp_path).match_problems("riscv64", []) == []


def test_the_job_overrides_latency_settings(tmp_path: Path) -> None:
    profile = load(tmp_path, latency={"batch": 4, "threads": 2})
    assert profile.latency_with(LatencyChoice()) == profile.latency
    merged = profile.latency_with(LatencyChoice(threads=8, samples=12))
    assert (merged.batch, merged.threads, merged.samples) == (4, 8, 12)


def test_every_profile_that_comes_with_autoq_loads_and_is_whole(tmp_path: Path) -> None:
    # Of calibrations, only one changes a cost.
    by_cost = {(without_calibration(each), str(each).endswith("@dynamic")): each for each in all_schemes()}
    for name in named("hardware_profiles"):
        profile = load_profile(name, tmp_path)
        assert profile.name == name and profile.description
        for op in LAYER_OPS:
            if profile.reference == FLOAT32:
                assert profile.legal(op, FLOAT32) is None
            for each in by_cost.values():
                assert profile.cost(op, each) > 0


def test_the_x86_profile_states_what_was_measured(tmp_path: Path) -> None:
    profile = load_profile("cpu-x86-onnxruntime", tmp_path)
    for each in all_schemes():
        # 7 bits are for CPUs without VNNI, 6, 5 and 3 for what packs weights, products of short floats for GPUs,
        # 16-bit activations for NPUs.
        elsewhere = each.floats is not None or (each.weight is not None and each.weight.bits in IN_BYTES)
        elsewhere = elsewhere or (each.activation is not None and each.activation.bits == 16)
        assert (profile.legal("Conv", each) is None) == (not elsewhere)
        if each.floats is not None or each.activation_bits == 16:
            continue
        reason = profile.legal("ConvTranspose", each)
        assert (reason is None) == (each.activation is None)
        assert reason is None or "no integer ConvTranspose" in reason or "whole bytes" in reason
        if each.activation is None:
            assert profile.cost("Conv", each) == 1.0
        elif each.weight is not None and each.weight.bits not in IN_BYTES:
            assert profile.cost("Conv", each) == (0.8 if each.activation.signed else 0.42)
            assert profile.cost("depthwise Conv", each) > 1
    assert profile.match_problems("x86_64", ["avx2"]) == ["the CPU has none of avx512_vnni, avx_vnni"]


NO_VNNI = ["sse4_2", "avx2", "fma"]


def test_what_fits_which_cpu() -> None:
    by_flags = {
        (): [],
        ("sse4_2",): [],
        tuple(NO_VNNI): ["cpu-x86-avx2-onnxruntime"],
        (*NO_VNNI, "avx512f"): ["cpu-x86-avx2-onnxruntime"],
        (*NO_VNNI, "avx_vnni"): ["cpu-x86-onnxruntime", "cpu-x86-openvino"],
        (*NO_VNNI, "avx512f", "avx512_vnni"): ["cpu-x86-onnxruntime", "cpu-x86-openvino"],
        (*NO_VNNI, "avx512_vnni", "avx512_bf16"): ["cpu-x86-onnxruntime", "cpu-x86-openvino-bf16", "cpu-x86-openvino"],
    }
    for flags, expected in by_flags.items():
        assert [name for name in fitting_profiles("x86_64", flags) if name.startswith("cpu-x86")] == expected
    profile = load_profile("cpu-x86-avx2-onnxruntime", ".")
    assert profile.match_problems("x86_64", [*NO_VNNI, "avx_vnni"]) == ["the CPU has avx_vnni"]


def test_odd_bits_are_for_what_packs_weights(tmp_path: Path) -> None:
    """Elsewhere they lie in whole bytes; without costs of their own they have those of the next wider weights."""
    everything = {"Conv": {"allow": ["*"]}}
    prices = {"w8a8": 1.0, "w6a8": 0.9, "w4a8": 0.7, "w2a8": 0.6, "w8": 1.0, "w4": 1.0, "w2": 1.0}
    prices |= {"float16": 1.0, "bf16": 1.0, "fp16": 1.0, "fp8": 1.0}
    plain = load(tmp_path, ops=everything, cost=prices)
    packs = load(tmp_path, ops=everything, cost=prices, lowering={"packed_weights": True})
    for bits in (6, 5, 3):
        why = plain.legal("Conv", scheme(f"w{bits}a8-gptq@mse"))
        assert why is not None and "lie in whole bytes here" in why
        assert packs.legal("Conv", scheme(f"w{bits}a8-gptq@mse")) is None
    assert plain.legal("Conv", scheme("w7a8@mse")) is None
    costs = {bits: packs.cost("Conv", scheme(f"w{bits}a8@mse")) for bits in WEIGHT_BITS}
    assert costs == {8: 1.0, 7: 1.0, 6: 0.9, 5: 0.9, 4: 0.7, 3: 0.7, 2: 0.6}


def test_without_vnni_weights_have_seven_bits(tmp_path: Path) -> None:
    profile = load_profile("cpu-x86-avx2-onnxruntime", tmp_path)
    for each in all_schemes():
        here = profile.instead_of(each)
        if each.family == "w8a8":
            assert str(here) == str(each).replace("w8a8", "w7a8")
            assert profile.legal("Conv", each) is not None  # what a space cannot ask for by another name, either
            assert profile.legal("Conv", here) is None
        else:
            assert here == each
    assert profile.to_dict()["instead"] == {"w8a8": "w7a8"}
    vnni = load_profile("cpu-x86-onnxruntime", tmp_path)
    assert all(vnni.instead_of(each) == each for each in all_schemes())
    assert "instead" not in vnni.to_dict()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "tpu"}, "kind: must be 'cpu', 'gpu' or 'npu'"),
        ({"runtime": {}}, "runtime.name: missing; for example name: onnxruntime"),
        ({"runtime": {"name": "x", "options": {"a": [1]}}}, "runtime.options: 'a' must be text, a number"),
        ({"ops": {}}, "ops: must not be empty"),
        ({"ops": {"Cov": {"allow": ["float32"]}}}, "ops: no layer is a 'Cov'; did you mean 'Conv'"),
        ({"ops": {"Conv": {"allow": ["float23"]}}}, r"ops.Conv.allow\[0\]: 'float23' .*did you mean 'float32'"),
        ({"ops": {"Conv": {"alow": ["float32"]}}}, "ops.Conv.alow: unknown field; did you mean 'allow'"),
        (
            {"ops": {"Conv": {"allow": ["float32"], "forbid": [{"schemes": "w3", "why": "x"}]}}},
            r"ops.Conv.forbid\[0\].schemes: 'w3' matches no scheme",
        ),
        ({"ops": {"Conv": {"allow": ["float32"], "forbid": [{"schemes": "w8"}]}}}, r"forbid\[0\].why: missing"),
        ({"cost": {"w8": 1.0}}, "cost: Conv may be w4, which has no cost; add cost.Conv.w4"),
        ({"cost": {"Cnv": {"w8": 1}}}, "cost: no layer is a 'Cnv'; did you mean 'Conv'"),
        ({"cost": {"w8a9": 1}}, "cost.w8a9: no scheme .*did you mean 'w8a8'"),
        ({"cost": {"w8": 0}}, "cost.w8: must be a number above 0"),
        ({"cost": {"w8": True}}, "cost.w8: must be a number above 0"),
        ({"cost": {"w8": float("nan")}}, "cost.w8: must be a number above 0"),
        ({"cost": {"Conv": {"w8": "fast"}}}, "cost.Conv.w8: must be a number above 0"),
        ({"cost": {"Conv": {"w8": {}}}}, "cost.Conv.w8: must be a number above 0"),
        ({"cost": {"Conv": {"w8": {0: 1.0}}}}, r"cost.Conv.w8: .*for each of a few counts of rows.* \(0\)"),
        ({"cost": {"Conv": {"w8": {1: 0.5, 8: "x"}}}}, r"cost.Conv.w8: must be a number above 0.*'x'"),
        ({"lowering": {"accuracy_level": 5}}, "lowering.accuracy_level: must be less than or equal to 4"),
        ({"latency": {"batch": 0}}, "latency.batch: must be greater than or equal to 1"),
        ({"match": {"cpu": ["x"]}}, "match.cpu: unknown field"),
        ({"instead": {"w9": "w8"}}, "instead: 'w9' is no family of schemes with integer weights; known: w8, "),
        ({"instead": {"w8a8": "float16"}}, "instead: 'float16' is no family"),
        ({"instead": {"w8a8": "w8"}}, "instead.w8a8: w8 cannot stand in for it, since w8@.* is no scheme"),
        ({"instead": {"w4": "w8"}}, "instead.w4: w8 cannot stand in for it, since w8-.* is no scheme"),
        ({"instead": {"w8a8": 7}}, "instead.w8a8: must be text"),
        ({"instead": {"w8a16": "w7a8"}}, "instead.w8a16: w7a8 has other activations"),
    ],
)
def test_wrong_profiles(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        load(tmp_path, **changes)
    assert str(tmp_path / "p.yaml") in str(caught.value)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="unknown hardware profile 'cpu-x86-onnxrutime'; did you mean 'cpu-x86-onnx"):
        load_profile("cpu-x86-onnxrutime", tmp_path)
    with pytest.raises(JobError, match="no such hardware profile"):
        load_profile("x/y", tmp_path)


def test_forms_are_probed_named_or_none(tmp_path: Path) -> None:
    assert load(tmp_path).forms == load(tmp_path, forms="auto").forms == ("auto",)
    assert load(tmp_path, forms="none").forms == load(tmp_path, forms=[]).forms == ()
    assert load(tmp_path, forms=["attention", "wide-input"]).forms == ("attention", "wide-input")
    assert load(tmp_path, forms="attention").forms == ("attention",)
    # What was searched before there were forms can still be resumed.
    assert "forms" not in load(tmp_path).to_dict() and load(tmp_path, forms="none").to_dict()["forms"] == []
    with pytest.raises(JobError, match="no form of the graph is called 'atention'; did you mean 'attention'"):
        load(tmp_path, forms=["atention"])
    with pytest.raises(JobError, match="auto and none stand alone"):
        load(tmp_path, forms=["auto", "attention"])


def test_kernels_that_want_multiples(tmp_path: Path) -> None:
    rule = {"schemes": "w8a8*", "inputs": 8, "outputs": 16, "why": "the kernel says so"}
    profile = load(tmp_path, ops={"MatMul": {"allow": ["float32", "w8a8*"], "align": [rule]}})

    def why(inputs: int, outputs: int, text: str = "w8a8@minmax") -> str | None:
        layer = Layer(
            name="a",
            op_type="MatMul",
            node="a",
            weight="w",
            weight_index=1,
            weight_shape=(inputs, outputs),
            channel_axis=1,
            input="x",
            output="y",
        )
        return profile.misaligned(layer, scheme(text))

    assert why(8, 16) is None
    assert why(9, 16) == "its 9 inputs are no multiple of 8: the kernel says so"
    assert why(8, 8) == "its 8 outputs are no multiple of 16: the kernel says so"
    assert why(9, 9, "w8") is None
    assert profile.to_dict()["ops"]["MatMul"]["align"] == [rule]
    with pytest.raises(JobError, match=r"ops\.MatMul\.align\[0\]\.schemes: 'w9a9' matches no scheme"):
        load(tmp_path, ops={"MatMul": {"allow": ["float32"], "align": [rule | {"schemes": "w9a9"}]}})
