"""Product quantization of tables: short runs of columns of a row are replaced by the nearest of 256 runs.

Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search" (2011), section II-B: a row is split into
sub-vectors, each quantized with a codebook of its own, found by k-means. Rows are divided by their root mean square
first, so that a row's relative error does not depend on its length, and every row has the same say: one that the
calibration data lacks is as good as any other.

k-means starts from points drawn by their squared distance (Arthur and Vassilvitskii, "k-means++: The Advantages of
Careful Seeding", 2007), and goes through Lloyd's iterations, most of them on a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

CENTROIDS = 256
"""Entries of a codebook: as many as a byte can tell apart."""

_PEAK = 127
_START, _SAMPLE = 4096, 8192  # rows from which centroids are drawn, and with which most iterations are made
_ON_SAMPLE, _ON_ALL = 12, 4
_CHUNK = 2048  # rows whose distances are held at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductCodes:
    """A table as codes: columns from ``m * sub`` on of a row are ``centroids[m, codes[row, m]] * scale[row]``.

    ``codes`` is uint8 ``[rows, M]`` and ``centroids`` int8 ``[M, entries, sub]``, with at most 256 entries; ``M * sub``
    may exceed ``columns`` by less than ``sub``. ``scale`` is float32 ``[rows]``, not negative, 0 for a row of zeros.
    """

    codes: npt.NDArray[np.uint8]
    centroids: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    columns: int

    def dequantize(self) -> Matrix:
        """The table as the runtime will see it, float32."""
        parts = self.centroids[np.arange(self.codes.shape[1]), self.codes]
        flat = parts.reshape(len(parts), -1)[:, : self.columns]
        return flat.astype(np.float32) * self.scale[:, None]


def width(bits: int) -> int:
    """Columns that share a code of 8 bits."""
    return 8 // bits


def least_rows(bits: int) -> int:
    """Rows from which on a table's codes take more room than its codebooks."""
    return CENTROIDS * width(bits)


def product_codes(table: npt.NDArray[np.floating[Any]], *, bits: int, seed: int = 0) -> ProductCodes:
    """``table`` ``[rows, columns]`` with ``bits`` bits of code (4 or 2) a value.

    Raises ``ValueError``, naming the row, on a NaN or an infinity, and on other bits or shapes.
    """
    if bits not in (4, 2):
        raise ValueError(f"product quantization has 4 or 2 bits, not {bits}")
    values = np.asarray(table, np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"product quantization takes a table of rows, not a weight of shape {values.shape}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(f"the weights of row {int(np.argmin(finite))} hold a NaN or an infinity")
    # Through the largest magnitude: squares of a row's values may neither overflow nor vanish.
    peak = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    unit = values / np.where(peak > 0, peak, 1.0)
    length = np.sqrt(np.mean(unit**2, axis=1, keepdims=True))
    unit /= np.where(length > 0, length, 1.0)
    sub = width(bits)
    padded = np.pad(unit, ((0, 0), (0, -values.shape[1] % sub))).astype(np.float32)
    parts = padded.reshape(len(padded), -1, sub).transpose(1, 0, 2)

    order = np.random.default_rng(seed).permutation(len(padded))
    spread = np.random.default_rng(seed + 1).random(CENTROIDS)
    found = [_centroids(np.ascontiguousarray(part), order, spread) for part in parts]
    factor = _PEAK / max(max(float(np.abs(each).max()) for each in found), 1e-30)
    centroids = np.stack([np.rint(each * factor) for each in found])
    steps = parts * np.float32(factor)
    codes = np.stack([_nearest(part, each) for part, each in zip(steps, centroids, strict=True)], axis=1)
    coded = centroids[np.arange(codes.shape[1]), codes].reshape(len(padded), -1)[:, : values.shape[1]]
    coded = coded.astype(np.float64)
    # The scale of least error for the codes found: <w, q> / <q, q>.
    square = (coded**2).sum(axis=1)
    along = (unit * coded).sum(axis=1)
    scale = np.where(along > 0, along / np.where(square > 0, square, 1.0), 0.0) * (peak * length)[:, 0]
    return ProductCodes(
        codes=codes.astype(np.uint8),
        centroids=centroids.astype(np.int8),
        scale=scale.astype(np.float32),
        columns=values.shape[1],
    )


def _centroids(points: Matrix, order: npt.NDArray[np.intp], spread: npt.NDArray[np.float64]) -> Matrix:
    """The centroids ``[256, sub]`` (or as many as there are points) of ``points`` ``[rows, sub]``."""
    centroids = _drawn(points[order[:_START]], spread)
    for part, iterations in ((points[order[:_SAMPLE]], _ON_SAMPLE), (points, _ON_ALL)):
        for _ in range(iterations):
            nearest = _nearest(part, centroids)
            members = np.bincount(nearest, minlength=len(centroids))
            for column in range(part.shape[1]):
                total = np.bincount(nearest, part[:, column], len(centroids))
                mean = total / np.maximum(members, 1)
                centroids[:, column] = np.where(members > 0, mean, centroids[:, column])
    return centroids


def _drawn(points: Matrix, spread: npt.NDArray[np.float64]) -> Matrix:
    """Points drawn one by one, each by its squared distance to those drawn; ``spread`` in [0, 1) decides which."""
    centroids = np.empty((min(len(spread), len(points)), points.shape[1]), np.float32)
    centroids[0] = points[0]
    distance = ((points - centroids[0]) ** 2).sum(axis=1, dtype=np.float64)
    for index in range(1, len(centroids)):
        running = np.cumsum(distance)
        # Where all points are drawn, the last again: a centroid that none is nearest to does no harm.
        drawn = min(int(np.searchsorted(running, spread[index] * running[-1], side="right")), len(points) - 1)
        centroids[index] = points[drawn]
        distance = np.minimum(distance, ((points - centroids[index]) ** 2).sum(axis=1))
    return centroids


def _nearest(points: Matrix, centroids: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.intp]:
    """The nearest centroid of each point, the first of several: least ``|c|^2 / 2 - x c``."""
    other = centroids.T.astype(np.float32)
    half = (other**2).sum(axis=0) / 2
    found = np.empty(len(points), np.intp)
    for start in range(0, len(points), _CHUNK):
        found[start : start + _CHUNK] = (half - points[start : start + _CHUNK] @ other).argmin(axis=1)
    return found
