"""Which widths of a model does the machine dislike, measured: how much slower are 63 channels than 64?

Kernels work on blocks of channels. A convolution whose width is no multiple of the block falls back to a slower
algorithm, or wastes part of the last block. The cost is measured with the layer alone (layer_times.py), as it is and
rounded up to the blocks that kernels use (8 channels with 256-bit registers, 16 with 512-bit); the fastest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l0runtime.measurement.cost import shapes_of_values
from l0runtime.measurement.layer_names import LayerNames
from l0runtime.measurement.layer_times import Attribute, LayerKind, Widths, time_layer
from l0runtime.onnx_files import read_model

if TYPE_CHECKING:
    import onnx

# layers are tried in the order of their work, so that measuring stays short
_LAYERS_TRIED = 3
_BLOCKS = (8, 16)


@dataclass(frozen=True)
class WidthPenalty:
    """A layer whose width is no multiple of the block.

    Attributes:
        name: the module's where its weight tells it, else the node's.
        channels: [in, out] as they are.
        rounded: [in, out] rounded up.
        time_ms, rounded_ms: measured, the layer alone.
    """

    name: str
    channels: tuple[int, int]
    rounded: tuple[int, int]
    time_ms: float
    rounded_ms: float

    @property
    def slower_by(self) -> float:
        """0.28 if 63 channels take 28 % longer than 64."""
        return self.time_ms / self.rounded_ms - 1

    @property
    def sentence(self) -> str:
        (inputs, outputs), (wider_in, wider_out) = self.channels, self.rounded
        have, want = f"{inputs} to {outputs} channels", f"{wider_in} to {wider_out}"
        if inputs == outputs and wider_in == wider_out:
            have, want = f"{outputs} channels", f"{wider_out}"
        return f"{self.name} has {have}: {self.slower_by:.0%} slower than {want}, measured alone."


def width_penalties(
    model: onnx.ModelProto | str | Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    device: str,
    threads: int,
    like: LayerNames | None = None,
) -> tuple[WidthPenalty, ...]:
    """Measure the widest-working convolutions whose width is no multiple of the block.

    Args:
        model: of which layers are measured.
        shapes: of its inputs.
        device, threads: as in `l0runtime.load`.
        like: the names of the model that this one was made from.
    """
    proto = read_model(model, weights=False) if isinstance(model, str | Path) else model
    known, names = shapes_of_values(proto, shapes), LayerNames(proto, shapes, like=like)
    given = {value.name for value in proto.graph.input}
    candidates = []
    for node in proto.graph.node:
        if node.op_type != "Conv" or any(a.name == "group" and a.i != 1 for a in node.attribute):
            continue
        if not all(name in known for name in (node.input[0], node.input[1], node.output[0])):
            continue
        weight, out = known[node.input[1]], known[node.output[0]]
        if any(channels % block for channels in weight[:2] for block in _BLOCKS):
            candidates.append((int(np.prod(out)) * int(np.prod(weight[1:])), node))
    candidates.sort(key=lambda pair: -pair[0])
    penalties = []
    for _, node in candidates[:_LAYERS_TRIED]:
        x, weight = known[node.input[0]], known[node.input[1]]
        own = (weight[1], weight[0])
        choices = [own, *sorted(_wider(own, can_widen_inputs=node.input[0] not in given))]
        if len(choices) == 1:
            continue
        times = time_layer(_kind_of(node, x, weight), choices, device=device, threads=threads)
        best = min(range(1, len(choices)), key=times.__getitem__)
        penalties.append(WidthPenalty(names.name_of(node), own, choices[best], times[0], times[best]))
    return tuple(penalties)


def _wider(own: Widths, *, can_widen_inputs: bool) -> set[Widths]:
    """Rounded up to each block; nobody can give a photograph more than 3 channels."""
    inputs, outputs = own
    return {
        (_round_up(inputs, block) if can_widen_inputs else inputs, _round_up(outputs, block)) for block in _BLOCKS
    } - {own}


def _kind_of(node: onnx.NodeProto, x: Sequence[int], weight: Sequence[int]) -> LayerKind:
    """The convolution apart from its widths."""
    attributes: list[tuple[str, Attribute]] = []
    for attribute in node.attribute:
        if attribute.name == "auto_pad":
            attributes.append((attribute.name, attribute.s.decode()))
        elif attribute.name in ("dilations", "pads", "strides"):
            attributes.append((attribute.name, tuple(attribute.ints)))
    return LayerKind("Conv", x[0], tuple(x[2:]), tuple(weight[2:]), tuple(attributes))


def _round_up(channels: int, block: int) -> int:
    return -(-channels // block) * block
