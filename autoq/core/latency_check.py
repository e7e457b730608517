"""How well a latency model predicts files that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

TIE = 0.01
"""Two Spearman correlations of a hundred files near 1 that differ by no more are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCheck:
    """What came of predicting each of ``files`` measured files by a model of the others.

    ``spearman`` ranks predictions against measurements (``None`` where undefined), ``median_error`` is the median of
    ``|predicted / measured - 1|``. ``profile_spearman`` is what the profile's costs rank the same files with.
    ``disturbed`` files were timed while other work held the core, also when timed again. ``seconds`` is what building
    and timing them took.
    """

    files: int
    spearman: float | None
    median_error: float
    profile_spearman: float | None
    disturbed: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the model ranks no worse than the profile's costs, and so guides proposals."""
        return self.spearman is not None and self.spearman > max((self.profile_spearman or 0.0) - TIE, 0.0)

    def __str__(self) -> str:
        rank = "undefined" if self.spearman is None else f"{self.spearman:.2f}"
        text = (
            f"latency model from {self.files} files in {self.seconds:.0f} s: each predicted without itself, Spearman "
            f"{rank}, median error {100 * self.median_error:.1f} %"
        )
        if self.disturbed:
            text += f"; {self.disturbed} of them timed beside other work"
        if not self.good:
            profile = "undefined" if self.profile_spearman is None else f"{self.profile_spearman:.2f}"
            text += f". The profile's costs are used instead (Spearman {profile})"
        return text
