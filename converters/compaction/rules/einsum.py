"""Rule for Einsum: letters of the result are tied, letters that are summed contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, axes_of, rank
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Contract, Relation, Tie
from converters.compaction.rules.common import axis_of, string_attribute


def parse_equation(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]] | None:
    """One label per dimension of each operand and of the result; dimensions of an ellipsis are numbered from its end.

    Returns: None if the equation does not fit the ranks.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    operands: list[list[str]] = []
    widest = 0
    for term, size in zip(terms, ranks, strict=True):
        width = size - len(term.replace("...", ""))
        if width < 0 or (width > 0 and "..." not in term):
            return None
        widest = max(widest, width)
        operands.append(_labels(term, width))
    if arrow:
        return operands, _labels(right, widest)
    letters = [letter for term in terms for letter in term.replace("...", "")]
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return operands, [*_labels("..." if "..." in left else "", widest), *once]


def _labels(term: str, width: int) -> list[str]:
    before, dots, after = term.partition("...")
    middle = [f"...{k}" for k in range(width, 0, -1)] if dots else []
    return [*before, *middle, *after]


@rule("Einsum")
def relate_einsum(node: ir.Node) -> list[Relation] | Refusal:
    """Result[free letters] = sum over the other letters of the product of the operands."""
    inputs = [value for value in node.inputs if value is not None]
    output = node.outputs[0]
    ranks = [size for value in inputs if (size := rank(value)) is not None]
    if len(ranks) != len(node.inputs) or rank(output) is None:
        return Refusal("the shapes around this Einsum are not known")
    equation = string_attribute(node, "equation", "")
    parsed = parse_equation(equation, ranks)
    if parsed is None or len(parsed[1]) != rank(output):
        return Refusal(f"the equation '{equation}' does not fit the operands of this Einsum")
    operands, result = parsed
    if any(len(set(labels)) != len(labels) for labels in (*operands, result)):
        return Refusal(f"the equation '{equation}' takes a diagonal")
    if len(set(inputs)) != len(inputs):
        return Refusal("an Einsum of a value with itself is kept whole")
    relations: list[Relation] = []
    for label in dict.fromkeys(label for labels in operands for label in labels):
        axes = [
            axis
            for value, labels in zip(inputs, operands, strict=True)
            if label in labels and (axis := axis_of(value, labels.index(label))) is not None
        ]
        if not axes:
            continue
        if label in result:
            target = axis_of(output, result.index(label))
            if target is None or any(axis.size != target.size for axis in axes):
                return Refusal(f"the letter '{label}' of this Einsum has different lengths")
            relations.append(Tie(node, axes, [target], _zero_if_any_is_zero(axes)))
        elif len(axes) <= 2 and len({axis.size for axis in axes}) == 1:
            weight = axes[1] if len(axes) == 2 else None
            relations.append(Contract(node, axes[0], weight, fold="zero", reads=_reads(axes[0], output)))
    return relations


def _zero_if_any_is_zero(axes: list[Axis]) -> Callable[[Facts], Constants]:
    def transfer(facts: Facts) -> Constants:
        zero = np.zeros(axes[0].size, bool)
        for axis in axes:
            zero |= facts.is_zero(axis)
        return np.where(zero, 0.0, np.nan)

    return transfer


def _reads(data: Axis, output: ir.Value) -> Callable[[Liveness, Facts], Mask]:
    def reads(live: Liveness, facts: Facts) -> Mask:
        # an output of which some axis is not needed at all has no reader
        return np.full(data.size, all(live.needed(axis).any() for axis in axes_of(output)))

    return reads
