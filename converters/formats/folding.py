"""How do masks and gates, stored beside the parameters, become exact zeros in the parameters themselves?

A gate z on an output unit of a linear layer or convolution is z * (W x + b) = (z W) x + z b, one on an input unit is
W (z * x) + b = (W z) x + b, so a fixed gate is multiplied into the rows or the columns of W. The product is computed
in float64 and rounded once; z = 0 gives exact zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from converters.sources import Candidate, GateGroup, SourceOptions
from converters.torch_files import check_plain
from l0runtime.errors import GateParameterError, ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from l0runtime.gates.evaluation import EvaluationRule

Value = TypeVar("Value")


def scale(parameter: Tensor, z: Tensor, dim: int) -> Tensor:
    """`parameter` times z along axis `dim`, whose length z has."""
    shape = [1] * parameter.dim()
    shape[dim] = z.numel()
    return (parameter.double() * z.double().reshape(shape)).to(parameter.dtype)


def apply_mask(parameter: Tensor, mask: Tensor, name: str, path: Path) -> Tensor:
    """`parameter` times a mask of the same shape.

    Raises:
        ModelFileError: another shape, or a value that is not finite.
    """
    check_finite(mask, f"the mask of {name}", path)
    if mask.shape != parameter.shape:
        raise ModelFileError(
            f"{path}: the mask of {name} has shape {list(mask.shape)}, {name} itself {list(parameter.shape)}. "
            "The file is damaged, or the mask belongs to another model."
        )
    return (parameter.double() * mask.double()).to(parameter.dtype)


def check_finite(tensor: Tensor, what: str, path: Path) -> None:
    """Refuse NaN and infinity among masks and gates, where they would decide what is removed; and odd tensors.

    Raises:
        ModelFileError: see above.
    """
    check_plain(tensor, what, path)
    if tensor.is_floating_point() and not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).sum())
        raise ModelFileError(
            f"{path}: {what} holds NaN or infinity ({bad} of {tensor.numel()} values); expected finite numbers. "
            "The training diverged or the file is damaged; take an earlier checkpoint."
        )


def check_length(gates: Tensor, expected: int, name: str, of: str, path: Path) -> None:
    """Gates come as one vector with an entry per unit.

    Raises:
        ModelFileError: another number of axes or entries.
    """
    if gates.shape != (expected,):
        raise ModelFileError(
            f"{path}: {name} has shape {list(gates.shape)}; expected [{expected}], one gate for each {of}. "
            "The file is damaged, or its parts belong to different models."
        )


def gate_values(log_alpha: Tensor, rule: EvaluationRule, beta: float, name: str, path: Path) -> Tensor:
    """Final values of hard-concrete gates (gamma -0.1, zeta 1.1) of any shape, in float64.

    The last axis holds the gates of one group, which matters to the top-k rule alone.

    Raises:
        ModelFileError: a value is not finite.
        OptionError: a temperature without meaning.
    """
    import torch

    from l0runtime.gates.evaluation import evaluate_gates
    from l0runtime.gates.hard_concrete import HardConcrete

    check_finite(log_alpha, name, path)
    try:
        constants = HardConcrete(beta)
    except GateParameterError as error:
        raise OptionError(f"{path}: {error}") from error
    with torch.no_grad():
        # float32 as in the original, so that a gate beside the threshold falls on the same side
        rows = [
            evaluate_gates(row, constants, rule) for row in log_alpha.float().reshape(-1, log_alpha.shape[-1]).unbind()
        ]
        return torch.stack(rows).reshape(log_alpha.shape).double()


def group_of(layer: str, z: Tensor, rule: str | None) -> GateGroup:
    """What the gates of one layer leave."""
    return GateGroup(layer, z.numel(), int((z != 0).sum()), rule)


def group_of_mask(layer: str, mask: Tensor) -> GateGroup:
    """What a mask of single weights leaves: units (rows of the weight) with at least one weight."""
    return group_of(layer, mask.reshape(mask.shape[0], -1).ne(0).any(1), None)


def take_options(
    file: Candidate, options: SourceOptions, format: str, known: Mapping[str, tuple[Callable[[str], Value], str]]
) -> dict[str, Value]:
    """The options of one format, parsed.

    Args:
        known: per option its parser, which raises ValueError, and what it expects in words.
    Raises:
        OptionError: an unknown option, or a value that its parser refuses.
    """
    found: dict[str, Value] = {}
    for key, text in options.extra.items():
        if key not in known:
            raise OptionError(
                f"{file.path}: format {format} has no option {key!r}; it has {', '.join(known) or 'none'}."
            )
        parse, expected = known[key]
        try:
            found[key] = parse(text)
        except ValueError:
            raise OptionError(f"{file.path}: option {key}={text}: expected {expected}.") from None
    return found


def one_of(*choices: str) -> tuple[Callable[[str], str], str]:
    """Parser and expectation of an option that takes one of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse, _listed(choices)


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
