"""Reading a JSON document field by field; an error names the file and the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from autoq.errors import RunError


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document, and where it stands (``points[3].latency.batch``).

    Every reading method raises :class:`~autoq.errors.RunError` when the value is of another kind.
    """

    value: Any
    file: str
    where: str

    def fail(self, rule: str) -> NoReturn:
        """Raise: this value breaks ``rule``."""
        if isinstance(self.value, (dict, list)):  # it may be long, and nested deeper than ``repr`` can go
            shown = "an object" if isinstance(self.value, dict) else "a list"
        else:
            shown = repr(self.value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise RunError(f"{self.file} is damaged: {self.where or 'the document'} is {shown} and {rule}")

    @property
    def is_null(self) -> bool:
        """Whether the value is JSON's ``null``."""
        return self.value is None

    def get(self, name: str) -> Node:
        """The field ``name`` of an object."""
        if not isinstance(self.value, dict):
            self.fail("must be an object")
        where = f"{self.where}.{name}" if self.where else name
        if name not in self.value:
            raise RunError(f"{self.file} is damaged: {where} is missing")
        return Node(self.value[name], self.file, where)

    def fields(self) -> list[tuple[str, Node]]:
        """The fields of an object, in the file's order."""
        if not isinstance(self.value, dict):
            self.fail("must be an object")
        return [(name, Node(value, self.file, f"{self.where}[{name!r}]")) for name, value in self.value.items()]

    def items(self) -> list[Node]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self.fail("must be a list")
        return [Node(value, self.file, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            self.fail("must be a text")
        return self.value

    def one_of(self, known: tuple[str, ...]) -> str:
        """A string out of ``known``."""
        if self.value not in known:
            self.fail(f"must be one of {', '.join(known)}")
        return str(self.value)

    def flag(self) -> bool:
        """``true`` or ``false``."""
        if not isinstance(self.value, bool):
            self.fail("must be true or false")
        return self.value

    def integer(self) -> int:
        """A whole number, 0 or more."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < 0:
            self.fail("must be a whole number, 0 or more")
        return self.value

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, (int, float)) and not isinstance(self.value, bool):
            try:
                number = float(self.value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        self.fail("must be a finite number")

    def number_or_none(self) -> float | None:
        """A finite number or ``null``."""
        return None if self.is_null else self.number()

    def pair(self) -> tuple[float, float]:
        """An interval: two finite numbers, the lower first."""
        if not isinstance(self.value, list) or len(self.value) != 2:
            self.fail("must be a list of two numbers")
        low, high = (item.number() for item in self.items())
        if low > high:
            self.fail("must have its lower end first")
        return low, high

    def pair_or_none(self) -> tuple[float, float] | None:
        """An interval or ``null``."""
        return None if self.is_null else self.pair()
