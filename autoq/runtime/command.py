"""Latency measured by a command of the user's: any board or simulator that a command line reaches.

::

    measure:
      by: command
      options:
        send: [scp, "{model}", "board:/tmp/{model_name}"]
        run: [ssh, board, ./bench, "/tmp/{model_name}", --threads, "{threads}"]

The command runs a file and prints JSON, ``{"latency_ms": [1.93, 1.92, 1.95]}`` unless ``samples`` says where in other
JSON the times are. Candidate and reference take turns, run by run; ``docs/command.md`` has it all.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from autoq.core.result import FLOAT32_NAME, Conditions, Latency
from autoq.errors import ProfileError, TrialError
from autoq.numerics.sittings import sittings_ratio
from autoq.runtime.command_run import PLACES, check_places, numbers_at, read_json, run_command
from autoq.runtime.gauge import Gauge, Measurement
from autoq.runtime.timing import CLEARLY, TimingPlan
from autoq.runtime.turn import measuring_turn

UNITS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
SAMPLES = "latency_ms"

_Pair = tuple[float, float]


class Command(Gauge):
    """The :class:`~autoq.runtime.gauge.Gauge` of a command line."""

    def __init__(
        self,
        reference: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        run: Sequence[str],
        send: Sequence[str] = (),
        remove: Sequence[str] = (),
        output: str = "",
        samples: str = SAMPLES,
        reference_samples: str = "",
        peak_memory_bytes: str = "",
        unit: str = "ms",
        rounds: int = 5,
        final_rounds: int = 10,
        timeout_s: float = 120.0,
        retries: int = 1,
        batch: int = 1,
        threads: int = 1,
        reference_name: str = FLOAT32_NAME,
    ) -> None:
        """``run``, ``send`` and ``remove`` are lists of arguments that name :data:`PLACES` in braces.

        ``samples``, ``reference_samples`` and ``peak_memory_bytes`` are paths into the JSON that ``run`` prints, or
        writes to ``output`` in ``{folder}``. ``rounds`` is how often each file is run for a trial, ``final_rounds`` for
        the front. Raises :class:`~autoq.errors.ProfileError` for options that cannot be meant.
        """
        self._run, self._send, self._remove = (
            _arguments(name, given) for name, given in (("run", run), ("send", send), ("remove", remove))
        )
        if not self._run:
            raise ProfileError("measure.options.run: a list of at least one argument, the program to start")
        names = "".join([*self._run, *self._send])
        if "{model}" not in names and "{model_name}" not in names:
            raise ProfileError("measure.options: neither run nor send names {model}: no candidate would be measured")
        self._both = "{reference}" in "".join(self._run)
        if self._both != bool(reference_samples):
            raise ProfileError(
                "measure.options: run names {reference} where one run measures both files, and reference_samples says "
                "where the reference's times are then; give both or neither"
            )
        for name, text in (("output", output), ("samples", samples), ("reference_samples", reference_samples)):
            if not isinstance(text, str):
                raise ProfileError(f"measure.options.{name}: must be text, not {text!r}")
        if unit not in UNITS:
            raise ProfileError(f"measure.options.unit: must be one of {', '.join(UNITS)}, not {unit!r}")
        for name, number, least in (("rounds", rounds, 2), ("final_rounds", final_rounds, 2), ("retries", retries, 0)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ProfileError(f"measure.options.{name}: must be a whole number, {least} or more, not {number!r}")
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            raise ProfileError(f"measure.options.timeout_s: must be a number of seconds above 0, not {timeout_s!r}")
        self.baseline = Path(reference).resolve()
        self._output, self._samples, self._reference_samples, self._memory = (
            output, samples, reference_samples, peak_memory_bytes,
        )  # fmt: skip
        self._unit, self._rounds, self._final_rounds = UNITS[unit], rounds, final_rounds
        self._timeout_s, self._retries = float(timeout_s), retries
        self._batch, self._threads, self._reference_name = batch, threads, reference_name
        self._folder = Path(tempfile.mkdtemp(prefix="autoq-command-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._feeds = self._folder / "feeds.npz"
        np.savez(self._feeds, **{name: np.asarray(array) for name, array in feeds.items()})  # type: ignore[arg-type]
        self._reference_sent = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Removes what was made here. Also happens when the gauge is forgotten."""
        self._finalizer()

    def measure(self, candidate: Path, *, idle_above: float = math.inf) -> Measurement:
        """See :class:`~autoq.runtime.gauge.Gauge`."""

        def clear(pairs: list[list[_Pair]]) -> bool:
            return all(own / base > idle_above * (1 + CLEARLY) for own, base in pairs[0])

        (pairs,), memory, alone = self._in_turn([candidate], self._rounds, clear)
        return Measurement(latency=self._latency(pairs, alone), peak_memory_bytes=memory)

    def measure_many(self, candidates: Sequence[Path]) -> list[Measurement]:
        """See :class:`~autoq.runtime.gauge.Gauge`."""
        found, _, alone = self._in_turn(candidates, self._final_rounds)
        return [Measurement(latency=self._latency(pairs, alone)) for pairs in found]

    def glance(self, candidates: Sequence[Path], plan: TimingPlan) -> tuple[list[float], bool]:
        """See :class:`~autoq.runtime.gauge.Gauge`; one run of each."""
        found, _, alone = self._in_turn(candidates, 1)
        return [min(own / base for own, base in pairs) for pairs in found], not alone

    def _in_turn(
        self, candidates: Sequence[Path], rounds: int, clear: Callable[[list[list[_Pair]]], bool] = lambda _: False
    ) -> tuple[list[list[_Pair]], int | None, bool]:
        """For each candidate its pairs of milliseconds, own and the reference's; the memory of the first one's runs."""
        paths = [Path(candidate).resolve() for candidate in candidates]
        pairs: list[list[_Pair]] = [[] for _ in paths]
        memory: int | None = None
        with self._lock, measuring_turn() as alone:
            try:
                for path in paths:
                    self._hand_over(path)
                if paths and not self._reference_sent:
                    self._hand_over(self.baseline)
                    self._reference_sent = True
                for number in range(rounds if paths else 0):
                    order = [None, *range(len(paths))][:: 1 if number % 2 == 0 else -1]
                    own: dict[int | None, _Pair] = {}
                    for index in order:
                        if index is not None or not self._both:
                            path = self.baseline if index is None else paths[index]
                            own[index], told = self._once(path)
                            memory = told if index == 0 else memory
                    for index, each in enumerate(pairs):
                        each.append(own[index] if self._both else (own[index][0], own[None][0]))
                    if clear(pairs):
                        break
            finally:
                for path in paths if self._remove else []:
                    if path != self.baseline:
                        self._tidy(path)
        return pairs, memory, alone

    def _once(self, path: Path) -> tuple[_Pair, int | None]:
        """One run: the median of its samples, and of the reference's where it has those; its memory where it tells."""
        document = read_json(self._tried(self._run, path, self._output))
        own = statistics.median(numbers_at(document, self._samples)) * self._unit
        base = statistics.median(numbers_at(document, self._reference_samples)) * self._unit if self._both else own
        memory = max(numbers_at(document, self._memory)) if self._memory else None
        return (own, base), None if memory is None else round(memory)

    def _hand_over(self, path: Path) -> None:
        if self._send:
            self._tried(self._send, path)

    def _tidy(self, path: Path) -> None:
        """A file that stays on the board is no reason to lose a measurement."""
        try:
            run_command(self._remove, self._places(path), self._timeout_s)
        except TrialError:
            return

    def _tried(self, arguments: Sequence[str], path: Path, output: str = "") -> str:
        for left in range(self._retries, -1, -1):
            try:
                return run_command(arguments, self._places(path), self._timeout_s, output)
            except TrialError as error:
                if not left or error.reason == "timeout":  # what hangs once would hang again
                    raise
        raise AssertionError("the last try returns or raises")

    def _places(self, path: Path) -> dict[str, object]:
        values = (path, path.name, self.baseline, self.baseline.name, self._batch, self._threads, self._feeds, "")
        return dict(zip(PLACES, values, strict=True))

    def _latency(self, pairs: Sequence[_Pair], alone: bool) -> Latency:
        ratios = [own / base for own, base in pairs]
        if len(ratios) > 1:
            ratio, interval = sittings_ratio(ratios)
        else:  # one run knows nothing of the next
            ratio = ratios[0]
            interval = (ratio / (1 + CLEARLY), ratio * (1 + CLEARLY))
        return Latency(
            median_ms=statistics.median(own for own, _ in pairs),
            ratio=ratio,
            ratio_ci95=interval,
            batch=self._batch,
            threads=self._threads,
            blocks_ms=tuple(own for own, _ in pairs),
            baseline_blocks_ms=tuple(base for _, base in pairs),
            reference=self._reference_name,
            conditions=Conditions(disturbed=not alone, sittings=len(pairs)),
            by=f"the command {Path(self._run[0]).name}",
        )


def _arguments(name: str, given: object) -> tuple[str, ...]:
    """The arguments of a command as text. Raises :class:`ProfileError`."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ProfileError(
            f'measure.options.{name}: must be a list of arguments, [ssh, board, ./bench, "{{model_name}}"], not '
            f"{given!r}; no shell takes part"
        )
    arguments = tuple(str(each) for each in given)
    check_places(name, arguments)
    return arguments
