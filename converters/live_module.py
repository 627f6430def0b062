"""How does a torch module that is already in memory become a gated model?

Any gate will do, as long as its value in evaluation mode does not depend on the input: the engine proves on the graph
what is constant. Gates of `l0runtime.gates` are also counted for the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from converters.sources import GatedModel, GateGroup
from l0runtime.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

FORMAT = "nn.Module"


def from_module(
    module: Module,
    example_inputs: Sequence[Any] | torch.Tensor | None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    format: str = FORMAT,
    notes: Sequence[str] = (),
) -> GatedModel:
    """A gated model from a live module, which is switched to eval mode.

    Args:
        module: the trained module; its parameters are shared, not copied.
        example_inputs: positional inputs of its forward, batch first; one tensor stands for itself in a tuple.
        example_kwargs: keyword inputs.
        format, notes: see GatedModel.
    Raises:
        InputError: no example inputs.
        UnsupportedModelError: a parameter or buffer holds NaN, or a parameter infinity; or one is not on the CPU.
    """
    import torch

    args = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs or ())
    if not args and not example_kwargs:
        raise InputError(
            f"{format}: no example inputs. Give one tensor per positional input of {type(module).__name__}.forward, "
            "batch first (example_inputs, or --input SHAPE on the command line)."
        )
    module.eval()
    check_tensors(dict(module.named_parameters()), dict(module.named_buffers()))
    return GatedModel(
        format=format,
        module=module,
        example_inputs=args,
        example_kwargs=dict(example_kwargs or {}),
        gates=gates_of(module),
        notes=tuple(notes),
    )


def gates_of(module: Module) -> tuple[GateGroup, ...]:
    """The gate groups of `l0runtime.gates` in a module, in the order of its modules."""
    from l0runtime.gates.gate import Gate

    groups = []
    for name, child in module.named_modules():
        if isinstance(child, Gate):
            place = getattr(child, "place", None)  # gates that `attach` put in are named after where they stand
            layer = place.name if place is not None else name.removesuffix(".gate") or "gate"
            groups.append(GateGroup(layer, child.size, child.kept_count(), child.rule))
    return tuple(groups)


def check_tensors(parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
    """Refuse what no conversion can make sense of: NaN anywhere, infinite parameters, tensors on another device.

    Raises:
        UnsupportedModelError: see above.
    """
    for name, tensor in [*parameters.items(), *buffers.items()]:
        if tensor.device.type != "cpu":
            raise UnsupportedModelError(
                f"{name}: is on device {tensor.device}; expected cpu. Call module.cpu() before the conversion."
            )
        if not tensor.dtype.is_floating_point:
            continue
        # buffers may hold -inf on purpose, as attention masks do
        bad, kind = _count_non_finite(tensor, infinity_too=name in parameters)
        if bad:
            raise UnsupportedModelError(
                f"{name}: {bad} of {tensor.numel()} values are {kind}; expected finite numbers. "
                "The training diverged or the file is damaged; take an earlier checkpoint."
            )


def _count_non_finite(tensor: torch.Tensor, infinity_too: bool) -> tuple[int, str]:
    nan = int(tensor.isnan().sum())
    if nan or not infinity_too:
        return nan, "NaN"
    return int(tensor.isinf().sum()), "infinite"
