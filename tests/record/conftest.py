"""A front and its trials, shaped like a search over a 20-layer network (seeded; no model behind it)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from autoq.core.policy import Policy
from autoq.core.result import DroppedPoint, Failure, Front, FrontPoint, Latency, MetricPair, Trial
from autoq.core.scheme import FLOAT32, Scheme

BLOCKS = [f"/layer{b}/{u}/conv{c}/Conv" for b in (1, 2, 3) for u in (0, 1, 2) for c in (1, 2)]
LAYERS = ["/conv1/Conv", *BLOCKS, "/fc/Gemm"]
SCHEMES = [Scheme.parse(text) for text in ("w8a8@minmax", "w4a8-gptq@percentile99.99", "w4", "float32", "w2a8@mse")]
FLOAT32_BYTES = 1_154_297
LAYER_SPEED = {"w8a8": 0.48, "w4a8": 0.49, "w2a8": 0.5, "w4": 1.0, "float32": 1.0}
LAYER_LOSS = {"w8a8": 0.0, "w4a8": 0.0006, "w2a8": 0.02, "w4": 0.0005, "float32": 0.0}


def make_latency(ratio: float, *, spread: float = 0.03) -> Latency:
    base = 1.9
    blocks = tuple(base * ratio * (1 + spread * (i - 2) / 4) for i in range(5))
    return Latency(
        median_ms=base * ratio,
        ratio=ratio,
        ratio_ci95=(ratio * (1 - spread), ratio * (1 + spread)),
        batch=1,
        threads=1,
        blocks_ms=blocks,
        baseline_blocks_ms=(base,) * 5,
    )


def make_trial(number: int, policy: Policy, rng: random.Random) -> Trial:
    families = [scheme.family for _, scheme in policy.items_]
    bits = sum(scheme.weight_bits for _, scheme in policy.items_) / len(policy)
    return Trial(
        number=number,
        policy=policy,
        origin="seed:uniform" if number < len(SCHEMES) else "sampler:nsga2",
        metric=0.8842 - sum(LAYER_LOSS[f] for f in families) + rng.gauss(0, 0.002),
        latency=make_latency(sum(LAYER_SPEED[f] for f in families) / len(families) + rng.uniform(0, 0.05)),
        latency_modelled=0.6,
        size_bytes=int(60_000 + FLOAT32_BYTES * bits / 32),
        peak_memory_bytes=int(9e6 + 3e5 * bits),
        weight_bits_mean=bits,
        sha256=f"{number:064x}",
        seconds={"build": 0.012, "load": 0.02, "metric": 0.9, "measure": 1.4},
    )


def to_point(trial: Trial, *, final: float | None, loss: tuple[float, float] | None) -> FrontPoint:
    assert trial.metric is not None and trial.size_bytes is not None and trial.sha256 is not None
    assert trial.weight_bits_mean is not None
    return FrontPoint(
        id=trial.id,
        policy=trial.policy,
        metric=MetricPair(
            search=trial.metric,
            final=final,
            final_ci95=None if final is None else (final - 0.014, final + 0.014),
            drop_ci95=loss,
        ),
        latency=trial.latency,
        size_bytes=trial.size_bytes,
        peak_memory_bytes=trial.peak_memory_bytes,
        weight_bits_mean=trial.weight_bits_mean,
        model_path=f"models/{trial.id}.onnx",
        sha256=trial.sha256,
        origin=trial.origin,
        load_ms=None if final is None else 4.0 + trial.weight_bits_mean / 8,
        zip_bytes=None if final is None else trial.size_bytes * 9 // 10,
    )


@pytest.fixture(scope="session")
def trials() -> list[Trial]:
    rng = random.Random(7)
    policies = [Policy.uniform(LAYERS, scheme) for scheme in SCHEMES]
    while len(policies) < 60:
        weights = [rng.random() ** 2 for _ in SCHEMES[:4]]
        policies.append(Policy.of({layer: rng.choices(SCHEMES[:4], weights)[0] for layer in LAYERS}))
    done = [make_trial(number, policy, rng) for number, policy in enumerate(policies)]
    reasons = [("load", "the runtime has no kernel for <DequantizeLinear>"), ("worker_lost", "the worker died twice")]
    for index in (20, 31, 44):
        reason, message = reasons[index % 2]
        done[index] = Trial(
            number=index,
            policy=done[index].policy,
            origin="sampler:nsga2",
            failure=Failure(reason=reason, message=message),  # type: ignore[arg-type]
        )
    return done


def _beats(a: Trial, b: Trial) -> bool:
    def key(t: Trial) -> tuple[float, float, float]:
        assert t.metric is not None and t.latency is not None and t.size_bytes is not None
        return -t.metric, t.latency.ratio, t.size_bytes

    return all(x <= y for x, y in zip(key(a), key(b), strict=True)) and key(a) != key(b)


@pytest.fixture(scope="session")
def front(trials: list[Trial]) -> Front:
    rng = random.Random(3)
    complete = [trial for trial in trials if trial.failure is None]
    best = [t for t in complete if not any(_beats(other, t) for other in complete)]
    best = [t for t in best if t.metric is not None and t.metric > 0.86 and t.policy != Policy.uniform(LAYERS, FLOAT32)]
    baseline_trial = replace(
        make_trial(0, Policy.uniform(LAYERS, FLOAT32), random.Random(0)),
        metric=0.8842,
        latency=make_latency(1.0, spread=0.01),
        size_bytes=FLOAT32_BYTES,
        origin="baseline",
    )
    points = []
    for trial in best:
        assert trial.metric is not None
        drop = 0.8842 - trial.metric + rng.gauss(0, 0.002)
        points.append(to_point(trial, final=0.8800 - drop, loss=(drop - 0.005, drop + 0.006)))
    return Front(
        name="resnet20-cifar10",
        objectives=("metric", "latency", "size"),
        metric_name="accuracy",
        metric_direction="maximize",
        baseline=to_point(baseline_trial, final=0.8800, loss=(0.0, 0.0)),
        points=tuple(points[:-1]),
        dropped=(DroppedPoint(point=points[-1], why="on the final split another point is better in every objective"),),
        trials_complete=len(complete),
        trials_failed=len(trials) - len(complete),
        wall_s=212.4,
        final=True,
        stop_reason="60 trials",
        notes=("timed in warm blocks in turn with float32",),
    )


@pytest.fixture(scope="session")
def make_point() -> Callable[..., FrontPoint]:
    """A factory of hand-made points: ``make_point(id, search=, final=, ratio=, size=, ...)``."""

    def make(
        key: str,
        *,
        search: float = 0.9,
        final: float | None = None,
        ratio: float | None = 1.0,
        spread: float = 0.02,
        size: int = 1000,
        memory: int | None = None,
        scheme: str = "w8a8@minmax",
        drop_ci95: tuple[float, float] | None = None,
    ) -> FrontPoint:
        return FrontPoint(
            id=key,
            policy=Policy.uniform(["a", "b"], Scheme.parse(scheme)),
            metric=MetricPair(search=search, final=final, drop_ci95=drop_ci95),
            latency=None if ratio is None else make_latency(ratio, spread=spread),
            size_bytes=size,
            peak_memory_bytes=memory,
            weight_bits_mean=8.0,
            model_path=f"models/{key}.onnx",
            sha256="0" * 64,
        )

    return make


@pytest.fixture(scope="session")
def make_front(make_point: Callable[..., FrontPoint]) -> Callable[..., Front]:
    """A factory of hand-made fronts over metric, latency and size."""

    def make(*points: FrontPoint, baseline: FrontPoint | None = None, **changes: object) -> Front:
        front = Front(
            name="hand-made",
            objectives=("metric", "latency", "size"),
            metric_name="accuracy",
            metric_direction="maximize",
            baseline=baseline or make_point("base", scheme="float32"),
            points=points,
        )
        return replace(front, **changes)  # type: ignore[arg-type]

    return make
