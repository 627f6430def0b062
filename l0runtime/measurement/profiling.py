"""Where does the time go, node by node, and what keeps a compact model from gaining more?

Times come from onnxruntime's own profiler, so nodes are those of the optimised graph (fused, renamed). Each is set
against what this machine can do: its multiply-accumulates against the rate of a large matrix product, its bytes
against the rate of an elementwise operator inside the cache, both measured here with the same threads.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l0runtime.measurement.layer_names import LayerNames
from l0runtime.measurement.widths import WidthPenalty, width_penalties
from l0runtime.onnx_files import read_model
from l0runtime.session import Session, load

_RUNS = 20
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Peaks:
    """What the machine can do, measured."""

    macs_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class NodeProfile:
    """A node of the optimised graph, over several runs.

    Attributes:
        name, op_type, provider: of the node.
        time_us: time of a run, the mean of the fastest quarter: on a busy machine most runs also wait for a core.
        macs: multiply-accumulates that the layer needs; 0 for elementwise work.
        bytes: of inputs, weights and outputs, each moved once.
        roofline_share: of the time that the machine needs at its best rates, in what the node took.
        layer: the module or node of the file that it comes from; empty where that is not known.
    """

    name: str
    op_type: str
    provider: str
    time_us: float
    macs: int
    bytes: int
    roofline_share: float
    layer: str = ""

    @property
    def label(self) -> str:
        """What a reader knows it by."""
        return self.layer or self.name


@dataclass(frozen=True)
class ProfileComparison:
    """Both models node by node, and in plain words what limits the gain."""

    baseline: tuple[NodeProfile, ...]
    candidate: tuple[NodeProfile, ...]
    peaks: Peaks
    widths: tuple[WidthPenalty, ...]
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare_profiles(
    baseline: Path, candidate: Path, feed: Mapping[str, Any], *, device: str, threads: int
) -> ProfileComparison:
    """Profile two models on the same inputs.

    Raises: as `l0runtime.load`.
    """
    peaks = measure_peaks(device=device, threads=threads)
    shapes = {name: array.shape for name, array in feed.items()}
    like = LayerNames(read_model(baseline, weights=False), shapes)
    theirs = profile_model(baseline, feed, peaks, device=device, threads=threads)
    ours = profile_model(candidate, feed, peaks, device=device, threads=threads, like=like)
    widths = width_penalties(candidate, shapes, device=device, threads=threads, like=like)
    return ProfileComparison(theirs, ours, peaks, widths, explain(theirs, ours, widths))


def profile_model(
    path: str | Path,
    feed: Mapping[str, Any],
    peaks: Peaks,
    *,
    device: str,
    threads: int,
    like: LayerNames | None = None,
) -> tuple[NodeProfile, ...]:
    """Run a model under onnxruntime's profiler.

    Args:
        path: the model.
        feed: its inputs.
        peaks: what the machine can do.
        device, threads: as in `l0runtime.load`.
        like: the names of the model that this one was made from.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = load(path, device=device, threads=threads, profile_prefix=Path(folder) / "profile")
        for _ in range(_RUNS + 1):
            session.run(feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    shapes = {name: array.shape for name, array in feed.items()}
    return read_profile(events, peaks, LayerNames(read_model(path, weights=False), shapes, like=like))


def read_profile(
    events: Sequence[Mapping[str, Any]], peaks: Peaks, layers: LayerNames | None = None
) -> tuple[NodeProfile, ...]:
    """Nodes in the order they first ran, from the events of onnxruntime's profile; a node's first run is dropped.

    Args:
        events: of the profile.
        peaks: what the machine can do.
        layers: of the model's file; without it, no node knows its layer, and channels that fill up a block count as
            work.
    """
    times: dict[str, list[float]] = defaultdict(list)
    first: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            first.setdefault(name, event["args"])
            times[name].append(float(event["dur"]))
    nodes = []
    for name, args in first.items():
        warm = sorted(times[name][1:] or times[name])
        time_us = float(np.mean(warm[: -(-len(warm) // 4)]))
        inputs, outputs = _shapes(args.get("input_type_shape")), _shapes(args.get("output_type_shape"))
        macs, layer = _macs(args["op_name"], inputs, outputs), ""
        found = layers.find(name) if layers is not None and macs else None
        # filling up blocks adds work and never saves any: less than the layer's own would be another layer's
        if found is not None and (found.macs is None or found.macs <= macs):
            layer, macs = found.name, macs if found.macs is None else found.macs
        else:
            found = None
        # a weight that onnxruntime keeps re-ordered for itself is missing in its count
        parameters = max(int(args.get("parameter_size", 0)), 0 if found is None else found.weight_bytes)
        moved = parameters + sum(int(args.get(key, 0)) for key in ("activation_size", "output_size"))
        best_us = max(macs / peaks.macs_per_second, moved / peaks.bytes_per_second) * 1e6
        # the profiler counts whole microseconds; below that nothing can be said
        share = min(best_us / time_us, 1.0) if time_us >= 1 else 0.0
        nodes.append(NodeProfile(name, args["op_name"], args.get("provider", ""), time_us, macs, moved, share, layer))
    return tuple(nodes)


def explain(
    baseline: Sequence[NodeProfile], candidate: Sequence[NodeProfile], widths: Sequence[WidthPenalty]
) -> tuple[str, ...]:
    """Plain sentences on what limits the gain."""
    sentences = []
    before, after = (sum(node.time_us for node in nodes) for nodes in (baseline, candidate))
    macs_before, macs_after = (sum(node.macs for node in nodes) for nodes in (baseline, candidate))
    if macs_after and after and macs_before:
        sentences.append(
            f"Multiply-accumulates fell {macs_before / macs_after:.2f} times, time inside operators "
            f"{before / after:.2f} times."
        )
    if after and before:
        rest_before = sum(node.time_us for node in baseline if not node.macs) / before
        rest_after = sum(node.time_us for node in candidate if not node.macs) / after
        if rest_after > 0.1:
            sentences.append(
                f"Operators without contractions take {rest_after:.0%} of the compact model's time "
                f"({rest_before:.0%} before): they shrink with the number of channels, contractions with its square."
            )
    if after:
        slowest = max(candidate, key=lambda node: node.time_us)
        sentences.append(
            f"{slowest.label} ({slowest.op_type}) is the slowest node: {slowest.time_us / after:.0%} of the time, "
            f"at {slowest.roofline_share:.0%} of what this machine can do."
        )
    sentences += [penalty.sentence for penalty in widths if penalty.slower_by > 0.03]
    return tuple(sentences)


def measure_peaks(*, device: str, threads: int) -> Peaks:
    """The best rates that onnxruntime reaches here: a 256 x 256 x 256 MatMul, and a Neg of 256 KiB.

    Both are short, so that on a busy machine some of their runs are undisturbed.
    """
    from onnx import parser

    size, elements = 256, 65536
    header = '<ir_version: 8, opset_import: ["": 17]>'
    matrix = f"float[{size},{size}]"
    product = parser.parse_model(f"{header} g ({matrix} a, {matrix} b) => ({matrix} y) {{ y = MatMul (a, b) }}")
    negate = parser.parse_model(f"{header} g (float[{elements}] a) => (float[{elements}] y) {{ y = Neg (a) }}")
    square = np.ones((size, size), np.float32)
    with_product = load(product.SerializeToString(), device=device, threads=threads)
    with_negate = load(negate.SerializeToString(), device=device, threads=threads)
    return Peaks(
        size**3 / _best_seconds(with_product, {"a": square, "b": square}, 50),
        2 * 4 * elements / _best_seconds(with_negate, {"a": np.ones(elements, np.float32)}, 200),
    )


def _best_seconds(session: Session, feed: Mapping[str, Any], runs: int) -> float:
    bound = session.bind(feed)
    best = math.inf
    for _ in range(runs):
        begin = time.perf_counter()
        bound.run()
        best = min(best, time.perf_counter() - begin)
    return best


def _shapes(entries: Any) -> list[list[int]]:
    """[{"float": [1, 3]}, ...] -> [[1, 3], ...]; an absent optional input has no entry values."""
    return [next(iter(entry.values())) if entry else [] for entry in entries or []]


def _macs(op_type: str, inputs: list[list[int]], outputs: list[list[int]]) -> int:
    """Multiply-accumulates of an optimised node from its shapes; its fused names included."""
    if not inputs or not outputs:
        return 0
    out = math.prod(outputs[0])
    if op_type in {"Conv", "FusedConv", "NhwcFusedConv"}:
        # w: [C_out, C_in / groups, *kernel], for every layout of the output
        return out * math.prod(inputs[1][1:])
    if op_type in {"Gemm", "FusedGemm"}:
        rows, columns = outputs[0][0], outputs[0][-1]
        return math.prod(inputs[0]) // rows * rows * columns
    if op_type in {"MatMul", "FusedMatMul", "TransposeMatMul"}:
        return out * inputs[0][-1]
    if op_type == "ConvTranspose":
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    return 0
