"""The way back: the removal plan applied to the torch module itself, for fine-tuning after compaction.

    compacted = compact_module(model, example_inputs)
    compacted.module        a plain, smaller nn.Module with the same forward and the same function, to train further
    compacted.refused       what could have gone, but for the forward, with the reason

A forward may rely on widths in ways that no graph shows (`x.view(-1, 800)`, a loop over `self.num_heads`), so every
cut is tried: the smaller module is run beside the original, in float64 where it allows that, also on another batch size
and on larger images or longer sequences where the original takes them; what fails or gives another answer is refused.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from converters.compaction.plan import Kept
from converters.dynamic_axes import first_line, resized, size_axes, size_steps, why_not
from converters.export import export_unoptimised
from converters.live_module import check_tensors
from converters.module_plan import ModuleSolution, ParameterAxis, named
from converters.plain_copy import plain_copy
from l0runtime.errors import InputError, L0RuntimeError, NoGateError, UnsupportedModelError, VerificationError
from l0runtime.gates.resizing import resize

# In float64 nothing but rounding differs; in the module's own precision sums are made in another order.
_TOLERANCE_FLOAT64 = 1e-9
_KEPT_SHOWN = 5
_OTHER_BATCH = 3
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Refused:
    """Coupled widths that stay as they are, because the module's forward needs them.

    Args:
        parameters: names, for people.
        reason: what happened when they were cut.
    """

    parameters: str
    reason: str

    def __str__(self) -> str:
        return f"{self.parameters}: {self.reason}"


@dataclass(frozen=True)
class CompactedModule:
    """A smaller module and how it came about.

    Args:
        module: in eval mode, of plain layers, sharing nothing with the original.
        shapes: for each parameter or buffer that changed its shape, the shapes before and after.
        refused: what stays for the forward's sake, as trying it showed.
        kept: dead indices that stay because of an operator or a layer between them, the most expensive first.
        parameters_before, parameters_after: numbers of parameters, gates and masks counted on neither side.
        difference: largest difference of the outputs from the original's, relative to their scale.
    """

    module: nn.Module
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    refused: tuple[Refused, ...]
    kept: tuple[Kept, ...]
    parameters_before: int
    parameters_after: int
    difference: float

    def __str__(self) -> str:
        lines = [
            f"{self.parameters_after:,} of {self.parameters_before:,} parameters; "
            f"outputs differ by {self.difference:.1e} of their scale"
        ]
        lines += [f"  {name}: {list(before)} -> {list(after)}" for name, (before, after) in self.shapes.items()]
        lines += [f"  refused: {refused}" for refused in self.refused]
        lines += [f"  kept: {kept}" for kept in self.kept[:_KEPT_SHOWN]]
        return "\n".join(lines)


def compact_module(
    module: nn.Module,
    example_inputs: Sequence[Any] | Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> CompactedModule:
    """A smaller torch module with the same function, for inputs with finite activations.

    Gates of l0runtime.gates, masks of torch.nn.utils.prune and parametrisations are multiplied into the weights. The
    classes of the modules stay, and so does every forward; a bias may be added where there was none.

    Args:
        module: on the CPU; it stays as it is.
        example_inputs: positional inputs, batch first; one tensor stands for itself in a tuple.
        example_kwargs: keyword inputs.
    Raises:
        InputError: no example inputs, or the module does not run on them.
        NoGateError: nothing in the module is dead.
        UnsupportedModelError: torch.export cannot trace it, or its forward allows nothing of what could go.
        VerificationError: the smaller module disagrees in its own precision, although it agrees in float64.
    """
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    kwargs = dict(example_kwargs or {})
    if not args and not kwargs:
        raise InputError(
            f"compact_module: no example inputs. Give one tensor per positional input of {type(module).__name__}."
            "forward, batch first."
        )
    check_tensors(dict(module.named_parameters()), dict(module.named_buffers()))
    try:
        plain = plain_copy(module, args, kwargs)
    except L0RuntimeError:
        raise
    except Exception as error:
        raise InputError(
            f"{type(module).__name__}: does not run on its example inputs ({type(error).__name__}: "
            f"{first_line(error)}). Give inputs of the shape and dtype that it expects."
        ) from error
    inputs = _trials(plain, args, kwargs)
    search = _Search(plain, inputs)
    made, refused = search.run()
    smaller = copy.deepcopy(plain)
    resize(smaller, *made)
    difference = _difference(module, smaller, inputs)
    tolerance = _TOLERANCES.get(next((p.dtype for p in plain.parameters()), torch.float32), 1e-5)
    if not difference <= tolerance:
        raise VerificationError(
            f"{type(module).__name__}: the smaller module's outputs differ by {difference:.1e} of their scale, more "
            f"than {tolerance:.0e}; it is not returned. Please report this."
        )
    return CompactedModule(
        smaller,
        _changed_shapes(plain, smaller),
        tuple(refused),
        search.kept,
        _count(plain),
        _count(smaller),
        difference,
    )


Inputs = list[tuple[tuple[Any, ...], dict[str, Any]]]
Made = tuple[dict[str, Tensor], dict[str, int]]


class _Search:
    """Finds the largest set of cuts that the forward goes along with."""

    def __init__(self, plain: nn.Module, inputs: Inputs) -> None:
        self.name = type(plain).__name__
        self.plain, self.inputs = _doubled(plain, inputs)
        self.tolerance = _TOLERANCE_FLOAT64 if self.plain is not plain else _TOLERANCES[torch.float32]
        self.model = export_unoptimised(self.plain, *self.inputs[0])
        self.expected = [_outputs(self.plain, args, kwargs) for args, kwargs in self.inputs]
        self.groups: list[frozenset[ParameterAxis]] = []
        self.kept: tuple[Kept, ...] = ()

    def run(self) -> tuple[Made, list[Refused]]:
        """The new tensors, and what was refused.

        Raises:
            NoGateError, UnsupportedModelError: see `compact_module`.
        """
        self.solve([])
        groups = self.groups
        if not groups and self.kept:
            raise UnsupportedModelError(
                f"{self.name}: nothing that is dead can be removed from the module ({self.kept[0]}). "
                "Convert it to ONNX instead."
            )
        if not groups:
            raise NoGateError(
                f"{self.name}: no gate is closed and no channel is exactly zero, so nothing can be removed from the "
                "module."
            )
        made = self.attempt([])
        if not isinstance(made, str):
            return made, []
        refused: list[tuple[frozenset[ParameterAxis], str]] = []
        self.narrow(groups, refused, made)
        stay = [group for group, _ in refused]
        made = "nothing is left to cut" if len(refused) == len(groups) else self.attempt(stay)
        reasons = [Refused(named(group), reason) for group, reason in refused]
        if isinstance(made, str):
            raise UnsupportedModelError(
                f"{self.name}: its forward does not allow smaller widths ({'; '.join(map(str, reasons[:3]))}). "
                "Read the widths off the tensors there (x.flatten(1) for x.view(-1, 800)), or convert it to ONNX."
            )
        return made, reasons

    def narrow(
        self,
        groups: list[frozenset[ParameterAxis]],
        refused: list[tuple[frozenset[ParameterAxis], str]],
        failure: str,
    ) -> None:
        """Find the groups that fail by themselves; layers of the same name in a row are tried together first."""
        if len(groups) == 1:
            refused.append((groups[0], failure))
            return
        for part in _parts(groups):
            others = [group for group in self.groups if group not in part]
            result = self.attempt(others)
            if isinstance(result, str):
                self.narrow(part, refused, result)

    def solve(self, stay: Sequence[frozenset[ParameterAxis]]) -> ModuleSolution:
        """The engine's answer where the axes of these groups stay whole."""
        keep = {(name, dim): self._whole(name, dim) for group in stay for name, dim in group}
        solution = ModuleSolution(self.model.clone(), self.plain, keep)
        if not stay:
            self.groups, self.kept = solution.groups(), solution.kept()
        return solution

    def attempt(self, stay: Sequence[frozenset[ParameterAxis]]) -> Made | str:
        """New tensors that were tried and found right, or what went wrong."""
        plan = self.solve(stay).carry_out()
        made = {name: torch.from_numpy(array.copy()) for name, array in plan.tensors.items()}, dict(plan.groups)
        smaller = copy.deepcopy(self.plain)
        try:
            resize(smaller, *made)
            found = [_outputs(smaller, args, kwargs) for args, kwargs in self.inputs]
        except Exception as error:  # the forward is the user's own and may fail in any way on other widths
            return f"its forward fails on fewer ({type(error).__name__}: {first_line(error)})"
        difference = max(map(_relative_difference, self.expected, found))
        if not difference <= self.tolerance:
            return f"with fewer its forward gives another answer (by {difference:.1e} of its scale)"
        return made

    def _whole(self, name: str, dim: int) -> Any:
        import numpy as np

        tensors = {**dict(self.plain.named_parameters()), **dict(self.plain.named_buffers())}
        return np.ones(tensors[name].shape[dim], bool)


