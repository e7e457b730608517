"""What each layer may become: the space's schemes, less what the model or the hardware profile forbids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from autoq.core.layer import Layer
from autoq.core.op_rules import op_problem
from autoq.core.scheme import BY_BLOCK, FLOAT32, ActivationSpec, Scheme, WeightSpec
from autoq.errors import ProfileError, TrialError
from autoq.model.analytic import analytic_means, analytic_problem, assumed_inputs
from autoq.model.corrections import bias_problem
from autoq.model.floats import floats_problem
from autoq.model.graph import Graph
from autoq.model.moments import has_moment
from autoq.model.opset import INT2_IR_VERSION, INT2_OPSET, TARGET_OPSET, raise_opset
from autoq.model.smoothing import smoothing_problem
from autoq.numerics.product import least_rows
from autoq.runtime.ort import open_session
from autoq.spec.hardware import Profile
from autoq.spec.space import Space

_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """One layer's choices in the space's order, and the schemes that it cannot have, each with the reason.

    ``replaced`` has the schemes of the space for which another stands in, and that one, whether kept or refused.
    """

    layer: Layer
    schemes: tuple[Scheme, ...]
    refused: tuple[tuple[Scheme, str], ...] = ()
    replaced: tuple[tuple[Scheme, Scheme], ...] = ()


def candidates(
    graph: Graph, layers: Sequence[Layer], space: Space, profile: Profile, opset: int
) -> tuple[Candidates, ...]:
    """The candidates of every layer. A layer left with no scheme stays float32.

    Raises :class:`ProfileError` when no layer has a choice at all.
    """
    found = all_candidates(graph, layers, space, profile, opset)
    if all(entry.schemes == (FLOAT32,) for entry in found):
        why = next((reason for entry in found for _, reason in entry.refused), "the space offers float32 only")
        raise ProfileError(
            f"profile {profile.name!r} and space {space.name!r} leave every layer in float32: there is nothing to "
            f"search. For one: {why}. `autoq layers MODEL` shows all reasons"
        )
    return found


def all_candidates(
    graph: Graph, layers: Sequence[Layer], space: Space, profile: Profile, opset: int
) -> tuple[Candidates, ...]:
    """As :func:`candidates`, also where no layer has a choice."""
    listed = {scheme for layer in layers for scheme in space.schemes_for(layer.name, layer.op_type)}
    int2_problem = _int2_problem(graph, opset) if any(map(_has_int2, listed)) else ""
    kinds = {scheme.weight.bias_correction for scheme in listed if scheme.weight is not None} - {None}
    problems: dict[str, dict[str, str]] = {}
    for kind in kinds:
        known = analytic_means(graph, layers, assumed_inputs(graph)) if kind == "analytic" else None
        for name, why in _bias_problems(graph, layers, known).items():
            problems.setdefault(name, {})[str(kind)] = why
    return tuple(
        _candidates(graph, layer, space, profile, opset, int2_problem, problems.get(layer.tied_to or layer.name, {}))
        for layer in layers
    )


def weight_specs(found: Sequence[Candidates]) -> list[tuple[Layer, WeightSpec]]:
    """What the bank must hold: every layer's integer weight schemes; a tied layer uses the first one's."""
    wanted: dict[tuple[str, WeightSpec], tuple[Layer, WeightSpec]] = {}
    for entry in found:
        if entry.layer.tied_to is None:
            for scheme in entry.schemes:
                if scheme.weight is not None and scheme.weight.bits != 16:
                    wanted[entry.layer.name, scheme.weight] = (entry.layer, scheme.weight)
    return list(wanted.values())


def corrected_specs(found: Sequence[Candidates]) -> list[tuple[Layer, WeightSpec]]:
    """The corrections of biases that policies may ask for: a tied layer's too, whose inputs are its own."""
    schemes = {entry.layer.name: entry.schemes for entry in found}
    return [
        (entry.layer, spec)
        for entry in found
        for spec in dict.fromkeys(scheme.weight for scheme in schemes[entry.layer.tied_to or entry.layer.name])
        if spec is not None and spec.bias_correction
    ]


