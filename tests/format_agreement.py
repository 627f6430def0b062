"""Do a reader's module and the masked model of the original compute the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.sources.made import Made
from converters.sources import Candidate, GatedModel, SourceOptions, find_source, load_source

FILES = Path(__file__).parent / "converters" / "formats" / "files"


def load_made(made: Made) -> GatedModel:
    """The example's file, through the source that recognises it."""
    arguments = dict(made.arguments)
    options = SourceOptions(arguments.get("model"), arguments.get("example_inputs"), arguments.get("options", {}))
    return load_source(made.path, options)


def recognised(path: Path) -> str:
    """Name of the one source that recognises a file."""
    return find_source(Candidate(path)).name


def outputs(gated: GatedModel, *inputs: Tensor) -> list[Tensor]:
    """What the gated model computes."""
    assert gated.module is not None
    with torch.no_grad():
        found: Any = gated.module(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


def assert_same(gated: GatedModel, inputs: tuple[Tensor, ...], expected: Tensor) -> None:
    """Equal up to float32 rounding: sums of up to a few hundred products, in another order."""
    (found,) = outputs(gated, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def assert_same_as_masked(made: Made) -> GatedModel:
    """The reader's module against the masked model; gives what the reader made."""
    gated = load_made(made)
    with torch.no_grad():
        expected = made.masked(*made.inputs)
    assert_same(gated, made.inputs, expected)
    return gated


def resave(path: Path, change: Any) -> None:
    """Change what torch.save wrote to a file, in place."""
    content = torch.load(path, weights_only=False)  # a file of ours
    change(content)
    torch.save(content, path)
