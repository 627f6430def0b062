"""Shapes are read as people write them, and found by trial where nobody does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converters.example_inputs import find_example_inputs, parse_inputs
from l0runtime.errors import InputError, OptionError


def test_shapes_and_dtypes_are_read() -> None:
    image, tokens, mask = parse_inputs(("2x3x8x8", "1x16:int64", "1x16:bool"))
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert (image < 0).any()
    assert (tokens.dtype, tokens.max()) == (torch.int64, 0)
    assert (mask.dtype, bool(mask.all())) == (torch.bool, True)


@pytest.mark.parametrize("text", ["", "3x", "3x0", "3,4", "3x4:complex64", "-1x3", "3x4:"])
def test_a_malformed_shape_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_inputs((text,))
    assert str(caught.value) == (
        f"input {text!r}: expected sizes of at least 1 joined by x, batch first, and after a colon one of "
        "float32, float64, float16, bfloat16, int64, int32, int8, uint8, bool; e.g. 1x3x224x224 or 1x128:int64."
    )


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(7, 2)), (1, 7)),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), (1, 3, 32, 32)),
        (nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 2)), (1, 1, 28, 28)),
        (nn.Sequential(nn.Conv1d(4, 2, 3)), (1, 4, 32)),
    ],
)
def test_the_first_usual_shape_is_taken_on_which_the_module_runs(module: nn.Module, shape: tuple[int, ...]) -> None:
    (example,), note = find_example_inputs(module)
    assert tuple(example.shape) == shape
    written = "x".join(map(str, shape))
    assert note == f"the example input, {written}, was found by trial; --input SHAPE sets another"


def test_a_module_that_runs_on_no_usual_shape_asks_for_one() -> None:
    with pytest.raises(InputError) as caught:
        find_example_inputs(nn.Bilinear(2, 3, 4))
    assert str(caught.value) == (
        "Bilinear: runs on none of the usual inputs (tried none, for its first layer is neither linear nor a conv). "
        "Give example_inputs, or --input SHAPE on the command line."
    )
