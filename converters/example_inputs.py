"""Which inputs can a module be run on, when nobody says?

From a shape that the user writes (`1x28x28`), or by trial: the first layer says how many channels or features it
reads, and images of the usual sizes are tried until one runs.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

from l0runtime.errors import InputError, OptionError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

# square images, in the order in which they are tried: CIFAR, MNIST, ImageNet, then smaller and larger ones
_IMAGE_SIZES = (32, 28, 224, 64, 96, 128, 16, 8, 256, 384)
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
_SHAPE = re.compile(r"(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+))?")


def parse_inputs(texts: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Random tensors for shapes written as `2x1x28x28` or `2x16:int64`, batch first; float32 unless told.

    Floats are standard normal, integers 0 (an index that every table has), bools true.

    Raises:
        OptionError: malformed, a size of 0, or an unknown dtype.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for text in texts:
        match = _SHAPE.fullmatch(text)
        dtype_name = (match["dtype"] or "float32") if match else ""
        shape = [int(size) for size in match["shape"].split("x")] if match else []
        if dtype_name not in _DTYPES or 0 in shape:
            raise OptionError(
                f"input {text!r}: expected sizes of at least 1 joined by x, batch first, and after a colon one of "
                f"{', '.join(_DTYPES)}; e.g. 1x3x224x224 or 1x128:int64."
            )
        dtype: torch.dtype = getattr(torch, dtype_name)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.full(shape, dtype == torch.bool, dtype=dtype))
    return tuple(tensors)


def find_example_inputs(module: Module) -> tuple[tuple[torch.Tensor, ...], str]:
    """One input on which the module runs, and a note for the report that names its shape.

    Raises:
        InputError: none of the usual shapes works.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = _candidate_shapes(module)
    for shape in shapes:
        example = torch.randn(shape, generator=generator)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module(example)
        except Exception:  # forward may fail in any way on a shape it is not made for
            continue
        return (example,), f"the example input, {_written(shape)}, was found by trial; --input SHAPE sets another"
    tried = ", ".join(_written(shape) for shape in shapes) or "none, for its first layer is neither linear nor a conv"
    raise InputError(
        f"{type(module).__name__}: runs on none of the usual inputs (tried {tried}). "
        "Give example_inputs, or --input SHAPE on the command line."
    )


def _candidate_shapes(module: Module) -> list[tuple[int, ...]]:
    from torch import nn

    for child in module.modules():
        if isinstance(child, nn.Linear):
            return [(1, child.in_features)]
        if isinstance(child, nn.Conv1d):
            return [(1, child.in_channels, size) for size in _IMAGE_SIZES]
        if isinstance(child, nn.Conv2d):
            return [(1, child.in_channels, size, size) for size in _IMAGE_SIZES]
        if isinstance(child, nn.Conv3d):
            return [(1, child.in_channels, size, size, size) for size in _IMAGE_SIZES]
    return []


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
