"""Second moments of layer inputs: the Hessian of the layer's squared output error, up to a factor.

For a layer ``y = W x`` the error of rounding ``W`` to ``Q`` is ``trace((W - Q) H (W - Q)^T)`` with ``H = E[x x^T]``
(Frantar et al., "GPTQ", 2022, section 3). A convolution is the same on its patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.layer import Layer
from autoq.model.graph import Graph, attribute

ROWS = 32
POSITIONS_PER_COLUMN = 64
"""Patches sampled of :data:`ROWS` rows for each row of H: well-conditioned enough, since GPTQ damps it anyway."""

MOST_POSITIONS = 8192
"""At most so many patches of :data:`ROWS` rows; of fewer rows in proportion, however a batch is divided."""

MOST_COLUMNS = 8192
"""Largest K for which H is kept: half a gigabyte, and a minute of linear algebra."""


@dataclass(slots=True)
class SecondMoment:
    """Sums ``x x^T`` over the patches of one layer; ``matrix()`` is float64 ``[groups, K, K]``."""

    op_type: str
    groups: int
    columns: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    trans_a: bool = False
    seen: int = 0
    total: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros((self.groups, self.columns, self.columns))

    @classmethod
    def of_layer(cls, layer: Layer, graph: Graph) -> SecondMoment:
        """An empty sum for a Conv, Gemm or MatMul whose weight is the right operand."""
        node = graph.nodes[layer.node]
        if layer.op_type != "Conv":
            columns = layer.parameters // layer.channels
            return cls(op_type=layer.op_type, groups=1, columns=columns, trans_a=bool(attribute(node, "transA", 0)))
        kernel = layer.weight_shape[2:]
        ones, zeros = [1] * len(kernel), [0] * (2 * len(kernel))
        return cls(
            op_type="Conv",
            groups=layer.groups,
            columns=int(np.prod(layer.weight_shape[1:])),
            kernel=kernel,
            strides=tuple(attribute(node, "strides", ones)),
            dilations=tuple(attribute(node, "dilations", ones)),
            pads=tuple(attribute(node, "pads", zeros)),
            auto_pad=str(attribute(node, "auto_pad", "NOTSET")),
        )

    def update(self, values: npt.NDArray[np.float32]) -> None:
        """Adds one batch of the layer's input: ``[n, channels, *spatial]`` for a Conv, ``[..., K]`` otherwise."""
        patches = self._patches(values) if self.op_type == "Conv" else self._rows(values)
        # [groups, positions, K]: one matrix product a group, in float32 with a float64 running sum.
        self.total += np.matmul(patches.transpose(0, 2, 1), patches)
        self.seen += patches.shape[1]

    def matrix(self) -> npt.NDArray[np.float64]:
        """The mean of ``x x^T`` so far."""
        return self.total / max(self.seen, 1)

    def _rows(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        values = values.T if self.trans_a else values
        rows = values.reshape(-1, self.columns)
        return rows[:: self._stride(len(rows), len(values) if values.ndim > 1 else 1)][None]

    def _stride(self, positions: int, rows: int) -> int:
        most = min(MOST_POSITIONS, POSITIONS_PER_COLUMN * self.columns)
        # Odd, so that a stride never walks along one column of an image.
        return -(-positions * ROWS // (rows * most)) | 1

    def _patches(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        spatial = len(self.kernel)
        padded = np.pad(values, [(0, 0), (0, 0), *self._padding(values.shape[2:])])
        extent = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + spatial)))
        step: tuple[Any, ...] = tuple(slice(None, None, by) for by in (*self.strides, *self.dilations))
        windows = windows[(slice(None), slice(None), *step)]  # [n, channels, *out, *kernel], a view
        batch, channels, out = windows.shape[0], windows.shape[1], windows.shape[2 : 2 + spatial]
        count = batch * int(np.prod(out))
        positions = np.arange(0, count, self._stride(count, batch))
        where: tuple[Any, ...] = np.unravel_index(positions, (batch, *out))
        picked = windows[(where[0], slice(None), *where[1:])]  # [positions, channels, *kernel]
        per_group = channels // self.groups
        grouped = picked.reshape(len(positions), self.groups, per_group * int(np.prod(self.kernel)))
        return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)

    def _padding(self, size: tuple[int, ...]) -> list[tuple[int, int]]:
        spatial = len(self.kernel)
        if self.auto_pad in ("NOTSET", ""):
            return [(self.pads[i], self.pads[i + spatial]) for i in range(spatial)]
        if self.auto_pad == "VALID":
            return [(0, 0)] * spatial
        padding = []
        for n, k, s, d in zip(size, self.kernel, self.strides, self.dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return padding
