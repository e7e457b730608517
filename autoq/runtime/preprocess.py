"""One array of a data file -> one model input, checked.

``(x / scale - mean) / std`` is computed in float32, then the axes are permuted. A user's own NumPy line,
``((x.astype("f4") / scale - np.array(mean, "f4")) / np.array(std, "f4")).transpose(0, 3, 1, 2)``, gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoq.errors import DataError
from autoq.runtime.base import InputSpec
from autoq.spec.data_fields import InputMap

_COMMON_LAYOUTS = ("NHWC->NCHW", "NCHW->NHWC", "NLC->NCL", "NDHWC->NCDHW", "NCDHW->NDHWC")


def make_input(array: np.ndarray, how: InputMap, spec: InputSpec, where: str, first_row: int = 0) -> np.ndarray:
    """``array`` [rows, ...] as the model input ``spec``: its dtype, its shape after the rows, C-contiguous.

    Raises :class:`DataError`, led by ``where``, for values that are no numbers, a shape that does not fit, values that
    the model's dtype cannot hold, and NaN or infinity (naming the row; ``first_row`` is the number of the first).
    """
    what = f"{where}: input {spec.name!r}"
    if array.dtype.kind not in "biuf":
        raise DataError(f"{what}: the data is of type {array.dtype}, not numbers")
    if spec.dtype.kind not in "biuf":
        raise DataError(f"{what}: the model wants {spec.dtype}, which a data file cannot feed")
    if how.dtype is not None and np.dtype(how.dtype) != spec.dtype:
        raise DataError(f"{what}: dtype: {how.dtype} is asked for, and the model takes {spec.dtype}")
    _check_shape(array.shape, how, spec, what)
    # Overflow and NaN are looked for in the result, where they can be named; NumPy's warnings would say less.
    with np.errstate(all="ignore"):
        values = _normalised(array, how, what)
        _check_finite(values, what, first_row)
        values = _cast(values, spec.dtype, how.dtype is not None, what, first_row)
    if how.permutation is not None:
        values = values.transpose(how.permutation)
    return np.ascontiguousarray(values)


def _normalised(array: np.ndarray, how: InputMap, what: str) -> np.ndarray:
    if how.scale is None and how.mean is None and how.std is None:
        return array
    values = array.astype(np.float32)
    if how.scale is not None:
        values /= how.scale
    if how.mean is not None:
        values -= _along(how.mean, values, how, f"{what}: mean")
    if how.std is not None:
        values /= _along(how.std, values, how, f"{what}: std")
    return values


def _along(numbers: tuple[float, ...], values: np.ndarray, how: InputMap, what: str) -> np.ndarray:
    """``numbers`` as float32, shaped to lie along the channel axis of ``values``."""
    axis = how.channel_axis % values.ndim
    size = values.shape[axis]
    if len(numbers) not in (1, size):
        hint = "" if how.layout and "C" in how.layout else "; say which axis is C, as in layout: NCHW->NCHW"
        raise DataError(f"{what} has {len(numbers)} numbers for an axis of {size} (shape {list(values.shape)}){hint}")
    shape = [1] * values.ndim
    shape[axis] = len(numbers)
    return np.array(numbers, np.float32).reshape(shape)


def _check_shape(shape: tuple[int, ...], how: InputMap, spec: InputSpec, what: str) -> None:
    if not spec.shape:
        raise DataError(f"{what}: the model takes a single number there; only inputs [rows, ...] can be fed from data")
    if how.permutation is not None and len(how.permutation) != len(shape):
        raise DataError(
            f"{what}: layout {how.layout} is of {len(how.permutation)} axes, and the data has {len(shape)} "
            f"(shape {list(shape)})"
        )
    permuted = tuple(shape[axis] for axis in how.permutation) if how.permutation else shape
    if not _fits(permuted, spec.shape):
        expected = ", ".join(["rows", *("any" if size is None else str(size) for size in spec.shape[1:])])
        got = ", ".join(["rows", *map(str, permuted[1:])])
        after = f" after layout {how.layout}" if how.layout else ""
        raise DataError(f"{what}: the model expects [{expected}], and the data is [{got}]{after}{_hint(shape, spec)}")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether all axes but the first agree; the first are the rows, fed in batches."""
    return len(shape) == len(expected) and all(
        want is None or size == want for size, want in zip(shape[1:], expected[1:], strict=True)
    )


def _hint(shape: tuple[int, ...], spec: InputSpec) -> str:
    for layout in _COMMON_LAYOUTS:
        permutation = InputMap.model_validate({"layout": layout}).permutation or ()
        if len(permutation) == len(shape) and _fits(tuple(shape[axis] for axis in permutation), spec.shape):
            return f"; layout: {layout} would fit"
    return ""


def _check_finite(values: np.ndarray, what: str, first_row: int) -> None:
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), finite.shape)
        raise DataError(
            f"{what}, row {first_row + int(place[0])}: the value is {values[place]} after preprocessing "
            f"({values.size - int(finite.sum())} such values in all); every value must be finite"
        )


def _cast(values: np.ndarray, want: np.dtype[Any], asked: bool, what: str, first_row: int) -> np.ndarray:
    """``values`` (finite) as ``want``; ``asked`` where the job gives the dtype, which allows to cut fractions off."""
    if values.dtype == want:
        return values
    if want.kind == "f":
        cast = values.astype(want)
        _check_finite(cast, f"{what} (as {want})", first_row)
        return cast
    if values.dtype.kind == "f":
        whole = np.trunc(values)
        if not asked and not np.array_equal(whole, values):
            place = np.unravel_index(int(np.argmax(whole != values)), values.shape)
            raise DataError(
                f"{what}, row {first_row + int(place[0])}: the value is {values[place]:g} and the model takes {want}: "
                "the fraction would be lost. Look at from, scale, mean and std; or cut fractions off with "
                f"dtype: {want}"
            )
        values = whole
    low, high = (0, 1) if want.kind == "b" else (np.iinfo(want).min, np.iinfo(want).max)
    smallest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    if smallest < low or largest > high:
        raise DataError(
            f"{what}: the model takes {want} ({low} to {high}), and the values are from {smallest} to {largest}"
        )
    return values.astype(want)
