"""The search space: which schemes each layer may take.

:func:`load_space` reads version 1 of the format, which docs/search-spaces.md explains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from autoq.core.layer import LAYER_OPS
from autoq.core.scheme import Scheme
from autoq.errors import JobError
from autoq.spec.checking import AsTuple, Fields, Text, nearest, show, validate
from autoq.spec.document import read_mapping
from autoq.spec.resources import find_named
from autoq.spec.schemes import nearest_scheme, parse_schemes

Equalization = Literal["none", "cross-layer"]
"""What is done to a model before its weights are quantized; see :mod:`autoq.model.equalize`."""

Texts = Annotated[tuple[Text, ...], AsTuple, Field(min_length=1, examples=["[float32, w8a8@minmax]"])]


class _RuleFields(Fields):
    match: Text = "*"
    op: Annotated[tuple[Text, ...], AsTuple, Field(min_length=1)] = LAYER_OPS
    schemes: Texts


class _SpaceFields(Fields):
    version: Literal[1] = Field(examples=[1])
    name: Text
    description: str = ""
    schemes: Texts
    rules: Annotated[tuple[_RuleFields, ...], AsTuple] = ()
    seeds: Texts | None = None
    equalization: Equalization = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Layers whose name matches ``match`` and whose op is among ``op`` take ``schemes`` in place of the space's."""

    match: str
    op: tuple[str, ...]
    schemes: tuple[Scheme, ...]

    def applies(self, layer: str, op_type: str) -> bool:
        """Whether the rule is for this layer. ``*`` matches slashes too; a literal ``[`` is written ``[[]``."""
        return op_type in self.op and fnmatchcase(layer, self.match)

    def __str__(self) -> str:
        return self.match if set(self.op) >= set(LAYER_OPS) else f"{self.match} ({', '.join(self.op)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The schemes of every layer, and ``seeds``: those whose uniform policies are evaluated first.

    ``equalization`` concerns the model as a whole, all candidates alike.
    """

    name: str
    description: str
    schemes: tuple[Scheme, ...]
    rules: tuple[Rule, ...]
    seeds: tuple[Scheme, ...]
    equalization: Equalization = "none"

    def schemes_for(self, layer: str, op_type: str) -> tuple[Scheme, ...]:
        """What the layer may become: the schemes of the first rule that applies, else the space's."""
        for rule in self.rules:
            if rule.applies(layer, op_type):
                return rule.schemes
        return self.schemes

    def unmatched(self, layers: Iterable[tuple[str, str]]) -> list[str]:
        """The rules, as text, that come first for none of ``layers`` (name, op type): most likely each is a typo.

        Not so those for every name: a model need not have each op.
        """
        used = {
            next((number for number, rule in enumerate(self.rules) if rule.applies(*layer)), None) for layer in layers
        }
        return [str(rule) for number, rule in enumerate(self.rules) if number not in used and rule.match != "*"]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it; the space's identity. The name and description do not change what it is."""
        # Not named where there is none, so that runs from before it go on.
        equalization = {} if self.equalization == "none" else {"equalization": self.equalization}
        return equalization | {
            "schemes": [str(scheme) for scheme in self.schemes],
            "rules": [
                {"match": rule.match, "op": list(rule.op), "schemes": [str(scheme) for scheme in rule.schemes]}
                for rule in self.rules
            ],
            "seeds": [str(scheme) for scheme in self.seeds],
        }


def load_space(name_or_path: str | Path, base_dir: str | Path) -> Space:
    """The space of that name, or in the YAML file at that path relative to ``base_dir``.

    Raises :class:`JobError`, which lists every problem and names the nearest scheme, op or field for a typo.
    """
    path = find_named("search_spaces", name_or_path, Path(base_dir))
    fields = validate(_SpaceFields, read_mapping(path, "search space"), str(path))
    problems: list[str] = []

    def parsed(texts: tuple[str, ...], field: str) -> tuple[Scheme, ...]:
        try:
            return parse_schemes(texts, f"{path}: {field}")
        except JobError as error:
            problems.append(str(error))
            return ()

    schemes = parsed(fields.schemes, "schemes")
    rules = []
    for number, rule in enumerate(fields.rules):
        for op in rule.op:
            if op not in LAYER_OPS:
                known = ", ".join(LAYER_OPS)
                problems.append(
                    f"{path}: rules[{number}].op: no layer is a {show(op)}{nearest(op, LAYER_OPS)}; known: {known}"
                )
        rules.append(Rule(match=rule.match, op=rule.op, schemes=parsed(rule.schemes, f"rules[{number}].schemes")))
    seeds = parsed(fields.seeds, "seeds") if fields.seeds is not None else schemes
    reachable = set(schemes).union(*(rule.schemes for rule in rules))
    if not problems:
        problems += [
            f"{path}: seeds: {seed} is in no list of schemes, so no layer may take it{nearest_scheme(str(seed))}"
            for seed in seeds
            if seed not in reachable
        ]
    if problems:
        raise JobError("\n".join(problems))
    return Space(
        name=fields.name,
        description=fields.description.strip(),
        schemes=schemes,
        rules=tuple(rules),
        seeds=seeds,
        equalization=fields.equalization,
    )