def activation_specs(found: Sequence[Candidates]) -> list[ActivationSpec]:
    """Every calibrated activation scheme in use, as canonical policies may name it on any tensor."""
    listed = {scheme.calibrated for entry in found for scheme in entry.schemes if scheme.calibrated is not None}
    specs = {dataclasses.replace(spec, smoothing=None) for spec in listed}
    signs = {spec.signed for spec in specs if spec.bits == 8}
    mixed = {dataclasses.replace(spec, signed=signed) for spec in specs if spec.bits == 8 for signed in signs}
    wide = {spec for spec in specs if spec.bits == 16}
    return sorted(mixed | wide, key=lambda spec: (spec.bits, spec.signed, str(spec.calibration)))


def smoothing_strengths(found: Sequence[Candidates]) -> list[float]:
    """Every strength that some layer's inputs may be smoothed with."""
    specs = [scheme.weight for entry in found for scheme in entry.schemes if scheme.weight is not None]
    return sorted({spec.smoothing for spec in specs if spec.smoothing is not None})


def _candidates(
    graph: Graph,
    layer: Layer,
    space: Space,
    profile: Profile,
    opset: int,
    int2_problem: str,
    no_bias: Mapping[str, str],
) -> Candidates:
    kept: dict[Scheme, None] = {}
    refused: list[tuple[Scheme, str]] = []
    replaced: list[tuple[Scheme, Scheme]] = []
    for listed in space.schemes_for(layer.name, layer.op_type):
        scheme = _with_possible_rounding(graph, layer, profile.instead_of(listed))
        if scheme.weight is not None and (problem := no_bias.get(scheme.weight.bias_correction or "", "")):
            scheme = dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, bias_correction=None))
            refused.append((listed, problem))
        if scheme.calibrated is not None and scheme.calibrated.smoothing is not None and smoothing_problem(layer):
            scheme = _unsmoothed(scheme)
            refused.append((listed, smoothing_problem(layer)))
        if scheme != listed:
            replaced.append((listed, scheme))
        why = _model_problem(graph, layer, scheme, opset) or profile.legal(layer.op_type, scheme)
        why = why or profile.misaligned(layer, scheme)
        why = why or (int2_problem if _has_int2(scheme) else "")
        why = why or (profile.probed.problem(layer, scheme) if profile.probed is not None else None)
        if why:
            refused.append((scheme, why))
        else:
            kept.setdefault(scheme)
    return Candidates(layer=layer, schemes=tuple(kept) or (FLOAT32,), refused=tuple(refused), replaced=tuple(replaced))


def _with_possible_rounding(graph: Graph, layer: Layer, scheme: Scheme) -> Scheme:
    """GPTQ and AdaRound need the inputs' second moments; layers that have none are rounded to nearest. One that stands
    behind an operator that rounding by block cannot compute gets AdaRound instead.

    The scheme that comes back says so, in its name. Codebooks do with or without.
    """
    if scheme.weight is None or scheme.weight.rounding in ("nearest", "kmeans", "pq") or has_moment(layer):
        return _with_known_operators(graph, layer, scheme)
    return dataclasses.replace(scheme, weight=dataclasses.replace(scheme.weight, rounding="nearest"))


def _with_known_operators(graph: Graph, layer: Layer, scheme: Scheme) -> Scheme:
    if scheme.weight is None or scheme.weight.rounding not in BY_BLOCK:
        return scheme
    from autoq.model.reconstruct import problem  # PyTorch takes seconds to import, and most spaces need it not

    if not problem(graph, layer):
        return scheme
    return dataclasses.replace(
        scheme, weight=dataclasses.replace(scheme.weight, rounding=BY_BLOCK[scheme.weight.rounding])
    )


def _unsmoothed(scheme: Scheme) -> Scheme:
    assert scheme.weight is not None and scheme.activation is not None
    weight = dataclasses.replace(scheme.weight, smoothing=None)
    return Scheme(weight=weight, activation=dataclasses.replace(scheme.activation, smoothing=None))