def _parts(groups: list[frozenset[ParameterAxis]]) -> list[list[frozenset[ParameterAxis]]]:
    """Groups by the name that they share but for layer numbers; halves where all share one."""
    by_pattern: dict[str, list[frozenset[ParameterAxis]]] = {}
    for group in groups:
        by_pattern.setdefault(re.sub(r"\d+", "*", min(name for name, _ in group)), []).append(group)
    if len(by_pattern) > 1:
        return list(by_pattern.values())
    return [groups[: len(groups) // 2], groups[len(groups) // 2 :]]


# --- running -----------------------------------------------------------------------------------------------------


def _doubled(plain: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Module and inputs in float64, or as they are where the forward does not take it."""
    double = copy.deepcopy(plain).double()
    cast: Inputs = [pytree.tree_map(_to_double, pair) for pair in inputs]
    try:
        for args, kwargs in cast:
            _outputs(double, args, kwargs)
    except Exception:  # a forward may insist on float32 in any way
        return plain, inputs
    return double, cast


def _to_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _trials(plain: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """The example, random numbers in its place, and other sizes that the original takes: batch, images, sequences."""
    sizes = size_axes(args, kwargs)
    changes = [{"batch": _OTHER_BATCH}, *([dict.fromkeys(sizes, 1), size_steps(sizes)] if sizes else [])]
    resizings = [resized(args, kwargs, change) for change in changes]
    return [(args, kwargs), _random_like(args, kwargs), *(r for r in resizings if why_not(plain, *r) is None)]


def _random_like(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random numbers in place of floating-point inputs, which as examples are often zeros."""
    generator = torch.Generator().manual_seed(0)

    def redraw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)

    redrawn: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(redraw, (args, kwargs))
    return redrawn


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]


def largest_difference(original: nn.Module, other: nn.Module, args: tuple[Any, ...]) -> float:
    """Of two modules' outputs in their present modes, relative to the outputs' scale; on `args` and on random ones."""
    inputs = [(args, dict[str, Any]()), _random_like(args, {})]
    return max(_relative_difference(_outputs(original, *pair), _outputs(other, *pair)) for pair in inputs)


def _difference(original: nn.Module, smaller: nn.Module, inputs: Inputs) -> float:
    modes = [(child, child.training) for child in original.modules()]
    original.eval()
    try:
        return max(
            _relative_difference(_outputs(original, args, kwargs), _outputs(smaller, args, kwargs))
            for args, kwargs in inputs
        )
    finally:
        for child, training in modes:
            child.training = training


def _relative_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference relative to each output's scale; infinite where shapes differ or a number is not finite."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            scale = float(one.double().abs().max()) or 1.0
            difference = float((one.double() - other.double()).abs().max()) / scale
            largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _changed_shapes(before: nn.Module, after: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    old = dict([*before.named_parameters(), *before.named_buffers()])
    new = dict([*after.named_parameters(), *after.named_buffers()])
    return {
        name: (tuple(old[name].shape) if name in old else (), tuple(tensor.shape))
        for name, tensor in new.items()
        if name not in old or old[name].shape != tensor.shape
    }
