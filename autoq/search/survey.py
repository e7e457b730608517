"""What each scheme of each layer costs alone: the metric, the divergence from float32's outputs, their noise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoq.core.layer_loss import LayerLoss, LayerLosses
from autoq.core.objectives import metric_drop
from autoq.core.policy import Policy
from autoq.errors import MetricError
from autoq.numerics.distortion import decibels, kl_divergence
from autoq.runtime.data import Split
from autoq.runtime.metric import Metric
from autoq.search.candidates import Candidates
from autoq.search.sensitivity import Outputs, Runs, cached, measure_by, noise_power, scheme_probes

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Metric, divergence and noise of one model's outputs. Called from several threads; the metric from one at a time.

    Where the metric reads classes, their probabilities are compared by the Kullback-Leibler divergence. Other outputs
    (regression, embeddings) are no distribution; their relative noise power takes its place.
    """

    metric: Metric
    targets: np.ndarray | None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, outputs: Outputs, reference: Outputs) -> Figures:
        noise = noise_power(outputs, reference)
        classes = self.metric.classes(reference, self.targets)
        divergence = noise
        if classes is not None and noise is not None:
            name, axis = classes
            divergence = kl_divergence(reference[name], outputs[name], axis)
        figures: Figures = {"noise": noise, "divergence": divergence, "metric": None, "problem": ""}
        try:
            with self._turn:
                figures["metric"] = self.metric(outputs, self.targets)
        except MetricError as error:
            figures["problem"] = str(error)
        return figures


def survey(
    name: str,
    candidates: Sequence[Candidates],
    split: Split,
    metric: Metric,
    *,
    canonical: Callable[[Policy], Policy],
    runs: Callable[[], Runs],
    float32: Outputs,
    workers: int,
    cache_dir: Path | None,
    identity: object,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LayerLosses:
    """The losses of ``candidates``' schemes on all rows of ``split``; ``float32`` are the float model's outputs there.

    ``runs`` gives a policy's; it is asked for where anything is to be run.

    What was taken before, under the same ``identity``, comes from the cache. ``progress`` is told how many of how many
    are done. Raises :class:`autoq.errors.MetricError` where float32 itself cannot be scored.
    """
    baseline = metric(float32, split.targets)
    pairs = scheme_probes(candidates, canonical)
    judge = Judge(metric=metric, targets=split.targets)
    done = 0

    def take(missing: Sequence[Any], keep: Callable[[Any, Any], None]) -> None:
        nonlocal done
        total = len({probe.policy.id for _, probe in pairs})
        done = total - len(missing)
        progress(done, total)

        def kept(probe: Any, figures: Figures | None) -> None:
            nonlocal done
            keep(probe, figures)
            done += 1
            progress(done, total)

        measure_by(missing, runs(), workers=workers, judge=judge, keep=kept)

    found = cached(cache_dir, [probe for _, probe in pairs], ["survey", identity], take)
    kinds = {entry.layer.name: entry.layer.kind for entry in candidates}
    losses = []
    for (scheme, probe), figures in zip(pairs, found, strict=True):
        taken: Mapping[str, Any] = figures or {"problem": "the model did not build or run"}
        score = taken.get("metric")
        noise = taken.get("noise")
        losses.append(
            LayerLoss(
                layer=probe.layer,
                kind=kinds[probe.layer],
                scheme=scheme,
                drop=None if score is None else metric_drop(score, baseline, metric.direction),
                sqnr_db=None if noise is None else decibels(noise),
                **taken,
            )
        )
    return LayerLosses(
        name=name,
        metric_name=metric.name,
        direction=metric.direction,
        baseline=baseline,
        rows=split.rows,
        divergence="noise" if metric.classes(float32, split.targets) is None else "kl",
        losses=tuple(losses),
    )
