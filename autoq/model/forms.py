"""Forms of a graph: rewrites that keep what it computes, and that a runtime may execute faster.

A runtime's own fusions and layouts are not always the fastest, and which form is depends on model and machine. So each
form has a name here, a hardware profile says which may be used, and a search measures which of them pay
(:mod:`autoq.search.form_probe`). They are baked into the file: stock session options then give the speed.

A form is one function, in a file of its theme, and one line of :data:`FORMS`. It works at one of two times:

* on the prepared graph, before layers get schemes: where it changes what is carried or computed on integers;
* on a candidate, after: where it depends on which tensors are integers.

``docs/lowering.md`` says what each is for, and what was tried and did not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from autoq.model.draft import Draft
from autoq.model.forms_attention import fuse_attention
from autoq.model.forms_channels import widen_narrow_inputs
from autoq.model.forms_gelu import gelu_by_tanh
from autoq.model.forms_moves import select_by_convolution
from autoq.model.forms_norm import sum_before_norm
from autoq.model.forms_products import bias_in_product
from autoq.model.graph import Graph
from autoq.model.load import opset_of
from autoq.model.opset import raise_opset

Rewrite = Callable[[Draft], int]
"""Rewrites a draft wherever it can; gives back in how many places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form. Exactly one of ``graph`` and ``candidate`` is given: when it is applied.

    ``what`` says what it does, in a line. ``tolerance`` bounds how far a rewritten output may lie from the original, as
    a share of its largest magnitude: 0 means the same bits. ``opset`` and ``ir_version`` are what it needs.
    """

    name: str
    what: str
    tolerance: float
    graph: Rewrite | None = None
    candidate: Rewrite | None = None
    opset: int = 0
    ir_version: int = 0

    def __post_init__(self) -> None:
        assert (self.graph is None) != (self.candidate is None)


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            name="sum-before-norm",
            what="a residual Add before a LayerNormalization is written as Sum, which is not fused with it",
            tolerance=0.0,
            candidate=sum_before_norm,
        ),
        Form(
            name="attention",
            what="products, mask and Softmax of an attention become the operator Attention (opset 23)",
            tolerance=1e-5,
            graph=fuse_attention,
            opset=23,
            ir_version=11,
        ),
        Form(
            name="selecting-conv",
            what="strided slices and channel padding, as in shortcuts, become a selecting convolution or a MaxPool",
            tolerance=0.0,
            graph=select_by_convolution,
        ),
        Form(
            name="wide-input",
            what="input channels of integer convolutions are padded to a multiple of 4, which their kernel needs",
            tolerance=0.0,
            candidate=widen_narrow_inputs,
        ),
        Form(
            name="tanh-gelu",
            what="a Gelu that is quantized right away is computed by tanh instead of erf",
            tolerance=5e-4,
            candidate=gelu_by_tanh,
        ),
        Form(
            name="product-bias",
            what="an integer MatMul and the Add of its bias become the one operator that does both",
            tolerance=1e-6,
            candidate=bias_in_product,
        ),
    )
}


def formed(graph: Graph, names: Iterable[str]) -> Graph:
    """``graph`` in the forms ``names`` that are applied before layers get schemes; other names have no effect here."""
    forms = [FORMS[name] for name in names if FORMS[name].graph is not None]
    draft = Draft.of(graph, opset_of(graph.model))
    used = [form for form in forms if form.graph is not None and form.graph(draft)]
    if not used:
        return graph
    draft.prune()
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(draft.nodes)
    model.graph.initializer.extend(draft.constants.values())
    for form in used:
        raise_opset(model, form.opset, form.ir_version)
    return Graph(model, norms=graph.norms)


def form_candidate(
    graph: Graph, nodes: Sequence[onnx.NodeProto], constants: MutableMapping[str, TensorProto], names: Iterable[str]
) -> list[onnx.NodeProto]:
    """The nodes of a candidate over ``graph`` in the forms ``names`` that are applied last.

    ``nodes`` are the candidate's own, every one needed; ``constants`` its own initializers, to which forms add theirs.
    """
    forms = [FORMS[name] for name in names if FORMS[name].candidate is not None]
    if not forms:
        return list(nodes)
    draft = Draft(
        nodes,
        _Layered(constants, graph.initializers),
        kept=graph.outputs | graph.captured,
        shapes={},
        opset=opset_of(graph.model),
    )
    for form in forms:
        assert form.candidate is not None
        form.candidate(draft)
    return draft.nodes


def forms_that_apply(graph: Graph) -> tuple[str, ...]:
    """The forms applied before layers get schemes that find a place in ``graph``, and every form applied after."""
    return tuple(
        name for name, form in FORMS.items() if form.graph is None or form.graph(Draft.of(graph, opset_of(graph.model)))
    )


class _Layered(dict[str, TensorProto]):
    """Constants of a candidate: its own, over those of its graph. What is added is its own."""

    def __init__(self, own: MutableMapping[str, TensorProto], below: MutableMapping[str, TensorProto]) -> None:
        super().__init__(below)
        self.update(own)
        self._own = own

    def __setitem__(self, name: str, tensor: TensorProto) -> None:
        super().__setitem__(name, tensor)
        self._own[name] = tensor
