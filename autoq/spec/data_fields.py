"""The ``data`` section of a job: where the splits lie, and how their arrays become the model's inputs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoq.spec.checking import AsTuple, Count, Fields, Numbers, Text, show

SplitName = Literal["calibration", "search", "final"]
DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
]
Row = Annotated[int, Field(ge=0, le=2**62)]


def check_function(text: str) -> str:
    """``text`` if it reads ``file.py:name``; ``ValueError`` if not."""
    file, colon, name = text.rpartition(":")
    if not (colon and file.endswith(".py") and name.isidentifier()):
        raise ValueError("must read file.py:name, a function in a Python file beside the job")
    return text


class Source(Fields):
    """One split: an .npz file or a function that returns a dict of arrays, and which of its rows.

    ``slice`` [a, b] takes rows a to b, b not included (null: to the end); ``limit`` n takes the first n, or fewer
    where there are fewer.
    """

    path: Text | None = Field(default=None, examples=["val.npz"])
    function: Text | None = None
    slice: Annotated[tuple[Row, Row | None], AsTuple] | None = None
    limit: Count | None = None

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        return value if value is None else check_function(value)

    @field_validator("slice")
    @classmethod
    def _slice_has_rows(cls, value: tuple[int, int | None] | None) -> tuple[int, int | None] | None:
        if value is not None and value[1] is not None and value[0] >= value[1]:
            raise ValueError("holds no rows; write [first, last + 1]")
        return value

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.path is None) == (self.function is None):
            raise ValueError("give either path (an .npz file) or function (file.py:name)")
        if self.slice is not None and self.limit is not None:
            raise ValueError("give either slice or limit, not both")
        return self

    @property
    def rows(self) -> tuple[int, int | None]:
        """First row, and the row after the last (``None``: to the end)."""
        return self.slice or (0, self.limit)

    @property
    def origin(self) -> str:
        """The path or function, as written."""
        return self.path or self.function or ""


class InputMap(Fields):
    """How one model input is made: ``(x / scale - mean) / std`` in float32, its axes then permuted by ``layout``.

    ``source`` (``from`` in the file) is the key of the data array; without it, the input's own name. ``mean`` and
    ``std`` lie along the axis that ``layout`` calls C, or along the last axis.
    """

    source: Text | None = Field(default=None, alias="from")
    layout: str | None = None
    scale: float | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    dtype: DType | None = None

    @field_validator("layout")
    @classmethod
    def _is_permutation(cls, value: str | None) -> str | None:
        if value is None:
            return None
        match = re.fullmatch(r"([A-Z]{1,16})->([A-Z]{1,16})", value.replace(" ", "").upper())
        if match is None:
            raise ValueError("must read like NHWC->NCHW: one letter for each axis")
        before, after = match.groups()
        if len(set(before)) != len(before) or sorted(before) != sorted(after):
            raise ValueError("must name the same axes on both sides, each once")
        if before[0] != after[0]:
            raise ValueError("must leave the first axis, the rows, where it is")
        return f"{before}->{after}"

    @field_validator("scale")
    @classmethod
    def _scale_divides(cls, value: float | None) -> float | None:
        if value == 0:
            raise ValueError("x is divided by it, so it must not be 0")
        return value

    @field_validator("std")
    @classmethod
    def _std_divides(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and any(part <= 0 for part in value):
            raise ValueError("x is divided by it, so it must be above 0")
        return value

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """The axes of ``layout`` as :func:`numpy.transpose` takes them; ``None`` without a layout."""
        if self.layout is None:
            return None
        before, after = self.layout.split("->")
        return tuple(before.index(axis) for axis in after)

    @property
    def channel_axis(self) -> int:
        """The axis of the data array, before the permutation, along which ``mean`` and ``std`` lie."""
        before = (self.layout or "").partition("->")[0]
        return before.index("C") if "C" in before else -1


class Data(Fields):
    """All splits share ``inputs``, ``target`` and ``group`` (rows that stay together).

    ``inputs`` ``None`` maps each model input to the array of its name. ``batch`` is the number of rows fed at once
    when the metric is scored. ``padding_mask`` names the model input that is 0 at padded positions, which calibration
    leaves out; ``none`` counts them all, and ``None`` is ``attention_mask`` where the model has it.
    """

    calibration: Source = Field(examples=["{path: train.npz, limit: 512}"])
    search: Source = Field(examples=["{path: val.npz, slice: [0, 2000]}"])
    final: Source = Field(examples=["{path: val.npz, slice: [2000, 4000]}"])
    inputs: Annotated[dict[Text, InputMap], Field(min_length=1)] | None = None
    target: Text | None = None
    group: Count = 1
    batch: Count = 100
    overlap: bool = False
    padding_mask: Text | None = None

    def split(self, which: SplitName) -> Source:
        """The split of that name."""
        found: Source = getattr(self, which)
        return found

    @model_validator(mode="after")
    def _final_is_unseen(self, info: ValidationInfo) -> Self:
        base_dir = (info.context or {}).get("base_dir", Path())
        if self.overlap or _identity(self.search, base_dir) != _identity(self.final, base_dir):
            return self
        (a, b), (c, d) = self.search.rows, self.final.rows
        if (d is None or a < d) and (b is None or c < b):
            raise ValueError(
                f"search takes {_said(a, b)} and final {_said(c, d)} of the same source {show(self.search.origin)}: "
                "what a choice has seen cannot judge it. Give them rows of their own (or overlap: true, if you must)"
            )
        return self


def _identity(source: Source, base_dir: Path) -> tuple[str, str]:
    """What two sources share when they read the same rows; the same file by another path is the same."""
    if source.path is not None:
        return os.path.realpath(base_dir / source.path), ""
    file, _, name = (source.function or "").rpartition(":")
    return os.path.realpath(base_dir / file), name


def _said(start: int, stop: int | None) -> str:
    if stop is None:
        return "all rows" if start == 0 else f"rows {start} to the last"
    return f"rows {start} to {stop - 1}"
