"""Names of the forms that a graph can be written in; :mod:`autoq.model.forms` has what they are."""

from __future__ import annotations

FORM_NAMES = ("sum-before-norm", "attention", "selecting-conv", "wide-input", "tanh-gelu", "product-bias")
