"""The job file: which model, which data, which metric, on which hardware, out of which space, for how long.

:func:`load_job` reads version 1 of the format, which docs/job-files.md explains field by field.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator, model_validator

from autoq.core.objectives import Constraints, Direction, Objective
from autoq.errors import JobError
from autoq.spec.checking import AsTuple, Count, Fields, Positive, Text, show, validate
from autoq.spec.data_fields import Data, check_function
from autoq.spec.document import check_bounds, read_mapping
from autoq.spec.durations import parse_duration


def _seconds(value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except JobError as error:
        raise ValueError(str(error)) from None


class ModelFile(Fields):
    """The trained model: an ONNX file, relative to the job file."""

    path: Text = Field(examples=["model.onnx"])


class MetricChoice(Fields):
    """``name``: a scikit-learn metric. ``function``: ``file.py:name``, called with (outputs, targets).

    For a scikit-learn metric, ``output`` names the model output it reads (default: the first), ``axis`` the axis of
    that output's classes (default: the last) and ``kwargs`` what else the metric takes. ``direction`` overrides the
    metric's own. ``timeout`` is for a function: the seconds that it may take for one model.
    """

    name: Text | None = None
    function: Text | None = None
    output: Text | None = None
    axis: Annotated[int, Field(ge=-32, le=32)] | None = None
    kwargs: dict[Text, Any] = Field(default_factory=dict)
    direction: Direction | None = None
    timeout: float | None = None

    @field_validator("timeout", mode="before")
    @classmethod
    def _timeout_seconds(cls, value: Any) -> Any:
        return _seconds(value)

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        return value if value is None else check_function(value)

    @field_validator("kwargs")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            text.encode()
            read: dict[str, Any] = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            raise ValueError("may hold finite numbers, text, true, false, null, lists and mappings") from None
        if _keys(read) != _keys(value):
            raise ValueError("every key in it must be text")
        return read

    @model_validator(mode="after")
    def _name_or_function(self) -> Self:
        if (self.name is None) == (self.function is None):
            raise ValueError("give either name (a scikit-learn metric) or function (file.py:name)")
        if self.function is not None and (self.output is not None or self.axis is not None or self.kwargs):
            raise ValueError("output, axis and kwargs go with name; a function is given all outputs and picks itself")
        if self.name is not None and self.timeout is not None:
            raise ValueError("timeout goes with function: a metric by name ends by itself")
        return self


class _ConstraintFields(Fields):
    max_metric_drop: Annotated[float, Field(ge=0)] | None = None
    max_latency_ratio: Positive | None = None
    max_size_ratio: Positive | None = None
    max_peak_memory_ratio: Positive | None = None

    @property
    def bounds(self) -> Constraints:
        """As a value."""
        return Constraints(**self.model_dump())


class Budget(Fields):
    """The search ends at what comes first.

    After ``trials`` candidates; after ``time_s`` seconds (``time`` in the file); with the first candidate that keeps
    the bounds ``until`` and the job's constraints; when ``patience`` candidates in a row have not widened the front
    (:mod:`autoq.search.stopping`; 0: it goes on all the same).
    """

    trials: Count = 100
    time_s: float | None = Field(default=None, alias="time")
    until: _ConstraintFields | None = None
    patience: Annotated[int, Field(ge=0)] = 200

    @field_validator("time_s", mode="before")
    @classmethod
    def _time_seconds(cls, value: Any) -> Any:
        return _seconds(value)

    @field_validator("until")
    @classmethod
    def _names_a_bound(cls, value: _ConstraintFields | None) -> _ConstraintFields | None:
        if value is not None and not value.bounds:
            raise ValueError(f"names no bound; give one or more of {', '.join(_ConstraintFields.model_fields)}")
        return value


class SearchChoice(Fields):
    """``sampler``: which algorithm proposes candidates (:data:`autoq.search.proposer.SAMPLERS`).

    ``fidelity``: ``steps`` scores candidates on growing parts of the search split, and drops those that fall behind
    (:mod:`autoq.search.fidelity`); ``full`` scores each on all of it.

    ``polish``: what is done to the points of the front when the search has ended (:mod:`autoq.search.polish`), for
    ``polish_time_s`` seconds at the most (``polish_time`` in the file).
    """

    sampler: Literal["front", "tpe", "nsga2", "random"] = "front"
    fidelity: Literal["full", "steps"] = "full"
    polish: Literal["none", "sequential"] = "none"
    polish_time_s: float = Field(default=600.0, alias="polish_time")

    @field_validator("polish_time_s", mode="before")
    @classmethod
    def _time_seconds(cls, value: Any) -> Any:
        return _seconds(value)


class Tracking(Fields):
    """The MLflow server and experiment; ``None`` is the default of each."""

    uri: Text | None = None
    experiment: Text | None = None


class LatencyChoice(Fields):
    """Overrides the hardware profile's: rows per inference, threads, and timed blocks per candidate."""

    batch: Count | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    samples: Annotated[int, Field(ge=2, le=100_000)] | None = None


