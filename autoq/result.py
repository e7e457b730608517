"""What comes back to Python: a search's front and trials, or the losses of single layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from pandas import DataFrame

    from autoq.core.layer_loss import LayerLosses
    from autoq.core.objectives import Constraints
    from autoq.core.result import Front, FrontPoint, Trial


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A finished search. ``path`` is its run folder; ``trials`` has every trial, the failed ones too."""

    front: Front
    trials: tuple[Trial, ...]
    path: Path

    def select(
        self,
        how: str | None = None,
        *,
        max_drop: float | None = None,
        max_latency_ratio: float | None = None,
        max_size_ratio: float | None = None,
        max_memory_ratio: float | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> FrontPoint:
        """The point called ``"knee"`` (the default), ``"best"``, ``"fastest"``, ``"smallest"`` or by its id.

        It is chosen within the bounds: ``max_drop`` is in the metric's own unit, the others are relative to float32
        (0.5 = half). ``weights`` (objective -> weight) choose instead of ``how``. See docs/choosing.md. Raises
        :class:`autoq.errors.RunError` when there is none, with the nearest miss.
        """
        from autoq.record.choice import select

        bounds = _bounds(max_drop, max_latency_ratio, max_size_ratio, max_memory_ratio)
        return select(self.front, how, bounds=bounds, weights=weights)

    def export(
        self,
        how: str | None = None,
        out: str | Path = "export",
        *,
        max_drop: float | None = None,
        max_latency_ratio: float | None = None,
        max_size_ratio: float | None = None,
        max_memory_ratio: float | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Path:
        """Writes the model that :meth:`select` gives, its manifest and ``infer.py`` into ``out``, which is returned."""
        from autoq.record.export import export_choice

        bounds = _bounds(max_drop, max_latency_ratio, max_size_ratio, max_memory_ratio)
        export_choice(self.path, Path(out), how, bounds=bounds, weights=weights)
        return Path(out)

    def to_frame(self) -> DataFrame:
        """The front as a pandas table, float32 first."""
        from dataclasses import asdict

        from pandas import DataFrame

        from autoq.record.summary import front_table

        return DataFrame([asdict(row) for row in front_table(self.front)]).set_index("id")

    def plot(self) -> Figure:
        """The front over all trials, as a Matplotlib figure."""
        from autoq.record.plots import plot_front

        return plot_front(self.front, self.trials)

    def summary(self) -> str:
        """What was gained, in a sentence or two."""
        from autoq.record.summary import describe_gain

        return describe_gain(self.front)

    def _repr_html_(self) -> str:
        from html import escape

        columns = ["metric", "drop", "speedup", "size_ratio", "weight_bits_mean", "policy"]
        return f"<p>{escape(self.summary())}</p>{self.to_frame()[columns].to_html(float_format='%.4g')}"


def _bounds(drop: float | None, latency: float | None, size: float | None, memory: float | None) -> Constraints:
    from autoq.core.objectives import Constraints

    return Constraints(
        max_metric_drop=drop, max_latency_ratio=latency, max_size_ratio=size, max_peak_memory_ratio=memory
    )


@dataclass(frozen=True, slots=True)
class SensitivityResult:
    """The loss that each layer's schemes cause alone."""

    losses: LayerLosses

    def to_frame(self) -> DataFrame:
        """A pandas table with a row for each layer and scheme."""
        from pandas import DataFrame

        from autoq.record.layer_losses import COLUMNS, loss_rows

        return DataFrame(loss_rows(self.losses), columns=list(COLUMNS)).set_index(["layer", "scheme"])

    def plot(self) -> Figure:
        """Heat maps of layers by schemes, as a Matplotlib figure."""
        from autoq.record.loss_plots import plot_losses

        return plot_losses(self.losses)

    def summary(self) -> str:
        """Which layer suffers most, and what was taken on what."""
        from autoq.record.layer_losses import describe_losses

        return describe_losses(self.losses)

    def _repr_html_(self) -> str:
        from html import escape

        frame = self.to_frame()[["drop", "divergence", "sqnr_db"]]
        return f"<p>{escape(self.summary())}</p>{frame.to_html(float_format='%.3g')}"
