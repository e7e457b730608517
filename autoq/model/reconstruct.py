"""Rounds the blocks of a model in order, each layer making up for what rounding did to the layers before it.

A block lies between two tensors that all that follows goes through (Li et al., "BRECQ: Pushing the Limit of
Post-Training Quantization by Block Reconstruction", 2021): a residual block, a transformer's sublayer. Its layers
have the same bits, so each knows what its inputs have become. It is fitted to the float model's outputs in closed
form, its block's shortcut included, and rounded by AdaRound for those inputs. No labels are used.

What comes before a block is not known: other layers are free. On every other batch the block's input is the float
model's, on the rest what the blocks before make of it at the same bits. So an entry depends on the model, the data and
its own scheme, and on no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from autoq.core.layer import Layer
from autoq.core.scheme import BY_BLOCK, WeightSpec
from autoq.errors import DataError, ModelError
from autoq.model.calibrate import without_padding
from autoq.model.graph import Graph, attribute
from autoq.model.moments import SecondMoment, has_moment
from autoq.model.torch_graph import TorchGraph, UnsupportedOperator, nodes_between, one_thread
from autoq.model.torch_ops import Unsupported, kernel_of
from autoq.numerics.asymmetric import JointMoments, corrected
from autoq.numerics.weights import QuantizedWeight, quantize_weight

_DAMPING = 0.01  # towards the weights as they are, as GPTQ damps; more with fewer samples than inputs

ROWS = 256
"""Calibration rows used, at most."""

LIVE_BYTES = 2**30
"""Activations held at once, of both models; fewer rows are used where they take more."""

Batch = Mapping[str, np.ndarray]
_Values = dict[str, torch.Tensor]


def problem(graph: Graph, layer: Layer) -> str:
    """Why the layer cannot be rounded with its block, or nothing."""
    if not has_moment(layer):
        return "no second moments of its inputs can be kept"
    try:
        for node in nodes_between(graph, graph.inputs, [layer.output]):
            kernel_of(node)
    except (UnsupportedOperator, Unsupported) as why:
        return str(why)
    return ""


def reconstruct(
    graph: Graph,
    layers: Sequence[Layer],
    wanted: Sequence[str],
    spec: WeightSpec,
    batches: Iterable[Batch],
    *,
    padding_mask: str | None = None,
    on_layer: Callable[[int], None] = lambda done: None,
) -> dict[str, QuantizedWeight]:
    """The entries of the layers named in ``wanted``, which :func:`problem` lets pass; all layers share ``spec``.

    ``batches`` map input names to arrays; positions where the input ``padding_mask`` is 0 are not looked at.
    ``on_layer`` is told how many of the wanted layers are done. Raises :class:`DataError` for no rows, and
    :class:`ModelError` naming a layer whose weights cannot be quantized.
    """
    names = set(wanted)
    rounded = {layer.node: layer for layer in layers if not problem(graph, layer)}
    with one_thread(), torch.no_grad():
        # All layers', whichever are wanted: how many rows fit must not depend on that.
        part = TorchGraph(graph, outputs=[layer.output for layer in rounded.values()])
        exact, masks = _states(part, batches, padding_mask)
        given = [dict(state) for state in exact]
        walk = _Walk(graph, part, rounded, spec, masks)
        entries: dict[str, QuantizedWeight] = {}
        for index, node in enumerate(part.nodes):
            if index in walk.cuts:
                for before, now in list(zip(exact, given, strict=True))[::2]:
                    now[walk.cuts[index]] = before[walk.cuts[index]]
            for state in exact:
                part.step(index, state, keep=True)
            layer = walk.rounded.get(node.name)
            operands = {}
            if layer is not None and layer.tied_to in entries:
                entries[layer.name] = entries[layer.tied_to]
            elif layer is not None and (layer.name in names or walk.has_layers_before(node.name)):
                entries[layer.name] = walk.entry(layer, index, exact, given)
            if layer is not None and layer.name in entries and walk.has_layers_before(node.name):
                weight = torch.from_numpy(entries[layer.name].dequantize())
                operands = {(layer.node, layer.weight_index): weight}
            for state in given:
                part.step(index, state, operands=operands)
            for state in exact:
                part.forget(index, state)
            if layer is not None:
                on_layer(len(names & entries.keys()))
            if names <= entries.keys():
                break
    return {name: entry for name, entry in entries.items() if name in names}


def _states(
    part: TorchGraph, batches: Iterable[Batch], padding_mask: str | None
) -> tuple[list[_Values], list[np.ndarray | None]]:
    """The inputs of so many batches as :data:`ROWS` and :data:`LIVE_BYTES` allow, and their masks."""
    states: list[_Values] = []
    masks: list[np.ndarray | None] = []
    rows, most = 0, ROWS
    for batch in batches:
        if rows >= most:
            break
        state: _Values = {name: torch.from_numpy(np.array(batch[name])) for name in part.inputs}
        if not states:
            size = max((len(value) for value in state.values() if value.ndim), default=1)
            probe = {**part.constants, **state}
            live = [sum(value.nbytes for value in state.values())]
            constants = sum(value.nbytes for value in part.constants.values())
            for index in range(len(part.nodes)):
                part.step(index, probe)
                live.append(sum(value.nbytes for value in probe.values()) - constants)
            most = min(ROWS, max(size, size * (LIVE_BYTES // (2 * max(*live, 1)))))
        rows += max((len(value) for value in state.values() if value.ndim), default=1)
        states.append({**part.constants, **state})
        masks.append(None if padding_mask is None else np.asarray(batch[padding_mask]) != 0)
    if not states:
        raise DataError("data.calibration holds no rows")
    return states, masks


class _Walk:
    """What the order of ``part``'s nodes says: where blocks begin, and which layers have others before them."""

    def __init__(
        self,
        graph: Graph,
        part: TorchGraph,
        rounded: Mapping[str, Layer],
        spec: WeightSpec,
        masks: Sequence[np.ndarray | None],
    ) -> None:
        self.graph, self.part, self.rounded, self.spec, self.masks = graph, part, rounded, spec, masks
        behind: dict[str, bool] = {}  # tensors that hang on a layer
        self._follows: set[str] = set()
        weights = {name for name, values in graph.initializers.items() if len(values.dims) > 1}
        for node in part.nodes:
            if any(behind.get(name) for name in node.input):
                self._follows.add(node.name)
            has_weight = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather") and bool(
                weights & set(node.input)
            )
            for name in node.output:
                behind[name] = has_weight or node.name in self._follows
        last = {name: index for index, node in enumerate(part.nodes) for name in node.input}
        live: set[str] = set()
        self.cuts: dict[int, str] = {}
        for index, node in enumerate(part.nodes):
            live = {name for name in live if last.get(name, -1) >= index}
            if len(live) == 1:
                self.cuts[index] = next(iter(live))
            live |= {name for name in node.output if behind.get(name)}

    def has_layers_before(self, node: str) -> bool:
        """Whether the node's inputs hang on a layer; the first one is kept at more bits by custom."""
        return node in self._follows

    def entry(self, layer: Layer, index: int, exact: Sequence[_Values], given: Sequence[_Values]) -> QuantizedWeight:
        """The layer's weights for the inputs ``given``, to make the outputs ``exact``."""
        weight = self.graph.constant(layer.weight)
        assert weight is not None
        sampler = SecondMoment.of_layer(layer, self.graph)
        shape = (layer.groups, layer.channels // layer.groups, sampler.inputs.columns)
        moments = JointMoments.empty(shape[0], shape[2], shape[1], centred=self.spec.bias_correction == "empirical")
        scale = float(attribute(self.graph.nodes[layer.node], "alpha", 1.0)) or 1.0
        for truth, state, mask in zip(exact, given, self.masks, strict=True):
            plain = self.part.kernel(index)(*(state[name] if name else None for name in self.part.nodes[index].input))
            missing = truth[layer.output] - plain
            other = self._shortcut(layer, truth, state)
            if other is not None:
                missing = missing + truth[other] - state[other]
            pair = [state[layer.input].numpy(), (missing / scale).numpy()]
            if mask is not None:
                pair = [without_padding(values, mask) for values in pair]
            moments.update(sampler.patches(pair[0]), sampler.outputs(pair[1]))
        # What is missing is fitted from nothing, and added: so a bias, which is not rounded, stays out of it.
        damping = _DAMPING + shape[2] / max(moments.count, 1)
        shift, _ = corrected(np.zeros(shape), moments, damping)
        hessian, _ = moments.covariances()
        moved = np.moveaxis(weight, layer.channel_axis, 0)
        fitted = (moved.reshape(shape) + shift).reshape(moved.shape)
        fitted_weight = np.ascontiguousarray(np.moveaxis(fitted, 0, layer.channel_axis), np.float32)
        try:
            return quantize_weight(
                fitted_weight,
                bits=self.spec.bits,
                axis=None if self.spec.granularity == "tensor" else layer.channel_axis,
                rounding=BY_BLOCK[self.spec.rounding],
                hessian=hessian,
                groups=layer.groups,
                output_axis=layer.channel_axis,
            )
        except ValueError as error:
            raise ModelError(f"layer {layer.name!r}: {error}") from None

    def _shortcut(self, layer: Layer, truth: _Values, state: _Values) -> str | None:
        """The tensor that is added to the layer's output and known before it, past additions of constants."""
        tensor = layer.output
        while True:
            node = self.graph.sole_consumer(tensor)
            if node is None or node.op_type not in ("Add", "Sum") or len(node.input) != 2:
                return None
            other = node.input[1] if node.input[0] == tensor else node.input[0]
            if other not in self.graph.initializers:
                known = other in state and other in truth and other != tensor
                return other if known and truth[other].shape == truth[layer.output].shape else None
            tensor = node.output[0]
