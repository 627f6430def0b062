"""Dimensions as integers times symbols: 12 * batch * seq. Arithmetic that reshapes need, nothing more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

Dim = int | ir.SymbolicDim

# names of symbols joined by '*'; anything else (Min(512, seq), 2*s + 1) is one opaque symbol
_MONOMIAL = re.compile(r"\w+(\s*\*\s*\w+)*")


@dataclass(frozen=True)
class Monomial:
    """`factor` times the product of `symbols`."""

    factor: int = 1
    symbols: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(dim: Dim | str) -> Monomial | None:
        """A dimension as a monomial, None if it is anonymous."""
        if isinstance(dim, int):
            return Monomial(dim)
        text = dim if isinstance(dim, str) else dim.value
        if text is None:
            return None
        if not _MONOMIAL.fullmatch(text):
            return Monomial(1, Counter([text]))
        factor, symbols = 1, Counter[str]()
        for part in (piece.strip() for piece in text.split("*")):
            if part.isdigit():
                factor *= int(part)
            else:
                symbols[part] += 1
        return Monomial(factor, symbols)

    @property
    def is_static(self) -> bool:
        """Whether no symbol is left."""
        return not self.symbols

    def __mul__(self, other: Monomial) -> Monomial:
        return Monomial(self.factor * other.factor, self.symbols + other.symbols)

    def divide(self, other: Monomial) -> Monomial | None:
        """The quotient where it is a monomial again, else None."""
        if other.factor == 0 or self.factor % other.factor or other.symbols - self.symbols:
            return None
        return Monomial(self.factor // other.factor, self.symbols - other.symbols)

    def to_dim(self) -> Dim:
        """An integer, or a symbol with a canonical name such as `4*batch`."""
        if self.is_static:
            return self.factor
        names = sorted(self.symbols.elements())
        return ir.SymbolicDim("*".join([str(self.factor), *names] if self.factor != 1 else names))


def product(dims: Iterable[Dim]) -> Monomial | None:
    """How many elements a run of dimensions spans, None if one of them is anonymous."""
    total = Monomial()
    for dim in dims:
        monomial = Monomial.of(dim)
        if monomial is None:
            return None
        total = total * monomial
    return total


def same_dim(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are provably equal."""
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    return left.value is not None and Monomial.of(left) == Monomial.of(right)


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values provably have the same shape."""
    if left.shape is None or right.shape is None:
        return False
    return len(left.shape) == len(right.shape) and all(map(same_dim, left.shape, right.shape))
