"""Rounds the layers of one candidate anew, in order, each for the inputs that it really gets.

Bank entries are rounded for the float model's inputs, and know nothing of each other. Here the candidate itself runs,
on the runtime, with what was polished so far; each layer is rounded to give the float model's outputs from the
inputs that come out of that (:mod:`autoq.numerics.asymmetric`), and its bias takes up the mean of the error that is
left. Where a residual sum follows, the layer also makes up for what the other summand lost. No labels are used. A
layer whose outputs on rows held out come no nearer to what they should be keeps its weights and bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from autoq.core.layer import Layer
from autoq.core.policy import Policy
from autoq.core.scheme import BLOCKS, BY_BLOCK, WeightSpec
from autoq.model.calibrate import without_padding
from autoq.model.corrections import added_bias, bias_problem
from autoq.model.graph import Graph
from autoq.model.lower import Lowering
from autoq.model.moments import MOST_COLUMNS, SecondMoment
from autoq.model.segments import Batch, Segments
from autoq.numerics.affine import half
from autoq.numerics.asymmetric import DAMPINGS, JointMoments, best_bias, corrected
from autoq.numerics.weights import QuantizedWeight, quantize_weight

_OTHER_FORM = "another form of it stands in the file"
_ROUNDED = ("nearest", "gptq", "adaround", *BY_BLOCK, "kmeans")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPolish:
    """What came of one quantized layer. ``skipped`` says why it was not tried, if it was not.

    ``before`` and ``after`` are the squared errors of its outputs on the rows held out, relative to the power of its
    float outputs; ``kept`` whether the new numbers are.
    """

    layer: str
    before: float | None = None
    after: float | None = None
    kept: bool = False
    skipped: str = ""


def polish(
    lowering: Lowering,
    policy: Policy,
    fit: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    padding_mask: str | None = None,
    threads: int = 1,
    on_layer: Callable[[LayerPolish], None] = lambda layer: None,
) -> tuple[Lowering, tuple[LayerPolish, ...]]:
    """``lowering`` with numbers of its own for ``policy``, and what became of each quantized layer.

    Layers are fitted on the batches ``fit`` (input name -> array) and judged on ``held_out``, without the positions
    where the input ``padding_mask`` is 0. Raises :class:`autoq.errors.TrialError` where the candidate or the float
    model does not run.
    """
    own = dataclasses.replace(lowering, bank=dict(lowering.bank), corrections=dict(lowering.corrections))
    run = _Run(
        lowering=own,
        policy=policy,
        float32=Segments(lowering.formed.model, [*fit, *held_out], threads=threads),
        candidate=Segments(_parsed(own, policy), [*fit, *held_out], threads=threads),
        fitted=len(fit),
        masks=[None if padding_mask is None else np.asarray(each[padding_mask]) != 0 for each in (*fit, *held_out)],
    )
    results = []
    for layer, spec in _quantized(lowering, policy):
        results.append(run.layer(layer, spec))
        on_layer(results[-1])
    return own, tuple(results)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One polish under way: the numbers so far, and how far both models have run. ``fitted`` batches come first."""

    lowering: Lowering
    policy: Policy
    float32: Segments
    candidate: Segments
    fitted: int
    masks: Sequence[np.ndarray | None]

    def layer(self, layer: Layer, spec: WeightSpec) -> LayerPolish:
        """Polishes one layer; in graph order."""
        lowering, key = self.lowering, (layer.name, spec)
        why = problem(lowering, layer, spec)
        node, exact = self.candidate.node(layer.node), self.float32.node(layer.node)
        written = node is not None and node.op_type in (layer.op_type, "MatMulInteger")
        if why or node is None or not written or exact is None or exact.output[0] != layer.output:
            return LayerPolish(layer=layer.name, skipped=why or _OTHER_FORM)
        moments = self._moments(layer, node)
        if moments is None:
            return LayerPolish(layer=layer.name, skipped=_OTHER_FORM)
        fit, held = moments
        old = lowering.bank[key]
        old_bias = _bias(lowering, layer, spec)
        weight = lowering.formed.constant(layer.weight)
        assert weight is not None
        # Smoothed weights belong to smoothed inputs: what stands for them in the file is where to start from.
        start = weight if spec.smoothing is None else old.dequantize()
        power = held.power() or 1.0
        before = float(held.error(_rows(layer, old.dequantize()), old_bias).sum() / power)
        after = []
        for damping in DAMPINGS:
            new = _rounded(layer, spec, *corrected(_rows(layer, start), fit, damping))
            rows = _rows(layer, new.dequantize())
            bias = best_bias(rows, fit) if fit.centred else old_bias
            after.append(float(held.error(rows, bias).sum() / power))
            if after[-1] < before:
                lowering.bank[key] = new  # type: ignore[index]
                if fit.centred:
                    shift = bias.reshape(-1) - _own_bias(lowering.formed, layer)
                    lowering.corrections[key] = shift.astype(np.float32)  # type: ignore[index]
                self.candidate.replace(_parsed(lowering, self.policy))
                break
        return LayerPolish(layer=layer.name, before=before, after=min(after), kept=min(after) < before)

    def _moments(self, layer: Layer, node: onnx.NodeProto) -> tuple[JointMoments, JointMoments] | None:
        """Of what the layer gets and should give, on the rows to fit and on those held out.

        ``None`` where what it gets in the file is laid out otherwise than its weight.
        """
        graph = self.lowering.formed
        sampler = SecondMoment.of_layer(layer, graph)
        rows, centred = layer.channels // layer.groups, _has_bias(graph, layer)
        fit, held = (JointMoments.empty(layer.groups, sampler.inputs.columns, rows, centred=centred) for _ in range(2))
        # Where ranges are found at run time, what is read before that: its integers have no fixed meaning.
        tensors = (node.input[0].removesuffix("::dyn"), *self._other_summand(layer))
        inputs = self.candidate.upto(layer.node, [tensors[0], *tensors[2:]])
        outputs = self.float32.upto(layer.node, [layer.output, *tensors[1:2]], after=True)
        for index, (own, exact, mask) in enumerate(zip(inputs, outputs, self.masks, strict=True)):
            given, wanted = own[0], exact[0] if len(exact) == 1 else exact[0] + (exact[1] - own[1])
            if mask is not None:
                given, wanted = without_padding(given, mask), without_padding(wanted, mask)
            part, patches = fit if index < self.fitted else held, sampler.patches(given)
            if patches.shape[2] != sampler.inputs.columns:
                return None
            part.update(patches, sampler.outputs(wanted))
        return fit, held

    def _other_summand(self, layer: Layer) -> tuple[str, ...]:
        """What a residual sum adds to the layer's output: its name in the float model and in the candidate.

        Nothing where no such sum follows, or where a later layer makes it: that one then makes up for this one.
        """
        graph = self.lowering.formed
        added = added_bias(graph, layer) if layer.op_type == "MatMul" else None
        output = layer.output if added is None else added[0].output[0]
        add = graph.sole_consumer(output)
        if add is None or add.op_type != "Add" or set(add.input) & set(graph.initializers):
            return ()
        index = 1 if add.input[0] == output else 0
        node = self.candidate.node(add.name)
        if node is None or node.op_type not in ("Add", "Sum") or len(node.input) != 2:
            return ()
        other = add.input[index]
        same = graph.shapes.get(other) == graph.shapes.get(layer.output) is not None
        later = {each.node for each in self.lowering.layers[self.lowering.layers.index(layer) :]}
        if not same or later & {each.name for each in _ancestors(graph, other)}:
            return ()
        return other, node.input[index]


