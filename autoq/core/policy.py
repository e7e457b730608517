"""A policy: one scheme for every layer. Its identity is its content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autoq.core.identity import content_id
from autoq.core.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Policy(Mapping[str, Scheme]):
    """Layer name -> scheme, in the model's order. Hashable; equal when every layer has the same scheme."""

    items_: tuple[tuple[str, Scheme], ...]

    @classmethod
    def of(cls, schemes: Mapping[str, Scheme]) -> Policy:
        """The policy of a mapping from layer name to scheme."""
        return cls(tuple(schemes.items()))

    @classmethod
    def uniform(cls, layers: list[str], scheme: Scheme) -> Policy:
        """The same scheme for every layer."""
        return cls(tuple((layer, scheme) for layer in layers))

    @classmethod
    def from_text(cls, texts: Mapping[str, str]) -> Policy:
        """The policy that ``to_text`` wrote."""
        return cls(tuple((layer, Scheme.parse(text)) for layer, text in texts.items()))

    def to_text(self) -> dict[str, str]:
        """Layer name -> scheme text: the readable form used in every file and table."""
        return {layer: str(scheme) for layer, scheme in self.items_}

    @property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the policy's canonical JSON."""
        return content_id(self.to_text())[:12]

    def __getitem__(self, layer: str) -> Scheme:
        for name, scheme in self.items_:
            if name == layer:
                return scheme
        raise KeyError(layer)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)
