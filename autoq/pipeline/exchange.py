"""What a search is given besides its job, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoq.core.policy import Policy
from autoq.core.result import Front, Trial
from autoq.search.groundwork import Calibrated
from autoq.search.loop import Search
from autoq.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What a caller may watch: steps in words, finished trials (with all so far and the front), warnings."""

    step: Callable[[str], None] = lambda text: None
    trial: Callable[[Trial, Search], None] = lambda trial, search: None
    warn: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished search: its front, every trial, the folder that holds them, and where it was tracked.

    ``answers`` and ``calibrated`` are for :class:`TakenOver`.
    """

    front: Front
    trials: tuple[Trial, ...]
    path: Path
    tracking_uri: str
    tracking_problems: tuple[str, ...] = ()
    answers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    calibrated: Calibrated | None = dataclasses.field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a search takes over from searches of the same job for other hardware.

    ``setting`` is what its job reads, where that was read already, before the forms are chosen. ``scored`` are trials,
    and who tried them, that were scored with the same arithmetic: their metric is what it would be here. ``answers``
    are float32's outputs on the search split, by the same arithmetic. ``calibrated`` is what a pass over the
    calibration data gave, whatever for. ``seeds`` are other policies to begin with, whose schemes are taken as near as
    they can be had here. ``parent_run`` is the MLflow run that this search's is shown under.
    """

    setting: Setting | None = None
    scored: tuple[tuple[str, Trial], ...] = ()
    answers: Mapping[str, np.ndarray] | None = None
    calibrated: Calibrated | None = None
    seeds: tuple[tuple[str, Policy], ...] = ()
    parent_run: str | None = None

    @property
    def known(self) -> dict[str, float]:
        """SHA-256 -> the metric on the search split of a file that was scored."""
        return {t.sha256: t.metric for _, t in self.scored if t.sha256 is not None and t.metric is not None}


NOTHING = TakenOver()
