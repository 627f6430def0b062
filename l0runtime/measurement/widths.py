"""Which widths of a model does the machine dislike, measured: how much slower are 63 channels than 64?

Kernels work on blocks of channels. A convolution whose width is no multiple of the block falls back to a slower
algorithm, or wastes part of the last block. The cost is measured with the layer alone, as it is and rounded up to the
blocks that kernels use (8 channels with 256-bit registers, 16 with 512-bit); the faster of those counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l0runtime.measurement.cost import shapes_of_values
from l0runtime.onnx_files import read_model
from l0runtime.session import load

if TYPE_CHECKING:
    import onnx

# layers are tried in the order of their work, so that measuring stays short
_LAYERS_TRIED = 3
_BLOCKS = (8, 16)
_RUNS = 15


@dataclass(frozen=True)
class WidthPenalty:
    """A layer whose width is no multiple of the block.

    Attributes:
        name: of the node.
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
        have = f"{self.channels[0]} to {self.channels[1]}"
        want = f"{self.rounded[0]} to {self.rounded[1]}"
        return f"{self.name} has {have} channels: alone it is {self.slower_by:.0%} slower than {want}."


def width_penalties(
    model: onnx.ModelProto | str | Path, shapes: Mapping[str, Sequence[int]], *, device: str, threads: int
) -> tuple[WidthPenalty, ...]:
    """Measure the widest-working convolutions whose width is no multiple of the block."""
    proto = read_model(model, weights=False) if isinstance(model, str | Path) else model
    known = shapes_of_values(proto, shapes)
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
        larger = {(_round_up(own[0], block), _round_up(own[1], block)) for block in _BLOCKS} - {own}
        choices = [own, *sorted(larger)]
        times = _time_layers(node, x, weight, choices, device=device, threads=threads)
        best = min(range(1, len(choices)), key=times.__getitem__)
        penalties.append(WidthPenalty(node.name or node.output[0], own, choices[best], times[0], times[best]))
    return tuple(penalties)


def _time_layers(
    node: onnx.NodeProto,
    x: Sequence[int],
    weight: Sequence[int],
    widths: Sequence[tuple[int, int]],
    *,
    device: str,
    threads: int,
) -> list[float]:
    """Best time of the layer at each width, in ms, taken in turns."""
    runs = []
    for channels in widths:
        model = _layer(node, x, weight, channels)
        feed = {"x": np.ones((x[0], channels[0], *x[2:]), np.float32)}
        runs.append(load(model, device=device, threads=threads).bind(feed).run)
    best = [float("inf")] * len(runs)
    for _ in range(_RUNS):
        for index, run in enumerate(runs):
            run()  # bring its data back into the cache
            begin = time.perf_counter()
            run()
            best[index] = min(best[index], (time.perf_counter() - begin) * 1e3)
    return best


def _layer(node: onnx.NodeProto, x: Sequence[int], weight: Sequence[int], channels: tuple[int, int]) -> bytes:
    """A model of this one convolution with other channel numbers and random weights."""
    import onnx

    inside, outside = channels
    values = np.random.default_rng(0).standard_normal((outside, inside, *weight[2:])).astype(np.float32)
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    conv.attribute.extend(node.attribute)
    graph = onnx.helper.make_graph(
        [conv],
        "layer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [x[0], inside, *x[2:]])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _round_up(channels: int, block: int) -> int:
    return -(-channels // block) * block