def _each_profile_once(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("names a profile twice")
    return value


Hardware = Annotated[
    tuple[Text, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    AsTuple,
    Field(min_length=1),
    AfterValidator(_each_profile_once),
]
"""A profile, or a list of them: a search for each."""


class _JobFields(Fields):
    version: Literal[1] = Field(examples=[1])
    name: Annotated[Text, Field(max_length=200)] = Field(examples=["my-model"])
    model: ModelFile = Field(examples=["{path: model.onnx}"])
    data: Data = Field(examples=["{calibration: {path: train.npz}, search: {path: val.npz}, final: {path: test.npz}}"])
    metric: MetricChoice = Field(examples=["{name: accuracy}"])
    hardware: Hardware = Field(examples=["cpu-x86-onnxruntime"])
    space: Text = "default"
    objectives: Annotated[tuple[Objective, ...], AsTuple, Field(min_length=1)] = ("metric", "latency", "size")
    constraints: _ConstraintFields = _ConstraintFields()
    budget: Budget = Budget()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    search: SearchChoice = SearchChoice()
    tracking: Tracking = Tracking()
    latency: LatencyChoice = LatencyChoice()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if "/" in value or "\\" in value or value in (".", "..") or not value.isprintable():
            raise ValueError("must be printable and have no slash, since folders are named after it")
        return value

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an objective twice")
        return value

    @model_validator(mode="after")
    def _metric_has_targets(self) -> Self:
        if self.metric.name is not None and self.data.target is None:
            raise ValueError(f"metric {self.metric.name!r} compares with labels: give data.target, their array's key")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked job. Paths in it are as written, relative to ``base_dir``, which is absolute.

    ``hardware`` is the profile that it is searched for; ``then_on`` are others, each with a search of its own
    (:mod:`autoq.targets`).
    """

    name: str
    model: ModelFile
    data: Data
    metric: MetricChoice
    hardware: str
    space: str = "default"
    objectives: tuple[Objective, ...] = ("metric", "latency", "size")
    constraints: Constraints = field(default_factory=Constraints)
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    search: SearchChoice = field(default_factory=SearchChoice)
    tracking: Tracking = field(default_factory=Tracking)
    latency: LatencyChoice = field(default_factory=LatencyChoice)
    then_on: tuple[str, ...] = ()
    base_dir: Path

    @property
    def targets(self) -> tuple[str, ...]:
        """Every profile that is searched for, in order."""
        return self.hardware, *self.then_on

    def on(self, profile: str) -> Job:
        """The same job for one profile alone."""
        return dataclasses.replace(self, hardware=profile, then_on=())

    @property
    def model_path(self) -> Path:
        """The model file, absolute."""
        return self.resolve(self.model.path)

    def resolve(self, path: str) -> Path:
        """A path of the job file, absolute."""
        return self.base_dir / path

    def to_dict(self) -> dict[str, Any]:
        """All but ``base_dir``, defaults filled in, as JSON can hold it; ``load_job(it, base_dir)`` is this job."""
        metric = _dump(self.metric) | {"kwargs": json.loads(json.dumps(self.metric.kwargs))}
        bounds = {name: getattr(self.constraints, name) for name in Constraints.__dataclass_fields__}
        return {
            "version": 1,
            "name": self.name,
            "model": _dump(self.model),
            "data": _dump(self.data),
            "metric": metric,
            "hardware": list(self.targets) if self.then_on else self.hardware,
            "space": self.space,
            "objectives": list(self.objectives),
            "constraints": {name: bound for name, bound in bounds.items() if bound is not None},
            "budget": _dump(self.budget),
            "seed": self.seed,
            "search": _dump(self.search),
            "tracking": _dump(self.tracking),
            "latency": _dump(self.latency),
        }

    def overridden(
        self,
        *,
        trials: int | None = None,
        time: str | float | None = None,
        tracking_uri: str | None = None,
        seed: int | None = None,
        polish: str | None = None,
    ) -> Job:
        """This job with what is not ``None`` replaced, checked as in a file (:class:`JobError`)."""
        values = self.to_dict()
        changes = [("budget", "trials", trials), ("budget", "time", time), ("tracking", "uri", tracking_uri)]
        changes.append(("search", "polish", polish))
        for section, name, value in changes:
            if value is not None:
                values[section][name] = value
        if seed is not None:
            values["seed"] = seed
        return load_job(values, self.base_dir)


def load_job(source: str | Path | Mapping[str, Any] | Job, base_dir: str | Path | None = None) -> Job:
    """The job in a YAML file, or in a mapping of the same form.

    ``base_dir`` is what paths in the job are relative to: by default the file's folder, or for a mapping the
    current folder. Files that the job names are not opened. Raises :class:`JobError`, which lists every problem.
    """
    if isinstance(source, Job):
        return source
    if isinstance(source, Mapping):
        where = "job"
        values = source
        check_bounds(values, where)
        folder = Path() if base_dir is None else Path(base_dir)
    elif isinstance(source, str | Path):
        where = str(source)
        values = read_mapping(Path(source), "job file")
        folder = Path(source).parent if base_dir is None else Path(base_dir)
    else:
        raise JobError(f"a job is a path of a YAML file or a mapping, not {show(source)}")
    absolute = Path(os.path.abspath(folder))
    fields = validate(_JobFields, values, where, {"base_dir": absolute})
    return Job(
        name=fields.name,
        model=fields.model,
        data=fields.data,
        metric=fields.metric,
        hardware=fields.hardware[0],
        then_on=fields.hardware[1:],
        space=fields.space,
        objectives=fields.objectives,
        constraints=fields.constraints.bounds,
        budget=fields.budget,
        seed=fields.seed,
        search=fields.search,
        tracking=fields.tracking,
        latency=fields.latency,
        base_dir=absolute,
    )


def _dump(fields: BaseModel) -> dict[str, Any]:
    return fields.model_dump(mode="json", by_alias=True, exclude_none=True)


def _keys(value: Any) -> Any:
    """The shape of nested containers with their keys, to see whether JSON kept it."""
    if isinstance(value, dict):
        return {key: _keys(item) for key, item in value.items()}
    return [_keys(item) for item in value] if isinstance(value, list | tuple) else None
