"""What a scheme costs where one layer alone has it, all others float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoq.core.scheme import Scheme

Divergence = Literal["kl", "noise"]
"""kl: Kullback-Leibler divergence of the class probabilities, in nats. noise: relative noise power of the outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoss:
    """One layer under one scheme. ``None`` is what could not be taken, and ``problem`` says why.

    ``drop`` is the metric's loss against float32 on the same rows (positive is worse), ``divergence`` what
    :attr:`LayerLosses.divergence` says. ``noise`` is the outputs' relative noise power ``E|y - y_float|^2 /
    E|y_float|^2`` and ``sqnr_db`` the same in dB, ``inf`` where they are float32's to the last bit.
    """

    layer: str
    kind: str
    scheme: Scheme
    metric: float | None = None
    drop: float | None = None
    divergence: float | None = None
    noise: float | None = None
    sqnr_db: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLosses:
    """The losses of every layer and scheme asked for, in the model's and the space's order.

    ``baseline`` is float32's metric on the ``rows`` rows of the search split that all was taken on.
    """

    name: str
    metric_name: str
    direction: Literal["maximize", "minimize"]
    baseline: float
    rows: int
    divergence: Divergence
    losses: tuple[LayerLoss, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, each once."""
        return tuple(dict.fromkeys(loss.layer for loss in self.losses))

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes, each once, from those that any layer has."""
        return tuple(dict.fromkeys(loss.scheme for loss in self.losses))
