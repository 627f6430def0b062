"""How does an operator state its relations, and what happens to one that nobody described?

A rule is a function `rule(node) -> list[Relation] | Refusal`, registered under operator types. It may come
with a `fixup(edit, node)` that adjusts attributes and operands once the plan is frozen. Operators
without a rule, rules that refuse, and axes that a rule does not mention are kept whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.relations import Relation

if TYPE_CHECKING:
    from converters.compaction.rewrite import Edit


@dataclass(frozen=True)
class Refusal:
    """A rule's answer when it cannot describe this node: everything it touches stays, for this reason."""

    reason: str


RuleFunction = Callable[[ir.Node], "list[Relation] | Refusal"]
FixupFunction = Callable[["Edit", ir.Node], None]
_R = TypeVar("_R", bound=RuleFunction)
_F = TypeVar("_F", bound=FixupFunction)

RULES: dict[str, RuleFunction] = {}
FIXUPS: dict[str, FixupFunction] = {}
# elementwise operators as functions of float64 arrays, given the node; continuous ones only
FUNCTIONS: dict[str, Callable[[ir.Node], Callable[..., NDArray[np.float64]]]] = {}


def operator_key(node: ir.Node) -> str:
    """`Conv` for standard operators, `domain::Operator` for all others."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def rule(*operators: str) -> Callable[[_R], _R]:
    """Register the decorated function as the rule of these operator types."""

    def register(function: _R) -> _R:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"operator {operator} already has a rule, {RULES[operator].__name__}")
            RULES[operator] = function
        return function

    return register


def fixup(*operators: str) -> Callable[[_F], _F]:
    """Register the decorated function as the fixup of these operator types."""

    def register(function: _F) -> _F:
        for operator in operators:
            if operator in FIXUPS:
                raise ValueError(f"operator {operator} already has a fixup, {FIXUPS[operator].__name__}")
            FIXUPS[operator] = function
        return function

    return register
