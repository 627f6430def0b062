"""Which axes of a module's inputs may vary, besides being told so?

The module is asked, by running it: on a batch of another size, and on larger images or longer sequences. What fails,
or gives an output whose first axis is no longer the batch, stays fixed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# by how much an image or a sequence grows when the module is asked whether its size may vary: multiples of 32 suit
# every usual total stride, and different steps tell height from width
_SIZE_STEPS = {"height": 32, "width": 64, "depth": 96, "length": 32}


def size_axes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the size axes that the inputs have besides the batch, e.g. ("height", "width")."""
    names: list[str] = []
    for tensor in tensors_in(args, kwargs):
        names.extend(name for name in axis_names(tensor).values() if name != "batch" and name not in names)
    return tuple(names)


def axis_names(tensor: torch.Tensor) -> dict[int, str]:
    """Axis to name: 0 is the batch; images have height and width, volumes depth too, integer matrices a length."""
    if tensor.dim() == 0:
        return {}
    names = {0: "batch"}
    if tensor.is_floating_point() and tensor.dim() == 4:
        names |= {2: "height", 3: "width"}
    elif tensor.is_floating_point() and tensor.dim() == 5:
        names |= {2: "depth", 3: "height", 4: "width"}
    elif not tensor.is_floating_point() and tensor.dim() == 2:
        names |= {1: "length"}
    return names


def name_dynamic_axes(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: set[str]) -> Any:
    """The same tree as the inputs, with {axis: name} for every tensor; torch.export refuses if one is not dynamic."""
    import torch
    from torch.utils import _pytree as pytree

    def name_axes(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        return {axis: name for axis, name in axis_names(leaf).items() if name in axes}

    if not kwargs:
        return pytree.tree_map(name_axes, args)
    by_name = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(name_axes, value) for name, value in by_name.items()}


def size_steps(axes: Sequence[str]) -> dict[str, int]:
    """By how much each size axis grows when the module is asked whether it may vary."""
    return {axis: _SIZE_STEPS[axis] for axis in axes}


def resized(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Mapping[str, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with "batch" set to a size and every other named axis grown by one, by repeating their values."""

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        for axis, name in axis_names(tensor).items():
            if name in change:
                shape[axis] = change[name] + (0 if name == "batch" else shape[axis])
        return _tile(tensor, shape)

    return map_tensors(args, resize), map_tensors(dict(kwargs), resize)


def why_not(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Run the module on resized inputs; None if it works, else the reason in a few words.

    A wrong batch axis in an output counts as a refusal: `view(-1, 640)` after a pooling of fixed size turns a larger
    image into more rows without an error.
    """
    import torch

    batched = [tensor for tensor in tensors_in(args, kwargs) if tensor.dim()]
    if not batched:
        return "no input has a batch axis"
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = module(*args, **kwargs)
    except Exception as error:  # the module's own code may fail in any way
        return f"{type(module).__name__}: {first_line(error)}"
    batch = batched[0].shape[0]
    wrong = [tensor for tensor in tensors_in(outputs, {}) if tensor.dim() and tensor.shape[0] != batch]
    return f"an output has shape {list(wrong[0].shape)} for a batch of {batch}" if wrong else None


def _tile(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Repeat a tensor along each axis and cut it to `shape`: values stay in the range that they come from."""
    repeats = [-(-new // old) if old else 1 for new, old in zip(shape, tensor.shape, strict=True)]
    tiled = tensor.repeat(repeats)
    for axis, size in enumerate(shape):
        tiled = tiled.narrow(axis, 0, size)
    return tiled.contiguous()


def tensors_in(args: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves((args, dict(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def map_tensors(tree: Any, change: Any) -> Any:
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf, tree)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