def problem(lowering: Lowering, layer: Layer, spec: WeightSpec) -> str:
    """Why the layer's weights cannot be rounded anew, or nothing."""
    matrix = layer.op_type in ("Gemm", "MatMul") and len(layer.weight_shape) == 2
    if layer.weight_index != 1 or not (layer.op_type == "Conv" or matrix):
        return f"there is no rounding of {layer.kind} weights that sees their inputs"
    if layer.parameters // layer.channels > MOST_COLUMNS:
        return f"{layer.parameters // layer.channels} inputs are too many"
    if sum(other.weight == layer.weight for other in lowering.layers) > 1:
        return "other layers use its weight, too"
    if layer.bias is not None and bias_problem(lowering.formed, layer):
        return bias_problem(lowering.formed, layer)
    if spec.rounding not in _ROUNDED or spec.granularity in BLOCKS:
        return "its weights are stored in a form that is not rounded anew"
    return ""


def _rounded(layer: Layer, spec: WeightSpec, target: np.ndarray, hessian: np.ndarray) -> QuantizedWeight:
    """``target`` ``[groups, rows, K]`` as the bank would store it, rounded under ``hessian`` ``[groups, K, K]``."""
    moved = [layer.channels, *(n for axis, n in enumerate(layer.weight_shape) if axis != layer.channel_axis)]
    weight = np.moveaxis(target.reshape(moved), 0, layer.channel_axis)
    found = quantize_weight(
        np.ascontiguousarray(weight, np.float32),
        bits=spec.bits,
        axis=layer.channel_axis if spec.granularity == "channel" else None,
        rounding="kmeans" if spec.rounding == "kmeans" else "gptq",
        hessian=hessian,
        groups=layer.groups,
        output_axis=layer.channel_axis,
    )
    return dataclasses.replace(found, scale=half(found.scale))


def _rows(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """``weight`` as float64 ``[groups, rows, K]``."""
    moved = np.moveaxis(weight, layer.channel_axis, 0)
    return np.ascontiguousarray(moved, np.float64).reshape(layer.groups, layer.channels // layer.groups, -1)


def _has_bias(graph: Graph, layer: Layer) -> bool:
    """Whether there is a constant that can take up a mean error without another node."""
    return layer.bias is not None or (layer.op_type == "MatMul" and added_bias(graph, layer) is not None)


def _own_bias(graph: Graph, layer: Layer) -> np.ndarray:
    """What the float layer's own output holds of a bias, float64 ``[channels]``."""
    bias = None if layer.bias is None else graph.constant(layer.bias)
    return np.zeros(layer.channels) + (0.0 if bias is None else np.asarray(bias, np.float64).reshape(-1))


def _bias(lowering: Lowering, layer: Layer, spec: WeightSpec) -> np.ndarray:
    """The candidate's bias as ``[groups, rows]``, less a constant that an Add behind the layer has anyway."""
    bias = _own_bias(lowering.formed, layer) + lowering.corrections.get((layer.name, spec), 0.0)
    return bias.reshape(layer.groups, -1)


def _quantized(lowering: Lowering, policy: Policy) -> Iterator[tuple[Layer, WeightSpec]]:
    """The layers that store integers, in graph order. A look-up has no inputs that could be wrong."""
    schemes = dict(policy)
    for layer in lowering.layers:
        weight = schemes[layer.name].weight
        if weight is not None and weight.bits != 16 and layer.op_type != "Gather":
            yield layer, weight


def _ancestors(graph: Graph, tensor: str) -> Iterator[onnx.NodeProto]:
    """The nodes that ``tensor`` hangs on."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is not None:
            yield node
            waiting.extend(name for name in node.input if name and name not in seen)
            seen.update(node.input)


def _parsed(lowering: Lowering, policy: Policy) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(lowering.build(policy))
