"""How long does a layer take at other widths, on this machine: a table that is measured once and kept on disk?

A layer is measured alone, with random weights. On the CPU its time is the operator's own, from onnxruntime's profiler:
what onnxruntime adds around a lone blocked convolution (re-ordering its input and output) is not needed where its
neighbours are blocked too. On a GPU, where the profiler sees only launches, it is the best wall time of a bound run.

The table is a JSON file for each onnxruntime version, provider, number of threads and processor (or GPU); it lies in
`$L0RUNTIME_CACHE`, or in the user's cache folder. Deleting it is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l0runtime.errors import ModelFileError
from l0runtime.machine import nvidia_gpus, processor_name
from l0runtime.session import load
from l0runtime.session.devices import parse_device

if TYPE_CHECKING:
    import onnx

# each width runs at least and at most so often, in turns with the others, and no longer than so many seconds
_RUNS = (5, 25)
_SECONDS = 0.05
_CONTRACTIONS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_FORMAT = 1

Widths = tuple[int, int]  # (inputs, outputs)
Attribute = int | str | tuple[int, ...]


@dataclass(frozen=True)
class LayerKind:
    """A layer apart from its widths.

    Attributes:
        op_type: Conv, Gemm or MatMul.
        batch: examples of a Conv, rows of a Gemm or MatMul.
        space: height and width (or length) of a Conv's input; empty for the others.
        kernel: of a Conv.
        attributes: of a Conv: strides, pads, dilations, auto_pad.
        groups: of a Conv; 0 for one group for each input channel, however many there are.
        dtype: of everything, NumPy's name.
    """

    op_type: str
    batch: int
    space: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    groups: int = 1
    dtype: str = "float32"

    def key(self, widths: Widths) -> str:
        """What the table knows it by."""
        size = "x".join(map(str, (self.batch, *self.space)))
        groups = {0: " depthwise", 1: ""}.get(self.groups, f" {self.groups} groups")
        kernel = "x".join(map(str, self.kernel)) + groups
        settings = " ".join(f"{name}={value}" for name, value in self.attributes)
        return " ".join(f"{self.op_type} {self.dtype} {size} {kernel} {settings} {widths[0]}->{widths[1]}".split())


class LayerTimes:
    """The table for one device; `save` keeps what was measured.

    Args:
        device, threads: as in `l0runtime.load`.
        folder: where tables lie; None for the cache folder.
    Raises:
        ModelFileError: the table on disk is no such table.
    """

    def __init__(self, device: str, threads: int, folder: Path | None = None) -> None:
        import onnxruntime

        self._device, self._threads = device, threads
        where = parse_device(device)
        self.conditions = {
            "onnxruntime": onnxruntime.__version__,
            "provider": where.provider,
            "threads": str(threads),
            "processor": processor_name() if where.kind == "cpu" else (nvidia_gpus() or ("none",))[where.index],
        }
        name = hashlib.sha256(json.dumps(self.conditions, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder() / "layer-times") / f"{name}.json"
        self._known = self._read()
        self.measured = 0  # widths that were not in the table

    def times_ms(self, kind: LayerKind, widths: Sequence[Widths]) -> list[float]:
        """Time of the layer at each width; those that the table lacks are measured in turns."""
        missing = [pair for pair in dict.fromkeys(widths) if kind.key(pair) not in self._known]
        if missing:
            times = time_layer(kind, missing, device=self._device, threads=self._threads)
            self._known |= {kind.key(pair): found for pair, found in zip(missing, times, strict=True)}
            self.measured += len(missing)
        return [self._known[kind.key(pair)] for pair in widths]

    def save(self) -> bool:
        """Write the table, with what others have added to it meanwhile; False where the folder cannot be written to."""
        if not self.measured:
            return True
        self._known = self._read() | self._known
        content = {"format": _FORMAT, "conditions": self.conditions, "ms": dict(sorted(self._known.items()))}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(content, indent=0))
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self.path.read_text())
            if content["format"] != _FORMAT or content["conditions"] != self.conditions:
                raise ValueError("it holds other conditions")
            return {str(key): float(value) for key, value in content["ms"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(
                f"{self.path}: is no table of layer times ({error}). Delete it; it is measured again."
            ) from error


def cache_folder() -> Path:
    """`$L0RUNTIME_CACHE`, or l0runtime's part of the user's cache folder."""
    given = os.environ.get("L0RUNTIME_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "l0runtime" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "l0runtime"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l0runtime"


def time_layer(kind: LayerKind, widths: Sequence[Widths], *, device: str, threads: int) -> list[float]:
    """Time of a layer at each width, in ms, taken in turns; see the top of this file for what is timed."""
    with tempfile.TemporaryDirectory() as folder:
        profiled = parse_device(device).kind == "cpu"
        runs, sessions = [], []
        for index, pair in enumerate(widths):
            prefix = Path(folder) / f"{index:04}" if profiled else None
            session = load(layer_model(kind, pair), device=device, threads=threads, profile_prefix=prefix)
            sessions.append(session)
            runs.append(session.bind({"x": np.ones(_input_shape(kind, pair[0]), kind.dtype)}).run)
        best = [float("inf")] * len(runs)
        begin = time.perf_counter()
        for turn in range(_RUNS[1]):
            if turn >= _RUNS[0] and time.perf_counter() - begin > _SECONDS * len(runs):
                break
            for index, run in enumerate(runs):
                run()  # bring its data back into the cache
                started = time.perf_counter()
                run()
                best[index] = min(best[index], (time.perf_counter() - started) * 1e3)
        if not profiled:
            return best
        return [_kernel_ms(Path(session.end_profiling())) for session in sessions]


def _kernel_ms(profile: Path) -> float:
    """Time inside the contraction; the profiler counts whole microseconds, so the faster half is averaged."""
    events = json.loads(profile.read_text())
    times = sorted(
        float(event["dur"])
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["args"].get("op_name") in _CONTRACTIONS
    )
    return float(np.mean(times[: max(1, len(times) // 2)])) / 1e3


def layer_model(kind: LayerKind, widths: Widths) -> bytes:
    """A model `x -> y` of this one layer, with random weights that hold no zeros."""
    import onnx

    inside, outside = widths
    convolution = (outside, inside // (kind.groups or inside), *kind.kernel)
    shape = convolution if kind.op_type == "Conv" else (inside, outside)
    # a short period is enough: no kernel looks at the values, and large weights are then made in no time
    values = np.resize(np.random.default_rng(0).uniform(0.5, 1, 4099), shape).astype(kind.dtype)
    node = onnx.helper.make_node(kind.op_type, ["x", "w"], ["y"], **_attributes(kind, inside))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind.dtype))
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info("x", element, _input_shape(kind, inside))],
        [onnx.helper.make_tensor_value_info("y", element, None)],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    model: onnx.ModelProto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    return bytes(model.SerializeToString())


def _attributes(kind: LayerKind, inside: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in kind.attributes
    }
    return attributes if kind.groups == 1 else attributes | {"group": kind.groups or inside}


def _input_shape(kind: LayerKind, inside: int) -> list[int]:
    return [kind.batch, inside, *kind.space]