def _bias_problems(
    graph: Graph, layers: Sequence[Layer], known: Mapping[str, np.ndarray] | None = None
) -> dict[str, str]:
    """Why biases cannot be corrected, by layer with a weight of its own: tied layers have one scheme.

    ``known`` are the mean inputs that follow from the model, where those are asked for.
    """
    problems: dict[str, str] = {}
    for layer in layers:
        owner = layer.tied_to or layer.name
        why = bias_problem(graph, layer) or (analytic_problem(graph, layer, known) if known is not None else "")
        problems[owner] = problems.get(owner) or why
    return problems


def _int2_problem(graph: Graph, opset: int) -> str:
    """Why no file of this model can hold 2-bit integers, or nothing: the runtime must know all its operators anew."""
    if not TARGET_OPSET <= opset < INT2_OPSET:
        return ""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    raise_opset(model, INT2_OPSET, INT2_IR_VERSION)
    try:
        open_session(model.SerializeToString())
    except TrialError as error:
        return f"2-bit weights need opset {INT2_OPSET}, and in that {error}"
    return ""


def _has_int2(scheme: Scheme) -> bool:
    """Whether the file holds 2-bit integers of ONNX's; blocks and product quantization have bytes."""
    weight = scheme.weight
    return weight is not None and weight.bits == 2 and weight.block is None and weight.rounding != "pq"


def _model_problem(graph: Graph, layer: Layer, scheme: Scheme, opset: int) -> str | None:
    if scheme.activation is not None and layer.integer_problem:
        return layer.integer_problem
    if problem := op_problem(layer.op_type, scheme):
        return problem
    if scheme.floats is not None:
        return floats_problem(layer, scheme.floats)
    if scheme.activation is not None and scheme.activation.dynamic and scheme.activation.smoothing is not None:
        return "smoothing needs what calibration sees: it goes with calibrated ranges, not with '@dynamic'"
    if scheme.weight is not None and scheme.weight.smoothing is not None and scheme.weight.rounding in BY_BLOCK:
        own = scheme.weight.rounding
        return f"'-{own}' fits layers to the inputs of other layers as they are, not smoothed: take '-{BY_BLOCK[own]}'"
    if scheme.weight is not None and scheme.weight.block is not None:
        return _block_problem(layer, scheme.weight)
    if scheme.weight is not None and scheme.weight.rounding == "pq":
        return _product_problem(layer, scheme.weight)
    if scheme.activation is not None and scheme.activation.bits == 16 and opset < TARGET_OPSET:
        return f"the model stayed at opset {opset}; 16-bit activations need {TARGET_OPSET}"
    if scheme.weight is not None and scheme.weight.stored_bits < 8 and opset < TARGET_OPSET:
        return f"the model stayed at opset {opset}; {scheme.weight.bits}-bit weights need {TARGET_OPSET}"
    if scheme.weight is not None and scheme.weight.bits == 16:
        weight = graph.constant(layer.weight)
        assert weight is not None
        if np.abs(weight).max(initial=0.0) > _FLOAT16_MAX:
            return f"a weight exceeds float16's largest value, {_FLOAT16_MAX:g}"
    return None


def _product_problem(layer: Layer, spec: WeightSpec) -> str | None:
    """Why the weights of a layer cannot be product-quantized, or ``None``."""
    rows, least = layer.weight_shape[0], least_rows(spec.bits)
    if rows < least:
        return f"with {rows} rows, codebooks would take more room than codes: '-pq' pays from {least} rows on"
    return None


def _block_problem(layer: Layer, spec: WeightSpec) -> str | None:
    """Why the weights of a layer cannot be stored in blocks, or ``None``."""
    if layer.op_type == "Gather":
        per_byte = 8 // spec.bits
        if layer.weight_shape[1] % per_byte:
            return (
                f"{layer.weight_shape[1]} columns do not fill bytes of {per_byte} values: the runtime reads whole ones"
            )
        return None
    return layer.integer_problem or None  # what keeps a product from being x W + b keeps it from this kernel as well
