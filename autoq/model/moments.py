"""First and second moments of layer inputs.

For a layer ``y = W x`` the error of rounding ``W`` to ``Q`` is ``trace((W - Q) H (W - Q)^T)`` with ``H = E[x x^T]``
(Frantar et al., "GPTQ", 2022, section 3). A convolution is the same on its patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autoq.core.layer import Layer
from autoq.core.scheme import WeightSpec
from autoq.model.graph import Graph, attribute

ROWS = 32
POSITIONS_PER_COLUMN = 64
"""Patches sampled of :data:`ROWS` rows for each row of H: well-conditioned enough, since GPTQ damps it anyway."""

MOST_POSITIONS = 8192
"""At most so many patches of :data:`ROWS` rows; of fewer rows in proportion, however a batch is divided."""

MOST_COLUMNS = 8192
"""Largest K for which H is kept: half a gigabyte, and a minute of linear algebra."""


def has_moment(layer: Layer) -> bool:
    """Whether the layer is ``y = W x`` with one row of H a weight, and there is room for H."""
    matrix = layer.op_type in ("Gemm", "MatMul") and len(layer.weight_shape) == 2 and layer.weight_index == 1
    return (layer.op_type == "Conv" or matrix) and layer.parameters // layer.channels <= MOST_COLUMNS


def sees_data(layer: Layer, spec: WeightSpec) -> bool:
    """Whether rounding the layer's weights by ``spec`` takes the second moments of its inputs."""
    return spec.rounding in ("gptq", "adaround") or (spec.rounding == "kmeans" and has_moment(layer))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """How a layer reads its input: a Conv in patches of ``kernel`` values, the others in rows.

    ``columns`` is K, the inputs of one output channel.
    """

    op_type: str
    groups: int
    columns: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    trans_a: bool = False

    @classmethod
    def of_layer(cls, layer: Layer, graph: Graph) -> LayerInputs:
        """Those of a Conv, Gemm or MatMul whose weight is the right operand."""
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

    def rows(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``values`` of a Gemm or MatMul as ``[rows, K]``."""
        return (values.T if self.trans_a else values).reshape(-1, self.columns)

    def windows(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The patches of a Conv's ``values``, padding and all: a view ``[n, channels, *out, *kernel]``."""
        spatial = len(self.kernel)
        padded = np.pad(values, [(0, 0), (0, 0), *self._padding(values.shape[2:])])
        extent = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + spatial)))
        step: tuple[Any, ...] = tuple(slice(None, None, by) for by in (*self.strides, *self.dilations))
        return windows[(slice(None), slice(None), *step)]

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


@dataclass(slots=True)
class FirstMoment:
    """Sums the inputs of one layer, every patch of every row; ``mean()`` is float64 ``[groups, K]``."""

    inputs: LayerInputs
    seen: int = 0
    total: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros((self.inputs.groups, self.inputs.columns))

    @classmethod
    def of_layer(cls, layer: Layer, graph: Graph) -> FirstMoment:
        """An empty sum; see :meth:`LayerInputs.of_layer`."""
        return cls(LayerInputs.of_layer(layer, graph))

    def update(self, values: npt.NDArray[np.float32]) -> None:
        """Adds one batch of the layer's input: ``[n, channels, *spatial]`` for a Conv, ``[..., K]`` otherwise."""
        if self.inputs.op_type != "Conv":
            rows = self.inputs.rows(values)
            self.total += rows.sum(axis=0, dtype=np.float64)
            self.seen += len(rows)
            return
        # The sum of patches is the patches of the sum: one image, however many rows.
        windows = self.inputs.windows(values.sum(axis=0, dtype=np.float64, keepdims=True))
        spatial = len(self.inputs.kernel)
        self.total += windows.sum(axis=(0, *range(2, 2 + spatial))).reshape(self.total.shape)
        self.seen += len(values) * int(np.prod(windows.shape[2 : 2 + spatial]))

    def mean(self) -> npt.NDArray[np.float64]:
        """The mean of x so far."""
        return self.total / max(self.seen, 1)


@dataclass(slots=True)
class SecondMoment:
    """Sums ``x`` and ``x x^T`` over patches sampled of one layer's input.

    ``matrix()`` is float64 ``[groups, K, K]``, ``mean()`` of the same patches ``[groups, K]``.
    """

    inputs: LayerInputs
    seen: int = 0
    total: npt.NDArray[np.float64] = field(init=False)
    sum: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        groups, columns = self.inputs.groups, self.inputs.columns
        self.total, self.sum = np.zeros((groups, columns, columns)), np.zeros((groups, columns))

    @classmethod
    def of_layer(cls, layer: Layer, graph: Graph) -> SecondMoment:
        """An empty sum; see :meth:`LayerInputs.of_layer`."""
        return cls(LayerInputs.of_layer(layer, graph))

    def update(self, values: npt.NDArray[np.float32]) -> None:
        """Adds one batch of the layer's input: ``[n, channels, *spatial]`` for a Conv, ``[..., K]`` otherwise."""
        patches = self.patches(values)
        # [groups, positions, K]: one matrix product a group, in float32 with a float64 running sum.
        self.total += np.matmul(patches.transpose(0, 2, 1), patches)
        self.sum += patches.sum(axis=1, dtype=np.float64)
        self.seen += patches.shape[1]

    def patches(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What :meth:`update` samples of one batch, ``[groups, positions, K]``."""
        return self._patches(values) if self.inputs.op_type == "Conv" else self._rows(values)

    def outputs(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The layer's output at the positions of :meth:`patches`, ``[groups, positions, channels of a group]``."""
        moved = np.moveaxis(values, 1, -1) if self.inputs.op_type == "Conv" else values
        rows = moved.reshape(-1, moved.shape[-1])
        rows = rows[:: self._stride(len(rows), len(values) if values.ndim > 1 else 1)]
        grouped = rows.reshape(len(rows), self.inputs.groups, -1).transpose(1, 0, 2)
        return np.ascontiguousarray(grouped, np.float32)

    def matrix(self) -> npt.NDArray[np.float64]:
        """The mean of ``x x^T`` so far."""
        return self.total / max(self.seen, 1)

    def mean(self) -> npt.NDArray[np.float64]:
        """The mean of x so far."""
        return self.sum / max(self.seen, 1)

    def _rows(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rows = self.inputs.rows(values)
        batch = values.T if self.inputs.trans_a else values
        return rows[:: self._stride(len(rows), len(batch) if batch.ndim > 1 else 1)][None]

    def _stride(self, positions: int, rows: int) -> int:
        most = min(MOST_POSITIONS, POSITIONS_PER_COLUMN * self.inputs.columns)
        # Odd, so that a stride never walks along one column of an image.
        return -(-positions * ROWS // (rows * most)) | 1

    def _patches(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        groups, kernel = self.inputs.groups, self.inputs.kernel
        windows = self.inputs.windows(values)
        batch, channels, out = windows.shape[0], windows.shape[1], windows.shape[2 : 2 + len(kernel)]
        count = batch * int(np.prod(out))
        positions = np.arange(0, count, self._stride(count, batch))
        where: tuple[Any, ...] = np.unravel_index(positions, (batch, *out))
        picked = windows[(where[0], slice(None), *where[1:])]  # [positions, channels, *kernel]
        grouped = picked.reshape(len(positions), groups, channels // groups * int(np.prod(kernel)))
        return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)
